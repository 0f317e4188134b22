"""The ML.ENERGY v3 runs with their latency percentiles, and what the prior profile says about each."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import data, estimate
from wattkeeper.evaluation.closed_loop import Points

_COLUMNS = ("median_itl_ms", "p90_itl_ms", "p95_itl_ms", "p99_itl_ms")
_TOKEN_BUDGET = 8192.0
"""vLLM's default on large cards."""
_LEAST_ROOM = 512.0
_KEYS = ["model", "gpu", "num_gpus", "parameters", "activated_parameters", "weight_precision"]


@dataclass(frozen=True, kw_only=True)
class Curves:
    """All runs: the table of `energy.data`, the prior, and what was measured."""

    table: pd.DataFrame
    points: Points
    measured: FloatArray
    """(N, 5) seconds: p50, p90, p95 and p99 of inter-token latency, and the mean step (sequences over tokens/s)."""
    fixed_share: FloatArray
    """Of the prior's decode step: what does not depend on the batch."""


def load_curves(folder: Path, *, check: bool = True) -> Curves:
    """The runs in the order of `energy.data.load_ml_energy`, which see for errors."""
    table = data.load_ml_energy(folder, check=check)
    percentiles = data.columns(data.ML_ENERGY_V3, folder, numbers=_COLUMNS).to_numpy(dtype=np.float64) / 1e3
    mean = table["batch"].to_numpy(dtype=np.float64) / table["tokens_per_second"].to_numpy(dtype=np.float64)
    batch = table["max_num_seqs"].to_numpy(dtype=np.float64)
    outputs = table["output_tokens"].to_numpy(dtype=np.float64)
    prompts = table["prompt_tokens"].to_numpy(dtype=np.float64)
    fixed, slope, reading, computing = _coefficients(table)
    decode = fixed + batch * (slope + reading * (prompts + outputs / 2.0))
    return Curves(
        table=table,
        points=Points(
            decode_seconds=decode,
            prompts_per_step=batch / outputs,
            prompt_seconds=computing * prompts,
            budget_seconds=computing * np.maximum(_TOKEN_BUDGET - batch, _LEAST_ROOM),
        ),
        measured=np.column_stack([percentiles, mean]),
        fixed_share=fixed / decode,
    )


def _coefficients(table: pd.DataFrame) -> tuple[FloatArray, ...]:
    """d0, dN, dKV and dT of each run's roofline profile, in seconds."""
    found = np.empty((4, len(table)))
    for rows in table.groupby(_KEYS, dropna=False).indices.values():
        run = table.iloc[rows[0]]
        iteration = estimate.profile_of(
            model=str(run["model"]),
            gpu=str(run["gpu"]),
            gpus=int(run["num_gpus"]),
            parameters=float(run["parameters"]),
            activated_parameters=float(run["activated_parameters"]),
            precision=str(run["weight_precision"]),
        ).iteration
        found[:, rows] = np.array(
            [
                iteration.d0_seconds,
                iteration.decode_seconds_per_sequence,
                iteration.dkv_seconds_per_kv_token,
                iteration.dt_seconds_per_token,
            ]
        )[:, None]
    return tuple(found)
