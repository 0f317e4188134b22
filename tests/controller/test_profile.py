"""What running engines teach of the profile reaches the plan, the status and the metrics, and survives a restart."""

from __future__ import annotations

import dataclasses
import math

import pytest

from tests.controller.world import reading, service
from wattkeeper.api.service_status import InferenceServiceStatus
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.observation import EngineCounters
from wattkeeper.physics import profiles, step
from wattkeeper.planner import plan as planner

BASE = profiles.serving_profile(
    model="meta-llama/Llama-3.1-8B-Instruct", accelerator="h100-sxm", gpus_per_replica=1, engine=EngineSettings()
)
CAPACITY = 416_000.0
FACTORS = (1.3, 1.15, 1.2)


class Engine:
    """Counters of an engine whose steps take known factors of the catalogue's, under a load that swings."""

    def __init__(self):
        first = BASE.iteration
        self.iteration = dataclasses.replace(
            first,
            d0_seconds=first.d0_seconds * FACTORS[0],
            dt_seconds_per_token=first.dt_seconds_per_token * FACTORS[1],
            dn_seconds_per_decode=first.decode_seconds_per_sequence * FACTORS[1],
            da_seconds_per_token_squared=0.0,
            dkv_seconds_per_kv_token=first.dkv_seconds_per_kv_token * FACTORS[2],
        )
        self.values = dict.fromkeys(
            ("inter_token_seconds_sum", "inter_token_count", "iteration_tokens_sum", "iteration_count",
             "generation_tokens", "prompt_tokens", "cached_prompt_tokens", "preemptions", "finished_requests"), 0.0,
        )  # fmt: skip
        self.decodes = self.kv = 10.0

    def run(self, index, seconds):
        n = 60.0 + 50.0 * math.sin(index / 3.0)
        prefill, kv = n * (4.0 + 3.0 * math.sin(index / 2.1)), n * (900.0 + 400.0 * math.sin(index / 4.7))
        took = float(step.step_seconds(self.iteration, prefill_tokens=prefill, decode_sequences=n, kv_tokens=kv))
        steps = seconds / took
        for name, per_step in {
            "inter_token_seconds_sum": n * took, "inter_token_count": n, "iteration_tokens_sum": n + prefill,
            "iteration_count": 1.0, "generation_tokens": n, "prompt_tokens": prefill, "finished_requests": n / 150.0,
        }.items():  # fmt: skip
            self.values[name] += steps * per_step
        self.decodes, self.kv = n, kv

    def counters(self, at):
        usage = (self.kv + 0.5 * 16 * self.decodes) / CAPACITY
        return EngineCounters(time_seconds=at, running=self.decodes, waiting=0.0, kv_usage=usage, **self.values)


def play(world, engine, *, ticks, begin=0):
    """Six collections between two passes."""
    for index in range(begin, begin + 6 * ticks):
        world.advance(5.0)
        engine.run(index, 5.0)
        at = world.now()
        world.source.pods = {
            (world.namespace, pod): dataclasses.replace(
                # Watts follow the load, or the sensor would be taken for stuck.
                reading(world.namespace, pod, now=at, age_seconds=0.0, watts=340.0 + 0.8 * engine.decodes),
                engine=engine.counters(at),
            )
            for pod in world.pod_names()
        }
        world.operator.measurements.prometheus.collect_once()
        if index % 6 == 5:
            world.settle()
            world.operator.loop.tick()
    world.settle()


@pytest.fixture
def asked(monkeypatch):
    """Profiles that plans were asked for with."""
    seen, plan = [], planner.plan

    def watched(requests, **options):
        seen.extend(request.profile for request in requests)
        return plan(requests, **options)

    monkeypatch.setattr(planner, "plan", watched)
    return seen


def profile_of(world):
    return InferenceServiceStatus.model_validate(world.status()).profile


def test_a_profile_is_refitted_shown_planned_with_and_remembered(world, asked):
    world.fleet(replicas=2, rate=4.0)
    world.create(service(world.namespace, mode="Recommend"))
    engine = Engine()
    play(world, engine, ticks=1)
    assert profile_of(world).refit == "NotStarted"
    assert asked[0].iteration == BASE.iteration
    assert "not measured yet" in world.condition("ModelTrusted")["message"]

    play(world, engine, ticks=16, begin=6)
    shown = profile_of(world)
    found = (shown.d0_factor, shown.dt_factor, shown.dkv_factor)
    assert shown.refit in ("Identified", "LoadTooSteady")
    assert shown.level == pytest.approx(1.2, abs=0.06)
    assert shown.windows > 50
    work = {"prefill_tokens": 240.0, "decode_sequences": 60.0, "kv_tokens": 54_000.0}
    expected = float(step.step_seconds(engine.iteration, **work))
    assert float(step.step_seconds(asked[-1].iteration, **work)) == pytest.approx(expected, rel=0.05)
    assert asked[-1].relative_error == pytest.approx(shown.relative_error, rel=0.01)
    assert "times the profile's" in world.condition("ModelTrusted")["message"]
    assert world.metric("wattkeeper_profile_level") == pytest.approx(shown.level, rel=0.01)
    assert world.metric("wattkeeper_profile_windows") >= shown.windows > 0
    assert world.metric("wattkeeper_profile_relative_error") > 0

    world.restart()
    asked.clear()
    world.tick(every=15.0)
    world.tick(every=15.0)
    again = profile_of(world)
    assert (again.d0_factor, again.dt_factor, again.dkv_factor) == found
    assert asked[-1].iteration.d0_seconds == pytest.approx(BASE.iteration.d0_seconds * found[0], rel=1e-3)


def test_without_the_series_the_profile_stays_and_says_why(world, asked):
    world.fleet(replicas=2, rate=4.0)
    world.create(service(world.namespace, mode="Recommend"))
    for _ in range(6):
        world.measure(rate=4.0)
        world.tick(every=30.0)
    assert profile_of(world).refit == "NoSeries"
    assert "iteration_tokens_total" in world.condition("ModelTrusted")["message"]
    assert asked[-1].iteration == BASE.iteration


def test_recorded_arrivals_reach_the_planner(world, monkeypatch):
    seen, plan = [], planner.plan

    def watched(requests, **options):
        seen.extend(request.observation for request in requests)
        return plan(requests, **options)

    monkeypatch.setattr(planner, "plan", watched)
    world.fleet(replicas=2, rate=4.0)
    world.create(service(world.namespace, mode="Recommend"))
    play(world, Engine(), ticks=3)
    record = seen[-1].arrivals
    assert len(record.counts) >= 12
    assert record.span_seconds == pytest.approx(5.0 * len(record.counts), rel=0.05)  # a real cluster lags a little
    assert record.edges_seconds[-1] == pytest.approx(world.now(), abs=6.0)
    assert seen[-1].workload.dispersion.windows_seconds[0] == pytest.approx(5.0, abs=0.3)
