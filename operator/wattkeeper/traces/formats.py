"""Files of recorded traffic, told apart by their content.

| format | told by |
|---|---|
| Azure 2023 and 2024 | CSV with TIMESTAMP, ContextTokens, GeneratedTokens |
| BurstGPT | CSV with Timestamp (s), Request tokens, Response tokens; failed requests (0 response tokens) are left out |
| Mooncake | JSON lines: timestamp (ms), input_length, output_length, hash_ids of 512-token prefix blocks |
| one's own | CSV with time_s or timestamp, prompt_tokens, output_tokens, and perhaps cached_tokens |
| Vidur | CSV with arrived_at (s), num_prefill_tokens, num_decode_tokens |
| pairs of lengths | the same without arrived_at (ShareGPT and others as Vidur keeps them) |
| history | JSON that `wattkeeper traces record` writes |
| rates | CSV with minute_since_start, req_per_min (Azure 2024, digitised) or t_s, rate_rps (ServeGen, summed) |
"""

import itertools
import json
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from wattkeeper.traces import history, tables
from wattkeeper.traces.history import History
from wattkeeper.traces.prefixes import PrefixBlocks, PrefixTrace, with_blocks
from wattkeeper.traces.reading import Lines, Requests, Where, fields, rows
from wattkeeper.traces.tables import Table
from wattkeeper.traces.trace import Lengths, RateSeries, Trace, TraceError

MOONCAKE_BLOCK_TOKENS = 512
MOST_REQUESTS_PER_SECOND = 1e6
"""More is taken for another unit or a broken file."""
Found = Trace | RateSeries | Lengths | History
_RATE_COLUMNS = (("minute_since_start", "req_per_min", 60.0, 1 / 60.0), ("t_s", "rate_rps", 1.0, 1.0))
_LENGTH_COLUMNS = ("num_prefill_tokens", "num_decode_tokens")


def load(path: Path, *, seed: int = 0) -> Trace | RateSeries:
    """Requests or rates of a file of any of the known formats; those of a history are drawn with the seed.

    Raises TraceError: unreadable, of none of them, a line is wrong, or it holds lengths only.
    """
    found = read(path)
    if isinstance(found, Lengths):
        raise TraceError(f"{path}: holds lengths without times of arrival; draw them with a rate instead")
    return found.requests(seed=seed) if isinstance(found, History) else found


def sharegpt(path: Path) -> Lengths:
    """Pairs of lengths. Raises TraceError: unreadable, or of another form."""
    found = read(path)
    if not isinstance(found, Lengths):
        raise TraceError(f"{path}:1: expected the columns {', '.join(_LENGTH_COLUMNS)} and no times")
    return found


def read(path: Path) -> Found:
    """Whatever a file holds. Raises TraceError: unreadable, of no known format, or a line is wrong."""
    if history.recorded(path):
        return history.read(path)
    with Lines(path) as lines:
        first = next(lines, "")
        if not first.strip():
            raise TraceError(f"{path}:1: " + ("has an empty first line" if first else "is empty") + ": get it again")
        if first.lstrip().startswith("{"):
            return _mooncake(lines, first)
        header = fields(first)
        for table in TABLES:
            if table.columns <= set(header):
                return tables.read(lines, header, table)
        for columns, reader in _READERS:
            if columns <= set(header):
                return reader(lines, header)
    every = [*(table.columns for table in TABLES), *(columns for columns, _ in _READERS)]
    known = "; ".join(", ".join(sorted(columns)) for columns in every)
    raise TraceError(
        f"{path}:1: unknown format; expected Mooncake's JSON lines or a CSV whose header has the columns of one of: "
        f"{known}. Rename the columns of a file of your own to time_s, prompt_tokens, output_tokens"
    )


TABLES = (
    Table(time="TIMESTAMP", prompt="ContextTokens", output="GeneratedTokens", stamped=True),
    Table(time="Timestamp", prompt="Request tokens", output="Response tokens", failed=True),
    Table(time="time_s", prompt="prompt_tokens", output="output_tokens", cached="cached_tokens"),
    Table(time="timestamp", prompt="prompt_tokens", output="output_tokens", cached="cached_tokens", stamped=True),
    Table(time="arrived_at", prompt=_LENGTH_COLUMNS[0], output=_LENGTH_COLUMNS[1]),
)
"""Azure, BurstGPT, one's own in two forms, Vidur."""


def _lengths(lines: Lines, header: list[str]) -> Lengths:
    prompts, outputs = array("q"), array("q")
    zeros = 0
    for where, row in rows(lines, header, lines):
        prompt, output = (where.tokens(column, row[column]) for column in _LENGTH_COLUMNS)
        zeros += prompt < 1 or output < 1
        prompts.append(max(1, prompt))
        outputs.append(max(1, output))
    if not prompts:
        raise TraceError(f"{lines.path}: holds no requests")
    return Lengths(
        name="sharegpt" if "sharegpt" in lines.path.name else lines.path.stem,
        prompt_tokens=np.array(prompts, dtype=np.int64),
        output_tokens=np.array(outputs, dtype=np.int64),
        repairs=(*(f"{zeros} requests with a length of 0 tokens, taken as 1",) * bool(zeros), *lines.notes),
    )


def _mooncake(lines: Lines, first: str) -> PrefixTrace:
    path = lines.path
    found = Requests(path)
    ids: list[list[int]] = []
    numbers: dict[Any, int] = {}
    for text in itertools.chain((first,), lines):
        line = lines.number
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            cut = ", the file may be cut off here" if lines.unfinished else ""
            raise TraceError(f"{path}:{line}: no JSON: {error.msg}; correct or remove this line{cut}") from None
        if not isinstance(record, dict) or not {"timestamp", "input_length", "output_length"} <= set(record):
            raise TraceError(f"{path}:{line}: expected an object with timestamp, input_length and output_length")
        where = Where(path, line)
        blocks = record.get("hash_ids") or []
        if not isinstance(blocks, list) or not all(isinstance(block, int | str) for block in blocks):
            raise where.error("hash_ids", blocks, "a list of block ids")
        found.add(
            where.number("timestamp", record["timestamp"]) / 1000.0,
            where.tokens("input_length", record["input_length"], least=1),
            where.tokens("output_length", record["output_length"]),
        )
        ids.append([numbers.setdefault(block, len(numbers)) for block in blocks])
    ordered = [ids[index] for index in found.order().tolist()]
    blocks = PrefixBlocks(
        block_tokens=MOONCAKE_BLOCK_TOKENS,
        ids=np.array([block for request in ordered for block in request], dtype=np.int64),
        offsets=np.cumsum([0, *map(len, ordered)], dtype=np.int64),
    )
    return with_blocks(found.trace(lines.notes), blocks)


def _rates(time_column: str, rate_column: str, time_unit: float, rate_unit: float) -> Callable[..., RateSeries]:
    def reader(lines: Lines, header: list[str]) -> RateSeries:
        times: list[float] = []
        rates: list[float] = []
        for where, row in rows(lines, header, lines):
            time = where.number(time_column, row[time_column]) * time_unit
            if times and time <= times[-1]:
                raise where.error(time_column, row[time_column], "more than in the line before (times do not ascend)")
            times.append(time)
            rates.append(where.number(rate_column, row[rate_column]) * rate_unit)
            if rates[-1] > MOST_REQUESTS_PER_SECOND:
                raise where.error(rate_column, row[rate_column], f"at most {MOST_REQUESTS_PER_SECOND:g} per second")
        if len(times) < 2:
            raise TraceError(f"{lines.path}: holds {len(times)} rates, at least 2 are needed")
        return RateSeries(times_seconds=tuple(time - times[0] for time in times), requests_per_second=tuple(rates))

    return reader


_READERS: tuple[tuple[set[str], Callable[[Lines, list[str]], RateSeries | Lengths]], ...] = (
    ({*_LENGTH_COLUMNS}, _lengths),
    *(({time, rate}, _rates(time, rate, *units)) for time, rate, *units in _RATE_COLUMNS),
)
