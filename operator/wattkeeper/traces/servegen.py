"""ServeGen (Alibaba Model Studio), summed over clients: rates with their burstiness, and length histograms.

Two files per service: `agg_*` (CSV: t_s, rate_rps, rate_weighted_cv per window of 600 s) and `lengths_*` (JSON:
input_tokens_hist, output_tokens_hist: rate per token count). Requests are drawn window by window: gamma gaps with the
window's CV, the stated mean rate. The CV is that of clients, weighted by rate; the sum of many clients is smoother than
that, so generated traffic is burstier than the recorded one was. Prompt and answer lengths are drawn independently.
Windows below a fifth of the median rate are gaps of the collection; they are counted, and bridged by a straight line
unless asked otherwise.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.workload import FloatArray, LengthDistribution
from wattkeeper.traces import windows
from wattkeeper.traces.reading import MOST_TOKENS, Lines, fields, rows
from wattkeeper.traces.trace import RateSeries, Trace, TraceError, joined
from wattkeeper.traces.windows import Gaps, Stretch

GAP_SHARE = 0.2
"""Of the median rate: less is a gap of the collection."""
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ServeGen:
    """One service; arrays of shape (windows,)."""

    times_seconds: FloatArray
    """Beginnings of windows of equal length, from zero."""
    requests_per_second: FloatArray
    """Gaps bridged."""
    coefficient_of_variation: FloatArray
    gap: BoolArray
    """Windows of which the collection has nothing, or too little to be true."""
    prompt: LengthDistribution
    output: LengthDistribution
    repairs: tuple[str, ...] = ()
    """Of the lengths."""

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

    def stretches(self, *, gaps: Gaps, cv: float | None = None) -> tuple[list[Stretch | None], tuple[str, ...]]:
        """What to draw requests from, and notes on the gaps. `cv`: of the times between requests, if not clients'."""
        found: list[Stretch | None] = []
        for rate, own, gap in zip(
            self.requests_per_second.tolist(), self.coefficient_of_variation.tolist(), self.gap.tolist(), strict=True
        ):
            if gap and gaps is not Gaps.BRIDGE:
                found += [] if gaps is Gaps.SKIP else [None]
                continue
            found.append(
                Stretch(
                    requests_per_second=rate,
                    coefficient_of_variation=own if cv is None else cv,
                    prompt=self.prompt,
                    output=self.output,
                )
            )
        number = int(self.gap.sum())
        gaps_found = (f"{number} of {len(self.gap)} windows are gaps of the collection, {gaps.done}",) if number else ()
        return found, (*gaps_found, *self.repairs)

    def requests(
        self,
        *,
        seed: int,
        scale: float = 1.0,
        start_seconds: float = 0.0,
        seconds: float | None = None,
        gaps: Gaps = Gaps.BRIDGE,
    ) -> Trace:
        """Requests of the given part, at `scale` times the rate. Raises TraceError: the part lies beyond the end."""
        stretches, notes = self.stretches(gaps=gaps)
        whole = len(stretches) * self.window_seconds
        end = whole if seconds is None else min(whole, start_seconds + seconds)
        if start_seconds >= end:
            raise TraceError(f"ServeGen's {whole:g} s end before {start_seconds:g} s")
        parts = windows.draw(
            stretches,
            window_seconds=self.window_seconds,
            seed=seed,
            scale=scale,
            start_seconds=start_seconds,
            end_seconds=end,
        )
        return joined(parts, span_seconds=end - start_seconds, repairs=notes)


def load(rates: Path, lengths: Path) -> ServeGen:
    """Both files of one service. Raises TraceError: unreadable, or a line is wrong."""
    times: list[float] = []
    found: list[float] = []
    cvs: list[float] = []
    try:
        with Lines(rates) as lines:
            for where, row in rows(lines, fields(next(lines, "")), lines):
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
    prompt, zero_prompts = _histogram(lengths, histograms, "input_tokens_hist")
    output, zero_outputs = _histogram(lengths, histograms, "output_tokens_hist")
    zeros = (("prompts", zero_prompts), ("answers", zero_outputs))
    return ServeGen(
        times_seconds=grid,
        requests_per_second=values,
        coefficient_of_variation=burst,
        gap=gap,
        prompt=prompt,
        output=output,
        repairs=tuple(
            f"{100.0 * share:.2g} % of {what} with a length of 0 tokens, taken as 1" for what, share in zeros if share
        ),
    )


def _histogram(path: Path, body: object, name: str) -> tuple[LengthDistribution, float]:
    """The distribution, and the share of lengths of zero in it."""
    try:
        pairs = sorted((float(k), float(v)) for k, v in body[name].items())  # type: ignore[index]
        if not all(0.0 <= tokens <= MOST_TOKENS for tokens, _ in pairs):
            raise ValueError(f"token counts must be 0 to {MOST_TOKENS}")
        total = sum(weight for _, weight in pairs)
        found = LengthDistribution(
            tokens=tuple(max(1.0, tokens) for tokens, _ in pairs), weights=tuple(weight / total for _, weight in pairs)
        )
        return found, sum(weight for tokens, weight in pairs if tokens < 1.0) / total
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise TraceError(
            f"{path}: {name}: expected an object of token counts to rates ({type(error).__name__} {error}): "
            "get the file again"
        ) from error
