"""The macro-stepper against a literal loop, and what must hold of any replica."""

import bisect
import dataclasses
import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.twin.literal import Job, Literal
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.twin import counters, hardware
from wattkeeper.twin.exposition import vllm_text
from wattkeeper.twin.replica import Replica
from wattkeeper.twin.request import FRONT_END_SECONDS, Request


def small_hardware(*, blocks=64, sequences=8, batched=64, block_size=16, model_len=512):
    full = hardware.replica_hardware(
        model="meta-llama/Llama-3.1-8B-Instruct", accelerator="h100-sxm", engine=EngineSettings()
    )
    return dataclasses.replace(
        full,
        num_gpu_blocks=blocks,
        max_num_seqs=sequences,
        max_num_batched_tokens=batched,
        block_size=block_size,
        max_model_len=min(model_len, (blocks - 1) * block_size),
    )


lengths = st.tuples(st.floats(0.0, 0.3), st.integers(1, 200), st.integers(1, 120))


@settings(deadline=None, max_examples=150)
@given(
    jobs=st.lists(lengths, min_size=1, max_size=40),
    blocks=st.integers(24, 120),
    sequences=st.integers(1, 24),
    batched=st.integers(32, 400),
    block_size=st.sampled_from([8, 16, 32]),
    cap=st.sampled_from([None, 250.0, 350.0]),
    clock=st.sampled_from([None, 1200.0]),
    slice_seconds=st.sampled_from([math.inf, 0.05, 1.0]),
)
def test_macro_steps_equal_single_steps(jobs, blocks, sequences, batched, block_size, cap, clock, slice_seconds):
    hw = small_hardware(
        blocks=max(blocks, 320 // block_size + 2), sequences=sequences, batched=batched, block_size=block_size
    )
    arrivals = list(itertools.accumulate(gap for gap, _, _ in jobs))
    literal = Literal(hw, cap_watts=cap, clock_mhz=clock).play(
        [Job(at, prompt, output) for at, (_, prompt, output) in zip(arrivals, jobs, strict=True)]
    )
    replica = Replica(hw, now=0.0)
    replica.set_power(cap_watts=cap, clock_mhz=clock)
    replica.submit(Request(at, prompt, output) for at, (_, prompt, output) in zip(arrivals, jobs, strict=True))
    until = 0.0
    while replica.outstanding:
        until = min(until + slice_seconds, 1e6)
        replica.run(until)
        if math.isinf(slice_seconds):
            break

    assert replica.counters.preemptions == literal.preemptions
    assert len(replica.finished) == len(literal.done) == len(jobs)
    key = lambda item: (item[0], item[1], item[2], item[3])  # noqa: E731
    mine = sorted(((r.arrival, r.prompt, r.output, r.first_token, r.last_token) for r in replica.finished), key=key)
    theirs = sorted(
        ((j.arrival, j.prompt, j.output, j.token_times[0], j.token_times[-1]) for j in literal.done), key=key
    )
    for left, right in zip(mine, theirs, strict=True):
        assert left == pytest.approx(right, abs=1e-9)
    c = replica.counters
    assert c.generation_tokens == sum(output for _, _, output in jobs)
    assert c.iteration_tokens.count == len(literal.iterations)
    assert c.iteration_tokens.total == sum(literal.iterations)
    assert c.inter_token_seconds.count == len(literal.itl)
    assert c.inter_token_seconds.total == pytest.approx(sum(literal.itl))
    idle_after = max(0.0, replica.now - literal.now) * hw.idle_watts
    assert replica.energy_joules == pytest.approx(literal.joules + idle_after)
    assert replica.kv_usage == 0.0
    done = literal.done
    assert c.inter_token_seconds.counts == buckets(counters.TOKEN_TIME_BOUNDS, literal.itl)
    assert c.iteration_tokens.counts == buckets(counters.ITERATION_TOKEN_BOUNDS, literal.iterations)
    assert c.ttft_seconds.counts == buckets(
        counters.TTFT_BOUNDS, [j.token_times[0] - j.arrival + FRONT_END_SECONDS for j in done]
    )
    assert c.queue_seconds.counts == buckets(counters.LATENCY_BOUNDS, [j.scheduled - j.arrival for j in done])
    assert c.e2e_seconds.counts == buckets(
        counters.LATENCY_BOUNDS, [j.token_times[-1] - j.arrival + FRONT_END_SECONDS for j in done]
    )
    assert c.request_preemptions.counts == buckets(counters.PREEMPTION_BOUNDS, [j.preemptions for j in done])
    assert c.generation_lengths.counts == buckets(c.generation_lengths.bounds, [j.output for j in done])
    assert c.finished["stop"] == len(done)


def buckets(bounds, values):
    counts = [0] * (len(bounds) + 1)
    for value in values:
        counts[bisect.bisect_left(bounds, value)] += 1
    return counts


@settings(deadline=None, max_examples=60)
@given(
    rate=st.floats(0.5, 60.0),
    seed=st.integers(0, 1000),
    stops=st.lists(st.floats(0.01, 3.0), min_size=1, max_size=20),
    cap=st.sampled_from([None, 300.0, 450.0]),
)
def test_nothing_is_lost_and_counters_only_grow(rate, seed, stops, cap):
    rng = random.Random(seed)
    hw = small_hardware(blocks=100, sequences=16, batched=256)
    replica = Replica(hw, now=0.0)
    replica.set_power(cap_watts=cap, clock_mhz=None)
    sent, clock, before = 0, 0.0, None
    for until in itertools.accumulate(stops):
        batch = []
        while clock < until:
            clock += rng.expovariate(rate)
            batch.append(Request(clock, rng.randint(1, 700), rng.randint(1, 60)))
        replica.submit(batch)
        sent += len(batch)
        power_before, at = replica.energy_joules, replica.now
        replica.run(until)
        assert replica.now >= until
        assert len(replica.finished) + len(replica.refused) + replica.outstanding == sent
        assert 0.0 <= replica.kv_usage <= 1.0
        assert len(replica.running) <= hw.max_num_seqs
        if replica.now > at:
            watts = (replica.energy_joules - power_before) / (replica.now - at)
            assert hw.idle_watts - 1e-6 <= watts <= hw.card.tdp_watts + 1e-6
        now = [list(h.cumulative()) for h in vars(replica.counters).values() if isinstance(h, counters.BucketCounts)]
        for series in now:
            assert series == sorted(series)
        if before is not None:
            for old, new in zip(before, now, strict=True):
                assert all(a <= b for a, b in zip(old, new, strict=True))
        before = now


def test_energy_is_the_integral_of_power():
    hw = small_hardware(blocks=200, sequences=32, batched=512)
    whole, sliced = Replica(hw, now=0.0), Replica(hw, now=0.0)
    for replica in (whole, sliced):
        replica.submit(Request(i * 0.02, 100 + i % 50, 40) for i in range(400))
    whole.run(20.0)
    energy = 0.0
    previous = 0.0
    for tick in range(1, 2001):
        before = sliced.energy_joules
        sliced.run(tick * 0.01)
        if sliced.now > previous:
            energy += (sliced.energy_joules - before) / (sliced.now - previous) * (sliced.now - previous)
        previous = sliced.now
    assert energy == pytest.approx(whole.energy_joules)
    assert sliced.energy_joules == pytest.approx(whole.energy_joules)


def test_a_cap_lowers_clock_and_power_and_stretches_time():
    hw = hardware.replica_hardware(
        model="meta-llama/Llama-3.1-8B-Instruct", accelerator="h100-sxm", engine=EngineSettings(max_model_len=8192)
    )
    results = {}
    for cap in (700.0, 400.0, 300.0):
        replica = Replica(hw, now=0.0)
        replica.set_power(cap_watts=cap, clock_mhz=None)
        replica.submit(Request(0.0, 500, 300) for _ in range(64))
        # The clock follows the work of the window before.
        replica.run(0.5)
        joules, at = replica.energy_joules, replica.now
        replica.run(1.5)
        watts = (replica.energy_joules - joules) / (replica.now - at)
        results[cap] = (watts, replica.clock_mhz, replica.counters.generation_tokens)
        assert results[cap][0] <= 1.01 * cap
    assert results[700.0][0] > 550
    assert results[700.0][1] > results[400.0][1] > results[300.0][1]
    assert results[700.0][2] > results[400.0][2] > results[300.0][2]


def test_power_of_a_busy_card_follows_the_measured_anchors():
    hw = hardware.replica_hardware(
        model="meta-llama/Llama-3.1-8B-Instruct", accelerator="h100-sxm", engine=EngineSettings(max_model_len=8192)
    )
    for batch, watts in ((8, 486.0), (128, 669.0)):
        replica = Replica(hw, now=0.0)
        replica.submit(Request(0.0, 150, 4000) for _ in range(batch))
        replica.run(1.0)
        before, at = replica.energy_joules, replica.now
        replica.run(3.0)
        assert (replica.energy_joules - before) / (replica.now - at) == pytest.approx(watts, rel=0.03)


def test_prefix_hits_count_whole_blocks_and_shorten_prefill():
    hw = small_hardware(blocks=200, batched=2048)
    times = {}
    for cached in (0, 100):
        replica = Replica(hw, now=0.0)
        replica.submit([Request(0.0, 200, 2, cached)])
        replica.run(1.0)
        times[cached] = replica.finished[0].ttft_seconds
        assert replica.counters.prefix_queries == 200
        assert replica.counters.prefix_hits == cached // 16 * 16
    assert times[100] < times[0]


def test_settings_that_vllm_refuses_are_refused():
    engine = EngineSettings(max_num_seqs=512, max_num_batched_tokens=256)
    with pytest.raises(hardware.EngineStartError, match="max_num_batched_tokens"):
        hardware.replica_hardware(model="Qwen/Qwen3-8B", accelerator="h100", engine=engine)
    with pytest.raises(hardware.EngineStartError, match="max_model_len"):
        hardware.replica_hardware(
            model="Qwen/Qwen3-8B", accelerator="h100", engine=EngineSettings(kv_cache_memory_bytes=1_000_000_000)
        )


def test_aborted_requests_are_returned():
    replica = Replica(small_hardware(), now=0.0)
    replica.submit(Request(i * 0.01, 100, 50) for i in range(30))
    replica.run(0.2)
    outstanding = replica.outstanding
    lost = replica.abort_all()
    assert len(lost) == outstanding > 0
    assert replica.outstanding == 0
    assert replica.kv_usage == 0.0


def test_one_of_many_can_be_aborted():
    replica = Replica(small_hardware(), now=0.0)
    requests = [Request(i * 0.01, 100, 50) for i in range(30)]
    replica.submit(requests)
    replica.run(0.2)
    assert replica.abort(requests[0])
    assert not replica.abort(requests[0])
    assert replica.abort(requests[29])
    replica.run(60.0)
    assert replica.outstanding == 0
    assert replica.kv_usage == 0.0
    assert replica.counters.finished["abort"] == 2
    assert len(replica.finished) == 28
    assert not replica.abort(requests[5])


def test_who_finds_too_many_waiting_is_refused_and_counted():
    hw = dataclasses.replace(small_hardware(sequences=2), max_queued_requests=3)
    replica = Replica(hw, now=0.0)
    replica.submit(Request(0.001 * i, 100, 50) for i in range(10))
    replica.run(60.0)
    assert len(replica.finished) + len(replica.refused) == 10
    assert replica.counters.admission_rejections == len(replica.refused) >= 5
    assert {request.refusal for request in replica.refused} == {"queue_full"}
    assert 'vllm:admission_rejections_total{model_name="m",reason="max_num_queued_reqs"} 5.0' in vllm_text(
        replica, model_name="m"
    )


def test_priorities_and_prefix_blocks_reach_the_scheduler():
    hw = dataclasses.replace(small_hardware(blocks=200, sequences=1, batched=2048), priorities=True)
    replica = Replica(hw, now=0.0)
    first = Request(0.0, 320, 20, blocks=(1,))
    late = Request(0.01, 320, 20, 0, (2,), 3)
    urgent = Request(0.02, 320, 20, 0, (1,), -1)
    replica.submit([first, late, urgent])
    replica.run(60.0)
    assert replica.finished == [first, urgent, late]
    # Never the block of the last token.
    assert (urgent.cached, late.cached) == (304, 0)
    assert replica.counters.prefix_hits == 304


def test_a_long_life_is_forgotten_bit_by_bit():
    replica = Replica(small_hardware(blocks=200, sequences=32, batched=512), now=0.0)
    for start in range(0, 12_000, 500):
        replica.submit(Request((start + i) * 0.05, 40 + i % 50, 1 + i % 7) for i in range(500))
        replica.run((start + 500) * 0.05)
    replica.run(700.0)
    assert len(replica.finished) == 12_000
    assert len(replica._requests) < 10_000
    assert replica.counters.e2e_seconds.count == replica.counters.ttft_seconds.count == 12_000
    assert replica.counters.generation_tokens == sum(request.output for request in replica.finished)
