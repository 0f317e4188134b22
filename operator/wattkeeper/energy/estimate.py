"""Physical estimate of measured runs: the same operating points and the same physics as in a live decision.

A closed-loop run always decodes `max_num_seqs` sequences. A finite open run ramps up, perhaps saturates, and drains: its
batch follows  dn/dt = arrivals - n / (output tokens * step time)  with memoryless lengths, and its energy is the integral
of the power along that path.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.errors import UnknownModelError
from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import points
from wattkeeper.physics import power, profiles, step
from wattkeeper.physics.profile import ServingProfile

_STEP_SECONDS = 0.05
_LONGEST_RUN_SECONDS = 3600.0
_TOKEN_BUDGET = 8192.0
"""vLLM's default on large cards: more prompt tokens than this do not enter one iteration."""
_DRAINED = 0.5
"""A run has ended when fewer sequences than this are left."""


@dataclass(frozen=True, kw_only=True)
class Estimated:
    """Runs of one profile with their operating points and physical estimates, (N,) each."""

    rows: FloatArray
    """Positions in the table."""
    points: points.OperatingPoints
    busy_watts: FloatArray
    """Per GPU."""
    tokens_per_second: FloatArray


def profile_of(*, model: str, gpu: str, gpus: int) -> ServingProfile | None:
    """The profile of a measured deployment; None where nothing tells the size of its model."""
    engine = EngineSettings(tensor_parallel_size=gpus)
    try:
        return profiles.serving_profile(model=model, accelerator=gpu, gpus_per_replica=gpus, engine=engine)
    except UnknownModelError:
        return None


def closed_loop_runs(table: pd.DataFrame) -> list[Estimated]:
    """Estimates of closed-loop runs, one entry per profile; runs of models without a known size are left out."""
    found = []
    positions = pd.Series(np.arange(len(table)), index=table.index)
    for (model, gpu, gpus), group in table.groupby(["model", "gpu", "num_gpus"], sort=True):
        profile = profile_of(model=str(model), gpu=str(gpu), gpus=int(gpus))
        if profile is None:
            continue
        state = points.closed_loop(
            profile,
            batch=group["max_num_seqs"].to_numpy(dtype=np.float64),
            prompt_tokens=group["prompt_tokens"].to_numpy(dtype=np.float64),
            output_tokens=group["output_tokens"].to_numpy(dtype=np.float64),
            multimodal=group["multimodal"].to_numpy(dtype=np.float64),
        )
        found.append(
            Estimated(
                rows=positions[group.index].to_numpy(),
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
    found = []
    positions = pd.Series(np.arange(len(table)), index=table.index)
    for (model, gpu, gpus), group in table.groupby(["model", "gpu", "num_gpus"], sort=True):
        profile = profile_of(model=str(model), gpu=str(gpu), gpus=int(gpus))
        if profile is not None:
            found.append(_open_runs(profile, group, positions[group.index].to_numpy()))
    return found


def _open_runs(profile: ServingProfile, group: pd.DataFrame, rows: FloatArray) -> Estimated:
    prompt = group["prompt_tokens"].to_numpy(dtype=np.float64)
    output = group["output_tokens"].to_numpy(dtype=np.float64)
    rate = group["requests_per_second"].to_numpy(dtype=np.float64)
    requests = group["requests"].to_numpy(dtype=np.float64)
    running = np.zeros(len(group))
    sums = dict.fromkeys(("tokens", "batch", "prefill", "kv", "seconds", "steps", "joules"), np.zeros(len(group)))
    elapsed, time = np.zeros(len(group)), 0.0
    while time < _LONGEST_RUN_SECONDS:
        arriving = np.clip(requests / rate - time, 0.0, _STEP_SECONDS) * rate
        active = (running > _DRAINED) | (arriving > 0)
        if not active.any():
            break
        batch = np.maximum(running, 1.0)
        kv = batch * (prompt + output / 2)
        prefill, seconds, joules = _iteration(profile, batch, kv, arriving * prompt / _STEP_SECONDS, prompt)
        steps = np.where(active, _STEP_SECONDS / seconds, 0.0)
        tokens = steps * running
        shares = {"batch": tokens * batch, "prefill": tokens * prefill, "kv": tokens * kv}
        totals = {"tokens": tokens, "steps": steps, "seconds": steps * seconds, "joules": steps * joules}
        sums = {name: sums[name] + value for name, value in (shares | totals).items()}
        elapsed += np.where(active, _STEP_SECONDS, 0.0)
        running = np.maximum(running + arriving - tokens / output, 0.0)
        time += _STEP_SECONDS
    state = points.OperatingPoints(
        profile=profile,
        batch=sums["batch"] / sums["tokens"],
        prefill_tokens=sums["prefill"] / sums["tokens"],
        kv_tokens=sums["kv"] / sums["tokens"],
        step_seconds=sums["seconds"] / sums["steps"],
        clock_ratio=np.ones(len(group)),
        limit_watts=np.full(len(group), profile.gpu.tdp_watts),
        kv_capacity_tokens=np.full(len(group), profile.kv_capacity_tokens),
        prompt_tokens=prompt,
        output_tokens=output,
        multimodal=np.zeros(len(group)),
    )
    return Estimated(
        rows=rows, points=state, busy_watts=sums["joules"] / elapsed, tokens_per_second=sums["tokens"] / elapsed
    )


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
