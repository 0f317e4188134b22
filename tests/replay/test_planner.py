import dataclasses

import pytest

from tests.replay.played import stage, trace
from wattkeeper.api.model_profile import ModelProfileSpec
from wattkeeper.controller import overrides
from wattkeeper.physics import profiles
from wattkeeper.replay import manifests
from wattkeeper.replay.campaign import PLANNERS, PlannerChoices, planner_setup
from wattkeeper.replay.manifests import Levers, made
from wattkeeper.replay.planner import make_planner
from wattkeeper.replay.play import Cell, play
from wattkeeper.replay.stage import MetricsPath
from wattkeeper.traces import build


def run(*, name="wattkeeper", choices=None, of=None, on=None, seed=0):
    on = on or stage(replicas=4)
    kept = []

    def make(deployment, collector):
        kept.append(
            make_planner(planner_setup(on, name, choices or PlannerChoices(check=False)))(deployment, collector)
        )
        return kept[0]

    cell = Cell(trace=of or trace(minutes=15.0), trace_name="test", stage=on, seed=seed)
    return play(cell, make), kept[0]


def test_the_operator_acts_on_the_simulated_fleet():
    found, policy = run()
    assert found.columns.desired[0] == 4
    assert found.columns.desired[-1] < 4, "four replicas for four requests a second is too many"
    assert found.columns.ready[-1] == found.columns.desired[-1]
    assert found.cap_changes > 0
    assert any(watts is not None and watts < 700.0 for watts in found.columns.cap_watts)
    assert found.requests.attainment > 0.95
    assert found.decisions == 60
    status = policy.cluster.status
    assert status["plan"]["replicas"] == found.columns.desired[-1]
    assert status["applied"]["replicas"] == found.columns.desired[-1]
    conditions = {item["type"]: item["status"] for item in status["conditions"]}
    assert conditions["Ready"] == "True"
    assert conditions["MetricsAvailable"] == "True"
    assert conditions["PowerEnforced"] == "True"


def test_the_same_seed_gives_the_same_run():
    first, second = (run(of=trace(minutes=9.0))[0] for _ in range(2))
    assert dataclasses.replace(first, wall_seconds=0.0, decide_seconds=0.0) == dataclasses.replace(
        second, wall_seconds=0.0, decide_seconds=0.0
    )


def test_levers_are_those_of_the_name():
    found, _ = run(name="wattkeeper-replicas")
    assert found.cap_changes == 0
    assert found.replica_changes > 0
    found, _ = run(name="wattkeeper-cap")
    assert found.replica_changes == 0
    assert set(found.columns.desired) == {4}
    assert found.cap_changes > 0


def test_other_arguments_are_rolled_out_and_come_to_be():
    on = dataclasses.replace(stage(replicas=2), engine=dataclasses.replace(stage().engine, max_num_batched_tokens=8192))
    found, policy = run(name="wattkeeper-engine", on=on, of=trace(rate=14.0, minutes=15.0))
    assert found.rollouts >= 1
    assert found.columns.max_num_batched_tokens[-1] != 8192
    assert policy.cluster.status["applied"]["engine"]["maxNumBatchedTokens"] == found.columns.max_num_batched_tokens[-1]


def test_it_adds_replicas_when_traffic_grows():
    grown = build.build("flash:base=2,peak=30,at=600,rise=60,hold=500,decay=60,for=1200s,lengths=600~1/120~0.8")
    found, _ = run(of=grown, on=stage(replicas=1))
    assert max(found.columns.ready) > 1
    assert found.replica_changes >= 1


def test_its_own_replays_run_in_the_same_process():
    found, policy = run(choices=PlannerChoices(check=True, check_requests=500), of=trace(minutes=12.0))
    check = policy.cluster.status["plan"]["check"]
    assert check["replay"]["standing"] in ("Meets", "Short", "Misses")
    assert found.requests.attainment > 0.95


def test_without_metrics_it_takes_nothing_away():
    blind = stage(replicas=4, metrics=MetricsPath(outages=((0.0, 3600.0),)))
    found, policy = run(on=blind, of=trace(minutes=15.0))
    assert set(found.columns.desired) == {4}
    assert {item["type"]: item["status"] for item in policy.cluster.status["conditions"]}["MetricsAvailable"] == "False"


def test_what_it_believes_is_a_profile_of_its_own():
    on = stage()
    known = {
        "model": on.model,
        "accelerator": on.accelerator,
        "gpus_per_replica": 1,
        "engine": on.engine,
    }
    own = profiles.serving_profile(**known)
    body = manifests.believed_profile(on, time=1.2, power=0.85)
    told = overrides.of_profile("believed", ModelProfileSpec.model_validate(body["spec"]))
    believed = profiles.serving_profile(**known, overrides=told)
    assert believed.iteration.d0_seconds == pytest.approx(1.2 * own.iteration.d0_seconds)
    assert believed.iteration.dkv_seconds_per_kv_token == pytest.approx(1.2 * own.iteration.dkv_seconds_per_kv_token)
    assert believed.energy.idle_watts == pytest.approx(0.85 * own.energy.idle_watts)
    assert believed.energy.ekv_joules_per_kv_token == pytest.approx(1.02 * own.energy.ekv_joules_per_kv_token)
    assert believed.relative_error == own.relative_error
    setup = planner_setup(on, "wattkeeper", PlannerChoices(believe_time=1.2))
    assert len(setup.profiles) == 1
    assert planner_setup(on, "wattkeeper", PlannerChoices()).profiles == ()


def test_manifests_say_what_the_stage_is():
    on = stage(replicas=3)
    given = made(on, Levers(power_cap=True))
    facts = manifests.facts(given)
    assert (facts.model, facts.accelerator, facts.replicas) == (on.model, on.accelerator, 3)
    assert facts.engine.max_num_batched_tokens == on.engine.max_num_batched_tokens
    assert facts.engine.max_model_len == on.engine.max_model_len
    assert facts.slo == on.slo
    assert facts.max_replicas == on.max_replicas
    assert set(PLANNERS) >= {"wattkeeper", "wattkeeper-replicas", "wattkeeper-clock"}
