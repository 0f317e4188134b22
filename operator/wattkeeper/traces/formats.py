"""Files of recorded traffic, told apart by their content.

Azure's LLM inference traces (CSV with TIMESTAMP, ContextTokens, GeneratedTokens), Mooncake's (JSON lines with timestamp
in ms, input_length, output_length and hash_ids of 512-token prefix blocks), rate series (CSV with minute_since_start
and req_per_min, or t_s and rate_rps), which a generator turns into requests, and pairs of lengths (CSV with
num_prefill_tokens and num_decode_tokens).
"""

import csv
import itertools
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from wattkeeper.domain.errors import DataFileError
from wattkeeper.traces.trace import Lengths, RateSeries, Trace, TraceError

MOONCAKE_BLOCK_TOKENS = 512
_LENGTH_COLUMNS = ("num_prefill_tokens", "num_decode_tokens")


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


def sharegpt(path: Path) -> Lengths:
    """Token counts of a CSV with num_prefill_tokens and num_decode_tokens; DataFileError where they are not there."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            if not set(_LENGTH_COLUMNS) <= set(rows.fieldnames or ()):
                raise DataFileError(f"{path}:1: expected the columns {', '.join(_LENGTH_COLUMNS)}")
            pairs = [tuple(int(row[column]) for column in _LENGTH_COLUMNS) for row in rows]
    except (OSError, ValueError, TypeError) as error:
        raise DataFileError(f"{path} cannot be read as token counts: {error}") from error
    if not pairs:
        raise DataFileError(f"{path} holds no requests")
    prompts, outputs = np.maximum(np.array(pairs, dtype=np.int64), 1).T
    return Lengths(name="sharegpt", prompt_tokens=prompts, output_tokens=outputs)
