"""The benchmark runs, and its figures hang together. No times are asserted."""

from __future__ import annotations

import dataclasses
import json

import pytest
from typer.testing import CliRunner

from wattkeeper.bench import agents, objects, operator, result, scale
from wattkeeper.cli.main import app
from wattkeeper.controller.passes import Pass
from wattkeeper.domain.errors import WattkeeperError


@pytest.fixture(scope="module")
def small() -> result.ScaleResult:
    """Twenty services on the embedded API."""
    return scale.run(scale.ScaleSettings(services=20, passes=6, tick_seconds=0.5, core=0))


def test_every_service_is_measured_and_kept(small):
    assert (small.services, small.pods, small.nodes) == (20, 40, 8)
    assert small.observed_services == 20
    assert small.failed_passes == 0
    assert small.steady_passes >= 6  # one more may end before the operator is told to stop
    assert small.core == 0


def test_the_figures_hang_together(small):
    assert 0 < small.tick.p50 <= small.tick.p99 <= small.tick.maximum
    assert set(small.steps) == set(result.STEPS)
    assert sum(step.p50 for step in small.steps.values()) <= 1.5 * small.tick.maximum
    assert 0 < small.tick_cpu.p50 <= small.tick.maximum
    assert 0 < small.cpu_share < 1.5
    assert 50 * 2**20 < small.peak_rss_bytes < 2 * 2**30
    assert small.status_writes_per_pass <= small.status_writes_most <= 20
    assert small.collect_seconds > 0


def test_it_can_be_read_by_machines_and_by_people(small):
    assert json.loads(small.dump())["steps"]["plan"]["p99"] == small.steps["plan"].p99
    assert small.table().row_count == 2 + len(result.STEPS)
    assert any("20" in line for line in small.lines())


def sample(index: int, *, observed: int, **values) -> operator.Sample:
    defaults = {
        "at_seconds": 100.0 + 15.0 * index,
        "done": Pass(seconds=1.0 + index, cpu_seconds=0.5, steps={"plan": 0.5}),
        "process_cpu_seconds": 3.0 * index,
        "peak_rss_bytes": 2**28 + index,
        "requests": {"PATCH": 30 * index},
        "status_writes": 10 * index,
        "actions": {"scale": index},
        "observed": observed,
        "collect_seconds": 0.1,
    }
    return operator.Sample(**{**defaults, **values})


FLEET = {"services": 5, "pods": 10, "nodes": 2, "api": "x", "core": None, "tick_seconds": 15.0, "setup_seconds": 1.0}


def run_of(length: int, *, measured_from: int = 0) -> list[operator.Sample]:
    return [sample(index, observed=5 if index >= measured_from else 2) for index in range(length)]


def test_rates_are_those_of_the_steady_passes():
    found = result.summarise(run_of(8, measured_from=1), **FLEET)
    assert (found.starting_passes, found.steady_passes) == (6, 2), "four passes settle after the first that saw all"
    assert found.tick == result.Spread(p50=7.5, p99=7.99, maximum=8.0)
    assert found.starting_slowest_seconds == 6.0
    assert found.cpu_share == pytest.approx(0.2)
    assert found.requests_per_second == {"PATCH": 2.0}
    assert (found.status_writes_per_pass, found.status_writes_most) == (10.0, 10)
    assert found.actions == {"scale": 2}
    assert found.peak_rss_bytes == 2**28 + 7


@pytest.mark.parametrize(("samples", "seen"), [(run_of(3, measured_from=9), 2), (run_of(4), 5)])
def test_a_run_that_never_got_steady_is_no_result(samples, seen):
    with pytest.raises(ValueError, match=f"{seen} of 5 services were measured within {len(samples)} passes"):
        result.summarise(samples, **FLEET)


def test_failed_passes_are_counted():
    samples = run_of(7)
    samples[6] = dataclasses.replace(samples[6], done=dataclasses.replace(samples[6].done, failed=True))
    assert result.summarise(samples, **FLEET).failed_passes == 1


class Answers:
    """Stands in for a cluster."""

    def __init__(self, **lists) -> None:
        self.lists = lists

    def get(self, path: str) -> dict:
        return {"items": self.lists.get(path.partition("?")[0].rpartition("/")[2], [])}


def test_a_cluster_in_use_is_refused():
    real = Answers(nodes=[{"metadata": {"name": "worker-1"}}])
    with pytest.raises(WattkeeperError, match="real nodes"):
        objects.check_nodes(real)
    objects.check_nodes(Answers(nodes=[objects.node("bench-0")]))
    with pytest.raises(WattkeeperError, match="already"):
        objects.check_empty(Answers(inferenceservices=[{}]))


def test_agents_obey_what_has_not_expired():
    pods = [{"metadata": {"namespace": "team-0", "name": name}} for name in ("a", "b")]
    caps = [
        {"uuid": "GPU-a-0", "watts": 400.0, "owner": "team-0/s", "expiresAt": "2999-01-01T00:00:00Z"},
        {"uuid": "GPU-b-0", "watts": 400.0, "owner": "team-0/s", "expiresAt": "2001-01-01T00:00:00Z"},
    ]
    status = agents.status({"metadata": {"generation": 3}, "spec": {"caps": caps}}, pods)
    assert status["observedGeneration"] == 3
    assert [device["enforced"] for device in status["devices"]] == [400.0, 700.0]
    assert "requested" not in status["devices"][1]


def test_a_missing_kubeconfig_is_told_before_anything_is_made():
    found = CliRunner().invoke(app, ["bench", "scale", "--kubeconfig", "nowhere"])
    assert found.exit_code == 2
    assert "nowhere" in found.output
