"""The learnt correction of the closed forms: LightGBM trees on dimensionless columns, trained on simulated replicas.

    latency = lone * exp(slope * x0 + trees(x)),      upper = latency * exp(k * spread(x)) * (1 + widening)

with x0 the logarithm of the closed form over `lone`, the latency of a lone request at full clock. `slope` is below one
and the trees are monotone in every column of hardship (`queueing.features`), so that a higher rate, a lower clock or
less KV memory never looks better. `spread` is a second set of trees for the size of the error; `k` makes `upper` the
bound that one run in ten exceeds, measured on runs that the trees have not seen. Outside the range of training the
upper bound widens column by column; it never narrows.

The trees are read and evaluated without LightGBM (`domain.plain_trees`), to the same bits: bounds are what safety rests
on, and hold where LightGBM cannot be loaded.
"""

import functools
import importlib.resources
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from wattkeeper.domain import plain_trees, sealed
from wattkeeper.domain.errors import ModelFileError
from wattkeeper.domain.workload import FloatArray
from wattkeeper.queueing import features
from wattkeeper.queueing.features import Tables

FORMAT = "wattkeeper-latency-model"
FORMAT_VERSION = 1
SHIPPED = "latency-v1.json.gz"
LEAST_SPREAD = 0.01
_FADE = 0.25
"""Share of a column's trained range by which a value outside it widens the bound by `_WIDENING`."""
_WIDENING = 0.25
_MOST_WIDENING = 2.0
_RETRAIN = "use the file that ships with the package, or make one with `wattkeeper train-latency`"


@dataclass(frozen=True, kw_only=True)
class Part:
    """What was learnt of one latency."""

    columns: tuple[str, ...]
    low: tuple[float, ...]
    """Smallest value of each column in training; outside, the bound widens."""
    high: tuple[float, ...]
    slope: float
    upper: float
    """k: spreads by which the upper bound lies above the prediction."""
    trees: str
    """LightGBM text."""
    spread: str


@dataclass(frozen=True, kw_only=True)
class Payload:
    """Both latencies, and what a user must know of the file."""

    ttft: Part
    tpot: Part
    card: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """Latencies of the rows of `Tables`, in seconds; arrays of shape (N,)."""

    ttft_seconds: FloatArray
    tpot_seconds: FloatArray
    ttft_upper_seconds: FloatArray
    tpot_upper_seconds: FloatArray
    widening: FloatArray
    """By which share the upper bounds were widened for being outside the validated range; 0 inside."""

    def part(self, rows: slice) -> "Corrected":
        """Some rows; views, not copies."""
        return Corrected(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


class _Half:
    """One latency's trees."""

    def __init__(self, part: Part, signs: dict[str, int]) -> None:
        self._part = part
        self._trees = plain_trees.read(part.trees)
        self._spread = plain_trees.read(part.spread)
        if {self._trees.columns, self._spread.columns} != {len(part.columns)}:
            raise ModelFileError(f"trees of another number of columns than {len(part.columns)}")
        self._low, self._high = np.array(part.low), np.array(part.high)
        sign = np.array([signs[name] for name in part.columns])
        self._counts_below, self._counts_above = sign <= 0, sign >= 0

    def factors(self, table: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Latency over `lone`, upper bound over latency before widening, and widening."""
        log_ratio = self._part.slope * table[:, 0] + self._trees.predict(table)
        spread = np.maximum(self._spread.predict(table), LEAST_SPREAD)
        below = np.where(self._counts_below, self._low - table, 0.0)
        above = np.where(self._counts_above, table - self._high, 0.0)
        outside = np.maximum(np.maximum(below, above), 0.0) / (_FADE * (self._high - self._low) + 1e-9)
        widening = np.minimum(_WIDENING * np.minimum(outside, 1e3).sum(axis=1), _MOST_WIDENING)
        return np.exp(log_ratio), np.exp(self._part.upper * spread), widening


class Correction:
    """Corrects closed-form latencies. Immutable; safe to share between threads."""

    def __init__(self, payload: Payload, *, sha256: str = "") -> None:
        self._ttft = _Half(payload.ttft, features.TTFT)
        self._tpot = _Half(payload.tpot, features.TPOT)
        self.version = f"latency-v1-{sha256[:8]}"
        self.card = dict(payload.card)

    @staticmethod
    def load(path: Path | None = None) -> "Correction":
        """The correction of a file that `wattkeeper train-latency` wrote; None: the one that ships with the package.

        Raises ModelFileError: missing, corrupt, altered, or for other columns than this program's.
        """
        file = path or shipped_path()
        payload, sha256 = read(file)
        try:
            return Correction(payload, sha256=sha256)
        except ModelFileError as error:
            raise ModelFileError(f"latency model {file}: {error}: {_RETRAIN}") from error

    def apply(self, tables: Tables) -> Corrected:
        """Corrected latencies and their upper bounds."""
        ttft, ttft_upper, ttft_widening = self._ttft.factors(tables.ttft)
        tpot, tpot_upper, tpot_widening = self._tpot.factors(tables.tpot)
        ttft, tpot = tables.lone_ttft_seconds * ttft, tables.lone_tpot_seconds * tpot
        widening = np.maximum(ttft_widening, tpot_widening)
        return Corrected(
            ttft_seconds=ttft,
            tpot_seconds=tpot,
            ttft_upper_seconds=ttft * ttft_upper * (1.0 + widening),
            tpot_upper_seconds=tpot * tpot_upper * (1.0 + widening),
            widening=widening,
        )


@functools.cache
def shipped() -> Correction:
    """The correction that ships with the package, loaded once."""
    return Correction.load()


def read(file: Path) -> tuple[Payload, str]:
    """What a model file holds, and its SHA-256. Raises ModelFileError as `Correction.load`."""
    body, sha256 = sealed.load(file, what="latency model", file_format=FORMAT, version=FORMAT_VERSION, advice=_RETRAIN)
    try:
        payload = Payload(ttft=_part(body["ttft"]), tpot=_part(body["tpot"]), card=dict(body["card"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"latency model {file} is incomplete ({error}): {_RETRAIN}") from error
    if payload.ttft.columns != tuple(features.TTFT) or payload.tpot.columns != tuple(features.TPOT):
        raise ModelFileError(f"latency model {file} was trained on other columns than this program's: {_RETRAIN}")
    return payload, sha256


def shipped_path() -> Path:
    """The model file inside the package."""
    return Path(str(importlib.resources.files("wattkeeper.queueing") / "artefacts" / SHIPPED))


def write(payload: Payload, path: Path) -> None:
    """Write a model file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sealed.write(path, sealed.dump(asdict(payload), file_format=FORMAT, version=FORMAT_VERSION))


def _part(body: Any) -> Part:
    if not isinstance(body, dict) or set(body) != {field.name for field in fields(Part)}:
        raise ValueError("its parts are not the expected ones")
    part = Part(
        columns=tuple(map(str, body["columns"])),
        low=tuple(map(float, body["low"])),
        high=tuple(map(float, body["high"])),
        slope=float(body["slope"]),
        upper=float(body["upper"]),
        trees=str(body["trees"]),
        spread=str(body["spread"]),
    )
    numbers = [*part.low, *part.high, part.slope, part.upper]
    if len(part.low) != len(part.columns) or len(part.high) != len(part.columns):
        raise ValueError("limits of columns are missing")
    if not all(map(math.isfinite, numbers)) or not 0.0 <= part.slope <= 1.0 or part.upper < 0.0:
        raise ValueError("limits are not finite or out of range")
    return part
