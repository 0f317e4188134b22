"""A user's own measured runs: a CSV file with a header, one row per steady run, in columns of `data.RUN_COLUMNS`.

Only `NEEDED` must be there; of `gpu_watts` (mean per card) and `node_watts` exactly one is filled. `joules_per_token`
is composed from watts and tokens per second where it is left out, and the columns that say what must be held out
together are derived where they are left out. An unknown column is an error, for it may be a misspelt one.
"""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from wattkeeper.domain.errors import DataFileError, UnknownAcceleratorError, UnknownModelError
from wattkeeper.energy import data, row_checks
from wattkeeper.energy.row_checks import RefusedRow, RefusedRowsError
from wattkeeper.physics import catalogue, profiles
from wattkeeper.physics.architecture import Precision

NEEDED = (
    "model", "gpu", "num_gpus", "weight_precision", "batch", "prompt_tokens", "output_tokens", "tokens_per_second",
    "inter_token_seconds",
)  # fmt: skip
WORDS = (
    "source", "model", "gpu", "weight_precision", "architecture", "task", "group_curve", "group_model",
    "group_backbone", "group_workload", "group_rate",
)  # fmt: skip
"""Columns that hold text; all others hold numbers in the units of their names."""
_NEEDED_WORDS = ("model", "gpu", "weight_precision")
_COUNTS = ("num_gpus", "tensor_parallel", "data_parallel")
_FLAGS = {"true": 1.0, "false": 0.0}


def read(path: Path) -> pd.DataFrame:
    """All rows of a file, in `data.RUN_COLUMNS`.

    Raises DataFileError: unreadable, or columns are missing or unknown. RefusedRowsError: a row is impossible.
    """
    table, refused = scan(path)
    if refused:
        raise RefusedRowsError(refused)
    return table


def scan(path: Path) -> tuple[pd.DataFrame, tuple[RefusedRow, ...]]:
    """The good rows of a file in `data.RUN_COLUMNS`, and the refused ones with their reasons.

    Raises DataFileError: unreadable, empty, or columns are missing or unknown.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
            raw = pd.read_csv(path, dtype="str", keep_default_na=False, index_col=False)
    except (OSError, ValueError, pd.errors.ParserWarning) as error:
        raise DataFileError(f"{path} cannot be read as a CSV file of runs ({str(error).strip()})") from error
    raw = raw.rename(columns=lambda name: name.strip()).fillna("")
    raw = raw.apply(lambda column: column.str.strip())
    _check_columns(path, raw)
    table, reasons = _table(raw)
    for position, (physical, settings) in enumerate(zip(row_checks.reasons(table), _unlike(table), strict=True)):
        reasons[position] = reasons[position] or physical or settings
    refused = row_checks.refused(str(path), reasons, range(1, len(raw) + 1))
    good = np.array([reason is None for reason in reasons])
    return table[good].reset_index(drop=True), tuple(refused)


def _check_columns(path: Path, raw: pd.DataFrame) -> None:
    unknown = [name for name in raw.columns if name not in data.RUN_COLUMNS]
    if unknown:
        raise DataFileError(f"{path}: unknown columns {', '.join(unknown)}; known are {', '.join(data.RUN_COLUMNS)}")
    lost = [name for name in NEEDED if name not in raw.columns]
    if lost:
        raise DataFileError(f"{path}: columns {', '.join(lost)} are missing")
    if not {"gpu_watts", "node_watts"} & set(raw.columns):
        raise DataFileError(f"{path}: one of the columns gpu_watts (mean per card) and node_watts is needed")
    if raw.empty:
        raise DataFileError(f"{path}: no rows")


def _table(raw: pd.DataFrame) -> tuple[pd.DataFrame, list[str | None]]:
    """All rows typed and completed, and what could not be read in them."""
    reasons: list[str | None] = [None] * len(raw)
    table = pd.DataFrame(index=raw.index)
    for name in data.RUN_COLUMNS:
        given = raw[name] if name in raw.columns else pd.Series("", index=raw.index)
        if name in WORDS:
            table[name] = given
            continue
        numbers = [_number(text) for text in given]
        table[name] = [np.nan if number is None else number for number in numbers]
        for position, number in enumerate(numbers):
            if number is None:
                reasons[position] = reasons[position] or f"{name} is {given.iloc[position]!r}, not a bare number"
    for name in _NEEDED_WORDS:
        for position, text in enumerate(table[name]):
            if text == "":
                reasons[position] = reasons[position] or f"{name} is empty"
    return _completed(table), reasons


def _completed(table: pd.DataFrame) -> pd.DataFrame:
    """Derived where left out: the energy per token by its definition, and the groups from model, card and task."""
    watts = table["gpu_watts"] * table["num_gpus"]
    composed = watts.fillna(table["node_watts"]) / table["tokens_per_second"].where(table["tokens_per_second"] > 0)
    table["joules_per_token"] = table["joules_per_token"].fillna(composed)
    table["data_parallel"] = table["data_parallel"].fillna(1.0)
    ranks = table["num_gpus"] / table["data_parallel"].where(table["data_parallel"] > 0)
    table["tensor_parallel"] = table["tensor_parallel"].fillna(ranks)
    table["multimodal"] = table["multimodal"].fillna(0.0)
    table["prompt_assumed"] = table["prompt_assumed"].fillna(0.0).astype(bool)
    table["gpu"] = [_catalogue_name(name) for name in table["gpu"]]
    _default(table, "source", pd.Series("own", index=table.index))
    _default(table, "task", pd.Series("own", index=table.index))
    _default(table, "architecture", pd.Series("unknown", index=table.index))
    _default(table, "group_model", table["model"])
    _default(table, "group_backbone", table["model"].map(data.backbone))
    _default(table, "group_workload", table["task"])
    _default(table, "group_rate", table["requests_per_second"].map("{:g}".format).replace("nan", "not given"))
    curve = table["model"] + "|" + table["task"] + "|" + table["gpu"]
    curve += "|" + table["num_gpus"].map("{:g}".format) + "|" + table["tensor_parallel"].map("{:g}".format)
    _default(table, "group_curve", curve)
    return table


def _unlike(table: pd.DataFrame) -> list[str | None]:
    """Why settings of each row cannot be: no known model, a precision that its name does not say, parts of cards.

    Training goes by the model's name and by whole cards, and would not notice.
    """
    whole = table[list(_COUNTS)].to_numpy(dtype=np.float64)
    found: list[str | None] = []
    for model, said, (gpus, tensor, copies) in zip(table["model"], table["weight_precision"], whole, strict=True):
        reason = _other_precision(model, said)
        if not all(float(each).is_integer() and each >= 1 for each in (gpus, tensor, copies)):
            reason = reason or f"{', '.join(_COUNTS)} are not all whole numbers from 1 on"
        elif gpus % (tensor * copies):
            reason = reason or "tensor_parallel x data_parallel does not divide num_gpus"
        found.append(reason)
    return found


def _other_precision(model: str, said: str) -> str | None:
    words = {"bfloat16": Precision.BF16, "float16": Precision.BF16} | {each.value: each for each in Precision}
    precision = words.get(said.lower())
    if precision is None:
        return f"weight_precision is {said!r}, none of {', '.join(words)}"
    try:
        spec = profiles.architecture(model)
    except UnknownModelError as error:
        return f"{str(error).partition('. ')[0]} (`wattkeeper catalogue` lists models), and its name tells no size"
    if spec.precision is precision:
        return None
    return (
        f"weight_precision is {said!r}, but by its name the model has {spec.precision.value}: give the name of the "
        "checkpoint, such as one that ends in -FP8"
    )


def _default(table: pd.DataFrame, name: str, value: pd.Series) -> None:
    table[name] = table[name].where(table[name] != "", value)


def _catalogue_name(gpu: str) -> str:
    try:
        return catalogue.gpu(gpu).name
    except UnknownAcceleratorError:
        return gpu


def _number(text: str) -> float | None:
    """NaN where empty, None where it is no number."""
    if text == "":
        return np.nan
    try:
        return _FLAGS[text.lower()] if text.lower() in _FLAGS else float(text)
    except ValueError:
        return None
