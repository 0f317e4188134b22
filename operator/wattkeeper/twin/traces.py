"""Traffic: recorded request traces, recorded rate series, and generated arrivals.

Formats, told apart by their content: Azure's LLM inference traces (CSV with TIMESTAMP, ContextTokens, GeneratedTokens),
Mooncake's (JSON lines with timestamp in ms, input_length, output_length and hash_ids of 512-token prefix blocks), and
rate series (CSV with minute_since_start and req_per_min, or t_s and rate_rps), which a generator turns into requests.
"""

import csv
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.domain.workload import LengthDistribution

MOONCAKE_BLOCK_TOKENS = 512
COPY_JITTER_SECONDS = 5.0
_CHUNK = 4096

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class TraceError(WattkeeperError):
    """A trace file cannot be used; the message names the file, the line and what was expected."""


class Arrival(NamedTuple):
    """One request: seconds since the trace began, and tokens; `cached_tokens` of the prompt may be in the cache."""

    time_seconds: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int


@dataclass(frozen=True, kw_only=True)
class RateSeries:
    """Requests per second at ascending seconds from zero on; linear in between, constant after the end."""

    times_seconds: tuple[float, ...]
    requests_per_second: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.times_seconds) < 2 or len(self.times_seconds) != len(self.requests_per_second):
            raise ValueError("a rate series needs at least two points, and as many rates as times")
        if any(b <= a for a, b in itertools.pairwise(self.times_seconds)) or min(self.requests_per_second) < 0:
            raise ValueError("times of a rate series must ascend and rates must not be negative")

    @property
    def peak(self) -> float:
        """Largest rate."""
        return max(self.requests_per_second)

    @property
    def mean(self) -> float:
        """Mean rate over the span."""
        area = np.trapezoid(np.asarray(self.requests_per_second), np.asarray(self.times_seconds))
        return float(area) / (self.times_seconds[-1] - self.times_seconds[0])

    def at(self, time_seconds: float) -> float:
        """Rate at a time."""
        return float(np.interp(time_seconds, self.times_seconds, self.requests_per_second))

    def scaled(self, factor: float) -> "RateSeries":
        """The same shape at `factor` times the rate."""
        return RateSeries(
            times_seconds=self.times_seconds,
            requests_per_second=tuple(factor * rate for rate in self.requests_per_second),
        )


def diurnal(*, trough: float, peak: float, hours: float = 24.0, peak_hour: float = 14.0) -> RateSeries:
    """A day as a raised cosine between trough and peak requests per second."""
    times = np.arange(0.0, hours * 3600.0 + 1.0, 600.0)
    shape = (1 + np.cos((times / 3600.0 - peak_hour) * 2 * np.pi / 24.0)) / 2
    rates = trough + (peak - trough) * shape
    return RateSeries(times_seconds=tuple(map(float, times)), requests_per_second=tuple(map(float, rates)))


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Requests in order of arrival; all arrays have shape (N,), times in seconds since the beginning."""

    times_seconds: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    cached_tokens: IntArray
    span_seconds: float

    def __len__(self) -> int:
        return len(self.times_seconds)

    def arrivals(self) -> Iterator[Arrival]:
        """The requests one by one."""
        for start in range(0, len(self), _CHUNK):
            part = slice(start, start + _CHUNK)
            yield from map(
                Arrival,
                self.times_seconds[part].tolist(),
                self.prompt_tokens[part].tolist(),
                self.output_tokens[part].tolist(),
                self.cached_tokens[part].tolist(),
            )

    def _pick(self, times: FloatArray, index: IntArray, span_seconds: float) -> "Trace":
        order = np.argsort(times, kind="stable")
        index = index[order]
        return Trace(
            times_seconds=times[order],
            prompt_tokens=self.prompt_tokens[index],
            output_tokens=self.output_tokens[index],
            cached_tokens=self.cached_tokens[index],
            span_seconds=span_seconds,
        )

    def until(self, seconds: float) -> "Trace":
        """Only the requests that arrive before `seconds`."""
        index = np.flatnonzero(self.times_seconds < seconds)
        return self._pick(self.times_seconds[index], index, min(seconds, self.span_seconds))

    def repeated(self, seconds: float) -> "Trace":
        """Played again and again until `seconds` are filled."""
        times = max(1, int(np.ceil(seconds / self.span_seconds)))
        index = np.tile(np.arange(len(self)), times)
        shift = np.repeat(np.arange(times) * self.span_seconds, len(self))
        return self._pick(self.times_seconds[index] + shift, index, times * self.span_seconds).until(seconds)

    def scaled(self, factor: float, *, seed: int = 0) -> "Trace":
        """`factor` times the requests: thinned below 1, above it copied with a normal shift of 5 s so copies spread."""
        rng = np.random.default_rng(seed)
        count, whole = len(self), int(factor)
        index = np.concatenate((np.tile(np.arange(count), whole), np.flatnonzero(rng.random(count) < factor - whole)))
        shift = np.zeros(len(index))
        shift[count:] = rng.normal(0.0, COPY_JITTER_SECONDS, max(0, len(index) - count))
        times = np.clip(self.times_seconds[index] + shift, 0.0, np.nextafter(self.span_seconds, 0.0))
        return self._pick(times, index, self.span_seconds)


def generate(
    series: RateSeries,
    *,
    prompt: LengthDistribution,
    output: LengthDistribution,
    seed: int,
    gap_cv: float = 1.0,
    prefix_hit_ratio: float = 0.0,
    seconds: float | None = None,
) -> Trace:
    """Requests at the rates of `series`: a gamma renewal process (`gap_cv` 1 = Poisson) under time rescaling.

    Lengths are drawn independently. `seconds` cuts or prolongs the series (the last rate goes on).
    """
    rng = np.random.default_rng(seed)
    span = seconds if seconds is not None else series.times_seconds[-1]
    grid = np.union1d(np.asarray(series.times_seconds), np.arange(0.0, span, 60.0))
    grid = np.append(grid[grid < span], span)
    rates = np.interp(grid, series.times_seconds, series.requests_per_second)
    expected = np.concatenate(([0.0], np.cumsum(np.diff(grid) * (rates[1:] + rates[:-1]) / 2)))
    shape = 1.0 / gap_cv**2
    work = np.cumsum(
        rng.gamma(shape, 1.0 / shape, max(1, int(expected[-1] + 10 * gap_cv * np.sqrt(expected[-1]) + 10)))
    )
    work = work[work < expected[-1]]
    # A flat stretch (rate zero) has no inverse: a tiny slope keeps the map strictly increasing.
    times = np.interp(work, expected + np.arange(len(expected)) * 1e-9, grid)
    prompts = _draw(rng, prompt, len(times))
    return Trace(
        times_seconds=times,
        prompt_tokens=prompts,
        output_tokens=_draw(rng, output, len(times)),
        cached_tokens=np.floor(prompts * prefix_hit_ratio).astype(np.int64),
        span_seconds=span,
    )


def _draw(rng: np.random.Generator, lengths: LengthDistribution, count: int) -> IntArray:
    drawn = rng.choice(np.asarray(lengths.tokens), size=count, p=np.asarray(lengths.weights) / sum(lengths.weights))
    tokens: IntArray = np.maximum(1, np.rint(drawn)).astype(np.int64)
    return tokens


# Files


def load(path: Path) -> Trace | RateSeries:
    """Read a file of any of the known formats; TraceError where it is none of them or a line is wrong."""
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline()
            file.seek(0)
            if first.lstrip().startswith("{"):
                return _mooncake(path, file)
            header = [name.strip() for name in first.strip().split(",")]
            if {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= set(header):
                return _azure(path, file)
            for time_column, rate_column, time_unit, rate_unit in _RATE_COLUMNS:
                if {time_column, rate_column} <= set(header):
                    return _rates(path, file, time_column, rate_column, time_unit, rate_unit)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: is no text file (byte {error.start}); unpack it first") from error
    raise TraceError(
        f"{path}:1: unknown format; expected Azure's columns TIMESTAMP,ContextTokens,GeneratedTokens, Mooncake's JSON "
        "lines, or a rate series with minute_since_start,req_per_min or t_s,rate_rps"
    )


_RATE_COLUMNS = (("minute_since_start", "req_per_min", 60.0, 1 / 60.0), ("t_s", "rate_rps", 1.0, 1.0))


def _tokens(path: Path, line: int, name: str, text: Any, least: int) -> int:
    try:
        value = int(text)
    except (TypeError, ValueError):
        raise TraceError(f"{path}:{line}: {name} is {text!r}, expected a whole number of tokens") from None
    if value < least:
        raise TraceError(f"{path}:{line}: {name} is {value}, expected at least {least}")
    return value


def _number(path: Path, line: int, name: str, text: Any) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        raise TraceError(f"{path}:{line}: {name} is {text!r}, expected a number") from None
    if not np.isfinite(value) or value < 0:
        raise TraceError(f"{path}:{line}: {name} is {value}, expected a number from zero up")
    return value


def _build(path: Path, rows: list[tuple[float, int, int, int]]) -> Trace:
    if len(rows) < 2:
        raise TraceError(f"{path}: holds {len(rows)} requests, at least 2 are needed")
    rows.sort(key=lambda row: row[0])
    times = np.array([row[0] for row in rows])
    times -= times[0]
    # The span includes one mean gap after the last request, so that repeating the trace keeps its rate.
    return Trace(
        times_seconds=times,
        prompt_tokens=np.array([row[1] for row in rows], dtype=np.int64),
        output_tokens=np.array([row[2] for row in rows], dtype=np.int64),
        cached_tokens=np.array([row[3] for row in rows], dtype=np.int64),
        span_seconds=float(times[-1] * len(times) / (len(times) - 1)) or 1.0,
    )


def _azure(path: Path, file: Any) -> Trace:
    rows = []
    for line, row in enumerate(csv.DictReader(file), start=2):
        stamp = row["TIMESTAMP"] or ""
        try:
            # Seven digits of a second: one more than datetime takes.
            whole, _, fraction = stamp.partition(".")
            time = datetime.fromisoformat(whole).timestamp() + float(f"0.{fraction or 0}")
        except ValueError:
            raise TraceError(
                f"{path}:{line}: TIMESTAMP is {stamp!r}, expected a time such as 2023-11-16 18:15:46.6805900"
            ) from None
        prompt = _tokens(path, line, "ContextTokens", row["ContextTokens"], 0)
        output = _tokens(path, line, "GeneratedTokens", row["GeneratedTokens"], 0)
        rows.append((time, max(1, prompt), max(1, output), 0))
    return _build(path, rows)


def _mooncake(path: Path, file: Any) -> Trace:
    rows: list[tuple[float, int, int, int]] = []
    seen: set[Any] = set()
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise TraceError(f"{path}:{line}: no JSON: {error.msg}") from None
        if not isinstance(record, dict) or not {"timestamp", "input_length", "output_length"} <= set(record):
            raise TraceError(f"{path}:{line}: expected an object with timestamp, input_length and output_length")
        prompt = _tokens(path, line, "input_length", record["input_length"], 1)
        blocks = record.get("hash_ids") or []
        known = len(list(itertools.takewhile(lambda block: block in seen, blocks)))
        seen.update(blocks)
        rows.append(
            (
                _number(path, line, "timestamp", record["timestamp"]) / 1000.0,
                prompt,
                max(1, _tokens(path, line, "output_length", record["output_length"], 0)),
                min(known * MOONCAKE_BLOCK_TOKENS, prompt),
            )
        )
    return _build(path, rows)


def _rates(path: Path, file: Any, time_column: str, rate_column: str, time_unit: float, rate_unit: float) -> RateSeries:
    times: list[float] = []
    rates: list[float] = []
    for line, row in enumerate(csv.DictReader(file), start=2):
        time = _number(path, line, time_column, row[time_column]) * time_unit
        if times and time <= times[-1]:
            raise TraceError(f"{path}:{line}: {time_column} does not ascend")
        times.append(time)
        rates.append(_number(path, line, rate_column, row[rate_column]) * rate_unit)
    if len(times) < 2:
        raise TraceError(f"{path}: holds {len(times)} rates, at least 2 are needed")
    return RateSeries(times_seconds=tuple(time - times[0] for time in times), requests_per_second=tuple(rates))
