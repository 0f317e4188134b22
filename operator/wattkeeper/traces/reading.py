"""Reading tables of requests line by line: every error names file, line, column, what was expected and what to do."""

import csv
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from wattkeeper.traces.trace import IntArray, Trace, TraceError

MOST_TOKENS = 10_000_000
"""More in one request is taken for another unit or a broken file."""
_ADVICE = "correct or remove this line"


class Where:
    """A line of a file, for errors."""

    def __init__(self, path: Path, line: int) -> None:
        self._place = f"{path}:{line}"

    def error(self, column: str, found: Any, expected: str) -> TraceError:
        """What is to be raised."""
        return TraceError(f"{self._place}: {column} is {found!r}, expected {expected}; {_ADVICE}")

    def tokens(self, column: str, text: Any, *, least: int = 0) -> int:
        """A number of tokens."""
        try:
            value = int(text)
        except (TypeError, ValueError):
            raise self.error(column, text, "a whole number of tokens") from None
        if not least <= value <= MOST_TOKENS:
            raise self.error(column, value, f"{least} to {MOST_TOKENS} tokens")
        return value

    def number(self, column: str, text: Any) -> float:
        """A finite number from zero up."""
        try:
            value = float(text)
        except (TypeError, ValueError):
            raise self.error(column, text, "a number") from None
        if not math.isfinite(value) or value < 0:
            raise self.error(column, value, "a number from zero up")
        return value

    def stamp(self, column: str, text: str | None) -> float:
        """Unix seconds of a time stamp; UTC unless it names another offset. Any number of digits of a second."""
        whole, _, rest = (text or "").strip().partition(".")
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        try:
            time = datetime.fromisoformat(whole + rest[len(digits) :])
            return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() + float(f"0.{digits or 0}")
        except ValueError:
            raise self.error(column, text, "a time such as 2023-11-16 18:15:46.6805900") from None


def rows(path: Path, file: TextIO) -> Iterator[tuple[Where, Mapping[str, str | None]]]:
    """The lines of a CSV with a header, by column name (stripped)."""
    reader = csv.DictReader(file, skipinitialspace=True)
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    try:
        for row in reader:
            where = Where(path, reader.line_num)
            if None in row:
                raise TraceError(f"{path}:{reader.line_num}: more fields than the header has columns; {_ADVICE}")
            yield where, row
    except csv.Error as error:
        raise TraceError(f"{path}:{reader.line_num}: no CSV ({error}); {_ADVICE}") from None


class Requests:
    """Collects requests in 32 bytes each, so that a week of 27 million fits; counts what it repairs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._times = array("d")
        self._prompts, self._outputs, self._cached = array("q"), array("q"), array("q")
        self._repairs: Counter[str] = Counter()

    def add(self, time_seconds: float, prompt: int, output: int, cached: int = 0) -> None:
        """One request; lengths of zero become one, cached tokens beyond the prompt are cut, both counted."""
        if self._times and time_seconds < self._times[-1]:
            self._repairs["out of order, sorted"] += 1
        if prompt < 1 or output < 1:
            self._repairs["with a length of 0 tokens, taken as 1"] += 1
        if cached > max(1, prompt):
            self._repairs["with more cached than prompt tokens, cut"] += 1
        self._times.append(time_seconds)
        self._prompts.append(max(1, prompt))
        self._outputs.append(max(1, output))
        self._cached.append(min(cached, max(1, prompt)))

    def leave_out(self, why: str) -> None:
        """Count a request that is not taken."""
        self._repairs[f"{why}, left out"] += 1

    @property
    def repairs(self) -> tuple[str, ...]:
        """What was repaired, with counts."""
        return tuple(f"{number} requests {what}" for what, number in self._repairs.items())

    def order(self) -> IntArray:
        """Index that sorts by time; equal times stay as they are."""
        return np.argsort(np.frombuffer(self._times, dtype=np.float64), kind="stable")

    def trace(self) -> Trace:
        """All of them. Raises TraceError where there are fewer than two."""
        if len(self._times) < 2:
            raise TraceError(f"{self._path}: holds {len(self._times)} requests, at least 2 are needed")
        order = self.order()
        times = np.frombuffer(self._times, dtype=np.float64)[order]
        times = times - times[0]
        # The span includes one mean gap after the last request, so that repeating the trace keeps its rate.
        return Trace(
            times_seconds=times,
            prompt_tokens=np.frombuffer(self._prompts, dtype=np.int64)[order],
            output_tokens=np.frombuffer(self._outputs, dtype=np.int64)[order],
            cached_tokens=np.frombuffer(self._cached, dtype=np.int64)[order],
            span_seconds=float(times[-1] * len(times) / (len(times) - 1)) or 1.0,
            repairs=self.repairs,
        )
