import dataclasses
import math

import numpy as np
import pytest

from tests.replay.played import Scripted, played, stage, trace
from wattkeeper.replay import sizing
from wattkeeper.replay.checked import PolicyError
from wattkeeper.replay.play import Cell, play
from wattkeeper.replay.result import JOULES_PER_KWH, Run
from wattkeeper.replay.stage import ReplayError
from wattkeeper.rivals import registry
from wattkeeper.rivals.types import Decision, Sight
from wattkeeper.traces.trace import Trace
from wattkeeper.twin.deployment import Failure


def keep(_look):
    return Decision()


def comparable(run: Run) -> Run:
    return dataclasses.replace(run, wall_seconds=0.0, decide_seconds=0.0)


def test_the_same_seed_gives_the_same_run():
    first, second = (comparable(played(Scripted(keep), seed=3)) for _ in range(2))
    assert first == second


def test_everything_that_came_is_accounted_for():
    run = played(Scripted(keep))
    found = run.requests
    assert found.arrived == len(trace()) == found.finished + found.unfinished + sum(found.lost.values())
    assert found.met + found.missed_ttft + found.missed_tpot == found.finished
    assert sum(run.columns.arrived) == sum(run.hours.arrived) == found.arrived
    assert sum(run.columns.met) == sum(run.hours.met) == found.met
    watts = np.array(run.columns.power_watts)
    assert watts.sum() * 60.0 / JOULES_PER_KWH == pytest.approx(run.energy.total_kwh)
    assert sum(run.hours.energy_kwh) == pytest.approx(run.energy.total_kwh)
    assert run.replica_hours == pytest.approx(2 * trace().span_seconds / 3600.0)


def test_dropped_requests_count_as_missed():
    broken = dataclasses.replace(stage(replicas=1), failures=(Failure(at_seconds=120.0),))
    run = played(Scripted(keep), on=broken)
    lost = run.requests.lost
    assert lost["no_ready_pod"] > 100, "a minute without any pod at four requests a second"
    assert run.requests.attainment is not None
    assert run.requests.attainment < 1.0 - lost["no_ready_pod"] / run.requests.arrived + 1e-9
    assert run.windows_below_goal == 1.0


def test_what_is_left_at_the_end_is_followed_and_costs_nothing():
    late = dataclasses.replace(trace(minutes=2.0), span_seconds=121.0)
    run = played(Scripted(keep), of=late)
    assert run.requests.unfinished == 0
    assert run.columns.time_seconds[-1] == 121.0


def test_levers_are_moved_and_counted():
    def decide(look):
        if look.time_seconds < 120.0:
            return Decision()
        return Decision(replicas=3, power_cap_watts=400.0, engine=dataclasses.replace(stage().engine, max_num_seqs=64))

    run = played(Scripted(decide))
    assert (run.replica_changes, run.rollouts, run.cap_changes) == (1, 1, 1)
    assert run.columns.desired[-1] == run.columns.ready[-1] == 3
    assert run.columns.cap_watts[0] is None
    assert run.columns.cap_watts[-1] == 400.0
    assert run.columns.max_num_seqs[-1] == 64
    assert run.energy.startup_kwh > 0.0


def test_a_limit_can_be_released():
    run = played(Scripted(lambda look: Decision(power_cap_watts=300.0 if look.time_seconds < 300.0 else 700.0)))
    assert run.cap_changes == 2
    assert run.columns.cap_watts[-1] is None


def test_policies_see_pods_as_they_come_and_go():
    policy = Scripted(lambda look: Decision(replicas=3 if look.time_seconds >= 60.0 else 2))
    played(policy)
    by_time = {look.time_seconds: look for look in policy.looks}
    assert len(by_time[75.0].starting_pods) == 1
    assert len(by_time[75.0].ready_pods) == 2
    assert len(by_time[150.0].ready_pods) == 3
    assert by_time[60.0].desired_replicas == 2
    assert by_time[75.0].desired_replicas == 3


def test_impossible_wishes_are_clamped_and_counted():
    run = played(Scripted(lambda _: Decision(replicas=40, power_cap_watts=20.0, clock_mhz=1e6), period=60.0))
    counts = {note.text: note.count for note in run.repairs}
    assert set(counts.values()) == {10}
    assert any("cut to 4" in text for text in counts)
    assert sum("clamped" in text for text in counts) == 2
    assert run.columns.desired[-1] == 4


def test_arguments_that_would_not_start_are_not_rolled_out():
    bad = dataclasses.replace(stage().engine, max_num_batched_tokens=16)
    run = played(Scripted(lambda _: Decision(engine=bad)))
    assert run.rollouts == 0
    assert "max_num_batched_tokens" in run.repairs[0].text


@pytest.mark.parametrize(
    ("decision", "what"),
    [
        (Decision(replicas=-1), "-1 replicas"),
        (Decision(replicas=2.5), "2.5 replicas"),  # type: ignore[arg-type]
        (Decision(power_cap_watts=math.nan), "power limit of nan"),
        (Decision(clock_mhz=-3.0), "clock of -3.0"),
        (Decision(gpu_limits={"GPU-1": (math.inf, None)}), "power limit of inf"),
        ("more", "'more' instead of a Decision"),
    ],
)
def test_nonsense_is_an_error_with_policy_and_time(decision, what):
    with pytest.raises(PolicyError, match="policy scripted at 0 s") as found:
        played(Scripted(lambda _: decision))
    assert what in str(found.value)


def test_a_policy_that_raises_is_named():
    def decide(look):
        if look.time_seconds >= 90.0:
            raise ZeroDivisionError("no pods")
        return Decision()

    with pytest.raises(PolicyError, match="policy scripted at 90 s: it raised ZeroDivisionError: no pods"):
        played(Scripted(decide))


def test_a_period_must_be_positive():
    with pytest.raises(PolicyError, match="period"):
        played(Scripted(keep, period=0.0))


def test_sampled_replicas_stand_for_the_others():
    busy, on = trace(rate=12.0), stage(replicas=4)
    full = played(Scripted(keep), of=busy, on=on)
    sampled = played(Scripted(keep), of=busy, on=dataclasses.replace(on, simulated_replicas=1))
    assert sampled.requests.arrived == full.requests.arrived == sampled.requests.finished
    assert sampled.energy.total_kwh == pytest.approx(full.energy.total_kwh, rel=0.05)
    assert sampled.requests.attainment == pytest.approx(full.requests.attainment, abs=0.01)


def test_an_empty_trace_is_an_error():
    nothing = np.zeros(0, dtype=np.int64)
    empty = Trace(
        times_seconds=np.zeros(0),
        prompt_tokens=nothing,
        output_tokens=nothing,
        cached_tokens=nothing,
        span_seconds=60.0,
    )
    with pytest.raises(ReplayError, match="no requests"):
        played(Scripted(keep), of=empty)


def test_a_stage_that_does_not_fit_is_an_error():
    with pytest.raises(ReplayError, match="more --gpus"):
        stage(replicas=5)


def rival(name: str, **sight) -> Run:
    traffic, on = trace(rate=20.0), stage()
    setting = sizing.setting(on, traffic, peak_replicas=2)

    def make(_deployment, _collector):
        policy = registry.find(name).build(setting)
        policy.__dict__.update(sight)
        return policy

    return comparable(play(Cell(trace=traffic, trace_name="test", stage=on), make))


@pytest.mark.parametrize("name", ["keda-in-flight", "hpa-waiting", "hpa-kv", "wva"])
def test_metrics_that_a_rival_does_not_look_at_change_nothing(name):
    assert rival(name) == rival(name, sight=Sight.ALL)


def test_a_fleet_that_looks_at_nothing_is_not_scraped():
    """Routers share requests out anew after every event, so that fewer of these move a request here and there."""
    unseen, scraped = rival("static-cap"), rival("static-cap", sight=Sight.ALL)
    assert unseen.energy.total_kwh == pytest.approx(scraped.energy.total_kwh, rel=1e-3)
    assert unseen.requests.met == pytest.approx(scraped.requests.met, abs=3)


def test_progress_tells_how_far_a_run_is():
    told = []
    run = play(
        Cell(trace=trace(), trace_name="test", stage=stage()),
        lambda _deployment, _collector: Scripted(keep),
        progress=told.append,
    )
    assert [moment.time_seconds for moment in told] == [60.0 * minute for minute in range(1, 10)]
    assert all(moment.span_seconds == 600.0 for moment in told)
    last = told[-1]
    assert 0 < last.met + last.missed <= last.requests < run.requests.arrived
    assert 0.0 < last.energy_kwh < run.energy.total_kwh
