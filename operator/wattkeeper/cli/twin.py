"""`wattkeeper twin`: simulated vLLM pods and GPUs for the Deployments of any cluster, for tests and try-outs."""

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from wattkeeper.domain.data_files import DATA_VARIABLE
from wattkeeper.domain.errors import WattkeeperError


def twin(
    deployment: Annotated[list[str], typer.Option(help="Deployment to simulate, as namespace/name; repeat for more.")],
    model: Annotated[str, typer.Option(help="Model that they serve.")],
    trace: Annotated[
        str | None,
        typer.Option(help="Traffic: FILE[:OPTION=VALUE,...], a public trace or a generator (docs/traces.md)."),
    ] = None,
    data: Annotated[Path | None, typer.Option(envvar=DATA_VARIABLE, help="Folder of public data.")] = None,
    rate: Annotated[float, typer.Option(min=0.0, help="Without --trace: requests per second, at all times.")] = 1.0,
    rate_scale: Annotated[float, typer.Option(min=0.001, help="Multiply the rate of --trace.")] = 1.0,
    hours: Annotated[float, typer.Option(min=0.01, help="Length of the traffic; shorter traces are repeated.")] = 24.0,
    speed: Annotated[float, typer.Option(min=1, max=2000, help="Simulated seconds per second.")] = 1.0,
    ttft: Annotated[str, typer.Option(help="Target that requests are judged by.")] = "1s",
    tpot: Annotated[str, typer.Option(help="Target that requests are judged by.")] = "50ms",
    kubeconfig: Annotated[
        Path | None, typer.Option(help="Left out: the pod's own service account.", envvar="KUBECONFIG")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to serve metrics at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to serve metrics at; 0: any.")] = 9401,
    advertise: Annotated[str | None, typer.Option(help="host:port for target lists, if not as asked for.")] = None,
    legacy_names: Annotated[bool, typer.Option(help="Serve the metric names of vLLM 0.8 to 0.9.1.")] = False,
    seed: Annotated[int, typer.Option(help="Of the arrivals.")] = 1,
    power_fault: Annotated[
        str | None,
        typer.Option(
            metavar="KIND[=FACTOR][@SECONDS]",
            help="Let the GPU exporters show wrong watts: scale=FACTOR, stuck, zero, nan, negative or missing, from so "
            "many simulated seconds of traffic on.",
        ),
    ] = None,
) -> None:
    """Serve vllm:* and DCGM_* metrics for the pods that the cluster runs, as if they had GPUs.

    The cluster may be a bare control plane with simulated nodes: pods need a node and the Ready condition, nothing
    else. The traffic of all Deployments begins when each has a ready pod.
    """
    from wattkeeper.api.quantities import parse_duration_seconds
    from wattkeeper.demo import scenario
    from wattkeeper.twin import live
    from wattkeeper.twin.exporter import Exporter
    from wattkeeper.twin.exposition import VllmProfile
    from wattkeeper.twin.kube import connect
    from wattkeeper.twin.ledger import SloTargets
    from wattkeeper.twin.power_sensor import PowerFault

    console = Console(stderr=True)
    try:
        fault = None if power_fault is None else PowerFault.parse(power_fault)
        api = connect(kubeconfig)
        slo = SloTargets(ttft_seconds=parse_duration_seconds(ttft), tpot_seconds=parse_duration_seconds(tpot))
        services = []
        for index, name in enumerate(deployment):
            if trace is not None:
                traffic = scenario.recorded(trace, seed=seed + index, hours=hours, rate_scale=rate_scale, data=data)
                for note in traffic.repairs:
                    console.print(f"{name}: {note}.", highlight=False)
            else:
                traffic = scenario.steady(rate=rate, seed=seed + index, hours=hours)
            profile = VllmProfile.LEGACY if legacy_names else VllmProfile.CURRENT
            services.append(live.for_deployment(api, name, model=model, trace=traffic, slo=slo, profile=profile))
        simulated = live.LiveTwin(api, services, speed=speed, power_fault=fault)
        exporter = Exporter(simulated, host=host, port=port, advertise=advertise)
        simulated.start()
        exporter.start()
    except (WattkeeperError, ValueError) as error:
        console.print(f"[red]The twin cannot start:[/red] {error}", highlight=False)
        raise typer.Exit(1) from error
    console.print(f"Metrics at {exporter.url}; target lists at /sd/vllm and /sd/dcgm", highlight=False)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        while not ended.wait(0.1) and not all(simulated.ready_count(service.key) for service in services):
            simulated.check()
        simulated.start_traffic()
        while not ended.wait(1.0):
            simulated.check()
        exporter.stop()
        simulated.stop()
    except WattkeeperError as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        raise typer.Exit(1) from error


def register(app: typer.Typer) -> None:
    """Add the sub-command."""
    app.command()(twin)
