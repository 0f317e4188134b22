"""Which rows of a table of measured kernels are impossible, and why: a wrong unit shows as work no card can do.

Tables of `aiconfigurator` hold milliseconds and, some of them, the watts drawn and the power limit; Vidur's hold
milliseconds per layer.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pandas as pd

from wattkeeper.physics.profile import GpuSpec

_MILLISECONDS = (1e-4, 1e4)
"""0.1 us to 10 s: a launch takes a microsecond, the longest measured kernel 0.8 s."""
_OVER_PEAK = 1.05
"""Measured rate of a matrix product over the data sheet's: clocks above the rated one."""
_LARGE_OPERATIONS = 1e12
_LEAST_SHARE = 0.01
"""Of the data sheet's rate, for large matrix products; measured ones reach a tenth and more."""
_OVERSHOOT = 1.05
"""Mean power over the limit."""
_LEAST_WATTS = 5.0
_RATES = {"bfloat16": "bf16_flops", "float16": "bf16_flops", "nvfp4": "fp4_flops"}
"""By type; every other one has 8 bits."""

Mask = npt.NDArray[np.bool_]


def first(path: object, found: dict[int, str]) -> str:
    """What an error says of rows that `reasons` found: the first, and how many there are."""
    position, reason = next(iter(found.items()))
    more = f" (and {len(found) - 1} more rows)" if len(found) > 1 else ""
    return f"{path}, row {position + 1}: {reason}{more}"


def reasons(frame: pd.DataFrame, gpu: GpuSpec) -> dict[int, str]:
    """Position of each row that cannot be used -> the first reason that holds."""
    return _first_reasons((*_times(frame["latency"]), *_rates(frame, gpu), *_powers(frame, gpu)))


def layer_reasons(frame: pd.DataFrame, *, milliseconds: Iterable[str], counts: Iterable[str]) -> dict[int, str]:
    """The same for Vidur's timings of layers."""
    checks = [check for name in milliseconds for check in _times(frame[name], name=name)]
    for name in counts:
        figures = frame[name].to_numpy(dtype=np.float64)
        checks.append((~(np.isfinite(figures) & (figures > 0)), f"{name} is missing, zero, negative or no number"))
    return _first_reasons(checks)


def _first_reasons(checks: Iterable[tuple[Mask, str]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for bad, reason in checks:
        for position in np.flatnonzero(bad).tolist():
            found.setdefault(position, reason)
    return dict(sorted(found.items()))


def _times(column: pd.Series, name: str = "latency") -> Iterable[tuple[Mask, str]]:
    milliseconds = column.to_numpy(dtype=np.float64)
    yield ~(np.isfinite(milliseconds) & (milliseconds > 0)), f"{name} is missing, zero, negative or no number"
    yield (
        (milliseconds < _MILLISECONDS[0]) | (milliseconds > _MILLISECONDS[1]),
        f"{name} is absurd in milliseconds: another unit?",
    )


def _rates(frame: pd.DataFrame, gpu: GpuSpec) -> Iterable[tuple[Mask, str]]:
    """Matrix products against what the card can compute."""
    if not {"gemm_dtype", "m", "n", "k"} <= set(frame.columns):
        return
    sizes = frame[["m", "n", "k"]].to_numpy(dtype=np.float64)
    yield ~(np.isfinite(sizes) & (sizes > 0)).all(axis=1), "m, n or k is missing, zero or negative"
    rates = [getattr(gpu, _RATES.get(str(kind), "fp8_flops")) or gpu.bf16_flops for kind in frame["gemm_dtype"]]
    operations = 2.0 * sizes.prod(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = operations / (frame["latency"].to_numpy(dtype=np.float64) * 1e-3) / np.array(rates)
    yield share > _OVER_PEAK, "the matrix product is faster than the card can compute: seconds for milliseconds?"
    yield (
        (operations > _LARGE_OPERATIONS) & (share < _LEAST_SHARE),
        "the matrix product takes a hundred times as long as the card needs: microseconds for milliseconds?",
    )


def _powers(frame: pd.DataFrame, gpu: GpuSpec) -> Iterable[tuple[Mask, str]]:
    if not {"power", "power_limit"} <= set(frame.columns):
        return
    watts, limit = (frame[name].to_numpy(dtype=np.float64) for name in ("power", "power_limit"))
    yield ~(np.isfinite(watts) & (watts >= _LEAST_WATTS)), "power is missing or below an idle card's: kilowatts?"
    yield ~np.isclose(limit, gpu.tdp_watts, rtol=0.01), f"power_limit is not the {gpu.tdp_watts:g} W of the card"
    yield watts > _OVERSHOOT * limit, "power is over the limit of the card: milliwatts, or several cards?"
