"""A user's own history from Prometheus, for `wattkeeper data from-prometheus` and `wattkeeper train`."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from wattkeeper.api.inference_service import InferenceServiceSpec, TargetKind
from wattkeeper.api.service_status import InferenceServiceStatus
from wattkeeper.cli.errors import explained
from wattkeeper.domain import whole_file
from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.telemetry import run_rows
from wattkeeper.telemetry.prometheus import PrometheusSettings
from wattkeeper.telemetry.promql import QuerySettings
from wattkeeper.telemetry.run_history import HistorySpan
from wattkeeper.telemetry.run_rows import Deployment, OwnHistory

Services = Annotated[
    list[str] | None, typer.Option("--service", metavar="NAMESPACE/NAME", help="InferenceService; repeat for more.")
]
Status = Annotated[
    Path | None,
    typer.Option(
        "--status",
        metavar="FILE",
        help="Read the InferenceServices from what `kubectl get wis -o yaml` wrote, not from a cluster.",
    ),
]
Namespace = Annotated[str | None, typer.Option(help="Of the pods, where no --service is given.")]
Pods = Annotated[str | None, typer.Option(help="Regular expression for whole names of pods; needs --namespace.")]
Model = Annotated[str | None, typer.Option(help="Model; default: of the InferenceService, else as the engines say.")]
Gpu = Annotated[str | None, typer.Option(help="Card; default: of the InferenceService, else as DCGM says.")]
Gpus = Annotated[int | None, typer.Option(min=1, help="GPUs per replica; default: as seen.")]
Precision = Annotated[str | None, typer.Option(help="Of the weights, such as fp8; default: as the model's name says.")]
Since = Annotated[str, typer.Option(help="From when: a time such as 2026-11-01T00:00:00Z, or so long ago: 36h, 7d.")]
Until = Annotated[str, typer.Option(help="Until when: likewise; 0h is now.")]
TokenFile = Annotated[Path | None, typer.Option(help="Bearer token, read at every request.")]
CaFile = Annotated[Path | None, typer.Option(help="CA bundle of Prometheus.")]

_AGO = re.compile(r"(\d+(?:\.\d+)?)([mhd])")
_UNIT_SECONDS = {"m": 60.0, "h": 3600.0, "d": 86400.0}
_POD_NAMES = {TargetKind.DEPLOYMENT: "{}-[a-z0-9]+-[a-z0-9]{{5}}", TargetKind.STATEFUL_SET: "{}-[0-9]+"}
_PREFIXES = ("vllm:", "kserve_vllm:")


@dataclass(frozen=True, kw_only=True)
class Said:
    """What was said of all pods that are chosen; None: taken from elsewhere."""

    model: str | None = None
    gpu: str | None = None
    gpus: int | None = None
    precision: str | None = None
    engine_matchers: tuple[str, ...] = ()


@explained
def from_prometheus(
    url: Annotated[str, typer.Argument(help="Prometheus, such as http://localhost:9090.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV file to write; `train --rows` reads it.")],
    service: Services = None,
    status: Status = None,
    kubeconfig: Annotated[
        str | None, typer.Option(envvar="KUBECONFIG", help="Left out: the pod's ServiceAccount.")
    ] = None,
    context: Annotated[str | None, typer.Option(help="Context of the kubeconfig.")] = None,
    namespace: Namespace = None,
    pods: Pods = None,
    model: Model = None,
    gpu: Gpu = None,
    gpus: Gpus = None,
    precision: Precision = None,
    since: Since = "7d",
    until: Until = "0h",
    step: Annotated[
        float, typer.Option(min=5.0, max=120.0, help="Seconds; at least the scrape interval of the GPU exporter.")
    ] = 30.0,
    per_point: Annotated[int, typer.Option(min=1, help="Most runs of one operating point.")] = run_rows.PER_POINT,
    selector: Annotated[
        list[str] | None, typer.Option(help='Matcher of the engines\' series, such as model_name="m"; repeatable.')
    ] = None,
    matcher: Annotated[
        list[str] | None, typer.Option(help='Matcher of all series, such as cluster="east"; repeatable.')
    ] = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one query.")] = 60.0,
) -> None:
    """Write steady runs out of your own Prometheus as rows that `train --rows` takes, and say what was left out.

    Name InferenceServices (--service), or pods (--namespace and --pods). docs/data.md says how runs are chosen.
    """
    said = Said(model=model, gpu=gpu, gpus=gpus, precision=precision, engine_matchers=tuple(selector or ()))
    chosen = (
        of_services(service, said, status=status, kubeconfig=kubeconfig, context=context)
        if service
        else of_pods(namespace, pods, said)
    )
    collect(
        _settings(url, matchers=tuple(matcher or ()), token_file=token_file, ca_file=ca_file, timeout=timeout),
        span(since, until, step_seconds=step),
        chosen,
        output,
        per_point=per_point,
        tell=typer.echo,
    )


def of_services(
    services: Sequence[str], said: Said, *, status: Path | None, kubeconfig: str | None, context: str | None
) -> list[Deployment]:
    """Deployments of InferenceServices, from a file or from the cluster.

    Raises WattkeeperError: a name is none, or there is no such service.
    """
    from wattkeeper.cli import live_service

    found = []
    for service in services:
        namespace, separator, name = service.partition("/")
        if not (separator and namespace and name):
            raise WattkeeperError(f"{service!r} names no InferenceService: write NAMESPACE/NAME")
        objects = (
            live_service.from_cluster(namespace, name, kubeconfig, context, with_profile=False)
            if status is None
            else live_service.from_file(status)
        )
        spec, live, _ = live_service.parsed(service, objects)
        found.append(_of_service(service, spec, live, said))
    return found


def _of_service(service: str, spec: InferenceServiceSpec, status: InferenceServiceStatus, said: Said) -> Deployment:
    return Deployment(
        name=service,
        namespace=service.partition("/")[0],
        pods=_POD_NAMES[spec.target_ref.kind].format(re.escape(spec.target_ref.name)),
        model=said.model or spec.model,
        gpu=said.gpu or spec.accelerator.type or status.profile.accelerator or None,
        gpus=said.gpus or spec.accelerator.per_replica or status.profile.gpus_per_replica,
        precision=said.precision,
        engine_matchers=said.engine_matchers,
    )


def of_pods(namespace: str | None, pods: str | None, said: Said) -> list[Deployment]:
    """The deployment of pods of a namespace. Raises WattkeeperError: neither is given, or the pattern is none."""
    if namespace is None or pods is None:
        raise WattkeeperError("say whose history: --service NAMESPACE/NAME, or --namespace NAME --pods PATTERN")
    try:
        re.compile(pods)
    except re.error as error:
        raise WattkeeperError(f"--pods {pods!r} is no regular expression ({error})") from error
    return [Deployment(name=namespace, namespace=namespace, pods=pods, **vars(said))]


def collect(
    settings: PrometheusSettings,
    asked: HistorySpan,
    deployments: Sequence[Deployment],
    output: Path,
    *,
    per_point: int = run_rows.PER_POINT,
    tell: Callable[[str], None],
) -> int:
    """Write the rows of deployments to a file and tell what became of their history; returns the number of rows."""
    whole_file.check_writable(output)
    found: list[OwnHistory] = []
    for deployment in deployments:
        found.append(run_rows.collect(settings, asked, deployment, per_point=per_point))
        for line in run_rows.summary(found[-1]):
            tell(line)
    rows, refused = run_rows.write(found, output)
    for row in refused:
        tell(f"refused: {row}")
    tell(f"wrote {output}: {rows} rows" + (f", {len(refused)} refused" if refused else ""))
    return rows


def settings_of(url: str, *, token_file: Path | None, ca_file: Path | None) -> PrometheusSettings:
    """Where Prometheus is. Raises WattkeeperError: the URL is none."""
    return _settings(url, matchers=(), token_file=token_file, ca_file=ca_file, timeout=60.0)


def _settings(
    url: str, *, matchers: tuple[str, ...], token_file: Path | None, ca_file: Path | None, timeout: float
) -> PrometheusSettings:
    try:
        return PrometheusSettings(
            url=url,
            queries=QuerySettings(prefixes=_PREFIXES, matchers=matchers),
            timeout_seconds=timeout,
            bearer_token_file=token_file,
            ca_file=ca_file,
        )
    except ValueError as error:
        raise WattkeeperError(str(error)) from error


def span(since: str, until: str, *, step_seconds: float = 30.0) -> HistorySpan:
    """The times asked for. Raises WattkeeperError: not a time, or the wrong way round."""
    now = time.time()
    start, end = (_moment(text, now) for text in (since, until))
    if end - start < 2 * step_seconds:
        raise WattkeeperError(f"--since {since} is not before --until {until}: nothing lies between")
    return HistorySpan(start_seconds=start // step_seconds * step_seconds, end_seconds=end, step_seconds=step_seconds)


def _moment(text: str, now: float) -> float:
    """Unix seconds."""
    from wattkeeper.controller import clock

    if ago := _AGO.fullmatch(text):
        return now - float(ago[1]) * _UNIT_SECONDS[ago[2]]
    found = clock.from_rfc3339(text)
    if found is None:
        raise WattkeeperError(f"{text!r} is no time: write 2026-11-01T00:00:00Z, or how long ago: 90m, 36h, 7d")
    return found
