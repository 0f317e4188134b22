"""Physical estimate of measured runs: the same operating points and the same physics as in a live decision.

A closed-loop run always decodes `max_num_seqs` sequences. A finite open run ramps up, perhaps saturates, and drains
until its longest answer ends: a fluid path of the batch, and its energy is the integral of the power along that path.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.errors import UnknownModelError
from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import data, points
from wattkeeper.energy.points import IndexArray
from wattkeeper.physics import catalogue, power, profiles, step
from wattkeeper.physics.profile import ServingProfile

_TICK_SECONDS = 0.1
_COHORTS = 64
_LENGTH_SIGMA = 0.8
"""Spread of ln(answer length), assumed: near that of public chat traces."""
_LONGEST_RUN_SECONDS = 3600.0
_TOKEN_BUDGET = 8192.0
"""vLLM's default on large cards: more prompt tokens than this do not enter one iteration."""
_DRAINED = 0.5
"""A run has ended when fewer sequences than this are left."""


_REFERENCES = (
    ("meta-llama/Llama-3.1-8B-Instruct", "nvidia-h100-sxm", 1),
    ("meta-llama/Llama-3.1-70B-Instruct", "nvidia-b200", 4),
    ("Qwen/Qwen3-30B-A3B-Instruct-2507", "nvidia-a100-sxm", 2),
)
_REFERENCE_BATCHES = (4.0, 32.0, 256.0)


@dataclass(frozen=True, kw_only=True)
class Estimated:
    """Runs of one profile with their operating points and physical estimates, (N,) each."""

    rows: IndexArray
    """Positions in the table."""
    points: points.OperatingPoints
    busy_watts: FloatArray
    """Per GPU."""
    tokens_per_second: FloatArray


def profile_of(
    *, model: str, gpu: str, gpus: int, parameters: float, activated_parameters: float, precision: str,
    data_parallel: int = 1,
) -> ServingProfile:  # fmt: skip
    """The roofline profile of a measured deployment.

    Pairs with fitted coefficients are estimated like all others: a correction is learned to the estimate, and the fits
    rest on some of these very runs. A model outside the catalogue goes by its published sizes (NaN: by its name).
    """
    with contextlib.suppress(UnknownModelError):
        model = catalogue.model(model).name
    if not any(model == spec.name for spec in catalogue.models()) and np.isfinite(parameters):
        model = f"{model.rpartition('/')[0]}/sized-{parameters / 1e9:g}b"
        model += f"-a{activated_parameters / 1e9:g}b" if activated_parameters < parameters else ""
        model += f"-{precision}"
    engine = EngineSettings(tensor_parallel_size=gpus // data_parallel, data_parallel_size=data_parallel)
    return profiles.serving_profile(model=model, accelerator=gpu, gpus_per_replica=gpus, engine=engine, use_fits=False)


def _by_profile(table: pd.DataFrame) -> Iterator[tuple[ServingProfile, pd.DataFrame, IndexArray]]:
    """Runs with one profile, and their positions in the table."""
    positions = pd.Series(np.arange(len(table)), index=table.index)
    keys = ["model", "gpu", "num_gpus", "data_parallel", "parameters", "activated_parameters", "weight_precision"]
    for _, group in table.groupby(keys, sort=True, dropna=False):
        first = group.iloc[0]
        profile = profile_of(
            model=str(first["model"]),
            gpu=str(first["gpu"]),
            gpus=int(first["num_gpus"]),
            parameters=float(first["parameters"]),
            activated_parameters=float(first["activated_parameters"]),
            precision=str(first["weight_precision"]),
            data_parallel=int(first["data_parallel"]),
        )
        yield profile, group, positions[group.index].to_numpy()


def closed_loop_runs(table: pd.DataFrame) -> list[Estimated]:
    """Estimates of closed-loop runs, one entry per profile."""
    found = []
    for profile, group, rows in _by_profile(table):
        cached = data.cached_tokens(group)
        state = points.closed_loop(
            profile,
            batch=group["max_num_seqs"].to_numpy(dtype=np.float64),
            prompt_tokens=np.maximum(group["prompt_tokens"].to_numpy(dtype=np.float64) - cached, 1.0),
            cached_tokens=cached,
            output_tokens=group["output_tokens"].to_numpy(dtype=np.float64),
            multimodal=group["multimodal"].to_numpy(dtype=np.float64),
        )
        found.append(
            Estimated(
                rows=rows,
                points=state,
                busy_watts=state.busy_watts,
                tokens_per_second=state.batch / state.step_seconds,
            )
        )
    return found


def open_runs(table: pd.DataFrame) -> list[Estimated]:
    """Estimates of finite open runs (`requests` arriving at `requests_per_second`), one entry per profile.

    Batch, step time and the rest of the operating points are means over output tokens.
    """
    return [_open_runs(profile, group, rows) for profile, group, rows in _by_profile(table)]


def _open_runs(profile: ServingProfile, group: pd.DataFrame, rows: IndexArray) -> Estimated:
    """Repeats of one setting (same workload and rate) are estimated once, at their mean lengths."""
    cells = group.groupby(["group_workload", "requests_per_second"], sort=True)
    names = ["prompt_tokens", "output_tokens", "output_cap_tokens", "requests_per_second", "requests"]
    runs = {name: cells[name].mean().to_numpy(dtype=np.float64) for name in names}
    path = _finite_run(profile, **runs)
    tokens, size = path["tokens"], len(path["tokens"])
    state = points.OperatingPoints(
        profile=profile,
        batch=path["batch"] / tokens,
        prefill_tokens=path["prefill"] / tokens,
        kv_tokens=path["kv"] / tokens,
        step_seconds=path["seconds"] / path["steps"],
        clock_ratio=np.ones(size),
        limit_watts=np.full(size, profile.gpu.tdp_watts),
        kv_capacity_tokens=np.full(size, profile.kv_capacity_tokens),
        prompt_tokens=runs["prompt_tokens"],
        output_tokens=runs["output_tokens"],
        multimodal=np.zeros(size),
    )
    cell = cells.ngroup().to_numpy()
    return Estimated(
        rows=rows,
        points=state.take(cell),
        busy_watts=(path["joules"] / path["elapsed"])[cell],
        tokens_per_second=(tokens / path["elapsed"])[cell],
    )


def _finite_run(
    profile: ServingProfile, *, prompt_tokens: FloatArray, output_tokens: FloatArray, output_cap_tokens: FloatArray,
    requests_per_second: FloatArray, requests: FloatArray,
) -> dict[str, FloatArray]:  # fmt: skip
    """Sums over (R,) finite runs: tokens, steps, seconds, joules, and what is weighted with tokens.

    Requests come in `_COHORTS` equal cohorts; of a cohort, the share whose answer is longer than the tokens made since
    it came still runs. Answers are lognormal, cut at the cap.
    """
    scale = _lognormal_scale(output_tokens, output_cap_tokens)
    share = (np.arange(_COHORTS) + 0.5) / _COHORTS
    arrival = share * (requests / requests_per_second)[:, None]
    made_at_arrival = np.full(arrival.shape, np.nan)
    made = np.zeros(len(requests))
    names = ("tokens", "steps", "seconds", "joules", "batch", "prefill", "kv", "elapsed")
    sums = {name: np.zeros(len(requests)) for name in names}
    for tick in range(int(_LONGEST_RUN_SECONDS / _TICK_SECONDS)):
        arrived = arrival <= tick * _TICK_SECONDS
        made_at_arrival = np.where(arrived & np.isnan(made_at_arrival), made[:, None], made_at_arrival)
        age = np.maximum(made[:, None] - made_at_arrival, 1.0)
        alive = special.ndtr(-np.log(age / scale[:, None]) / _LENGTH_SIGMA) * (age < output_cap_tokens[:, None])
        running = np.nansum(alive, axis=1) * requests / _COHORTS
        active = (running > _DRAINED) | ~arrived.all(axis=1)
        if not active.any():
            break
        batch = np.maximum(running, 1.0)
        kv = batch * (prompt_tokens + output_tokens / 2)
        arriving = requests_per_second * ~arrived.all(axis=1)
        prefill, seconds, joules = _iteration(profile, batch, kv, arriving * prompt_tokens, prompt_tokens)
        steps = np.where(active, _TICK_SECONDS / seconds, 0.0)
        tokens = steps * running
        made += steps
        values = (tokens, steps, steps * seconds, steps * joules, tokens * batch, tokens * prefill, tokens * kv)
        for name, value in zip(names, (*values, active * _TICK_SECONDS), strict=True):
            sums[name] += value
    return sums


def _lognormal_scale(mean: FloatArray, cap: FloatArray) -> FloatArray:
    """Median of the lognormal whose mean is `mean` after cutting at `cap`; the cap itself where that is impossible."""
    low, high = np.full(len(mean), 1.0), 50.0 * cap
    for _ in range(60):
        middle = np.sqrt(low * high)
        z = np.log(cap / middle) / _LENGTH_SIGMA
        whole = middle * np.exp(_LENGTH_SIGMA**2 / 2) * special.ndtr(z - _LENGTH_SIGMA)
        below = whole + cap * special.ndtr(-z) < mean
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return low


def _iteration(
    profile: ServingProfile, batch: FloatArray, kv: FloatArray, prompt_tokens_per_second: FloatArray, prompt: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Prefill tokens per step, seconds and joules per GPU of steps that keep up with the arriving prompts."""
    prefill = np.zeros_like(batch)
    seconds = np.zeros_like(batch)
    joules = np.zeros_like(batch)
    for _ in range(4):
        work = {"prefill_tokens": prefill, "decode_sequences": batch, "kv_tokens": kv}
        seconds = step.step_seconds(profile.iteration, attention_products=prefill * prompt / 2, **work)
        joules = power.step_joules(profile, step_seconds=seconds, **work)
        held = power.held_step_seconds(profile, power_cap_watts=np.nan, joules=joules, step_seconds=seconds)
        joules = joules + profile.energy.static_watts * (held - seconds)
        seconds = held
        prefill = np.minimum(prompt_tokens_per_second * seconds, _TOKEN_BUDGET)
    return prefill, seconds, joules


def reference_watts() -> tuple[float, ...]:
    """Estimates of a few fixed states: a correction learned to one physical estimate must not be put on another."""
    watts: list[float] = []
    for model, gpu, gpus in _REFERENCES:
        profile = profile_of(
            model=model, gpu=gpu, gpus=gpus, parameters=np.nan, activated_parameters=np.nan, precision=""
        )
        batch = np.array(_REFERENCE_BATCHES)
        lengths = {"prompt_tokens": np.full_like(batch, 500.0), "output_tokens": np.full_like(batch, 300.0)}
        state = points.closed_loop(profile, batch=batch, multimodal=np.zeros_like(batch), **lengths)
        watts.extend(round(float(value), 2) for value in state.busy_watts)
    return tuple(watts)
