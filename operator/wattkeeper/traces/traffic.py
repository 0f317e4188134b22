"""One description of traffic for every command that plays some: where it comes from, which part, how much of it.

| file | requests |
|---|---|
| requests of any known format | as recorded; `scale` thins or copies them |
| a rate series, with `lengths` (a table of pairs, or any recorded requests) | gamma gaps at these rates, pairs drawn |
| ServeGen's rates, with `lengths` its JSON histograms | window by window with the window's own burstiness |
| a history recorded from Prometheus | its rates, lengths and prefix hits, window by window |
| none | a made-up day: rates as a raised cosine, lengths as of conversations |
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from wattkeeper.domain.workload import LengthDistribution
from wattkeeper.traces import formats, generate, history, servegen
from wattkeeper.traces.trace import Lengths, RateSeries, Trace, TraceError

HOUR_SECONDS = 3600.0
_MADE_UP_PEAK = 12.0
_MADE_UP_TROUGH = 3.0
_MADE_UP_HOURS = 48.0


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Plain data that another process can build the same requests from."""

    path: Path | None = None
    lengths: Path | None = None
    scale: float = 1.0
    """Multiplies the rate."""
    begin_hours: float = 0.0
    end_hours: float | None = None
    """The part that is played; None: to the end."""
    gap_cv: float = 1.0
    """Coefficient of variation of the gaps between made-up arrivals; 1 is Poisson."""

    def __post_init__(self) -> None:
        if not 0.0 < self.scale < math.inf:
            raise TraceError(f"the scale of traffic must be positive, not {self.scale}")
        if not (self.begin_hours >= 0.0 and (self.end_hours is None or self.end_hours > self.begin_hours)):
            raise TraceError(f"hours {self.begin_hours:g} to {self.end_hours} are no part of a trace")
        if not 0.0 < self.gap_cv < math.inf:
            raise TraceError(f"the variation of gaps must be positive, not {self.gap_cv}")

    def part(self, begin_hours: float, end_hours: float | None) -> "Traffic":
        """The same traffic, another part of it."""
        return replace(self, begin_hours=begin_hours, end_hours=end_hours)

    def load(self, *, seed: int) -> Trace:
        """The requests of the part, from zero on. Raises TraceError where a file is of no use or the part is empty."""
        found = self._load(seed)
        if not len(found):
            raise TraceError(f"{self.path or 'the made-up day'}: no request within {self._hours()}")
        return found

    def _load(self, seed: int) -> Trace:
        begin = self.begin_hours * HOUR_SECONDS
        end = math.inf if self.end_hours is None else self.end_hours * HOUR_SECONDS
        if self.path is None:
            return self._from_rates(self._made_up(), _CONVERSATIONS, begin, end, seed, ())
        if history.recorded(self.path):
            recorded = history.read(self.path).requests(seed=seed, gap_cv=self.gap_cv)
            return self._scaled(self._cut(recorded, begin, end), seed)
        if self.lengths is not None and self.lengths.suffix == ".json":
            seconds = None if math.isinf(end) else end - begin
            return servegen.load(self.path, self.lengths).requests(
                seed=seed, scale=self.scale, start_seconds=begin, seconds=seconds
            )
        found = formats.load(self.path)
        if isinstance(found, Trace):
            return self._scaled(self._cut(found, begin, end), seed)
        if self.lengths is None:
            raise TraceError(
                f"{self.path}: holds rates only; give --lengths, a table of pairs of lengths or recorded requests"
            )
        return self._from_rates(found, _pairs(self.lengths), begin, end, seed, ())

    def _made_up(self) -> RateSeries:
        return generate.diurnal(trough=_MADE_UP_TROUGH, peak=_MADE_UP_PEAK, hours=_MADE_UP_HOURS)

    def _hours(self) -> str:
        return f"hours {self.begin_hours:g} to {'the end' if self.end_hours is None else f'{self.end_hours:g}'}"

    def _cut(self, trace: Trace, begin: float, end: float) -> Trace:
        return trace if begin == 0.0 and end >= trace.span_seconds else trace.between(begin, end)

    def _scaled(self, trace: Trace, seed: int) -> Trace:
        return trace if self.scale == 1.0 else trace.scaled(self.scale, seed=seed)

    def _from_rates(
        self, series: RateSeries, lengths: Lengths, begin: float, end: float, seed: int, repairs: tuple[str, ...]
    ) -> Trace:
        times, rates = np.array(series.times_seconds), np.array(series.requests_per_second)
        end = min(end, float(times[-1]))
        if end <= begin:
            raise TraceError(f"{self.path}: ends after {times[-1] / HOUR_SECONDS:g} hours, before {self._hours()}")
        edges = np.unique(np.concatenate(([begin], times[(times > begin) & (times < end)], [end])))
        part = RateSeries(
            times_seconds=tuple((edges - begin).tolist()),
            requests_per_second=tuple((self.scale * np.interp(edges, times, rates)).tolist()),
        )
        rng = np.random.default_rng((seed, 61))
        arrivals = generate.arrival_times(part, gap_cv=self.gap_cv, span_seconds=end - begin, rng=rng)
        prompts, outputs = lengths.draw(len(arrivals), seed=seed)
        return Trace(
            times_seconds=arrivals,
            prompt_tokens=prompts,
            output_tokens=outputs,
            cached_tokens=np.zeros(len(arrivals), dtype=np.int64),
            span_seconds=end - begin,
            repairs=repairs,
        )


def _pairs(path: Path) -> Lengths:
    found = formats.read(path)
    if isinstance(found, Lengths):
        return found
    if isinstance(found, Trace):
        return Lengths(name=path.stem, prompt_tokens=found.prompt_tokens, output_tokens=found.output_tokens)
    raise TraceError(f"{path}: holds rates, not lengths")


def _conversations() -> Lengths:
    """Log-normal lengths much as those of recorded conversations: about 950 and 210 tokens on average."""
    rng = np.random.default_rng(20_231_116)
    prompt = LengthDistribution.lognormal(mean=1155.0, coefficient_of_variation=0.96)
    output = LengthDistribution.lognormal(mean=211.0, coefficient_of_variation=0.77)
    drawn = [
        np.maximum(1, np.rint(rng.choice(each.tokens, size=4096, p=each.weights))).astype(np.int64)
        for each in (prompt, output)
    ]
    return Lengths(name="conversations", prompt_tokens=drawn[0], output_tokens=drawn[1])


_CONVERSATIONS = _conversations()
