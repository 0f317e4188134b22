"""The demo from beginning to end: cluster, fleet, operator, a day of traffic, report."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from wattkeeper.demo import outcome, pictures, report, static, table
from wattkeeper.demo.cluster import DemoCluster
from wattkeeper.demo.outcome import Outcome
from wattkeeper.demo.process import Operator, OperatorProcess
from wattkeeper.demo.report import Report
from wattkeeper.demo.scenario import Scenario
from wattkeeper.demo.table import Picture
from wattkeeper.demo.watch import Watch
from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.twin.exporter import Exporter
from wattkeeper.twin.kube import connect
from wattkeeper.twin.live import LiveService, LiveTwin

START_TIMEOUT_SECONDS = 60.0
REFRESH_SECONDS = 0.25
SAMPLE_SECONDS = 300.0
OPERATOR_NAMESPACE = "wattkeeper-system"
TICK_SECONDS, RATE_WINDOW_SECONDS, LENGTH_WINDOW_SECONDS = 0.25, 1.0, 5.0
"""Of the operator, in wall time: as often as two cores allow."""
SETTLE_SECONDS = 120.0
"""Simulated, after the traffic, for requests in flight."""
STATIC_TIMEOUT_SECONDS = 900.0
STARTUP_SECONDS = 90.0
"""Simulated time from scheduling to ready: imports, weights, compilation, graph capture."""


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """How to play."""

    speed: float
    output: Path
    percentile: float = 99.0
    dispersion: float = 4.0


MakeOperator = Callable[[Path, str, DemoSettings], Operator]
"""(kubeconfig, address of the exporter, settings) -> the operator, not started."""


def real_operator(kubeconfig: Path, exporter_url: str, settings: DemoSettings) -> Operator:
    """`wattkeeper run` in a process of its own."""
    return OperatorProcess(
        arguments=[
            f"--kubeconfig={kubeconfig}",
            f"--operator-namespace={OPERATOR_NAMESPACE}",
            f"--pod-url={exporter_url}/pods/{{namespace}}/{{pod}}/metrics",
            f"--gpu-url={exporter_url}/nodes/{{node}}/metrics",
            f"--tick={TICK_SECONDS:g}",
            f"--collect-interval={TICK_SECONDS:g}",
            f"--rate-window={RATE_WINDOW_SECONDS:g}",
            f"--length-window={LENGTH_WINDOW_SECONDS:g}",
            f"--speed-up={settings.speed:g}",
            f"--dispersion={settings.dispersion:g}",
            "--http-port=0",
            "--log-format=text",
        ],
        log=settings.output / "operator.log",
    )


def play(
    scenario: Scenario, settings: DemoSettings, console: Console, *, make_operator: MakeOperator = real_operator
) -> Report:
    """Run everything and write the report; raises WattkeeperError where a part fails."""
    began = time.monotonic()
    settings.output.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="wattkeeper-demo-") as scratch:
        cluster = stack.enter_context(
            DemoCluster(
                folder=Path(scratch),
                startup_seconds=STARTUP_SECONDS,
                speed=settings.speed,
                model=scenario.model,
                accelerator=scenario.accelerator,
            )
        )
        cluster.apply(scenario.objects)
        twin = stack.enter_context(_twin(cluster.kubeconfig, scenario, settings))
        exporter = stack.enter_context(_exporter(twin))
        watch = stack.enter_context(_watch(cluster.kubeconfig, scenario))
        key = _key(scenario)
        _wait(lambda: twin.ready_count(key) == scenario.replicas, "the pods of the example to become ready", twin)
        operator = make_operator(cluster.kubeconfig, exporter.url, settings)
        operator.start()
        stack.callback(operator.stop)
        _wait(lambda: bool(watch.status().get("conditions")), "the operator to report a status", twin, operator)
        counterfactual = static.start(scenario, percentile=settings.percentile)
        live = _day(scenario, settings, twin, watch, operator, console)
        lag = twin.largest_lag_seconds
        status = watch.status()
        console.print("Playing the same requests against the static fleet ...", highlight=False)
        fixed = counterfactual.result(timeout=STATIC_TIMEOUT_SECONDS)
    found = Report(
        title=scenario.title,
        source=scenario.source,
        hours=scenario.trace.span_seconds / 3600.0,
        speed=settings.speed,
        replicas=scenario.replicas,
        model=scenario.model,
        accelerator=scenario.accelerator,
        slo_text=_slo_text(scenario),
        live=live,
        static=fixed,
        actions=tuple(watch.actions),
        counts=watch.counts(),
        wall_seconds=time.monotonic() - began,
        lag_seconds=lag,
        status=status,
    )
    drawn = pictures.draw(live=live, static=fixed, actions=watch.actions, slo=scenario.slo, folder=settings.output)
    report.write(found, pictures=drawn, folder=settings.output)
    return found


def _key(scenario: Scenario) -> str:
    metadata = scenario.object("Deployment")["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}"


def _slo_text(scenario: Scenario) -> str:
    goals = (("TTFT", scenario.slo.ttft_seconds), ("TPOT", scenario.slo.tpot_seconds))
    return " and ".join(f"{name} at most {1000 * goal:.0f} ms" for name, goal in goals if goal is not None)


@contextmanager
def _twin(kubeconfig: Path, scenario: Scenario, settings: DemoSettings) -> Iterator[LiveTwin]:
    deployment = scenario.object("Deployment")
    service = LiveService(
        namespace=deployment["metadata"]["namespace"],
        name=deployment["metadata"]["name"],
        selector=deployment["spec"]["selector"]["matchLabels"],
        model=scenario.model,
        trace=scenario.trace,
        slo=scenario.slo,
    )
    twin = LiveTwin(connect(kubeconfig), [service], speed=settings.speed, sample_seconds=SAMPLE_SECONDS)
    twin.start()
    try:
        yield twin
    finally:
        twin.stop()


@contextmanager
def _exporter(twin: LiveTwin) -> Iterator[Exporter]:
    exporter = Exporter(twin)
    exporter.start()
    try:
        yield exporter
    finally:
        exporter.stop()


@contextmanager
def _watch(kubeconfig: Path, scenario: Scenario) -> Iterator[Watch]:
    metadata = scenario.object("InferenceService")["metadata"]
    watch = Watch(
        connect(kubeconfig),
        namespace=metadata["namespace"],
        deployment=scenario.object("Deployment")["metadata"]["name"],
        service=metadata["name"],
    )
    for mirror in watch.mirrors:
        mirror.start()
    for mirror in watch.mirrors:
        mirror.wait_synced(START_TIMEOUT_SECONDS)
    try:
        yield watch
    finally:
        for mirror in watch.mirrors:
            mirror.stop()


def _wait(condition: Callable[[], bool], what: str, twin: LiveTwin, operator: Operator | None = None) -> None:
    end = time.monotonic() + START_TIMEOUT_SECONDS
    while not condition():
        twin.check()
        if operator is not None:
            operator.check()
        if time.monotonic() > end:
            failed = "; ".join(f"{key[1]}: {why}" for key, why in twin.failed_pods.items())
            raise WattkeeperError(f"waited {START_TIMEOUT_SECONDS:.0f} s for {what}. {failed}".rstrip())
        time.sleep(0.05)


def _day(
    scenario: Scenario,
    settings: DemoSettings,
    twin: LiveTwin,
    watch: Watch,
    operator: Operator,
    console: Console,
) -> Outcome:
    """Let the traffic run to its end while the table shows it."""
    key, span = _key(scenario), scenario.trace.span_seconds
    watch.look(0.0)
    twin.start_traffic()
    with table.Display(console, scenario.title) as display:
        while (account := twin.account(key)) is None:
            twin.check()
            operator.check()
            watch.look(twin.traffic_seconds())
            display.show(_picture(twin, watch, key=key, span=span, percentile=settings.percentile))
            time.sleep(REFRESH_SECONDS)
    while twin.traffic_seconds() < span + SETTLE_SECONDS:
        twin.check()
        time.sleep(REFRESH_SECONDS)
    with twin.lock:
        service = twin.fleet.services[key]
        ledger = service.ledger
        return Outcome(
            energy_joules=account.energy_joules,
            gpu_seconds=account.gpu_seconds,
            attainment=ledger.attainment(),
            lost_by_reason=dict(ledger.lost_by_reason),
            output_tokens=ledger.output_tokens,
            points=account.points,
            latencies=outcome.latencies(ledger, percentile=settings.percentile, origin_seconds=service.start_seconds),
            percentile=settings.percentile,
        )


def _picture(twin: LiveTwin, watch: Watch, *, key: str, span: float, percentile: float) -> Picture:
    with twin.lock:
        service, points = twin.fleet.services[key], twin.timelines[key].points
        ready, starting, draining = table.phases(service)
        ttft, tpot = table.recent_latency(service, percentile)
        last = points[-1] if points else None
        return Picture(
            time_seconds=twin.traffic_seconds(),
            span_seconds=span,
            rate=last.requests_per_second if last else 0.0,
            ready=ready,
            starting=starting,
            draining=draining,
            power_watts=last.power_watts if last else 0.0,
            cap_watts=last.cap_watts if last else 0.0,
            token_budget=last.max_num_batched_tokens if last else 0,
            ttft_seconds=ttft,
            tpot_seconds=tpot,
            attainment=service.ledger.attainment().share,
            energy_kwh=service.energy_joules / 3.6e6,
            reason=str((watch.status().get("plan") or {}).get("reason", "")),
            counts=watch.counts(),
            last_action=watch.actions[-1] if watch.actions else None,
        )
