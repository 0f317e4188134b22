"""Loaders of measured runs under power limits and locked clocks, on single workstation and consumer cards.

No public data moves the limit of a datacentre card under a serving load; these are what there is. Both sets are read
into one table, one row per steady state (`CAP_COLUMNS`):
`source`; `curve` (card, model, phase and concurrency: everything but the limit); `gpu`, `engine`, `model`; `phase`
(prefill or decode), `moe` (1 where experts are routed), `concurrency` (requests at once); `cap_watts` (asked for),
`tdp_watts` (rated), `watts` (drawn, mean), `sm_mhz` (mean; NaN: not published), `tokens_per_second`,
`request_seconds` (mean from send to end; NaN: not published).
"""

from pathlib import Path

import numpy as np
import pandas as pd

from wattkeeper.domain.errors import DataFileError
from wattkeeper.energy import row_checks, sources
from wattkeeper.energy.sources import Source

CAP_COLUMNS = (
    "source", "curve", "gpu", "engine", "model", "phase", "moe", "concurrency", "cap_watts", "tdp_watts", "watts",
    "sm_mhz", "tokens_per_second", "request_seconds",
)  # fmt: skip

RTX_CURVES = Source(
    name="club-3090-caps",
    repository="noonghunna/club-3090",
    commit="4a29ab57d42a1d587de1042fa5dfd9535f94a063",
    paths=("docs/img/power-cap-*.py (the lists in them, as powercap_curves.csv)",),
    folder="powercap/rtx-curves",
    flat_file="powercap_curves.csv",
    licence="Apache-2.0",
    rows=202,
    sha256="5b4eae5a306be386ce5b677554b3439b096cf55280287e60b3dc083ec9dc9cbc",
)
RTX_CLOCKS = Source(
    name="club-3090-clocks",
    repository="noonghunna/club-3090",
    commit="4a29ab57d42a1d587de1042fa5dfd9535f94a063",
    paths=("docs/img/freq-cap-5090-gemma4.py (the list in it, as freqcap_5090.csv)",),
    folder="powercap/rtx-curves",
    flat_file="freqcap_5090.csv",
    licence="Apache-2.0",
    rows=28,
    sha256="2f362062cdff2670f6de1d27a448c23b9c938d2986d9a2d9d684824b14d1211c",
)
RTX_PRO_6000 = Source(
    name="rtx-pro-6000-caps",
    repository="Light-Heart-Labs/MMBT-Messy-Model-Bench-Tests",
    commit="ec660c18ea873c0969bc80002b5c7ef8cc1c51d4",
    paths=("hardware-tests/vllm-power-sweep-2026-04-29/phase*/*.csv",),
    folder="powercap/rtx-pro-6000-vllm",
    flat_file="",
    licence="MIT",
    rows=28,
    sha256="6d6ad5110b99627d6c27f79e379abaebd985c7354f5d62b33b8620285f43b5e4",
)

_CURVE_WORDS = ("gpu", "engine", "model", "phase", "curve")
_CURVE_NUMBERS = ("tdp", "concurrency", "cap_w", "tps", "power_w")
_CELLS = {
    "phase1-dense-27b-n32": ("Qwen3.6-27B-AWQ", 0.0, 32.0),
    "phase1b-dense-27b-n1": ("Qwen3.6-27B-AWQ", 0.0, 1.0),
    "phase2-coder-next-n32": ("Qwen3-Coder-Next-AWQ", 1.0, 32.0),
    "phase2b-coder-next-n1": ("Qwen3-Coder-Next-AWQ", 1.0, 1.0),
}
"""Folder -> model, whether experts are routed, requests at once."""
_PRO_6000_CAPS = (300, 350, 400, 450, 500, 550, 600)
_PRO_6000_TDP_WATTS = 600.0
_WARM_UP_SECONDS = 15.0
"""Cut from the beginning of a cell: caches fill, and the card settles at its limit."""
_ENDING_SECONDS = 2.0
"""Cut from the power samples at its end: workers finish one by one."""


def load_cap_curves(folder: Path, *, check: bool = True) -> pd.DataFrame:
    """All rows under power limits, by curve and limit. `check=False` accepts other content than the expected one.

    Raises DataFileError: missing, unreadable, changed content, or impossible figures, with the file and the row.
    """
    table = pd.concat([load_rtx_curves(folder, check=check), load_rtx_pro_6000(folder, check=check)], ignore_index=True)
    return table.sort_values(["curve", "cap_watts"], kind="stable", ignore_index=True)[list(CAP_COLUMNS)]


def rtx_pro_6000_files() -> tuple[str, ...]:
    """The files of the sweep, below its folder."""
    return tuple(f"{cell}/{what}_{cap}w.csv" for cell in _CELLS for cap in _PRO_6000_CAPS for what in ("load", "power"))


def load_clock_grid(folder: Path, *, check: bool = True) -> pd.DataFrame:
    """Decode on one RTX 5090 at locked clocks: `memory_mhz`, `sm_mhz`, `tokens_per_second`, `watts`.

    Raises DataFileError as `load_cap_curves` does.
    """
    path = folder / RTX_CLOCKS.folder / RTX_CLOCKS.flat_file
    raw = _numbers(RTX_CLOCKS, path, ("mem_mhz", "gpu_mhz", "narr_tps", "code_tps", "power_w"))
    if check:
        sources.check_content(RTX_CLOCKS, raw)
    table = pd.DataFrame(
        {
            "memory_mhz": raw["mem_mhz"],
            "sm_mhz": raw["gpu_mhz"],
            "tokens_per_second": (raw["narr_tps"] + raw["code_tps"]) / 2.0,
            "watts": raw["power_w"],
        }
    )
    _refuse(path, ~_positive(table), "a clock, rate or power is missing or not positive")
    return table


def load_rtx_curves(folder: Path, *, check: bool = True) -> pd.DataFrame:
    """Consumer cards only; as `load_cap_curves`, in the order of the file."""
    path = folder / RTX_CURVES.folder / RTX_CURVES.flat_file
    raw = _numbers(RTX_CURVES, path, (*_CURVE_NUMBERS, "sm_mhz"), words=_CURVE_WORDS)
    if check:
        sources.check_content(RTX_CURVES, raw.drop(columns="sm_mhz"))
    table = pd.DataFrame(
        {
            "source": RTX_CURVES.name,
            "curve": raw["curve"],
            "gpu": raw["gpu"],
            "engine": raw["engine"],
            "model": raw["model"],
            "phase": raw["phase"],
            "moe": raw["model"].str.contains("MoE").astype(float),
            "concurrency": raw["concurrency"],
            "cap_watts": raw["cap_w"],
            "tdp_watts": raw["tdp"],
            "watts": raw["power_w"],
            "sm_mhz": raw["sm_mhz"],
            "tokens_per_second": raw["tps"],
            "request_seconds": np.nan,
        }
    )
    return _plausible(path, table)


def load_rtx_pro_6000(folder: Path, *, check: bool = True) -> pd.DataFrame:
    """The sweep with vLLM only; as `load_cap_curves`, 28 rows, without the seconds of warming up."""
    base = folder / RTX_PRO_6000.folder
    rows, read = [], []
    for cell, (model, moe, concurrency) in _CELLS.items():
        for cap in _PRO_6000_CAPS:
            load, power = _cell(base / cell, cap)
            read += [load.assign(cell=cell, cap=cap), power.assign(cell=cell, cap=cap)]
            begin, end = load["start"].min() + _WARM_UP_SECONDS, load["end"].max()
            ended, steady = _steady(load, power)
            if ended.empty or steady.empty:
                raise DataFileError(
                    f"{base / cell}, {cap} W: nothing is left after {_WARM_UP_SECONDS:g} s of warming up"
                )
            rows.append(
                {
                    "source": RTX_PRO_6000.name,
                    "curve": cell,
                    "gpu": "RTXPRO6000",
                    "engine": "vLLM",
                    "model": model,
                    "phase": "decode",
                    "moe": moe,
                    "concurrency": concurrency,
                    "cap_watts": float(cap),
                    "tdp_watts": _PRO_6000_TDP_WATTS,
                    "watts": steady["watts"].mean(),
                    "sm_mhz": steady["mhz"].mean(),
                    "tokens_per_second": ended["tokens"].sum() / (end - begin),
                    "request_seconds": (ended["end"] - ended["start"]).mean(),
                }
            )
    if check:
        sources.check_content(RTX_PRO_6000, pd.concat(read, ignore_index=True).fillna(-1.0))
    return _plausible(base, pd.DataFrame(rows))


def warm_up_note(folder: Path) -> str:
    """How much of the sweep is cut, in words. Raises DataFileError as `load_rtx_pro_6000` does."""
    base, cut, every = folder / RTX_PRO_6000.folder, [0, 0], [0, 0]
    for cell in _CELLS:
        for cap in _PRO_6000_CAPS:
            tables = _cell(base / cell, cap)
            for index, (whole, part) in enumerate(zip(tables, _steady(*tables), strict=True)):
                cut[index] += len(whole) - len(part)
                every[index] += len(whole)
    return (
        f"cut as warming up and ending: {cut[0]} of {every[0]} requests (those that ended in the first "
        f"{_WARM_UP_SECONDS:g} s of a cell) and {cut[1]} of {every[1]} power samples (and those of the last "
        f"{_ENDING_SECONDS:g} s)"
    )


def _cell(folder: Path, cap: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Requests and power samples under one limit."""
    return (
        _bare(folder / f"load_{cap}w.csv", ("worker", "start", "end", "tokens")),
        _bare(folder / f"power_{cap}w.csv", ("time", "gpu", "watts", "celsius", "mhz", "busy")),
    )


def _steady(load: pd.DataFrame, power: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What of a cell is neither warming up nor ending."""
    begin, end = load["start"].min() + _WARM_UP_SECONDS, load["end"].max()
    return load[load["end"] > begin], power[(power["time"] > begin) & (power["time"] < end - _ENDING_SECONDS)]


def _numbers(source: Source, path: Path, numbers: tuple[str, ...], *, words: tuple[str, ...] = ()) -> pd.DataFrame:
    try:
        raw = pd.read_csv(path, dtype="str", keep_default_na=False)
    except FileNotFoundError as error:
        raise DataFileError(f"{path} is missing: {source.how_to_get}") from error
    except (OSError, ValueError) as error:
        raise DataFileError(f"{path} cannot be read ({error}): {source.how_to_get}") from error
    lost = [name for name in (*words, *numbers) if name not in raw.columns]
    if lost:
        raise DataFileError(f"{path}: columns {', '.join(lost)} are missing: {source.how_to_get}")
    used = raw[[*words, *numbers]].copy()
    for name in numbers:
        used[name] = pd.to_numeric(raw[name], errors="coerce").astype(np.float64)
        written = ~raw[name].str.strip().str.lower().isin(["", "nan"])
        _refuse(path, used[name].isna() & written, f"{name} is no number")
    return used


def _bare(path: Path, names: tuple[str, ...]) -> pd.DataFrame:
    """A file without a header."""
    try:
        raw = pd.read_csv(path, header=None, names=list(names), dtype=np.float64, skipinitialspace=True)
    except FileNotFoundError as error:
        raise DataFileError(f"{path} is missing: {RTX_PRO_6000.how_to_get}") from error
    except (OSError, ValueError) as error:
        raise DataFileError(f"{path} cannot be read ({error}): {RTX_PRO_6000.how_to_get}") from error
    _refuse(path, raw.isna().any(axis=1), f"one of {', '.join(names)} is missing or no number")
    return raw


def _plausible(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    needed = table[["concurrency", "cap_watts", "tdp_watts", "watts", "tokens_per_second"]]
    _refuse(path, ~_positive(needed), "a figure is missing or not positive")
    # A card may overshoot its limit by a few watts, and consumer cards take limits above their rating.
    _refuse(path, table["watts"] > 1.05 * table["cap_watts"], "more watts drawn than the limit allows: another unit?")
    _refuse(path, table["cap_watts"] > 1.5 * table["tdp_watts"], "the limit is far above the rating: another unit?")
    _refuse(path, ~table["phase"].isin(["prefill", "decode"]), "the phase is neither prefill nor decode")
    return table


def _positive(table: pd.DataFrame) -> pd.Series:
    figures = table.to_numpy(dtype=np.float64)
    return pd.Series((np.isfinite(figures) & (figures > 0)).all(axis=1), index=table.index)


def _refuse(path: Path, bad: pd.Series, reason: str) -> None:
    if bad.any():
        reasons = [reason if wrong else None for wrong in bad]
        raise row_checks.RefusedRowsError(row_checks.refused(str(path), reasons, range(1, len(bad) + 1)))
