"""The traffic of past days as Prometheus remembers it: rates and lengths per window, with the gaps.

A window is a gap where Prometheus has no rate: nothing was scraped, or no pod ran. That is not the same as a rate of
zero. What to assume in a gap is the user's choice: nothing came, or the rate led straight from before to after.
"""

import enum
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wattkeeper.domain.workload import LengthDistribution
from wattkeeper.replica import arrivals
from wattkeeper.traces.generate import generate
from wattkeeper.traces.trace import RateSeries, Trace, TraceError

FORMAT = "wattkeeper-history/1"


class Gaps(enum.Enum):
    """What a replay assumes where nothing was recorded."""

    INTERPOLATE = "interpolate"
    EMPTY = "empty"


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

    def rates(self, *, gaps: Gaps = Gaps.INTERPOLATE) -> RateSeries:
        """The rate in the middle of each window, from zero to the end. Raises TraceError where all are gaps."""
        number = np.arange(len(self.windows))
        known = [index for index, window in enumerate(self.windows) if window.requests_per_second is not None]
        if not known:
            raise TraceError(f"{self.source}: no window has a rate: check the selector and the span")
        values = [self.windows[index].requests_per_second or 0.0 for index in known]
        filled = np.interp(number, known, values)
        if gaps is Gaps.EMPTY:
            filled = np.zeros(len(number))
            filled[known] = values
        times = np.concatenate(([0.0], (number + 0.5) * self.window_seconds, [len(number) * self.window_seconds]))
        rates = np.concatenate((filled[:1], filled, filled[-1:]))
        return RateSeries(times_seconds=tuple(map(float, times)), requests_per_second=tuple(map(float, rates)))

    def requests(self, *, seed: int, gap_cv: float = 1.0, gaps: Gaps = Gaps.INTERPOLATE) -> Trace:
        """Requests at these rates; the lengths of each are drawn from its window, or the nearest that has any.

        Raises TraceError: no window has rates, or none has lengths.
        """
        prompts, outputs = ([getattr(window, name) for window in self.windows] for name in ("prompt", "output"))
        for name, found in (("prompt", prompts), ("output", outputs)):
            if not any(each is not None for each in found):
                raise TraceError(f"{self.source}: no window has {name} lengths: does the engine serve their histogram?")
        one = LengthDistribution.fixed(1.0)
        times = generate(self.rates(gaps=gaps), prompt=one, output=one, seed=seed, gap_cv=gap_cv).times_seconds
        if gaps is Gaps.EMPTY:
            empty = np.array([window.requests_per_second is None for window in self.windows])
            times = times[~empty[np.minimum((times / self.window_seconds).astype(np.int64), len(empty) - 1)]]
        at = np.minimum((times / self.window_seconds).astype(np.int64), len(self.windows) - 1)
        drawn = []
        for purpose, found in enumerate((prompts, outputs)):
            known = np.array([index for index, each in enumerate(found) if each is not None])
            nearest = known[np.abs(known[None, :] - np.arange(len(found))[:, None]).argmin(axis=1)][at]
            tokens = np.ones(len(times), dtype=np.int64)
            for index in np.unique(nearest).tolist():
                members = np.flatnonzero(nearest == index)
                tokens[members] = arrivals.lengths(
                    found[index],
                    count=len(members),
                    seed=int(np.random.default_rng((seed, purpose, index)).integers(2**31)),
                )
            drawn.append(tokens)
        ratios = np.array([window.prefix_hit_ratio or 0.0 for window in self.windows])
        notes = () if not self.gaps else (f"{self.gaps} of {len(self.windows)} windows are gaps, {gaps.value}",)
        return Trace(
            times_seconds=times,
            prompt_tokens=drawn[0],
            output_tokens=drawn[1],
            cached_tokens=np.floor(drawn[0] * ratios[at]).astype(np.int64),
            span_seconds=len(self.windows) * self.window_seconds,
            repairs=notes,
        )

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
