"""The scale benchmark: a made-up fleet on an API server, and the real operator in a process of its own."""

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from wattkeeper.api import schema
from wattkeeper.api.base import GROUP, VERSION
from wattkeeper.bench import agents, objects, operator, result
from wattkeeper.controller import kube
from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.embedded.server import EmbeddedApi
from wattkeeper.embedded.workloads import Workloads
from wattkeeper.telemetry.synthetic import SyntheticService, SyntheticSource

_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_REPORT_SECONDS = 15.0
_STOP_SECONDS = 60.0
_START_PASSES = 12
"""Passes that the start may take, on top of those asked for."""


@dataclass(frozen=True, kw_only=True)
class ScaleSettings:
    """What to run."""

    services: int
    pods_per_service: int = 2
    passes: int = 20
    tick_seconds: float = 15.0
    day_seconds: float = 3600.0
    """Period of the made-up traffic: a day in an hour, so that plans move while one watches."""
    core: int | None = None
    replay_workers: int = 1
    kubeconfig: Path | None = None
    """None: an API server in this process, for small fleets."""
    ready_timeout_seconds: float = 600.0
    seed: int = 0


def run(settings: ScaleSettings, *, tell: Callable[[str], None] = lambda _: None) -> result.ScaleResult:
    """Make the fleet, run the operator, and return the figures; `tell` hears what is going on.

    The objects stay: the cluster is expected to be a throw-away one. Raises WattkeeperError.
    """
    with _cluster(settings.kubeconfig) as (kubeconfig, api):
        connection = kube.Kube(api=kube.load_client(str(kubeconfig)))
        objects.check_nodes(connection)
        _make_kinds(connection)
        objects.check_empty(connection)
        began = time.monotonic()
        services = SyntheticSource(
            services=settings.services, pods_per_service=settings.pods_per_service, seed=settings.seed
        ).services
        tell(f"creating {len(services):,} services on {api}")
        nodes = objects.make(connection, services)
        _wait_ready(connection, services, settings.ready_timeout_seconds, tell)
        with agents.Agents(connection, nodes, report_seconds=_REPORT_SECONDS):
            setup_seconds = time.monotonic() - began
            tell(f"ready after {setup_seconds:.0f} s; the operator runs for {settings.passes} steady passes")
            samples = _operate(settings, kubeconfig)
    try:
        return result.summarise(
            samples,
            services=len(services),
            pods=sum(len(service.pods) for service in services),
            nodes=len(nodes),
            api=api,
            core=settings.core,
            tick_seconds=settings.tick_seconds,
            setup_seconds=setup_seconds,
        )
    except ValueError as error:
        raise WattkeeperError(str(error)) from error


@contextmanager
def _cluster(kubeconfig: Path | None) -> Iterator[tuple[Path, str]]:
    """A kubeconfig and what it leads to."""
    if kubeconfig is not None:
        version = kube.Kube(api=kube.load_client(str(kubeconfig))).get("/version")
        yield kubeconfig, f"kube-apiserver {version['gitVersion']}"
        return
    with (
        tempfile.TemporaryDirectory(prefix="wattkeeper-bench-") as folder,
        EmbeddedApi(history=100_000) as server,
        Workloads(server.registry),
    ):
        yield server.write_kubeconfig(Path(folder) / "kubeconfig"), "the embedded API"


def _make_kinds(connection: kube.Kube) -> None:
    """Create our CRDs where they are missing, and wait until they are served."""
    for text in schema.crd_files().values():
        try:
            connection.create(_CRDS, yaml.safe_load(text))
        except kube.KubeConflictError:
            continue
    deadline = time.monotonic() + 30.0
    for resource in schema.RESOURCES:
        path = kube.path_of(resource.plural, group=GROUP, version=VERSION, namespace=None)
        while True:
            try:
                connection.get(path)
                break
            except kube.KubeNotFoundError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)


def _wait_ready(
    connection: kube.Kube, services: tuple[SyntheticService, ...], timeout_seconds: float, tell: Callable[[str], None]
) -> None:
    """Until every Deployment has its replicas ready."""
    path = kube.path_of("deployments", group="apps", version="v1", namespace=None)
    wanted = sum(len(service.pods) for service in services)
    deadline = time.monotonic() + timeout_seconds
    while True:
        found = connection.get(path)["items"]
        ready = sum((item.get("status") or {}).get("readyReplicas") or 0 for item in found)
        if ready >= wanted:
            return
        if time.monotonic() > deadline:
            raise WattkeeperError(
                f"{ready} of {wanted} pods are ready after {timeout_seconds:.0f} s: does kwok run, and the scheduler?"
            )
        tell(f"{ready:,} of {wanted:,} pods are ready")
        time.sleep(min(5.0, 0.2 + wanted / 400))


def _operate(settings: ScaleSettings, kubeconfig: Path) -> list[operator.Sample]:
    """Run the operator in a process of its own and return its samples."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    job = operator.OperatorJob(
        kubeconfig=str(kubeconfig),
        services=settings.services,
        pods_per_service=settings.pods_per_service,
        seed=settings.seed,
        tick_seconds=settings.tick_seconds,
        steady_passes=settings.passes,
        most_passes=settings.passes + _START_PASSES,
        day_seconds=settings.day_seconds,
        core=settings.core,
        replay_workers=settings.replay_workers,
    )
    process = context.Process(target=operator.serve, args=(job, theirs), name="wattkeeper-bench-operator")
    process.start()
    theirs.close()
    longest = (settings.passes + _START_PASSES) * (2 * settings.tick_seconds + 10.0) + 120.0
    try:
        if not mine.poll(longest):
            raise WattkeeperError(f"the operator did not finish its passes within {longest:.0f} s; its log is above")
        samples: list[operator.Sample] = mine.recv()
    except EOFError as error:
        process.join(_STOP_SECONDS)
        raise WattkeeperError(f"the operator ended early with code {process.exitcode}; its log is above") from error
    finally:
        mine.close()
        process.join(_STOP_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
    return samples
