"""An hour of recorded traffic through everything: simulated fleet, Prometheus, operator in Enforce, API server.

The same requests go to a fleet under the operator, to a static one sized for the peak with the usual headroom, and to a
static one of the least size that would have done, known only afterwards. What they used is read from Prometheus.
"""

from __future__ import annotations

import collections.abc
import math
import pathlib
import sys
import time

import pytest

from e2e import hour
from e2e.stack import MODEL, Pace, Stack, deployment, environment_data, service
from wattkeeper.demo import scenario
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.twin.ledger import SloTargets

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
PACE = Pace(speed_up=20.0)
STARTUP_SECONDS = 120.0
"""Of a replica, simulated."""
HEADROOM = 1.5
"""Of the static fleet over the least one: its peak load is then two thirds, a common target of autoscalers."""
OBJECTIVE = 0.95
TOLERANCE = 0.005


@pytest.fixture
def stack(make_stack: collections.abc.Callable[..., Stack]) -> Stack:
    return make_stack(pace=PACE)


def test_an_hour_of_conversations_takes_less_energy_and_meets_its_slo(
    stack: Stack, unique: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = environment_data()
    file = data / hour.AZURE_FILE if data is not None else None
    if file is not None and file.exists():
        title, trace = "Azure 2023, conversation, 8 times its rate", hour.recorded(file, scale=8)
    else:
        title, trace = "synthetic hour, lengths like ShareGPT", hour.synthetic(peak=60.0)
    path = tmp_path / "hour.csv"
    hour.write(trace, path)
    lean = scenario.static_size(
        trace,
        model=MODEL,
        accelerator="nvidia-h100-sxm",
        engine=EngineSettings(max_num_seqs=256, max_num_batched_tokens=8192, max_model_len=16384),
        slo=SloTargets(ttft_seconds=hour.TTFT_TARGET_SECONDS, tpot_seconds=hour.TPOT_TARGET_SECONDS),
        min_attainment=OBJECTIVE,
        guess=5,
    )
    static = math.ceil(HEADROOM * lean)
    kept, peak, least = (f"{name}-{unique}" for name in ("kept", "static", "lean"))

    stack.add_gpu_nodes(*(f"hour-{index}-{unique}" for index in range(3)), labels={"e2e": unique})
    for namespace, replicas in ((kept, static), (peak, static), (least, lean)):
        stack.create_namespace(namespace)
        stack.apply(
            deployment(
                namespace,
                replicas=replicas,
                ready_delay_seconds=STARTUP_SECONDS / PACE.speed_up,
                node_selector={"e2e": unique},
            )
        )
    levers = {
        "replicas": {"min": 1, "max": static},
        "powerCap": {"min": "300W", "max": "700W", "step": "50W"},
        "engine": {"maxNumBatchedTokens": [1024, 2048, 8192]},
        "rollout": {"minInterval": "10m"},
    }
    stack.apply(service(kept, levers=levers), service(peak, mode="Observe"))
    for namespace in (kept, peak, least):
        stack.wait_ready(namespace, "chat")
    before = stack.arguments(kept)

    stack.start_twin(
        *(f"{namespace}/chat" for namespace in (kept, peak, least)),
        arguments=[f"--trace={path}", f"--hours={trace.span_seconds / 3600:.6f}", "--ttft=1s", "--tpot=50ms"],
    )
    prometheus = stack.start_prometheus()
    stack.start_operator(arguments=[f"--dispersion={hour.dispersion(trace):.2f}"])
    start = time.time()
    simulated = prometheus.wait_for("wattkeeper_twin_simulated_seconds")
    end = start + (trace.span_seconds - simulated) / PACE.speed_up
    while time.time() < end + 2.0:
        stack.check()
        time.sleep(1.0)

    rows = {
        name: hour.account(prometheus, namespace, start=start, end=end, speed_up=PACE.speed_up, scrape_seconds=1.0)
        for name, namespace in (
            ("Wattkeeper", kept),
            (f"static, {static}", peak),
            (f"hindsight, {lean}", least),
        )
    }
    ours, fixed = rows["Wattkeeper"], rows[f"static, {static}"]
    actions = stack.actions(kept)
    saved = 1 - ours.energy_kwh / fixed.energy_kwh
    with capsys.disabled():
        sys.stdout.write(
            f"\n\n{title}: {len(trace)} requests in {trace.span_seconds / 60:.0f} min, played {PACE.speed_up:g} times "
            f"as fast\n{hour.table(rows)}\n"
            f"saved against static, {static}: {saved:.1%}; against the size known in hindsight: "
            f"{1 - ours.energy_kwh / rows[f'hindsight, {lean}'].energy_kwh:.1%}\n"
            f"actions: {', '.join(f'{name} {count:.0f}' for name, count in sorted(actions.items()))}\n"
            f"arguments: {' '.join(before[2:])} -> {' '.join(stack.arguments(kept)[2:])}\n"
        )

    for row in rows.values():
        assert row.power_integral_kwh == pytest.approx(row.energy_kwh, rel=0.05)
    assert fixed.most_replicas == fixed.fewest_replicas == static
    assert fixed.lowest_limit_watts == 700
    assert ours.energy_kwh < fixed.energy_kwh
    assert ours.ttft_attainment >= OBJECTIVE - TOLERANCE
    assert ours.tpot_attainment >= OBJECTIVE - TOLERANCE
    assert ours.lost == 0
    assert ours.fewest_replicas < static, "replicas were never taken away"
    assert ours.lowest_limit_watts < 700, "no power limit was set"
    assert actions["scale"] and actions["cap"]
