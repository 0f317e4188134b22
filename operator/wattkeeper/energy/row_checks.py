"""Which rows of the tidy table of runs (`energy.data.RUN_COLUMNS`) are impossible, and why.

A wrong unit shows as a figure that no card can reach, or as figures that contradict one another. Nothing is repaired:
a row is good, or it is refused with its file, its number and a reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from wattkeeper.domain.errors import DataFileError, UnknownAcceleratorError
from wattkeeper.physics import catalogue

_NEEDED = ("num_gpus", "prompt_tokens", "output_tokens", "tokens_per_second", "inter_token_seconds")
"""Positive numbers that every row has, beside power and energy."""
_OPTIONAL = (
    "gpu_watts", "node_watts", "batch", "max_num_seqs", "requests_per_second", "tensor_parallel", "parameters",
    "activated_parameters", "output_cap_tokens", "requests",
)  # fmt: skip
"""Positive where given."""

_OVERSHOOT = 1.05
"""Mean power over the rated power: sensors and short overshoots, never more."""
_HOST_SHARE = 1.5
"""Most power of a node over the rated power of its cards: what CPUs, memory and fans may add."""
_LEAST_WATTS = 5.0
"""Mean of a card that serves; below it the figure is in kilowatts or the card is off."""
_SECONDS = (1e-4, 10.0)
"""Plausible times between two tokens."""
_AGREE = 0.02
"""Relative; how well watts, joules per token and tokens per second must agree: they are one figure."""
_TOKENS_AGREE = 50.0
"""Factor; how far batch over inter-token time may be from the tokens per second. Medians of tailed distributions are up
to 16 off in public runs; milliseconds for seconds are 1,000 off."""

_UNUSABLE = "{} is missing, zero, negative or no number"

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class RefusedRow:
    """A row that is not used."""

    file: str
    row: int
    """1 = the first after the header."""
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}: {self.reason}"


class RefusedRowsError(DataFileError):
    """Rows of a file are impossible; `refused` lists all of them."""

    _SHOWN = 5

    def __init__(self, refused: Sequence[RefusedRow]) -> None:
        self.refused = tuple(refused)
        lines = [str(each) for each in self.refused[: self._SHOWN]]
        if len(self.refused) > self._SHOWN:
            lines.append(f"and {len(self.refused) - self._SHOWN} more")
        super().__init__(f"impossible or contradicting rows: {len(self.refused)}\n  " + "\n  ".join(lines))


def reasons(table: pd.DataFrame) -> list[str | None]:
    """Why each row cannot be used, the first reason that holds; None for a good row."""
    found: list[str | None] = [None] * len(table)
    for bad, reason in _violations(table):
        for position in np.flatnonzero(bad):
            found[position] = found[position] or reason
    return found


def refused(file: str, reasons_by_row: Sequence[str | None], rows: Sequence[int]) -> list[RefusedRow]:
    """The bad ones among rows; `rows` holds their numbers in the file."""
    return [
        RefusedRow(file=file, row=int(row), reason=reason)
        for row, reason in zip(rows, reasons_by_row, strict=True)
        if reason is not None
    ]


def _violations(table: pd.DataFrame) -> list[tuple[Mask, str]]:
    """Masks (N,) of bad rows and what is wrong, in the order in which reasons are given."""

    def column(name: str) -> npt.NDArray[np.float64]:
        return table[name].to_numpy(dtype=np.float64)

    gpu_watts, node_watts, gpus = column("gpu_watts"), column("node_watts"), column("num_gpus")
    batch, seconds, rate = column("batch"), column("inter_token_seconds"), column("tokens_per_second")
    rated = np.array([_rated_watts(name) for name in table["gpu"]])
    total = np.where(np.isnan(gpu_watts), node_watts, gpu_watts * gpus)
    joules, hits = column("joules_per_token"), column("prefix_hit_ratio")
    with np.errstate(invalid="ignore", divide="ignore"):
        checks = [(_unusable(column(name)), _UNUSABLE.format(name)) for name in _NEEDED]
        for name in _OPTIONAL:
            figures = column(name)
            checks.append((np.isinf(figures) | (figures <= 0), f"{name} is zero, negative or not finite"))
        checks += [
            (np.isnan(rated), "gpu is no accelerator of the catalogue (`wattkeeper catalogue` lists them)"),
            (
                ~np.isnan(gpu_watts) & ~np.isnan(node_watts),
                "gpu_watts and node_watts are both given: power of cards and of the node do not mix, leave one empty",
            ),
            (
                (hits < 0.0) | (hits >= 1.0),
                "prefix_hit_ratio is no share of the prompt tokens, from 0 to below 1 (not in percent)",
            ),
            (np.isnan(total), "gpu_watts and node_watts are both empty: one of them is needed"),
            (
                gpu_watts > _OVERSHOOT * rated,
                "gpu_watts is over the rated power of the card: the sum over cards, or the node's?",
            ),
            (
                node_watts > _HOST_SHARE * rated * gpus,
                "node_watts is over what these cards and their host can draw: another unit, or more cards?",
            ),
            (total < _LEAST_WATTS * gpus, "the watts are below those of an idle card: another unit?"),
            (_unusable(joules), _UNUSABLE.format("joules_per_token")),
            (
                ~np.isclose(joules * rate, total, rtol=_AGREE),
                "joules_per_token x tokens_per_second is not the power of all cards (or of the node)",
            ),
            ((seconds < _SECONDS[0]) | (seconds > _SECONDS[1]), "inter_token_seconds is absurd: milliseconds?"),
            (
                np.abs(np.log(batch / seconds / rate)) > np.log(_TOKENS_AGREE),
                "batch / inter_token_seconds is far from tokens_per_second: another unit?",
            ),
        ]
    return checks


def _unusable(figures: npt.NDArray[np.float64]) -> Mask:
    return np.asarray(~(np.isfinite(figures) & (figures > 0)))


def _rated_watts(gpu: str) -> float:
    try:
        return catalogue.gpu(gpu).tdp_watts
    except UnknownAcceleratorError:
        return np.nan
