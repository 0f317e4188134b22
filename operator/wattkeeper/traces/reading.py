"""Reading tables of requests line by line: every error names file, line, column, what was expected and what to do."""

import csv
import gzip
import math
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from wattkeeper.traces.trace import IntArray, Trace, TraceError

MOST_TOKENS = 10_000_000
"""More in one request is taken for another unit or a broken file."""
LONGEST_SPAN_SECONDS = 10 * 366 * 86400.0
"""A longer trace is taken for another unit of time or a broken stamp."""
CUT_OFF = "the file may be cut off there"
_ADVICE = "correct or remove this line"


class Where:
    """A line of a file, for errors."""

    def __init__(self, path: Path, line: int, *, cut_off: bool = False) -> None:
        self._place = f"{path}:{line}"
        self._advice = _ADVICE + (f", or get the file again: {CUT_OFF}" if cut_off else "")

    def error(self, column: str, found: Any, expected: str) -> TraceError:
        """What is to be raised."""
        return TraceError(f"{self._place}: {column} is {found!r}, expected {expected}; {self._advice}")

    def tokens(self, column: str, text: Any, *, least: int = 0) -> int:
        """A number of tokens."""
        try:
            value = int(text)
            if value != text and not isinstance(text, str):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
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


class Lines:
    """The lines of a text file, plain or packed with gzip, for one pass; every fault of the file is a TraceError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = 0
        """Of the last line that was read."""
        self.unfinished = False
        """Whether the last line had no line end."""
        self._file: TextIO | None = None

    def __enter__(self) -> "Lines":
        try:
            with self.path.open("rb") as file:
                start = file.read(4)
            if start.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise TraceError(f"{self.path}:1: is UTF-16 text: save it as UTF-8")
            if start.startswith(b"\x1f\x8b"):
                self._file = gzip.open(self.path, "rt", encoding="utf-8-sig", newline="")
            else:
                self._file = self.path.open(encoding="utf-8-sig", newline="")
        except OSError as error:
            raise TraceError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        return self

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            self._file.close()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._file is None:
            raise StopIteration
        try:
            line = self._file.readline()
        except UnicodeDecodeError as error:
            raise TraceError(
                f"{self.path}: is no UTF-8 text somewhere after line {self.number} ({error.reason}): save it as UTF-8"
            ) from error
        except (EOFError, zlib.error, OSError) as error:
            raise TraceError(
                f"{self.path}: cannot be read after line {self.number} ({error}): get the file again, it is cut off or "
                "broken"
            ) from error
        if not line:
            raise StopIteration
        self.number += 1
        self.unfinished = not line.endswith("\n")
        return line

    @property
    def notes(self) -> tuple[str, ...]:
        """What makes the end of the file doubtful."""
        return (f"line {self.number}, the last, has no line end: {CUT_OFF}",) * self.unfinished


def rows(lines: Lines, header: Sequence[str], block: Iterable[str]) -> Iterator[tuple[Where, Mapping[str, str | None]]]:
    """Lines of a CSV by column name. `block` are the last lines that were read of `lines`, or `lines` itself."""
    before = lines.number - len(block) if isinstance(block, Sized) else lines.number
    reader = csv.DictReader(block, fieldnames=header, skipinitialspace=True)
    try:
        for row in reader:
            number = before + reader.line_num
            if None in row:
                raise TraceError(f"{lines.path}:{number}: more fields than the header has columns; {_ADVICE}")
            yield Where(lines.path, number, cut_off=lines.unfinished and number == lines.number), row
    except csv.Error as error:
        raise TraceError(f"{lines.path}:{before + reader.line_num}: no CSV ({error}); {_ADVICE}") from None


def fields(line: str) -> list[str]:
    """Names of the columns in the header of a CSV."""
    return [name.strip().strip('"') for name in line.strip().split(",")]


class Requests:
    """Collects requests in 16 bytes each (24 with cached tokens); counts what it repairs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._times = array("d")
        self._prompts, self._outputs, self._cached = array("i"), array("i"), array("i")
        self._repairs: Counter[str] = Counter()

    def add(
        self,
        times_seconds: npt.ArrayLike,
        prompts: npt.ArrayLike,
        outputs: npt.ArrayLike,
        cached: npt.ArrayLike | None = None,
    ) -> None:
        """Requests; lengths of zero become one, cached tokens beyond the prompt are cut, both counted."""
        times = np.atleast_1d(np.asarray(times_seconds, dtype=np.float64))
        prompt, output = (np.atleast_1d(np.asarray(each, dtype=np.int32)) for each in (prompts, outputs))
        if not len(times):
            return
        before = self._times[-1] if self._times else times[0]
        self._repair("out of order, sorted", np.diff(times, prepend=before) < 0)
        self._repair("with a length of 0 tokens, taken as 1", (prompt < 1) | (output < 1))
        prompt, output = np.maximum(prompt, 1), np.maximum(output, 1)
        held = np.zeros_like(prompt) if cached is None else np.atleast_1d(np.asarray(cached, dtype=np.int32))
        self._repair("with more cached than prompt tokens, cut", held > prompt)
        held = np.minimum(held, prompt)
        if self._cached or held.any():
            self._cached.frombytes(bytes(4 * (len(self._times) - len(self._cached))))
            self._cached.frombytes(held.tobytes())
        for column, values in ((self._times, times), (self._prompts, prompt), (self._outputs, output)):
            column.frombytes(values.tobytes())

    def _repair(self, what: str, where: npt.NDArray[np.bool_]) -> None:
        if where.any():
            self._repairs[what] += int(where.sum())

    def leave_out(self, why: str, number: int) -> None:
        """Count requests that are not taken."""
        if number:
            self._repairs[f"{why}, left out"] += number

    @property
    def repairs(self) -> tuple[str, ...]:
        """What was repaired, with counts."""
        return tuple(f"{number} requests {what}" for what, number in self._repairs.items())

    def order(self) -> IntArray:
        """Index that sorts by time; equal times stay as they are."""
        return np.argsort(np.frombuffer(self._times, dtype=np.float64), kind="stable")

    def trace(self, notes: tuple[str, ...] = ()) -> Trace:
        """All of them, in order. Raises TraceError where there are fewer than two."""
        if len(self._times) < 2:
            raise TraceError(f"{self._path}: holds {len(self._times)} requests, at least 2 are needed")
        order = self.order() if self._repairs["out of order, sorted"] else None
        times = np.array(self._times, dtype=np.float64)
        times = times if order is None else times[order]
        times -= times[0]
        if times[-1] > LONGEST_SPAN_SECONDS:
            raise TraceError(
                f"{self._path}: the times span {times[-1] / 86400.0:,.0f} days: is their unit that of the format, and "
                "are the first and last time right?"
            )
        columns = []
        for column in (self._prompts, self._outputs, self._cached):
            values = np.array(column if column else np.zeros(0), dtype=np.int64)
            values = values if len(values) else np.zeros(len(times), dtype=np.int64)
            columns.append(values if order is None else values[order])
        # The span includes one mean gap after the last request, so that repeating the trace keeps its rate.
        return Trace(
            times_seconds=times,
            prompt_tokens=columns[0],
            output_tokens=columns[1],
            cached_tokens=columns[2],
            span_seconds=float(times[-1] * len(times) / (len(times) - 1)) or 1.0,
            repairs=(*(text for text in self.repairs if not text.startswith("0 ")), *notes),
        )
