"""One place that makes traffic of a line of text: `build` for all requests at once, `traffic` for long ones in parts.

build("azure-2024-conv-digitised:from=1d,until=2d,lengths=azure-2023-conv,cv=1.5,seed=3", data=folder)
traffic("poisson:rate=5,for=7d,lengths=512/128").chunks()
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from wattkeeper.domain.workload import LengthDistribution
from wattkeeper.traces import formats, generate, rates, sources, windows
from wattkeeper.traces.history import History
from wattkeeper.traces.servegen import ServeGen
from wattkeeper.traces.spec import TraceSpec
from wattkeeper.traces.trace import Arrival, Drawable, Lengths, RateSeries, Trace, TraceError, joined

GAP_STEPS = 1.5
"""Of the usual distance between two rates: more is a gap."""
_PAIR = re.compile(r"(\d+)(?:~(\d*\.?\d+))?/(\d+)(?:~(\d*\.?\d+))?")


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Requests that need not all be in memory at once."""

    name: str
    span_seconds: float
    notes: tuple[str, ...]
    """What was repaired, bridged or left out, with counts; to be printed."""
    parts: Callable[[], Iterator[Trace]]

    def chunks(self) -> Iterator[Trace]:
        """Successive parts; times count from the beginning of the traffic and ascend. May be asked for repeatedly.

        The span of a part is where it ends in the traffic, not how long it is. Recorded traffic is one part.
        """
        return self.parts()

    def arrivals(self) -> Iterator[Arrival]:
        """The requests one by one, with one part of them in memory."""
        for part in self.chunks():
            yield from part.arrivals()

    def trace(self) -> Trace:
        """All requests at once: 32 bytes each. A recorded trace keeps its prefix blocks (`PrefixTrace`)."""
        parts = self.chunks()
        first, second = next(parts, None), next(parts, None)
        if first is not None and second is None:
            return replace(first, span_seconds=self.span_seconds, repairs=self.notes)
        found = [part for part in (first, second) if part is not None]
        return joined(itertools.chain(found, parts), span_seconds=self.span_seconds, repairs=self.notes)


def build(spec: str | TraceSpec, *, data: Path | None = None, lengths: Drawable | None = None) -> Trace:
    """All requests of a line of text; see `traffic`. Raises TraceError."""
    return traffic(spec, data=data, lengths=lengths).trace()


def traffic(spec: str | TraceSpec, *, data: Path | None = None, lengths: Drawable | None = None) -> Traffic:
    """What a line of text asks for. `data` is the folder of public traces; `lengths` are drawn where it names none.

    Raises TraceError: not such a line, a file that cannot be read, an option that does not suit what is read.
    """
    asked = TraceSpec.parse(spec) if isinstance(spec, str) else spec
    pairs = functools.partial(_lengths, asked, data, lengths)
    if asked.generated:
        return _generated(asked, pairs)
    found = read(asked.what, data)
    match found:
        case Lengths():
            raise TraceError(
                f"{asked.what} holds lengths without times of arrival: draw them at a rate, for example "
                f"poisson:rate=2,for=1h,lengths={asked.what}"
            )
        case RateSeries():
            return _of_rates(asked, found, pairs)
        case Trace():
            return _recorded(asked, found)
        case _:
            return _of_windows(asked, found)


def read(what: str, data: Path | None) -> sources.Loaded:
    """What a file or public trace holds, as it is. Raises TraceError."""
    path = Path(what)
    if path.is_file():
        return formats.read(path)
    source = sources.find(what)
    if data is None:
        raise TraceError(f"{what} is a public trace: name the folder that holds it with --data or WATTKEEPER_DATA")
    return sources.load(source, data)


def _recorded(asked: TraceSpec, found: Trace) -> Traffic:
    _refuse(asked, cv=asked.cv is not None, noise=asked.noise > 0, lengths=asked.lengths is not None, hit=asked.hit > 0)
    part = found.between(asked.start_seconds, asked.end_seconds or found.span_seconds)
    if asked.scale != 1.0:
        part = part.scaled(asked.scale, seed=asked.seed)
    if asked.span_seconds is not None:
        part = part.repeated(asked.span_seconds)
    return Traffic(name=asked.text, span_seconds=part.span_seconds, notes=found.repairs, parts=lambda: iter((part,)))


def _of_windows(asked: TraceSpec, found: History | ServeGen) -> Traffic:
    _refuse(asked, noise=asked.noise > 0, lengths=asked.lengths is not None, hit=asked.hit > 0)
    stretches, notes = found.stretches(gaps=asked.gaps, cv=asked.cv)
    whole = len(stretches) * found.window_seconds
    start, end = _part(asked, whole)

    def parts() -> Iterator[Trace]:
        return windows.draw(
            stretches,
            window_seconds=found.window_seconds,
            seed=asked.seed,
            scale=asked.scale,
            start_seconds=start,
            end_seconds=end,
        )

    return Traffic(name=asked.text, span_seconds=end - start, notes=notes, parts=parts)


def _of_rates(asked: TraceSpec, series: RateSeries, pairs: Callable[[], Drawable]) -> Traffic:
    # The last rate holds for as long as those before.
    start, end = _part(asked, series.times_seconds[-1] + float(np.median(np.diff(series.times_seconds))))
    intensity = rates.intensity(
        series, start_seconds=start, end_seconds=end, scale=asked.scale, noise=asked.noise, seed=asked.seed
    )
    steps = np.diff(series.times_seconds)
    missing = int((steps > GAP_STEPS * np.median(steps)).sum())
    notes = (f"{missing} gaps between rates, bridged by straight lines",) if missing else ()
    return _drawn(asked, intensity, pairs, notes)


def _generated(asked: TraceSpec, pairs: Callable[[], Drawable]) -> Traffic:
    given = asked.parameters
    end = asked.end_seconds or asked.start_seconds + (asked.span_seconds or 0.0)
    try:
        if asked.what == "mmpp":
            _refuse(asked, noise=asked.noise > 0, **{"from": asked.start_seconds > 0})
            return _drawn(
                asked,
                rates.switching(
                    rate=asked.scale * given["rate"],
                    peak=given["peak"],
                    floor=given["floor"],
                    on_seconds=given["on"],
                    span_seconds=end,
                    seed=asked.seed,
                ),
                pairs,
            )
        if asked.what == "diurnal":
            series = generate.diurnal(
                trough=given["trough"], peak=given["peak"], hours=end / 3600.0 + 1.0, peak_hour=given["peak_hour"]
            )
        elif asked.what == "flash":
            series = generate.flash_crowd(
                base=given["base"],
                peak=given["peak"],
                at_seconds=given["at"],
                rise_seconds=given["rise"],
                hold_seconds=given["hold"],
                decay_seconds=given["decay"],
            )
        else:
            series = RateSeries(times_seconds=(0.0, end), requests_per_second=(given["rate"], given["rate"]))
    except ValueError as error:
        raise TraceError(f"{asked.text!r}: {error}") from error
    intensity = rates.intensity(
        series,
        start_seconds=asked.start_seconds,
        end_seconds=end,
        scale=asked.scale,
        noise=asked.noise,
        seed=asked.seed,
    )
    return _drawn(asked, intensity, pairs)


def _drawn(
    asked: TraceSpec, intensity: rates.Intensity, pairs: Callable[[], Drawable], notes: tuple[str, ...] = ()
) -> Traffic:
    lengths = pairs()

    def parts() -> Iterator[Trace]:
        return rates.draw(intensity, lengths=lengths, seed=asked.seed, cv=asked.cv or 1.0, prefix_hit_ratio=asked.hit)

    mended = lengths.repairs if isinstance(lengths, Lengths) else ()
    return Traffic(name=asked.text, span_seconds=intensity.span_seconds, notes=(*notes, *mended), parts=parts)


def _lengths(asked: TraceSpec, data: Path | None, otherwise: Drawable | None) -> Drawable:
    """Where prompt and answer lengths of requests come from that are drawn."""
    if asked.lengths is None:
        if otherwise is not None:
            return otherwise
        raise TraceError(
            f"{asked.text!r}: which lengths do requests have? lengths=512/128 (prompt and answer), 512~1/128~0.8 (with "
            "coefficients of variation), a file, or a public trace such as azure-2023-conv"
        )
    match = _PAIR.fullmatch(asked.lengths)
    if match is not None:
        return rates.Independent(
            prompt=_distribution(asked, match[1], match[2]), output=_distribution(asked, match[3], match[4])
        )
    found = read(asked.lengths, data)
    match found:
        case Lengths():
            return found
        case Trace():
            return Lengths(name=asked.lengths, prompt_tokens=found.prompt_tokens, output_tokens=found.output_tokens)
        case ServeGen():
            return rates.Independent(prompt=found.prompt, output=found.output)
        case _:
            raise TraceError(f"{asked.text!r}: {asked.lengths} holds no pairs of lengths")


def _distribution(asked: TraceSpec, mean: str, cv: str | None) -> LengthDistribution:
    if float(mean) < 1.0:
        raise TraceError(f"{asked.text!r}: lengths must be at least one token")
    if cv is None or float(cv) == 0.0:
        return LengthDistribution.fixed(float(mean))
    return LengthDistribution.lognormal(mean=float(mean), coefficient_of_variation=float(cv), points=200)


def _part(asked: TraceSpec, whole_seconds: float) -> tuple[float, float]:
    """The beginning and end that are asked for, within what there is."""
    end = asked.end_seconds
    if asked.span_seconds is not None:
        end = min(end or whole_seconds, asked.start_seconds + asked.span_seconds)
    end = whole_seconds if end is None else end
    if end > whole_seconds or asked.start_seconds >= end:
        raise TraceError(f"{asked.text!r}: {asked.what} holds {whole_seconds:g} s; from and until must lie within")
    return asked.start_seconds, end


def _refuse(asked: TraceSpec, **given: bool) -> None:
    """Options that would have no effect are errors."""
    for name, is_given in given.items():
        if is_given:
            raise TraceError(f"{asked.text!r}: {asked.what} is recorded or drawn otherwise and takes no {name}=")
