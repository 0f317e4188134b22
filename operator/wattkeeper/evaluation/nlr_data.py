"""The NLR online runs as cells (rate x workload, the median of the repeats), and their answer lengths.

The lengths of single answers are not published. Their percentiles follow from those of end-to-end latency at a low
rate, where every token takes the same time; the length beyond the highest one follows from the mean.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import data
from wattkeeper.replica.types import IntArray

PERCENTILES = (10, 30, 50, 70, 90)
TARGETS = ("ttft_p50", "ttft_p90", "tpot_p50", "tpot_p90")
_COLUMNS = tuple(f"p{p}_{kind}_ms" for kind in ("ttft", "tpot", "e2el") for p in PERCENTILES)
_RENAMED = {f"p{p}_{kind}_ms": f"{kind}_p{p}" for kind in ("ttft", "tpot", "e2el") for p in PERCENTILES}
_SIZES = ("prompt_tokens", "output_tokens")
_LONGEST = 6.0
"""Longest answer that would have been given without the cap, over the cap."""
_SHORTEST_SHARE = 0.3
"""Shortest answer over the 10th percentile."""


def load_runs(folder: Path, *, check: bool = True) -> pd.DataFrame:
    """One row per run: workload, rate, mean tokens, cap, requests, and latency percentiles in seconds.

    Raises DataFileError as `energy.data.load_nlr` does.
    """
    runs = data.load_nlr(folder, check=check)
    latencies = data.columns(data.NLR_H100, folder, numbers=_COLUMNS).rename(columns=_RENAMED) / 1e3
    runs = runs.rename(columns={"group_workload": "workload", "requests_per_second": "rate"})
    names = ["workload", "rate", "prompt_tokens", "output_tokens", "output_cap_tokens", "requests"]
    return pd.concat([runs[names], latencies], axis=1)


def cells_of(runs: pd.DataFrame) -> pd.DataFrame:
    """The median over the repeats of each workload and rate; `prompt_set` tells which prompts it has."""
    cells = runs.groupby(["workload", "rate"], sort=True).median().reset_index()
    return cells.assign(prompt_set=cells["workload"].str.partition("|")[0])


def most_similar(cell: "pd.Series[float]", training: pd.DataFrame) -> pd.DataFrame:
    """The training cells of the same workload, else of the one with the nearest mean prompt and answer."""
    same = training[training["workload"] == cell["workload"]]
    if len(same):
        return same
    sizes = training[list(_SIZES)].to_numpy(dtype=np.float64) / cell[list(_SIZES)].to_numpy(dtype=np.float64)
    nearest = training["workload"].iloc[int(np.abs(np.log(sizes)).sum(axis=1).argmin())]
    return training.iloc[np.flatnonzero(training["workload"] == nearest)]


def answer_percentiles(cell: "pd.Series[float]") -> FloatArray:
    """Tokens at `PERCENTILES`, from a cell of a low rate."""
    waits = np.array([cell[f"e2el_p{p}"] for p in PERCENTILES]) - cell["ttft_p50"]
    tokens = 1.0 + waits / cell["tpot_p50"]
    return np.asarray(np.maximum.accumulate(np.clip(tokens, 1.0, cell["output_cap_tokens"])))


def answers(percentiles: FloatArray, *, mean: float, cap: float, count: int) -> IntArray:
    """`count` lengths with (nearly) these percentiles, this mean, and none above the cap.

    Where no length beyond the highest percentile gives the mean, all are scaled to it.
    """
    share = (np.arange(count) + 0.5) / count
    known = [0.0, *(p / 100.0 for p in PERCENTILES), 1.0]
    shortest = max(1.0, _SHORTEST_SHARE * percentiles[0])

    def lengths(longest: float) -> FloatArray:
        return np.asarray(np.minimum(np.interp(share, known, [shortest, *percentiles, longest]), cap))

    low, high = float(percentiles[-1]), _LONGEST * cap
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if lengths(middle).mean() < mean else (low, middle)
    found = lengths(high)
    found = np.minimum(found * mean / found.mean(), cap)
    return np.asarray(np.maximum(1, np.rint(found)), dtype=np.int64)
