"""The policed engine under vLLM V1 is the exact stepper, and no policy loses a request."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings

from tests.replica.test_stepper import A100_7B, cases
from wattkeeper.replica import policed, stepper
from wattkeeper.replica.types import ReplicaConfig, Requests
from wattkeeper.scheduling.baselines import Orca, Sarathi, VllmV0
from wattkeeper.scheduling.clocked import ClockedWait, Paced
from wattkeeper.scheduling.forecast_memory import McSf
from wattkeeper.scheduling.greedy import Capped, RateLimited, VllmV1
from wattkeeper.scheduling.nested import NestedWait, WaitSegment
from wattkeeper.scheduling.types import Decision, PolicyError
from wattkeeper.scheduling.wait import Wait, WaitClass

CLASSES = tuple(
    WaitClass(prompt_tokens=prompt, output_tokens=output, threshold=2) for prompt in (64, 200) for output in (12, 120)
)
POLICIES = [
    VllmV1(),
    VllmV0(),
    Sarathi(),
    Sarathi(token_budget=64, watermark=0.1),
    Orca(most_output_tokens=120),
    Capped(limit=3),
    RateLimited(admissions=1),
    McSf(),
    Wait(classes=CLASSES),
    ClockedWait(classes=CLASSES, tpot_seconds=0.05, wait_seconds=0.2),
    NestedWait(
        segments=(
            WaitSegment(to_output_tokens=5, threshold=3),
            WaitSegment(to_output_tokens=40, threshold=2),
            WaitSegment(to_output_tokens=80, threshold=1),
        )
    ),
    Paced(pace_seconds=0.05, wait_seconds=0.2),
    Paced(pace_seconds=0.05, wait_seconds=0.2, guarded=False, name="paced-unguarded"),
]


@settings(deadline=None, max_examples=200)
@given(case=cases())
def test_vllm_v1_equals_the_stepper(case):
    config, requests = case
    ours = policed.serve(config, requests, VllmV1()).outcome
    exact = stepper.simulate(config, requests)
    np.testing.assert_allclose(ours.first_token_seconds, exact.first_token_seconds, atol=1e-9)
    np.testing.assert_allclose(ours.finish_seconds, exact.finish_seconds, atol=1e-9)
    assert ours.preemptions.tolist() == exact.preemptions.tolist()
    assert ours.refused.tolist() == exact.refused.tolist()
    assert ours.output_tokens.tolist() == exact.output_tokens.tolist()
    for field in dataclasses.fields(exact.activity):
        value = getattr(exact.activity, field.name)
        assert getattr(ours.activity, field.name) == pytest.approx(value, rel=1e-9, abs=1e-12), field.name


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@settings(deadline=None, max_examples=25)
@given(case=cases())
def test_every_policy_serves_every_request_to_its_end(policy, case):
    """With budget and memory for whole prompts; KV memory may be short, so that all repairs are seen."""
    config, requests = case
    config = dataclasses.replace(
        config,
        max_num_batched_tokens=4096,
        kv_blocks=max(config.kv_blocks, 320 // config.block_size + 1),
        max_model_len=None,
        long_prefill_token_threshold=0,
        chunked_prefill=True,
    )
    requests = dataclasses.replace(requests, hit_tokens=None)
    served = policed.serve(config, requests, policy, known_lengths=True)
    outcome = served.outcome
    assert np.isfinite(outcome.finish_seconds).all()
    assert (outcome.first_token_seconds > outcome.arrival_seconds).all()
    assert served.peak_blocks <= config.kv_blocks
    assert served.peak_residents <= config.max_num_seqs
    recomputed = outcome.activity.prefill_tokens - int(requests.prompt_tokens.sum())
    assert recomputed >= 0
    assert bool(recomputed) == bool(outcome.activity.preemptions)
    again = policed.serve(config, requests, policy, known_lengths=True)
    assert again.outcome.finish_seconds.tolist() == outcome.finish_seconds.tolist()


@dataclasses.dataclass(frozen=True)
class Broken:
    """Does what `way` says."""

    way: str
    name: str = "broken"

    def decide(self, view):
        request = (*view.running, *view.waiting)[0]
        admitted = () if view.running else (request,)
        return {
            "stuck": Decision(),
            "past": Decision(wait_until_seconds=view.now_seconds),
            "budget": Decision(tokens=((request, 200),), admitted=admitted),
            "more": Decision(tokens=((request, 51),), admitted=admitted),
            "nothing": Decision(tokens=((request, 0),), admitted=admitted),
            "stranger": Decision(tokens=(("you", 1),)),
            "repeat": Decision(tokens=((request, 1),), admitted=admitted, repeats=2),
        }[self.way]


@pytest.mark.parametrize("way", ["stuck", "past", "budget", "more", "nothing", "stranger"])
def test_what_an_engine_cannot_do_is_an_error_that_names_the_policy(way):
    requests = Requests(
        arrival_seconds=np.zeros(1),
        prompt_tokens=np.array([50 if way != "budget" else 300]),
        output_tokens=np.array([3]),
    )
    config = ReplicaConfig(iteration=A100_7B, max_num_seqs=4, max_num_batched_tokens=100)
    with pytest.raises(PolicyError, match="broken"):
        policed.serve(config, requests, Broken(way))
