"""The traffic of past days as Prometheus remembers it: rates and lengths per window, with the gaps.

A window is a gap where Prometheus has no rate: nothing was scraped, or no pod ran. That is not the same as a rate of
zero. What to assume in a gap is the user's choice: nothing came, or the rate led straight from before to after.
"""

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wattkeeper.domain.workload import FloatArray, LengthDistribution
from wattkeeper.traces import windows
from wattkeeper.traces.trace import RateSeries, Trace, TraceError, joined
from wattkeeper.traces.windows import Gaps, Stretch

FORMAT = "wattkeeper-history/1"
POOLED_SECONDS = 3600.0
"""Indices of dispersion are averaged over so much time: one of a window of a few counts is too uncertain."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """One window of a history."""

    requests_per_second: float | None
    """Mean over the window; None: a gap."""
    prompt: LengthDistribution | None
    """None: no length was recorded."""
    output: LengthDistribution | None
    prefix_hit_ratio: float | None
    restarts: float
    """Times that a request counter began anew."""
    dispersion: float | None = None
    """Index of dispersion (variance over mean) of requests per minute within the window; None: not known."""


@dataclass(frozen=True, kw_only=True)
class History:
    """Windows of equal length, one after the other."""

    source: str
    """Where it comes from, for people."""
    start_seconds: float
    """Unix time of the beginning of the first window."""
    window_seconds: float
    windows: tuple[Window, ...]

    def __post_init__(self) -> None:
        if not self.windows or not self.window_seconds > 0:
            raise ValueError("a history needs a window, of a positive length")

    @property
    def gaps(self) -> int:
        """Number of windows without a rate."""
        return sum(window.requests_per_second is None for window in self.windows)

    def rates(self, *, gaps: Gaps = Gaps.BRIDGE) -> RateSeries:
        """The rate in the middle of each window, from zero to the end. Raises TraceError where all are gaps."""
        filled = self._rates(gaps)
        number = np.arange(len(filled))
        times = np.concatenate(([0.0], (number + 0.5) * self.window_seconds, [len(number) * self.window_seconds]))
        rates = np.concatenate((filled[:1], filled, filled[-1:]))
        return RateSeries(times_seconds=tuple(map(float, times)), requests_per_second=tuple(map(float, rates)))

    def _rates(self, gaps: Gaps) -> FloatArray:
        number = np.arange(len(self.windows))
        known = [index for index, window in enumerate(self.windows) if window.requests_per_second is not None]
        if not known:
            raise TraceError(f"{self.source}: no window has a rate: check the selector and the span")
        values = np.array([self.windows[index].requests_per_second for index in known], dtype=np.float64)
        match gaps:
            case Gaps.BRIDGE:
                return np.interp(number, known, values)
            case Gaps.SKIP:
                return values
            case Gaps.EMPTY:
                filled = np.zeros(len(number))
                filled[known] = values
                return filled

    def stretches(self, *, gaps: Gaps, cv: float | None = None) -> tuple[list[Stretch], tuple[str, ...]]:
        """What to draw requests from, and notes on what is assumed. `cv`: of the gaps, instead of what was recorded.

        Lengths of a window that has none are those of the nearest that has. Raises TraceError: no window has rates, or
        none has lengths.
        """
        skip = gaps is Gaps.SKIP
        used = [window for window in self.windows if not (skip and window.requests_per_second is None)]
        rates = self._rates(gaps)
        prompts, outputs = self._lengths(used, "prompt"), self._lengths(used, "output")
        indices = self._dispersions(used)
        notes = [f"{self.gaps} of {len(self.windows)} windows are gaps, {gaps.done}"] if self.gaps else []
        if cv is None and indices is None:
            notes.append("burstiness was not recorded: requests within a window are a Poisson process")
        found = []
        for index, window in enumerate(used):
            recorded = 1.0 if indices is None else math.sqrt(float(indices[index]))
            found.append(
                Stretch(
                    requests_per_second=float(rates[index]),
                    coefficient_of_variation=recorded if cv is None else cv,
                    prompt=prompts[index],
                    output=outputs[index],
                    prefix_hit_ratio=window.prefix_hit_ratio or 0.0,
                )
            )
        return found, tuple(notes)

    def _lengths(self, used: list[Window], name: str) -> list[LengthDistribution]:
        known = [index for index, window in enumerate(used) if getattr(window, name) is not None]
        if not known:
            raise TraceError(f"{self.source}: no window has {name} lengths: does the engine serve their histogram?")
        middles = [(a + b) / 2 for a, b in itertools.pairwise(known)]
        nearest = np.searchsorted(middles, np.arange(len(used)))
        return [getattr(used[known[index]], name) for index in nearest.tolist()]

    def _dispersions(self, used: list[Window]) -> FloatArray | None:
        """Index of dispersion around each window, over POOLED_SECONDS; None where none was recorded."""
        known = np.array([window.dispersion is not None for window in used], dtype=np.float64)
        if not known.any():
            return None
        values = np.array([window.dispersion or 0.0 for window in used])
        half = int(POOLED_SECONDS / self.window_seconds / 2)
        edges = np.arange(len(used))
        low, high = np.maximum(edges - half, 0), np.minimum(edges + half + 1, len(used))
        sums, counts = (np.concatenate(([0.0], np.cumsum(each))) for each in (values, known))
        near = counts[high] - counts[low]
        overall = float(values.sum() / known.sum())
        return np.asarray(np.where(near > 0, (sums[high] - sums[low]) / np.maximum(near, 1.0), overall))

    def requests(self, *, seed: int, gap_cv: float | None = None, gaps: Gaps = Gaps.BRIDGE) -> Trace:
        """Requests at these rates, as bursty as recorded; the lengths of each are drawn from its window.

        Raises TraceError: no window has rates, or none has lengths.
        """
        stretches, notes = self.stretches(gaps=gaps, cv=gap_cv)
        parts = windows.draw(stretches, window_seconds=self.window_seconds, seed=seed)
        return joined(parts, span_seconds=len(stretches) * self.window_seconds, repairs=notes)

    def write(self, path: Path) -> None:
        """As JSON, which `read` takes back."""
        body = {
            "format": FORMAT,
            "source": self.source,
            "start_seconds": self.start_seconds,
            "window_seconds": self.window_seconds,
            "windows": [
                {
                    "requests_per_second": window.requests_per_second,
                    "prompt": _plain(window.prompt),
                    "output": _plain(window.output),
                    "prefix_hit_ratio": window.prefix_hit_ratio,
                    "restarts": window.restarts,
                    "dispersion": window.dispersion,
                }
                for window in self.windows
            ],
        }
        try:
            path.write_text(json.dumps(body, allow_nan=False), encoding="utf-8")
        except OSError as error:
            raise TraceError(f"{path}: cannot be written: {error.strerror}") from error


def recorded(path: Path) -> bool:
    """Whether a file begins as a history does."""
    try:
        with path.open("rb") as file:
            return FORMAT.encode() in file.read(100)
    except OSError:
        return False


def read(path: Path) -> History:
    """A history that `write` made. Raises TraceError: unreadable, or of another form."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise TraceError(f"{path}: no JSON ({error}): record it again, it may be cut off") from error
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise TraceError(
            f"{path}: no history, expected the format {FORMAT!r}: record it with `wattkeeper traces record`"
        )
    number = -1
    try:
        windows = []
        for each in body["windows"]:
            number += 1
            windows.append(
                Window(
                    requests_per_second=_optional(each["requests_per_second"]),
                    prompt=_distribution(each["prompt"]),
                    output=_distribution(each["output"]),
                    prefix_hit_ratio=_optional(each["prefix_hit_ratio"]),
                    restarts=float(each["restarts"]),
                    dispersion=_optional(each.get("dispersion")),
                )
            )
        return History(
            source=str(body["source"]),
            start_seconds=float(body["start_seconds"]),
            window_seconds=float(body["window_seconds"]),
            windows=tuple(windows),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TraceError(f"{path}: window {number}: {type(error).__name__} {error}: record it again") from error


def _plain(lengths: LengthDistribution | None) -> dict[str, Any] | None:
    return None if lengths is None else {"tokens": lengths.tokens, "weights": lengths.weights}


def _distribution(body: dict[str, Any] | None) -> LengthDistribution | None:
    if body is None:
        return None
    return LengthDistribution(tokens=tuple(map(float, body["tokens"])), weights=tuple(map(float, body["weights"])))


def _optional(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{value!r} is no number from zero up")
    return number
