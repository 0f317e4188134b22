"""What the NLR runs are predicted with by simpler means: stationary queues, and interpolation between training cells.

All queues get the linear coefficients that were calibrated for the stepper. Their batch is the fluid one of processor
sharing, n = rate * answer * t(n), unless they bring their own.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import special

from wattkeeper.domain.arrivals import Dispersion
from wattkeeper.domain.workload import FloatArray, LengthDistribution, Workload
from wattkeeper.evaluation import nlr_data
from wattkeeper.evaluation.finite_run import Costs
from wattkeeper.evaluation.nlr_data import TARGETS
from wattkeeper.physics.profile import IterationCoefficients, ServingProfile
from wattkeeper.queueing import mean_chain, sla
from wattkeeper.queueing.types import Candidates

CHECK, CHAIN, MM1, MMC = "queueing.sla.predict", "state-dependent mean chain", "M/M/1 mean", "M/M/c mean"
CHECK_BELOW = "queueing.sla.predict, below knee"
INTERPOLATION = "between training rates"
_SLOTS, _BUDGET, _MAX_QUEUE = 1024, 8192.0, 4096
_LENGTHS = 24
_COMPUTED_TOKENS = 8.5
"""Of a cached prompt: one to sixteen tokens of its last block."""


def stationary(
    costs: Costs, bent: Costs, held: pd.DataFrame, percentiles: list[FloatArray], profile: ServingProfile
) -> dict[str, FloatArray]:
    """Seconds of `TARGETS` per held-out cell (N, 4) and method; NaN where the model has no steady state.

    `costs` are linear, `bent` have a knee: below it the check is asked with their first slope as well.
    """
    found: dict[str, list[FloatArray]] = {CHECK: [], CHECK_BELOW: [], CHAIN: [], MM1: [], MMC: []}
    measured, below = _with(costs, profile), _with(bent, profile)
    for (_, cell), known in zip(held.iterrows(), percentiles, strict=True):
        lengths = nlr_data.answers(known, mean=cell["output_tokens"], cap=cell["output_cap_tokens"], count=_LENGTHS)
        tokens, counts = np.unique(lengths, return_counts=True)
        workload = Workload(
            requests_per_second=cell["rate"],
            prompt=LengthDistribution.fixed(cell["prompt_tokens"]),
            output=LengthDistribution(tokens=tuple(map(float, tokens)), weights=tuple(counts / counts.sum())),
            dispersion=Dispersion.flat(1e-2),
            prefix_hit_ratio=1.0 - _COMPUTED_TOKENS / cell["prompt_tokens"],
        )
        check, capacity = _check(measured, workload, costs)
        found[CHECK].append(check)
        found[CHECK_BELOW].append(_check(below, workload, bent)[0])
        found[CHAIN].append(_chain(costs, workload))
        queues = _queues(costs, workload, capacity)
        found[MM1].append(queues[0])
        found[MMC].append(queues[1])
    return {name: np.array(values) for name, values in found.items()}


def interpolation(held: pd.DataFrame, training: pd.DataFrame) -> FloatArray:
    """Between the training rates of the same or the most similar workload, in logarithms, constant beyond them."""
    result = np.empty((len(held), len(TARGETS)))
    for row, (_, cell) in enumerate(held.iterrows()):
        same = nlr_data.most_similar(cell, training).sort_values("rate")
        for column, target in enumerate(TARGETS):
            logs = np.interp(np.log(cell["rate"]), np.log(same["rate"]), np.log(same[target]))
            result[row, column] = np.exp(logs)
    return result


def _with(costs: Costs, profile: ServingProfile) -> ServingProfile:
    """The profile with calibrated coefficients."""
    iteration = IterationCoefficients(
        d0_seconds=costs.fixed_seconds,
        dt_seconds_per_token=costs.per_prompt_token_seconds,
        dkv_seconds_per_kv_token=costs.per_kv_token_seconds,
        da_seconds_per_token_squared=0.0,
        dn_seconds_per_decode=costs.per_decode_seconds,
    )
    return replace(profile, iteration=iteration)


def _check(profile: ServingProfile, workload: Workload, costs: Costs) -> tuple[FloatArray, float]:
    """The operator's own check at both percentiles, and the capacity that it sees; no answer beyond a knee."""
    one = np.ones(1)
    candidates = Candidates(
        replicas=one,
        power_cap_watts=one * np.nan,
        clock_ratio=one,
        max_num_seqs=one * _SLOTS,
        max_num_batched_tokens=one * _BUDGET,
        kv_capacity_tokens=one * profile.kv_capacity_tokens,
    )
    middle, high = (
        sla.predict(profile, workload, candidates, ttft_percentile=percentile, tpot_percentile=percentile)
        for percentile in (50.0, 90.0)
    )
    batch = float(middle.batch[0])
    if costs.beyond_knee_seconds > 0.0 and batch > costs.knee_sequences:
        return np.full(len(TARGETS), np.nan), float(middle.capacity_rps[0])
    client = costs.client_seconds + costs.front_end_seconds + costs.delivery_seconds * batch
    seconds = np.array(
        [
            middle.ttft_seconds[0] + client,
            high.ttft_seconds[0] + client,
            middle.tpot_seconds[0],
            high.tpot_seconds[0],
        ]
    )
    return np.where(np.isfinite(seconds), seconds, np.nan), float(middle.capacity_rps[0])


def _chain(costs: Costs, workload: Workload) -> FloatArray:
    """Means of the birth-death chain; cached prompts are computed as their last block, read as a whole."""
    rate, outputs, context = workload.requests_per_second, workload.output.mean, workload.prompt.mean
    server = mean_chain.Server(
        alpha_seconds=costs.fixed_seconds,
        beta_seconds_per_token=costs.per_decode_seconds,
        # The chain takes one length for computing and reading a prompt: reading is put into the coefficient.
        gamma_seconds_per_kv_token=costs.per_kv_token_seconds
        * (context + outputs / 2.0)
        / (_COMPUTED_TOKENS + outputs / 2.0),
        prompt_tokens=_COMPUTED_TOKENS,
        output_tokens=outputs,
        max_num_seqs=_SLOTS,
        max_queue=_MAX_QUEUE,
    )
    if rate >= server.fastest:
        return np.full(len(TARGETS), np.nan)
    means = mean_chain.means(server, rate)
    ttft, tpot = float(means.ttft_seconds) + costs.client_seconds, float(means.itl_seconds)
    return np.array([ttft, ttft, tpot, tpot])


def _queues(costs: Costs, workload: Workload, capacity: float) -> tuple[FloatArray, FloatArray]:
    """M/M/1 of the replica's capacity, and M/M/c whose servers are slots."""
    none = np.full(len(TARGETS), np.nan)
    rate, outputs = workload.requests_per_second, workload.output.mean
    each = costs.per_decode_seconds + costs.per_kv_token_seconds * (workload.prompt.mean + outputs / 2.0)
    prompt = costs.per_prompt_token_seconds * _COMPUTED_TOKENS
    busy = rate * (outputs * each + prompt)
    if rate >= capacity or busy >= 1.0:
        return none, none
    step = costs.fixed_seconds / (1.0 - busy)
    first = step + prompt + costs.client_seconds
    single = rate / (capacity * (capacity - rate)) + first
    wait = _erlang_wait(rate, outputs * step, _SLOTS)
    return np.array([single, single, step, step]), np.array([first + wait, first + wait, step, step])


def _erlang_wait(rate: float, service_seconds: float, servers: int) -> float:
    """Mean wait of an M/M/c queue; NaN where it has no steady state."""
    offered = rate * service_seconds
    if offered >= servers:
        return float("nan")
    # Erlang B from the incomplete gamma function, then C.
    log_top = servers * np.log(offered) - offered - special.gammaln(servers + 1.0)
    blocked = float(np.exp(log_top) / special.gammaincc(servers + 1.0, offered))
    waiting = blocked / (1.0 - offered / servers * (1.0 - blocked))
    return waiting * service_seconds / (servers - offered)
