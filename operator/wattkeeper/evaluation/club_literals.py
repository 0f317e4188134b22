"""The readings of club-3090 as CSV files: upstream keeps them as lists of tuples in the programs that draw them.

The programs are parsed, never run: only lists of plain numbers are taken (`ast.literal_eval`).
"""

import ast
import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattkeeper.domain.errors import DataFileError
from wattkeeper.energy import powercap_data

FOLDER = "docs/img"
"""Of the programs, in the repository."""
_CURVE_COLUMNS = (
    "gpu", "tdp", "engine", "model", "phase", "concurrency", "cap_w", "tps", "power_w", "sm_mhz", "source", "curve",
)  # fmt: skip
_CLOCK_COLUMNS = ("mem_mhz", "gpu_mhz", "narr_tps", "code_tps", "power_w", "tps_per_w")
_CLOCK_PROGRAM = "freq-cap-5090-gemma4.py"


@dataclass(frozen=True, kw_only=True)
class _Curve:
    """One list: what was measured, and which entries of a tuple say what; the first is the limit in watts."""

    program: str
    variable: str = "data"
    gpu: str
    tdp: int
    engine: str
    model: str
    phase: str
    concurrency: int
    watts: int
    """Entry; the second one is tokens per second."""
    mhz: int | None = None


_RTX3090: dict[str, Any] = {"gpu": "RTX3090", "tdp": 350, "engine": "llama.cpp", "concurrency": 1}
_RTX4090: dict[str, Any] = {"gpu": "RTX4090", "tdp": 450, "engine": "llama.cpp", "model": "Qwen3.6-27B"}
_RTX5090: dict[str, Any] = {"gpu": "RTX5090", "tdp": 575, "engine": "vLLM"}
_CURVES = (
    _Curve(program="power-cap-3090-a3b-decode.py", model="Qwen-A3B MoE", phase="decode", watts=3, mhz=4, **_RTX3090),
    _Curve(program="power-cap-3090-a3b-prefill.py", model="Qwen-A3B MoE", phase="prefill", watts=2, mhz=3, **_RTX3090),
    _Curve(program="power-cap-3090-qwen36.py", model="Qwen3.6-27B", phase="decode", watts=3, mhz=4, **_RTX3090),
    _Curve(program="power-cap-3090-prefill.py", model="Qwen3.6-27B", phase="prefill", watts=2, mhz=3, **_RTX3090),
    *(
        _Curve(
            program="power-cap-4090-qwen36.py", variable=f"decode_{name}", phase="decode", concurrency=number, watts=3,
            **_RTX4090,
        )
        for name, number in (("single", 1), ("concurrent", 4))
    ),
    _Curve(
        program="power-cap-5090-gemma4.py", model="Gemma-4-31B MTP", phase="decode", concurrency=4, watts=3, **_RTX5090
    ),
    _Curve(
        program="power-cap-5090-qwen36-prefill.py", model="Qwen3.6-27B", phase="prefill", concurrency=1, watts=2,
        **_RTX5090,
    ),
)  # fmt: skip
CURVE_PROGRAMS = tuple(dict.fromkeys(curve.program for curve in _CURVES))
CLOCK_PROGRAMS = (_CLOCK_PROGRAM,)


def write_curves(programs: Path, data: Path) -> None:
    """The file that `powercap_data.load_rtx_curves` reads, in the data folder. Raises DataFileError."""
    rows = []
    for curve in _CURVES:
        facts = (curve.gpu, curve.tdp, curve.engine, curve.model, curve.phase, curve.concurrency)
        name = "|".join(map(str, (curve.gpu, curve.model, curve.phase, curve.concurrency)))
        least = max(curve.watts, curve.mhz or 0) + 1
        for row in _list(programs / curve.program, curve.variable, least=least):
            mhz = "" if curve.mhz is None else row[curve.mhz]
            rows.append((*facts, row[0], row[1], row[curve.watts], mhz, "club-3090", name))
    _write(data / powercap_data.RTX_CURVES.folder / powercap_data.RTX_CURVES.flat_file, _CURVE_COLUMNS, rows)


def write_clocks(programs: Path, data: Path) -> None:
    """The file that `powercap_data.load_clock_grid` reads, in the data folder. Raises DataFileError."""
    rows = _list(programs / _CLOCK_PROGRAM, "data", least=len(_CLOCK_COLUMNS))
    path = data / powercap_data.RTX_CLOCKS.folder / powercap_data.RTX_CLOCKS.flat_file
    _write(path, _CLOCK_COLUMNS, [row[: len(_CLOCK_COLUMNS)] for row in rows])


def _list(path: Path, variable: str, *, least: int) -> list[tuple[float, ...]]:
    try:
        program = ast.parse(path.read_text(encoding="utf-8"))
        found = [
            ast.literal_eval(node.value)
            for node in program.body
            if isinstance(node, ast.Assign) and any(_is_named(each, variable) for each in node.targets)
        ]
    except (OSError, SyntaxError, ValueError) as error:
        raise DataFileError(f"{path}: no program with a list `{variable}` of plain numbers ({error})") from error
    rows = found[0] if found else None
    if not isinstance(rows, list) or not rows or not all(_is_row(row, least) for row in rows):
        raise DataFileError(f"{path}: `{variable}` is no list of tuples of {least} numbers or more: another version?")
    return rows


def _is_named(target: ast.expr, variable: str) -> bool:
    return isinstance(target, ast.Name) and target.id == variable


def _is_row(row: object, least: int) -> bool:
    return isinstance(row, tuple) and len(row) >= least and all(isinstance(each, int | float) for each in row)


def _write(path: Path, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
