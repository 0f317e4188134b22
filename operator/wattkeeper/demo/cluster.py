"""The cluster of the demo: embedded API, its controllers and kubelets, and the objects of the example."""

from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from kubernetes import client

from wattkeeper.actuators import engine_args
from wattkeeper.api import schema
from wattkeeper.api.base import GROUP, VERSION
from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.embedded.server import EmbeddedApi
from wattkeeper.embedded.workloads import Workloads
from wattkeeper.twin import hardware
from wattkeeper.twin.kube import connect

Json = dict[str, Any]
SHUTDOWN_SECONDS = 15.0
"""Simulated time from the deletion of a pod to its end: requests in flight, then the engine's teardown."""


class DemoCluster:
    """Use as a context. Pods become Ready `startup_seconds` of simulated time after they were scheduled."""

    def __init__(self, *, folder: Path, startup_seconds: float, speed: float, model: str, accelerator: str) -> None:
        self._startup_seconds, self._model, self._accelerator = startup_seconds, model, accelerator
        self._api = EmbeddedApi()
        self._workloads = Workloads(
            self._api.registry,
            startup_seconds=self._startup,
            shutdown_seconds=lambda _pod: SHUTDOWN_SECONDS,
            seconds_scale=1.0 / speed,
        )
        self.kubeconfig = folder / "kubeconfig"

    def __enter__(self) -> Self:
        self._api.start()
        self._api.write_kubeconfig(self.kubeconfig)
        self._workloads.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._workloads.stop()
        self._api.stop()

    def apply(self, objects: Iterable[Json]) -> None:
        """Create the CRDs and the objects, in the given order, namespaces and nodes first."""
        api = connect(self.kubeconfig)
        extensions: Any = client.ApiextensionsV1Api(api)
        core: Any = client.CoreV1Api(api)
        apps: Any = client.AppsV1Api(api)
        custom = client.CustomObjectsApi(api)
        for text in schema.crd_files().values():
            extensions.create_custom_resource_definition(yaml.safe_load(text))
        create: dict[str, Callable[[str, Json], object]] = {
            "Namespace": lambda _, body: core.create_namespace(body),
            "Node": lambda _, body: core.create_node(body),
            "Pod": core.create_namespaced_pod,
            "Deployment": apps.create_namespaced_deployment,
            "InferenceService": lambda namespace, body: custom.create_namespaced_custom_object(
                GROUP, VERSION, namespace, "inferenceservices", body
            ),
        }
        order = list(create)
        for item in sorted(objects, key=lambda each: order.index(each["kind"])):
            create[item["kind"]](item["metadata"].get("namespace", ""), item)

    def _startup(self, pod: Json) -> float | None:
        """Seconds until the pod is Ready; None where vLLM would refuse its arguments and crash."""
        if not any(engine_args.gpus(container) for container in pod["spec"]["containers"]):
            return 0.0
        try:
            engine = engine_args.read_engine(pod["spec"])
            hardware.replica_hardware(model=self._model, accelerator=self._accelerator, engine=engine)
        except WattkeeperError:
            return None
        return self._startup_seconds
