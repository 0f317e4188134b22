"""The stepper against a literal loop, its macro-steps against single steps, and what must hold of any replica."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.replica.literal import Job, Literal
from wattkeeper.physics.profile import IterationCoefficients
from wattkeeper.replica import stepper
from wattkeeper.replica.types import ReplicaConfig, Requests

A100_7B = IterationCoefficients(
    d0_seconds=8.79e-3,
    dt_seconds_per_token=5.574e-5,
    dkv_seconds_per_kv_token=2.94e-7,
    da_seconds_per_token_squared=8.4e-9,
    dn_seconds_per_decode=4.31e-5,
)

jobs = st.lists(
    st.tuples(
        st.one_of(st.just(0.0), st.floats(1e-4, 0.4)),
        st.integers(1, 200),
        st.integers(1, 120),
        st.integers(0, 250),
    ),
    min_size=1,
    max_size=50,
)


@st.composite
def configs(draw):
    size = draw(st.sampled_from([1, 8, 16]))
    seqs = draw(st.integers(1, 24))
    chunked = draw(st.sampled_from([True, True, True, False]))
    return ReplicaConfig(
        iteration=A100_7B,
        max_num_seqs=seqs,
        max_num_batched_tokens=draw(st.integers(max(seqs, 1 if chunked else 128), 400)),
        kv_blocks=draw(st.integers(160 // size, 1000 // size)),
        block_size=size,
        watermark=draw(st.sampled_from([0.0, 0.0, 0.05, 0.3])),
        long_prefill_token_threshold=draw(st.sampled_from([0, 0, 1, 7, 50])) if chunked else 0,
        chunked_prefill=chunked,
        max_model_len=draw(st.sampled_from([None, None, 100, 250])),
    )


def requests_of(jobs):
    gaps, prompts, outputs, hits = zip(*jobs, strict=True)
    return Requests(
        arrival_seconds=np.cumsum(gaps),
        prompt_tokens=np.array(prompts),
        output_tokens=np.array(outputs),
        hit_tokens=np.array(hits),
    )


def literal_of(config, requests):
    oracle = Literal(
        config.iteration,
        seqs=config.max_num_seqs,
        budget=config.max_num_batched_tokens,
        blocks=config.kv_blocks,
        size=config.block_size,
        watermark=config.watermark,
        threshold=config.long_prefill_token_threshold,
        chunked=config.chunked_prefill,
        max_len=config.max_model_len,
    )
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
@given(config=configs(), jobs=jobs, macro=st.booleans())
def test_equals_a_literal_loop(config, jobs, macro):
    requests = requests_of(jobs)
    assert_same(stepper.simulate(config, requests, macro_steps=macro), *literal_of(config, requests))
