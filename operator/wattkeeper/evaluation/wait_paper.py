"""The workloads of Ao, Luo, Simchi-Levi, Wang (arXiv 2504.11320, section 6) under several scheduling policies.

One A100-80GB with the KV memory of the paper (137,000 tokens) is stepped in the MIXED form. Coefficients are least
squares over the linear-layer timings published with Vidur and the attention timings of aiconfigurator: another model of
the same card, so that orderings are to be compared, and seconds only in size. Latencies are means over requests that
arrive in the middle 60 % of a run; evictions and energy count the whole run.
"""

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from wattkeeper.physics.profile import IterationCoefficients
from wattkeeper.queueing import policies
from wattkeeper.queueing.mix import Mix
from wattkeeper.replica import arrivals, policed
from wattkeeper.replica.types import ReplicaConfig, Requests
from wattkeeper.scheduling.baselines import Sarathi, VllmV0
from wattkeeper.scheduling.clocked import Paced
from wattkeeper.scheduling.greedy import Capped, VllmV1
from wattkeeper.scheduling.types import Policy

KV_TOKENS = 137_000
BLOCK_SIZE = 16
IDLE_WATTS, BUSY_WATTS = 90.0, 300.0
"""Assumptions for an A100 between and in iterations; that short gaps fall to idle power is not measured."""
PACE_SECONDS, WAIT_SECONDS = 0.05, 0.2
LONGEST_STRIDE = 32
"""Of WAIT, where single stages need more memory than there is."""
TOKEN_BUDGET = 8192
"""Of the engine; policies have their own below it."""

LLAMA_2_7B = IterationCoefficients(
    d0_seconds=8.79e-3,
    dt_seconds_per_token=5.574e-5,
    dkv_seconds_per_kv_token=2.94e-7,
    da_seconds_per_token_squared=8.4e-9,
)
LLAMA_3_8B = IterationCoefficients(
    d0_seconds=9.15e-3,
    dt_seconds_per_token=6.19e-5,
    dkv_seconds_per_kv_token=7.46e-8,
    da_seconds_per_token_squared=7.7e-9,
)
_STUDENT_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Two-sided 95 % quantiles by degrees of freedom from 1 on; 1.96 beyond."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Classes of requests, the rates to run, and what the paper reports."""

    name: str
    iteration: IterationCoefficients
    shares: tuple[float, ...]
    prompt_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    """Tokens answered, the one that the prefill yields included (Vidur counts so)."""
    rates: tuple[float, ...]
    full_rates: tuple[float, ...]
    cap: int
    cap_budget: int
    request_share: float = 1.0
    """Of the requests of a run: long answers need fewer."""
    reported: dict[tuple[float, str], str] = field(default_factory=dict)
    """Mean end-to-end seconds in the paper by rate and policy."""

    def mix(self, rate: float) -> Mix:
        """Classes at a total rate, in the terms of the fluid model."""
        return Mix.of(
            rates_per_second=rate * np.array(self.shares),
            prompt_tokens=self.prompt_tokens,
            decode_steps=np.array(self.output_tokens) - 1,
        )

    def requests(self, *, rate: float, count: int, seed: int) -> Requests:
        """Poisson arrivals, classes drawn independently."""
        at = np.random.default_rng((seed, 41)).choice(len(self.shares), size=count, p=self.shares)
        return Requests(
            arrival_seconds=arrivals.poisson(rate=rate, count=count, seed=seed),
            prompt_tokens=np.array(self.prompt_tokens)[at],
            output_tokens=np.array(self.output_tokens)[at],
        )


WORKLOADS = (
    Workload(
        name="p512d20",
        iteration=LLAMA_2_7B,
        shares=(1.0,),
        prompt_tokens=(512,),
        output_tokens=(20,),
        rates=(12.0, 22.0, 24.0),
        full_rates=(12.0, 16.0, 20.0, 22.0, 23.0, 24.0),
        cap=40,
        cap_budget=1024,
        reported={
            (22.0, "vllm-v0"): "18.23±2.74",
            (22.0, "sarathi-512"): "1.85±0.33",
            (22.0, "wait"): "1.03±0.04",
            (23.0, "vllm-v0"): "26.78±3.35",
            (23.0, "sarathi-512"): "5.08±1.72",
            (23.0, "wait"): "1.29±0.10",
        },
    ),
    Workload(
        name="0.7 p512d20 + 0.3 p512d50",
        iteration=LLAMA_2_7B,
        shares=(0.7, 0.3),
        prompt_tokens=(512, 512),
        output_tokens=(20, 50),
        rates=(22.0,),
        full_rates=(18.0, 22.0, 23.0),
        cap=60,
        cap_budget=1024,
        reported={
            (22.0, "vllm-v0"): "56.70±2.22",
            (22.0, "sarathi-512"): "4.06±1.66",
            (22.0, "wait"): "2.36±0.57",
            (23.0, "vllm-v0"): "80.25±2.37",
            (23.0, "sarathi-512"): "8.41±1.74",
            (23.0, "wait"): "5.66±1.88",
        },
    ),
    Workload(
        name="p512d1000",
        iteration=LLAMA_3_8B,
        shares=(1.0,),
        prompt_tokens=(512,),
        output_tokens=(1000,),
        rates=(4.0,),
        full_rates=(3.5, 4.0, 4.5),
        cap=int(0.9 * KV_TOKENS / (512 + 1000 / 2)),
        cap_budget=1024,
        request_share=0.5,
        reported={
            (4.0, "sarathi-512"): "30.2",
            (4.0, "wait"): "26.4",
            (4.5, "vllm-v0"): "53.8",
            (4.5, "sarathi-512"): "41.7",
            (4.5, "wait"): "32.3",
        },
    ),
)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Mean over seeds and half the width of its 95 % interval (None for one seed)."""

    mean: float
    half_width: float | None

    @staticmethod
    def of(values: list[float]) -> "Estimate":
        """Student's interval."""
        if len(values) < 2:
            return Estimate(mean=values[0], half_width=None)
        quantile = _STUDENT_95[len(values) - 2] if len(values) - 2 < len(_STUDENT_95) else 1.96
        width = quantile * statistics.stdev(values) / math.sqrt(len(values))
        return Estimate(mean=statistics.fmean(values), half_width=width)

    def __str__(self) -> str:
        digits = 1 if abs(self.mean) >= 10.0 else 2
        width = "" if self.half_width is None else f"±{self.half_width:.{digits}f}"
        return f"{self.mean:.{digits}f}{width}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One policy on one workload at one rate."""

    workload: str
    rate: float
    policy: str
    note: str = ""
    """Why there are no figures, or what the policy's parameters are."""
    e2e_seconds: Estimate | None = None
    e2e_ratio: Estimate | None = None
    """Mean end-to-end time over that of vLLM V1 with the same arrivals."""
    ttft_seconds: Estimate | None = None
    tpot_seconds: Estimate | None = None
    throughput: Estimate | None = None
    """Requests finished per second in the middle of the run."""
    evictions_percent: Estimate | None = None
    """Preemptions per request."""
    joules: Estimate | None = None
    """Per request."""
    reported: str = ""


def candidates(workload: Workload, rate: float) -> Iterator[tuple[str, Policy | None, str]]:
    """(name, policy or None where its conditions fail, note) of each policy at one rate; vLLM V1 comes first."""
    yield "vllm-v1", VllmV1(token_budget=2048), "budget 2048"
    yield "vllm-v0", VllmV0(), "prefill first"
    yield "sarathi-512", Sarathi(), "budget 512"
    yield "sarathi-1024", Sarathi(token_budget=1024, name="sarathi-1024"), "budget 1024"
    choice = policies.choose(
        workload.mix(rate),
        workload.iteration,
        kv_capacity_tokens=KV_TOKENS,
        lengths_known=True,
        longest_stride=LONGEST_STRIDE,
    )
    if choice.policy is None:
        reasons = ", ".join(each.name for each in choice.plan.failures) or choice.plan.cause.value
        yield "wait", None, f"no thresholds: {reasons}"
    else:
        counts, stride = getattr(choice.plan, "thresholds", ()), getattr(choice.plan, "stride", 1)
        coarse = f", stages of {stride}" if stride > 1 else ""
        yield "wait", choice.policy, f"n = {', '.join(map(str, counts))}{coarse}"
    yield (
        "capped",
        Capped(limit=workload.cap, token_budget=workload.cap_budget),
        f"{workload.cap} in service, budget {workload.cap_budget}",
    )
    yield "paced", Paced(pace_seconds=PACE_SECONDS, wait_seconds=WAIT_SECONDS, token_budget=2048), "50 ms, budget 2048"


def reproduce(
    *, requests: int, seeds: int, full: bool = False, progress: Callable[[str], None] = lambda _: None
) -> list[Row]:
    """All workloads, rates and policies; `progress` hears of each cell before it runs."""
    rows = []
    for workload in WORKLOADS:
        for rate in workload.full_rates if full else workload.rates:
            first: list[float] = []
            for name, policy, note in candidates(workload, rate):
                progress(f"{workload.name} at {rate:g}/s: {name}")
                count = max(40, int(requests * workload.request_share))
                rows.append(_row(workload, rate, name, policy, note, count, seeds, first))
    return rows


def _row(
    workload: Workload,
    rate: float,
    name: str,
    policy: Policy | None,
    note: str,
    count: int,
    seeds: int,
    first: list[float],
) -> Row:
    """`first` is filled by the first policy: its end-to-end seconds, one per seed."""
    reported = workload.reported.get((rate, name), "")
    if policy is None:
        return Row(workload=workload.name, rate=rate, policy=name, note=note, reported=reported)
    measured = [_run(workload, rate, policy, count, seed) for seed in range(seeds)]
    if not first:
        first.extend(run[0] for run in measured)
    figures = [Estimate.of(list(column)) for column in zip(*measured, strict=True)]
    e2e, ttft, tpot, throughput, evictions, joules = figures
    return Row(
        workload=workload.name,
        rate=rate,
        policy=name,
        note=note,
        e2e_seconds=e2e,
        e2e_ratio=Estimate.of([run[0] / base for run, base in zip(measured, first, strict=True)]),
        ttft_seconds=ttft,
        tpot_seconds=tpot,
        throughput=throughput,
        evictions_percent=evictions,
        joules=joules,
        reported=reported,
    )


def _run(workload: Workload, rate: float, policy: Policy, count: int, seed: int) -> tuple[float, ...]:
    config = ReplicaConfig(
        iteration=workload.iteration,
        max_num_seqs=256,
        max_num_batched_tokens=TOKEN_BUDGET,
        kv_blocks=KV_TOKENS // BLOCK_SIZE,
        block_size=BLOCK_SIZE,
    )
    requests = workload.requests(rate=rate, count=count, seed=seed)
    served = policed.serve(config, requests, policy, known_lengths=True)
    outcome = served.outcome
    first, last = requests.arrival_seconds[int(0.2 * count)], requests.arrival_seconds[int(0.8 * count)]
    middle = (requests.arrival_seconds >= first) & (requests.arrival_seconds < last)
    finished = np.count_nonzero((outcome.finish_seconds >= first) & (outcome.finish_seconds < last))
    return (
        float(outcome.e2e_seconds[middle].mean()),
        float(outcome.ttft_seconds[middle].mean()),
        float(outcome.tpot_seconds[middle].mean()),
        float(finished / (last - first)),
        100.0 * float(outcome.preemptions.mean()),
        served.joules(idle_watts=IDLE_WATTS, busy_watts=BUSY_WATTS) / count,
    )
