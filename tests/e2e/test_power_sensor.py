"""Must-show 5 of the energy model on a real API server: a biased power sensor is learnt, a broken one is not believed.

A real operator process reads a real Prometheus that scrapes the twin; the twin runs in this process, so that its
exporters can be made to lie at any time. What is asserted is what a user sees: conditions, their reasons, events,
`kubectl describe`, `wattkeeper explain` and the operator's metrics. Limits are in passes of the loop.
"""

from __future__ import annotations

import collections.abc
import json
import math
import re
import secrets

import pytest

from e2e.stack import MODEL, Pace, Stack, deployment, service
from tests.e2e.test_replays import explain
from wattkeeper.demo import scenario
from wattkeeper.energy import factor_schema
from wattkeeper.twin import kube, live
from wattkeeper.twin.exporter import Exporter
from wattkeeper.twin.ledger import SloTargets
from wattkeeper.twin.power_sensor import PowerFault

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]
PACE = Pace(speed_up=20.0)
WINDOW_PASSES = math.ceil(PACE.rate_window / PACE.tick) + 1
"""Prometheus averages watts over the rate window, so a change is whole so many passes later."""
STEADY_PASSES = 30
LEARNING_PASSES = 20


class Fleet(Stack):
    """A stack with one fleet of two replicas, whose exporters show what the test wants."""

    namespace: str
    twin: live.LiveTwin

    def lie(self, text: str | None) -> None:
        self.twin.power_sensor.fault = None if text is None else PowerFault.parse(text)

    def passes(self) -> int:
        found = re.search(r'^wattkeeper_loop_ticks_total{result="success"} (\S+)$', self.own_metrics(), re.MULTILINE)
        return int(float(found[1])) if found else 0

    def within(self, passes: int, done: collections.abc.Callable[[], bool], what: str) -> None:
        """Wait until `done`, at most so many passes."""
        end = self.passes() + passes
        self.wait(lambda: done() or self.passes() > end, what, timeout_seconds=4.0 * passes * PACE.tick + 20.0)
        assert self.passes() <= end, f"{what}: not within {passes} passes"

    def settle(self) -> None:
        """Show the truth for a while."""
        self.lie(None)
        end = self.passes() + STEADY_PASSES
        self.wait(lambda: self.passes() >= end, "passes", timeout_seconds=4.0 * STEADY_PASSES * PACE.tick)
        assert self.trust()[0] == "True", self.trust()

    def learnt(self) -> float:
        """What measured watts are taken to be over the model's, at the present batch."""
        name = rf'^wattkeeper_power_learnt_ratio{{namespace="{self.namespace}",service="chat"}} (\S+)$'
        found = re.search(name, self.own_metrics(), re.MULTILINE)
        return float(found[1]) if found else math.nan

    def trust(self) -> tuple[str, str, str]:
        return self.condition(self.namespace, "ModelTrusted")

    def described(self) -> str:
        return self.cluster.kubectl("describe", "wis", "chat", f"--namespace={self.namespace}")


@pytest.fixture(scope="module")
def stack(control_plane) -> collections.abc.Iterator[Fleet]:
    mark = f"m{secrets.token_hex(3)}"
    with Fleet(control_plane, pace=PACE) as running:
        running.install()
        running.namespace = running.create_namespace(f"sensor-{mark}")
        running.add_gpu_nodes(f"sensor-{mark}", labels={"e2e": mark})
        running.apply(
            deployment(running.namespace, replicas=2, node_selector={"e2e": mark}, ready_delay_seconds=1.0),
            service(running.namespace, mode="Recommend"),
        )
        running.wait_ready(running.namespace, "chat")
        api = kube.connect(running.cluster.kubeconfig)
        simulated = live.for_deployment(
            api,
            f"{running.namespace}/chat",
            model=MODEL,
            trace=scenario.steady(rate=12.0, seed=1, hours=6.0),
            slo=SloTargets(ttft_seconds=1.0, tpot_seconds=0.05),
        )
        running.twin = live.LiveTwin(api, [simulated], speed=PACE.speed_up)
        exporter = Exporter(running.twin)
        running.twin.start()
        exporter.start()
        try:
            running.wait(lambda: running.twin.ready_count(simulated.key) == 2, "two replicas that serve")
            running.twin.start_traffic()
            running.twin_url = exporter.url
            running.start_prometheus()
            running.start_operator(arguments=["--replay-workers=0", "--dispersion=1"])
            running.wait(lambda: running.trust()[0] == "True", "a trusted model")
            yield running
        finally:
            exporter.stop()
            running.twin.stop()
            api.close()


def test_a_bias_of_a_quarter_is_learnt_and_trusted(stack: Fleet) -> None:
    stack.settle()
    before = stack.learnt()
    stack.lie("scale=1.25")
    doubts = []

    def learnt() -> bool:
        doubts.extend([stack.trust()] if stack.trust()[0] != "True" else [])
        return abs(stack.learnt() / before - 1.25) < 0.05

    stack.within(LEARNING_PASSES + WINDOW_PASSES, learnt, "a bias of 25 % that is learnt")
    assert not doubts
    message = stack.wait_condition(stack.namespace, "ModelTrusted", "True")[2]
    assert "power calibrated at batch" in message
    assert "power calibrated at batch" in stack.described()


def test_explain_lists_every_factor_with_a_value_or_a_reason(stack: Fleet) -> None:
    told = json.loads(explain(stack, stack.namespace, "--factors", "--output=json"))["factors"]["list"]
    assert [each["name"] for each in told] == [each.name for each in factor_schema.everything()]
    assert all(each["value"] is not None or each["note"] for each in told)
    values = {each["name"]: each["value"] for each in told}
    assert values["requests_per_second"] == pytest.approx(12.0, rel=0.4)
    assert values["replicas"] == 2.0
    assert values["realised_clock"] == pytest.approx(1980.0, rel=0.02)
    assert values["gpu"] == "nvidia-h100-sxm"


@pytest.mark.parametrize(
    ("fault", "reason", "said"),
    [
        ("zero", "PowerSensorZero", "shows 0 W while tokens are made"),
        ("scale=2", "PowerSensorAboveLimit", "can draw at most 700 W"),
    ],
)
def test_a_broken_sensor_costs_trust_and_teaches_nothing(stack: Fleet, fault: str, reason: str, said: str) -> None:
    stack.settle()
    before = stack.learnt()
    stack.lie(fault)
    # While the average creeps towards the fault it may look like another one for a pass or two.
    stack.within(8 + 2 * WINDOW_PASSES, lambda: stack.trust()[:2] == ("False", reason), f"ModelTrusted False, {reason}")
    message = stack.trust()[2]
    assert said in message
    assert "Nothing is learnt of such readings" in message
    page = stack.described()
    assert re.search(rf"Reason: +{reason}\n +Status: +False\n +Type: +ModelTrusted", page)
    assert "Nothing is learnt of such readings" in page
    warnings = [message for kind, _, message in stack.events(stack.namespace) if kind == "Warning"]
    assert any("Nothing is learnt of such readings" in message for message in warnings), warnings
    metric = (
        rf'^wattkeeper_service_condition{{namespace="{stack.namespace}",service="chat",type="ModelTrusted"}} (\S+)$'
    )
    found = re.search(metric, stack.own_metrics(), re.MULTILINE)
    assert found is not None and float(found[1]) == 0.0
    assert stack.learnt() == pytest.approx(before, rel=0.08)
    stack.lie(None)
    stack.within(12 + 2 * WINDOW_PASSES, lambda: stack.trust()[0] == "True", "trust in a sensor that is sane again")
    assert stack.learnt() == pytest.approx(before, rel=0.08)
