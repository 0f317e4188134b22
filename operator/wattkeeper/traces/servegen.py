"""ServeGen (Alibaba Model Studio), summed over clients: rates with their burstiness, and length histograms.

Two files per service: `agg_*` (CSV: t_s, rate_rps, rate_weighted_cv per window of 600 s) and `lengths_*` (JSON:
input_tokens_hist, output_tokens_hist: rate per token count). Requests are drawn window by window: gamma gaps with the
window's CV, the stated mean rate. The CV is that of clients, weighted by rate; the sum of many clients is smoother than
that, so generated traffic is burstier than the recorded one was. Prompt and answer lengths are drawn independently.
Windows below a fifth of the median rate are gaps of the collection; they are bridged by a straight line, and counted.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wattkeeper.domain.workload import FloatArray, LengthDistribution
from wattkeeper.replica import arrivals
from wattkeeper.traces.reading import rows
from wattkeeper.traces.trace import RateSeries, Trace, TraceError

GAP_SHARE = 0.2
"""Of the median rate: less is a gap of the collection."""
_LEAST_CV, _MOST_CV = 0.2, 50.0


@dataclass(frozen=True, kw_only=True)
class ServeGen:
    """One service; arrays of shape (windows,)."""

    times_seconds: FloatArray
    """Beginnings of windows of equal length, from zero."""
    requests_per_second: FloatArray
    """Gaps bridged."""
    coefficient_of_variation: FloatArray
    prompt: LengthDistribution
    output: LengthDistribution
    repairs: tuple[str, ...]

    @property
    def window_seconds(self) -> float:
        """Length of a window."""
        return float(self.times_seconds[1] - self.times_seconds[0])

    def rates(self) -> RateSeries:
        """Mean rate of each window, at its middle."""
        return RateSeries(
            times_seconds=tuple(map(float, self.times_seconds)),
            requests_per_second=tuple(map(float, self.requests_per_second)),
        )

    def requests(
        self, *, seed: int, scale: float = 1.0, start_seconds: float = 0.0, seconds: float | None = None
    ) -> Trace:
        """Requests of the windows that begin in the given part, at `scale` times the rate."""
        end = np.inf if seconds is None else start_seconds + seconds
        inside = np.flatnonzero((self.times_seconds >= start_seconds) & (self.times_seconds < end))
        if not len(inside):
            raise TraceError(f"no window of ServeGen begins within {start_seconds:g} to {end:g} s")
        begin, window = float(self.times_seconds[inside[0]]), self.window_seconds
        times = []
        for index in inside.tolist():
            rate = scale * float(self.requests_per_second[index])
            if rate <= 0.0:
                continue
            drawn = _renewal(rate, float(self.coefficient_of_variation[index]), window, seed=seed + 7919 * index)
            times.append(self.times_seconds[index] - begin + drawn)
        merged = np.concatenate(times) if times else np.zeros(0)
        return Trace(
            times_seconds=merged,
            prompt_tokens=arrivals.lengths(self.prompt, count=len(merged), seed=seed),
            output_tokens=arrivals.lengths(self.output, count=len(merged), seed=seed + 1_000_003),
            cached_tokens=np.zeros(len(merged), dtype=np.int64),
            span_seconds=len(inside) * window,
            repairs=self.repairs,
        )


def _renewal(rate: float, cv: float, seconds: float, *, seed: int) -> FloatArray:
    """Gamma gaps at `rate` from a random moment on: what lies in [0, seconds).

    The process has run for a while before, so that the mean rate holds in every window; the more the burstier.
    """
    cv = min(max(cv, _LEAST_CV), _MOST_CV)
    lead = 20.0 * (1.0 + cv * cv) / rate
    count = int(rate * (seconds + lead) + 6.0 * cv * np.sqrt(rate * (seconds + lead)) + 20)
    found = arrivals.gamma(rate=rate, count=count, coefficient_of_variation=cv, seed=seed) - lead
    return np.asarray(found[(found >= 0.0) & (found < seconds)])


def load(rates: Path, lengths: Path) -> ServeGen:
    """Both files of one service. Raises TraceError: unreadable, or a line is wrong."""
    times: list[float] = []
    found: list[float] = []
    cvs: list[float] = []
    try:
        with rates.open(encoding="utf-8", newline="") as file:
            for where, row in rows(rates, file):
                time = where.number("t_s", row.get("t_s"))
                if times and time <= times[-1]:
                    raise where.error("t_s", time, "more than in the line before (times do not ascend)")
                times.append(time)
                found.append(where.number("rate_rps", row.get("rate_rps")))
                # Where nothing came there is no variation either.
                cv = (row.get("rate_weighted_cv") or "").strip()
                cvs.append(1.0 if found[-1] == 0.0 and not cv else where.number("rate_weighted_cv", cv))
        histograms = json.loads(lengths.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{rates} and {lengths.name}: cannot be read: {error}") from error
    except ValueError as error:
        raise TraceError(f"{lengths}: no JSON ({error}): get the file again, it may be cut off") from error
    if len(times) < 2:
        raise TraceError(f"{rates}: holds {len(times)} rates, at least 2 are needed")
    step = np.diff(times)
    window = float(np.median(step))
    # Missing lines are gaps as well.
    grid = np.arange(0.0, times[-1] - times[0] + window / 2, window)
    at = np.rint((np.array(times) - times[0]) / window).astype(np.int64)
    values, burst = np.full(len(grid), -1.0), np.ones(len(grid))
    at = np.minimum(at, len(grid) - 1)
    values[at], burst[at] = found, cvs
    gap = values < GAP_SHARE * np.median(found)
    values[gap] = np.interp(grid[gap], grid[~gap], values[~gap])
    notes = (f"{int(gap.sum())} of {len(grid)} windows are gaps of the collection, bridged",) if gap.any() else ()
    return ServeGen(
        times_seconds=grid,
        requests_per_second=values,
        coefficient_of_variation=burst,
        prompt=_histogram(lengths, histograms, "input_tokens_hist"),
        output=_histogram(lengths, histograms, "output_tokens_hist"),
        repairs=notes,
    )


def _histogram(path: Path, body: object, name: str) -> LengthDistribution:
    try:
        pairs = sorted((max(1.0, float(k)), float(v)) for k, v in body[name].items())  # type: ignore[index]
        total = sum(weight for _, weight in pairs)
        return LengthDistribution(
            tokens=tuple(tokens for tokens, _ in pairs), weights=tuple(weight / total for _, weight in pairs)
        )
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise TraceError(
            f"{path}: {name}: expected an object of token counts to rates ({type(error).__name__} {error}): "
            "get the file again"
        ) from error
