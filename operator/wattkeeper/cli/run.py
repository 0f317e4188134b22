"""`wattkeeper run`: the operator."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from wattkeeper.api.inference_service import MetricsSourceKind
from wattkeeper.cli.errors import explained
from wattkeeper.controller import kube, logs
from wattkeeper.controller.measure import ScrapeAddresses
from wattkeeper.controller.run import Operator, RunOptions
from wattkeeper.controller.settings import OperatorSettings, ReplaySettings
from wattkeeper.domain.arrivals import Dispersion
from wattkeeper.telemetry import aliases
from wattkeeper.telemetry.prometheus import PrometheusSettings
from wattkeeper.telemetry.promql import QuerySettings
from wattkeeper.telemetry.scrape import ScrapeSettings


class LogFormat(StrEnum):
    """Form of log lines."""

    JSON = "json"
    TEXT = "text"


def _headers(pairs: list[str]) -> dict[str, str]:
    headers = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise typer.BadParameter(f"{pair!r} is not NAME=VALUE", param_hint="--prometheus-header")
        headers[name.strip()] = value.strip()
    return headers


@explained
def run(
    kubeconfig: Annotated[
        str | None, typer.Option(envvar="KUBECONFIG", help="Left out: the pod's ServiceAccount.")
    ] = None,
    context: Annotated[str | None, typer.Option(help="Context of the kubeconfig.")] = None,
    namespace: Annotated[list[str] | None, typer.Option(help="Namespace to keep, repeatable; left out: all.")] = None,
    operator_namespace: Annotated[
        str, typer.Option(envvar="POD_NAMESPACE", help="Where the Lease lives.")
    ] = "wattkeeper-system",
    lease: Annotated[bool, typer.Option(help="Take the Lease before acting.")] = True,
    prometheus_url: Annotated[str | None, typer.Option(envvar="PROMETHEUS_URL", help="Prometheus to read.")] = None,
    prometheus_token_file: Annotated[Path | None, typer.Option(help="Bearer token, read at every request.")] = None,
    prometheus_ca_file: Annotated[Path | None, typer.Option(help="CA bundle of Prometheus.")] = None,
    prometheus_client_cert: Annotated[Path | None, typer.Option(help="Client certificate.")] = None,
    prometheus_client_key: Annotated[Path | None, typer.Option(help="Key of the client certificate.")] = None,
    prometheus_insecure: Annotated[bool, typer.Option(help="Do not check the certificate of Prometheus.")] = False,
    prometheus_header: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, such as X-Scope-OrgID=a.")] = None,
    prometheus_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one query.")] = 10.0,
    metric_prefix: Annotated[
        list[str] | None, typer.Option(help="Prefix of vLLM's series, repeatable (default vllm: and kserve_vllm:).")
    ] = None,
    scrape: Annotated[bool, typer.Option(help="Allow reading pods' /metrics directly.")] = True,
    pod_url: Annotated[str, typer.Option(help="Where a pod's metrics are.")] = ScrapeAddresses.pod_url,
    gpu_url: Annotated[
        str, typer.Option(help="Where a node's power exporter is; empty: none.")
    ] = ScrapeAddresses.gpu_url,
    tick: Annotated[float, typer.Option(min=0.1, help="Seconds between two passes of the loop.")] = 15.0,
    collect_interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two collections.")] = 5.0,
    cap_ttl: Annotated[
        float, typer.Option(min=10, help="Seconds after which the power caps of a dead operator end.")
    ] = 180.0,
    rate_window: Annotated[float, typer.Option(min=1, help="Seconds over which rates are taken.")] = 60.0,
    length_window: Annotated[float, typer.Option(min=1, help="Seconds over which lengths are taken.")] = 300.0,
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of /metrics, /healthz and /readyz.")] = 8080,
    replay_workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=64,
            help="Processes that replay candidates through the exact simulator before capacity is taken away; 0: none, "
            "the analytic check decides alone (default 1, and 0 with --speed-up above 1).",
        ),
    ] = None,
    energy_model: Annotated[
        Path | None, typer.Option(help="A model of `wattkeeper train`; left out: the built-in.")
    ] = None,
    log_format: Annotated[LogFormat, typer.Option(help="Form of log lines.")] = LogFormat.JSON,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
    speed_up: Annotated[
        float, typer.Option(min=1, help="Only for simulations: seconds of theirs per second of ours.")
    ] = 1.0,
    dispersion: Annotated[
        float | None, typer.Option(min=1, help="Only for simulations: index of dispersion of arrivals; else measured.")
    ] = None,
) -> None:
    """Keep all InferenceServices of the cluster, until stopped."""
    logs.configure(as_json=log_format is LogFormat.JSON, verbose=verbose)
    namespaces = tuple(namespace or ())
    prefixes = tuple(metric_prefix or aliases.DEFAULT_PREFIXES)
    prometheus = None
    if prometheus_url:
        prometheus = PrometheusSettings(
            url=prometheus_url,
            queries=QuerySettings(
                rate_window_seconds=rate_window,
                length_window_seconds=length_window,
                namespaces=namespaces,
                prefixes=prefixes,
            ),
            timeout_seconds=prometheus_timeout,
            bearer_token_file=prometheus_token_file,
            ca_file=prometheus_ca_file,
            client_cert_file=prometheus_client_cert,
            client_key_file=prometheus_client_key,
            insecure_skip_verify=prometheus_insecure,
            headers=_headers(prometheus_header or []),
        )
    if prometheus is None and not scrape:
        raise typer.BadParameter("without --prometheus-url and with --no-scrape there is nothing to measure with")
    options = RunOptions(
        api=kube.load_client(kubeconfig, context),
        settings=OperatorSettings(
            namespaces=namespaces,
            operator_namespace=operator_namespace,
            default_source=MetricsSourceKind.PROMETHEUS if prometheus else MetricsSourceKind.SCRAPE,
            tick_seconds=tick,
            cap_ttl_seconds=cap_ttl,
            rate_window_seconds=rate_window,
            speed_up=speed_up,
            replays=ReplaySettings(workers=(1 if speed_up == 1.0 else 0) if replay_workers is None else replay_workers),
            dispersion=None if dispersion is None else Dispersion.flat(dispersion),
        ),
        prometheus=prometheus,
        scrape=(
            ScrapeSettings(rate_window_seconds=rate_window, length_window_seconds=length_window, prefixes=prefixes)
            if scrape
            else None
        ),
        addresses=ScrapeAddresses(pod_url=pod_url, gpu_url=gpu_url),
        collect_seconds=collect_interval,
        http_port=http_port,
        energy_model=energy_model,
        lease=lease,
    )
    Operator(options).run()


def register(app: typer.Typer) -> None:
    """Add the sub-command."""
    app.command()(run)
