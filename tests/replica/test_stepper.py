"""The stepper against a literal loop, its macro-steps against single steps, and what must hold of any replica."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.replica.literal import Job, Literal
from wattkeeper.domain.workload import LengthDistribution
from wattkeeper.physics.profile import IterationCoefficients
from wattkeeper.replica import arrivals, stepper
from wattkeeper.replica.types import ReplicaConfig, Requests

A100_7B = IterationCoefficients(
    d0_seconds=8.79e-3,
    dt_seconds_per_token=5.574e-5,
    dkv_seconds_per_kv_token=2.94e-7,
    da_seconds_per_token_squared=8.4e-9,
    dn_seconds_per_decode=4.31e-5,
)


@st.composite
def cases(draw):
    """A small replica and enough work to fill it: queues, chunks and preemptions are the rule."""
    size = draw(st.sampled_from([1, 8, 16]))
    seqs = draw(st.integers(1, 24))
    chunked = draw(st.sampled_from([True, True, True, False]))
    longest_prompt = draw(st.sampled_from([8, 60, 200]))
    longest_answer = draw(st.sampled_from([1, 12, 120]))
    longest = longest_prompt + longest_answer
    config = ReplicaConfig(
        iteration=A100_7B,
        max_num_seqs=seqs,
        max_num_batched_tokens=max(seqs, draw(st.integers(1, 300)) + (0 if chunked else longest)),
        kv_blocks=draw(st.integers(longest // size + 1, 5 * longest // size + 1)),
        block_size=size,
        watermark=draw(st.sampled_from([0.0, 0.0, 0.05, 0.3])),
        long_prefill_token_threshold=draw(st.sampled_from([0, 0, 1, 7, 50])) if chunked else 0,
        chunked_prefill=chunked,
        max_model_len=draw(st.sampled_from([None, None, longest // 2 + 2])),
    )
    count = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    requests = Requests(
        arrival_seconds=np.cumsum(rng.exponential(draw(st.sampled_from([1e-9, 0.01, 0.05, 0.3])), count)),
        prompt_tokens=rng.integers(1, longest_prompt, count, endpoint=True),
        output_tokens=rng.integers(1, longest_answer, count, endpoint=True),
        hit_tokens=rng.integers(0, draw(st.sampled_from([1, 50, 250])), count),
    )
    return config, requests


def literal_of(config, requests):
    oracle = Literal.of(config)
    columns = (requests.arrival_seconds, requests.prompt_tokens, requests.output_tokens, requests.hit_tokens)
    jobs = [Job(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    return oracle.play(jobs), jobs


def assert_same(outcome, oracle, jobs):
    assert outcome.preemptions.tolist() == [job.preemptions for job in jobs]
    assert outcome.refused.tolist() == [not job.token_times for job in jobs]
    for index, job in enumerate(jobs):
        if job.token_times:
            assert outcome.first_token_seconds[index] == pytest.approx(job.token_times[0], abs=1e-9)
            assert outcome.finish_seconds[index] == pytest.approx(job.token_times[-1], abs=1e-9)
            assert outcome.output_tokens[index] == len(job.token_times)
        else:
            assert math.isnan(outcome.first_token_seconds[index])
    sums, steps = outcome.activity, oracle.iterations
    assert sums.steps == len(steps)
    assert sums.prefill_steps == sum(s.prefill > 0 for s in steps)
    assert sums.prefill_tokens == sum(s.prefill for s in steps)
    assert sums.decode_tokens == sum(s.decodes for s in steps)
    assert sums.kv_read_tokens == sum(s.kv for s in steps)
    assert sums.preemptions == sum(job.preemptions for job in jobs)
    close = lambda value: pytest.approx(value, rel=1e-9, abs=1e-12)  # noqa: E731
    assert sums.attention_products == close(sum(s.products for s in steps))
    assert sums.busy_seconds == close(sum(s.seconds for s in steps))
    assert sums.span_seconds == close(oracle.now)
    assert sums.sequence_seconds == close(sum(s.decodes * s.seconds for s in steps))
    assert sums.kv_token_seconds == close(sum(s.kv * s.seconds for s in steps))
    assert sums.step_seconds_squared == close(sum(s.seconds**2 for s in steps))


@settings(deadline=None, max_examples=300)
@given(case=cases(), macro=st.booleans())
def test_equals_a_literal_loop(case, macro):
    config, requests = case
    assert_same(stepper.simulate(config, requests, macro_steps=macro), *literal_of(config, requests))


@st.composite
def roomy_cases(draw):
    """Memory for nearly all at once and prompts of many chunks: short memory is not the rule."""
    seqs = draw(st.integers(1, 24))
    config = ReplicaConfig(
        iteration=A100_7B,
        max_num_seqs=seqs,
        max_num_batched_tokens=max(seqs, draw(st.integers(1, 80))),
        kv_blocks=draw(st.sampled_from([60, 300, 5000])),
        watermark=draw(st.sampled_from([0.0, 0.05])),
        long_prefill_token_threshold=draw(st.sampled_from([0, 0, 0, 30])),
        priorities=draw(st.booleans()),
    )
    count = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    requests = Requests(
        arrival_seconds=np.cumsum(rng.exponential(draw(st.sampled_from([1e-9, 0.05, 0.3, 1.0])), count)),
        prompt_tokens=rng.integers(1, draw(st.sampled_from([60, 700])), count, endpoint=True),
        output_tokens=rng.integers(1, draw(st.sampled_from([4, 120])), count, endpoint=True),
        hit_tokens=rng.integers(0, draw(st.sampled_from([1, 50])), count),
    )
    return config, requests


@settings(deadline=None, max_examples=300)
@given(case=roomy_cases(), slices=st.lists(st.floats(1e-3, 2.0), max_size=30))
def test_runs_of_chunks_equal_a_literal_loop(case, slices):
    config, requests = case
    oracle, jobs = literal_of(config, requests)
    replica = stepper.Replica(config)
    outputs, accepted = replica.load(requests)
    for until in itertools.accumulate(slices):
        if until < oracle.now:
            replica.advance(until)
            assert 0.0 <= replica.kv_usage <= 1.0
    replica.advance(math.inf)
    assert replica.kv_usage == 0.0
    assert_same(replica.outcome(requests.arrival_seconds, outputs, accepted), oracle, jobs)


@settings(deadline=None, max_examples=100)
@given(case=cases(), slices=st.lists(st.floats(1e-3, 0.5), min_size=1, max_size=30))
def test_bit_by_bit_is_the_same_as_all_at_once(case, slices):
    config, requests = case
    whole = stepper.simulate(config, requests)
    replica = stepper.Replica(config)
    until = itertools.accumulate(itertools.cycle(slices))
    indices = []
    for row in range(len(requests)):
        arrival = requests.arrival_seconds[row]
        while (stop := next(until)) < arrival:
            replica.advance(stop)
            assert replica.now >= stop
        replica.advance(arrival)
        indices.append(
            replica.offer(
                arrival_seconds=arrival,
                prompt_tokens=int(requests.prompt_tokens[row]),
                output_tokens=int(requests.output_tokens[row]),
                hit_tokens=int(requests.hit_tokens[row]),
            )
        )
        assert 0.0 <= replica.kv_usage <= 1.0
        assert 0 <= replica.running <= min(config.max_num_seqs, replica.outstanding)
    replica.advance(math.inf)
    assert replica.outstanding == 0
    assert replica.kv_usage == 0.0
    for row, index in enumerate(indices):
        if whole.refused[row]:
            assert index == -1
            continue
        assert replica.first_token_seconds(index) == pytest.approx(whole.first_token_seconds[row], abs=1e-9)
        assert replica.finish_seconds(index) == pytest.approx(whole.finish_seconds[row], abs=1e-9)
        assert replica.preemptions(index) == whole.preemptions[row]
    assert replica.activity.steps == whole.activity.steps
    assert replica.activity.busy_seconds == pytest.approx(whole.activity.busy_seconds)
    assert replica.activity.kv_token_seconds == pytest.approx(whole.activity.kv_token_seconds)
    assert replica.activity.step_seconds_squared == pytest.approx(whole.activity.step_seconds_squared)


@pytest.mark.parametrize(
    ("rate", "settings"),
    [
        (0.5, {}),
        (3.0, {}),
        (6.0, {}),
        (3.0, {"kv_blocks": 1500}),
        (3.0, {"kv_blocks": 1500, "watermark": 0.05}),
        (6.0, {"max_num_batched_tokens": 512, "long_prefill_token_threshold": 128}),
        (3.0, {"max_num_seqs": 24}),
    ],
)
def test_long_runs_agree_with_single_steps(rate, settings):
    config = ReplicaConfig(iteration=A100_7B, **settings)
    requests = arrivals.requests(
        arrivals.on_off(rate=rate, count=3000, seed=5),
        prompt=LengthDistribution.lognormal(mean=1155, coefficient_of_variation=0.95),
        output=LengthDistribution.lognormal(mean=211, coefficient_of_variation=0.77),
        seed=5,
    )
    macro = stepper.simulate(config, requests)
    single = stepper.simulate(config, requests, macro_steps=False)
    assert macro.preemptions.tolist() == single.preemptions.tolist()
    assert np.abs(macro.finish_seconds - single.finish_seconds).max() < 1e-7
    assert np.abs(macro.first_token_seconds - single.first_token_seconds).max() < 1e-7
    assert macro.activity.steps == single.activity.steps
    assert macro.activity.preemptions > 0 or "kv_blocks" not in settings


def simple(**settings):
    coefficients = IterationCoefficients(
        d0_seconds=1.0, dt_seconds_per_token=0.01, dkv_seconds_per_kv_token=0.001, da_seconds_per_token_squared=0.0
    )
    return ReplicaConfig(**{"iteration": coefficients, **settings})


def one(prompt, output, hit=0, arrival=0.0):
    return Requests(
        arrival_seconds=np.array([arrival]),
        prompt_tokens=np.array([prompt]),
        output_tokens=np.array([output]),
        hit_tokens=np.array([hit]),
    )


def test_one_request_by_hand():
    outcome = stepper.simulate(simple(front_end_seconds=0.5), one(100, 3, arrival=2.0))
    assert outcome.first_token_seconds[0] == pytest.approx(2.0 + 1.0 + 1.0)
    # Two decodes of 1 s, 0.01 s for the sequence, and 101 and 102 tokens of context.
    assert outcome.finish_seconds[0] == pytest.approx(4.0 + 2.02 + 0.203)
    assert outcome.ttft_seconds[0] == pytest.approx(2.5)
    assert outcome.tpot_seconds[0] == pytest.approx(2.223 / 2)
    assert outcome.e2e_seconds[0] == pytest.approx(4.723)
    activity = outcome.activity
    assert (activity.steps, activity.prefill_steps, activity.prefill_tokens) == (3, 1, 100)
    assert (activity.decode_tokens, activity.kv_read_tokens, activity.preemptions) == (2, 203, 0)
    assert activity.busy_seconds == pytest.approx(4.223)
    assert activity.span_seconds == pytest.approx(6.223)


def test_prefix_hits_come_in_whole_blocks_and_never_cover_the_last_token():
    for hit, computed in ((0, 96), (15, 96), (40, 64), (96, 16), (1000, 16)):
        assert stepper.simulate(simple(), one(96, 1, hit)).activity.prefill_tokens == computed


def test_a_lower_clock_is_slower():
    config = simple(clock_ratio=0.5)
    assert stepper.simulate(config, one(100, 3)).finish_seconds[0] > 4.223


def test_answers_end_at_the_longest_model_length():
    outcome = stepper.simulate(simple(max_model_len=101), one(100, 50))
    assert outcome.output_tokens.tolist() == [1]
    assert math.isnan(outcome.tpot_seconds[0])
    assert stepper.simulate(simple(max_model_len=100), one(100, 50)).refused.tolist() == [True]


def test_what_can_never_run_is_refused_and_blocks_nobody():
    requests = Requests(
        arrival_seconds=np.array([0.0, 0.0]), prompt_tokens=np.array([200, 10]), output_tokens=np.array([5, 5])
    )
    outcome = stepper.simulate(simple(kv_blocks=8), requests)
    assert outcome.refused.tolist() == [True, False]
    assert np.isnan(outcome.finish_seconds).tolist() == [True, False]
    whole = simple(max_num_batched_tokens=100, max_num_seqs=4, chunked_prefill=False)
    assert stepper.simulate(whole, requests).refused.tolist() == [True, False]


def test_no_requests():
    nothing = Requests(
        arrival_seconds=np.zeros(0), prompt_tokens=np.zeros(0, dtype=int), output_tokens=np.zeros(0, dtype=int)
    )
    outcome = stepper.simulate(simple(), nothing)
    assert len(outcome.finish_seconds) == 0
    assert outcome.activity.steps == 0


def test_the_last_admitted_is_preempted_and_comes_first_afterwards():
    config = simple(kv_blocks=4, block_size=10, max_num_seqs=2, max_num_batched_tokens=100)
    requests = Requests(
        arrival_seconds=np.zeros(3), prompt_tokens=np.array([10, 10, 10]), output_tokens=np.array([20, 20, 1])
    )
    outcome = stepper.simulate(config, requests)
    assert outcome.preemptions.tolist() == [0, 1, 0]
    # The third would fit beside the first, but the second waits before it for three blocks.
    assert outcome.first_token_seconds[2] > outcome.finish_seconds[0]


def test_an_idle_replica_waits_until_told():
    replica = stepper.Replica(simple())
    replica.advance(7.0)
    assert replica.now == 7.0
    assert replica.activity.busy_seconds == 0.0
    index = replica.offer(arrival_seconds=3.0, prompt_tokens=100, output_tokens=1)
    assert replica.first_token_seconds(index) is None
    replica.advance(7.5)
    assert replica.finish_seconds(index) == pytest.approx(9.0)
    with pytest.raises(ValueError, match="ascend"):
        replica.offer(arrival_seconds=2.0, prompt_tokens=100, output_tokens=1)
    with pytest.raises(ValueError, match="tokens"):
        replica.offer(arrival_seconds=8.0, prompt_tokens=0, output_tokens=1)


@pytest.mark.parametrize(
    "settings",
    [
        {"clock_ratio": 0.0},
        {"max_num_seqs": 0},
        {"kv_blocks": 0},
        {"block_size": 0},
        {"max_num_batched_tokens": 255},
        {"watermark": 1.0},
        {"long_prefill_token_threshold": -1},
        {"long_prefill_token_threshold": 64, "chunked_prefill": False},
        {"max_model_len": 1},
        {"front_end_seconds": -1.0},
    ],
)
def test_refuses_settings_that_contradict(settings):
    with pytest.raises(ValueError, match=r"must|needs"):
        simple(**settings)


@pytest.mark.parametrize(
    "columns",
    [
        ([0.0, 1.0], [1], [1, 1]),
        ([1.0, 0.0], [1, 1], [1, 1]),
        ([0.0, math.nan], [1, 1], [1, 1]),
        ([-1.0, 0.0], [1, 1], [1, 1]),
        ([0.0, math.inf], [1, 1], [1, 1]),
        ([0.0, 1.0], [1, 0], [1, 1]),
        ([0.0, 1.0], [1, 1], [1, 0]),
        ([0.0, 1.0], [1.5, 1.0], [1, 1]),
    ],
)
def test_refuses_requests_that_make_no_sense(columns):
    times, prompts, outputs = (np.array(column) for column in columns)
    with pytest.raises(ValueError, match=r"must|need"):
        Requests(arrival_seconds=times, prompt_tokens=prompts, output_tokens=outputs)
