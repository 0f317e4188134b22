"""CSV tables of requests: block by block as columns, and line by line where a block holds anything out of the ordinary.

A block that is plain (stamps of UTC or none, whole numbers in range) is read by numpy at once; any other is read again
line by line, which gives the same numbers or the error that names the line. So speed changes no result.
"""

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wattkeeper.traces.reading import MOST_TOKENS, Lines, Requests, Where, rows
from wattkeeper.traces.trace import Trace

BLOCK_LINES = 1 << 16
_LONGEST_STAMP = 40
_EARLIEST, _LATEST = np.datetime64("1970-01-01", "s"), np.datetime64("2262-01-01", "s")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Which column holds what."""

    time: str
    prompt: str
    output: str
    cached: str | None = None
    """May be absent from a file."""
    stamped: bool = False
    """Whether times are stamps, else seconds."""
    failed: bool = False
    """Whether requests without output tokens failed, and are left out."""

    @property
    def columns(self) -> set[str]:
        """What a file must have."""
        return {self.time, self.prompt, self.output}


def read(lines: Lines, header: Sequence[str], table: Table) -> Trace:
    """All requests of a table whose header has been read. Raises TraceError: a line is wrong, or below two requests."""
    found = Requests(lines.path)
    while block := list(itertools.islice(lines, BLOCK_LINES)):
        columns = _plain(block, header, table)
        if columns is None:
            columns = _by_line(lines, header, table, block)
        times, prompts, outputs, cached = columns
        if table.failed:
            kept = outputs > 0
            found.leave_out("that failed (0 response tokens)", int((~kept).sum()))
            times, prompts, outputs, cached = times[kept], prompts[kept], outputs[kept], cached[kept]
        found.add(times, prompts, outputs, cached)
    return found.trace(lines.notes)


_Columns = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]


def _plain(block: list[str], header: Sequence[str], table: Table) -> _Columns | None:
    """Columns of a block that numpy can read; None: something is out of the ordinary."""
    if sum(line.count(",") for line in block) != len(block) * (len(header) - 1):
        return None
    kept = [name for name in (table.time, table.prompt, table.output, table.cached) if name in header]
    kinds = [f"U{_LONGEST_STAMP}" if table.stamped else "f8", *["i8"] * (len(kept) - 1)]
    # UTC is what a stamp without an offset is read as; numpy does not know other offsets, and warns.
    text = [line.replace("+00:00,", ",", 1) for line in block] if table.stamped else block
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = np.loadtxt(
                text,
                dtype=list(zip("tpoc", kinds, strict=False)),
                delimiter=",",
                comments=None,
                usecols=[header.index(name) for name in kept],
                ndmin=1,
            )
            times = _seconds(found["t"]) if table.stamped else found["t"]
    except (ValueError, Warning):
        return None
    tokens = [found[name] for name in "poc"[: len(kept) - 1]]
    in_range = all(((each >= 0) & (each <= MOST_TOKENS)).all() for each in tokens)
    if len(found) != len(block) or not in_range or not (np.isfinite(times) & (times >= 0)).all():
        return None
    cached = tokens[2] if len(tokens) == 3 else np.zeros(len(times), dtype=np.int64)
    return times, tokens[0], tokens[1], cached


def _seconds(stamps: npt.NDArray[np.str_]) -> npt.NDArray[np.float64]:
    """Unix seconds. Raises ValueError: no stamps, or of times that nanoseconds cannot count."""
    whole = stamps.astype("datetime64[s]")
    if not ((whole >= _EARLIEST) & (whole < _LATEST)).all():
        raise ValueError
    rest = (stamps.astype("datetime64[ns]") - whole).astype(np.int64)
    return np.asarray(whole.astype(np.int64) + rest / 1e9)


def _by_line(lines: Lines, header: Sequence[str], table: Table, block: list[str]) -> _Columns:
    found: list[tuple[float, int, int, int]] = []
    for where, row in rows(lines, header, block):
        found.append(
            (
                _time(where, table, row[table.time]),
                where.tokens(table.prompt, row[table.prompt]),
                where.tokens(table.output, row[table.output]),
                where.tokens(table.cached, row.get(table.cached) or 0) if table.cached else 0,
            )
        )
    times, prompts, outputs, cached = (np.array(column) for column in zip(*found, strict=True)) if found else _EMPTY
    return times, prompts, outputs, cached


_EMPTY = (np.zeros(0), *(np.zeros(0, dtype=np.int64) for _ in range(3)))


def _time(where: Where, table: Table, text: str | None) -> float:
    return where.stamp(table.time, text) if table.stamped else where.number(table.time, text)
