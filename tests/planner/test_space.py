"""Bounds, power values, and the engine arguments that may be tried."""

from dataclasses import replace

import pytest

from tests.planner.fakes import ENGINE_LEVERS, LEVERS, NOW, make_profile, observation, request
from wattkeeper.domain.engine import EngineChange, EngineSettings
from wattkeeper.domain.observation import KvCacheInfo
from wattkeeper.domain.plan import EngineLever, RangeLever, ReplicaLever
from wattkeeper.planner.space import Power, lever_space, rollout_open
from wattkeeper.planner.types import PlanMemory, PlannerSettings

SETTINGS = PlannerSettings(margin_base=0.1)


def space(**changes):
    return lever_space(request(**changes), SETTINGS)


def test_full_power_is_no_cap_unless_the_user_bounds_it():
    assert space().full_power == Power()
    assert space().caps_watts[0] == 350.0 and space().caps_watts[-1] == 675.0
    bounded = space(levers=replace(LEVERS, power_cap=RangeLever(minimum=100, maximum=500, step=50)))
    assert bounded.full_power == Power(cap_watts=500.0)
    assert bounded.caps_watts[0] == 200.0, "the card's own minimum holds"


def test_what_is_in_place_is_moved_into_the_bounds():
    assert space(cap=100.0).current.power_cap_watts == 350.0
    assert space(cap=700.0).current.power_cap_watts is None
    assert space(clock=1200.0).current.clock_mhz is None, "no clock lever"
    assert space(replicas=20).current.replicas == 12
    assert space(cap=400.0, power_lever=False).current.power_cap_watts is None


def test_free_gpus_bound_the_replicas():
    bounded = space(replicas=3, free_gpus=3, profile=make_profile(gpus_per_replica=2))
    assert (bounded.high, bounded.gpu_bound) == (4, True)
    assert space(free_gpus=0).high == 3
    assert space(free_gpus=None).high == 12


def test_replicas_never_go_below_one_and_stay_without_a_lever():
    assert space(levers=replace(LEVERS, replicas=ReplicaLever(minimum=0, maximum=4))).low == 1
    fixed = space(levers=replace(LEVERS, replicas=None), replicas=5)
    assert (fixed.low, fixed.high) == (5, 5)


def test_long_levers_are_thinned_and_the_fine_grid_fills_the_gaps():
    wide = space(levers=replace(LEVERS, power_cap=None, clock_lock=RangeLever(minimum=345, maximum=1980, step=15)))
    assert len(wide.clocks_mhz) == 16 and wide.clocks_mhz[0] == 345.0
    coarse = wide.coarse(6)
    assert len(coarse) == 7 and Power() in coarse
    inner = wide.fine(coarse[3], 6)
    assert inner and not set(inner) & set(coarse)
    values = sorted({power.clock_mhz for power in coarse if power.clock_mhz})
    at = values.index(coarse[3].clock_mhz)
    assert all(values[at - 1] < power.clock_mhz < values[at + 1] for power in inner)


def test_engine_options_only_where_a_rollout_may_happen():
    assert len(space(levers=ENGINE_LEVERS).engines) == 1
    engines = space(levers=ENGINE_LEVERS, rollout_allowed=True).engines
    assert [engine.change for engine in engines] == [EngineChange(), EngineChange(max_num_batched_tokens=2048)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"rollout_allowed": False}, False),
        ({"ready_replicas": 2}, False),
        ({"memory": PlanMemory(last_rollout_seconds=NOW - 1799)}, False),
        ({"memory": PlanMemory(last_rollout_seconds=NOW - 1800)}, True),
    ],
)
def test_when_a_rollout_may_happen(changes, expected):
    assert rollout_open(request(**({"rollout_allowed": True} | changes))) is expected


def test_options_that_would_not_start_or_failed_before_are_left_out():
    levers = replace(
        LEVERS,
        engine=EngineLever(max_num_batched_tokens=(128, 512, 2048), max_num_seqs=(256, 1024)),
    )
    found = space(levers=levers, rollout_allowed=True).engines
    pairs = {(engine.max_num_seqs, engine.max_num_batched_tokens) for engine in found[1:]}
    assert pairs == {(256, 512), (256, 2048), (1024, 2048)}
    bad = space(levers=levers, rollout_allowed=True, bad_engines=(EngineChange(max_num_batched_tokens=512),)).engines
    assert {engine.max_num_batched_tokens for engine in bad[1:]} == {2048}


def test_without_chunked_prefill_the_budget_holds_the_longest_prompt():
    engine = EngineSettings(
        max_num_seqs=64, max_num_batched_tokens=8192, max_model_len=4096, enable_chunked_prefill=False
    )
    found = space(levers=ENGINE_LEVERS, rollout_allowed=True, engine=engine).engines
    assert len(found) == 1, "2048 tokens do not hold a prompt of 4096"


def test_kv_memory_in_bytes_wins_and_must_fit():
    levers = replace(
        LEVERS,
        engine=EngineLever(kv_cache_memory_bytes=(20 * 10**9, 200 * 10**9), gpu_memory_utilization=(0.5, 0.95)),
    )
    found = space(levers=levers, rollout_allowed=True).engines
    assert [engine.change.kv_cache_memory_bytes for engine in found] == [None, 20 * 10**9]
    assert found[1].kv_capacity_tokens == pytest.approx(20e9 / 131072)


def test_live_kv_capacity_scales_other_options():
    levers = replace(LEVERS, engine=EngineLever(kv_cache_dtype=("fp8",)))
    seen = observation(kv_cache=KvCacheInfo(size_tokens=200_000))
    found = space(levers=levers, rollout_allowed=True, observation=seen).engines
    assert found[0].kv_capacity_tokens == 200_000
    assert found[1].kv_capacity_tokens == pytest.approx(400_000)


def test_the_admission_limit_counts():
    engine = EngineSettings(max_num_seqs=256, max_num_active_seqs=64, max_num_batched_tokens=8192)
    assert space(engine=engine).engines[0].max_num_seqs == 64
