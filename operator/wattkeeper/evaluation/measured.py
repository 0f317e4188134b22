"""The latency model against measured public tables: all of them, as tables, JSON and pictures."""

import json
from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from wattkeeper.evaluation import measured_pictures, ml_energy, nlr
from wattkeeper.evaluation.measured_result import Evaluation

TABLES: dict[str, Callable[..., Evaluation]] = {nlr.NAME: nlr.evaluate, ml_energy.NAME: ml_energy.evaluate}


def run(
    data_folder: Path, *, seed: int = 0, names: tuple[str, ...] = tuple(TABLES), tell: Callable[[str], None] = print
) -> list[Evaluation]:
    """Evaluate on each of the named tables; a few minutes of one processor, the same result for the same seed.

    `tell` gets a line before each long part. Raises DataFileError: a table is missing or not the expected one.
    """
    return [TABLES[name](data_folder, seed=seed, tell=tell) for name in names]


def tables(evaluations: list[Evaluation]) -> list[Table]:
    """For the terminal."""
    return [table for evaluation in evaluations for table in evaluation.tables()]


def dump(evaluations: list[Evaluation]) -> str:
    """JSON."""
    return json.dumps([evaluation.to_dict() for evaluation in evaluations], indent=2)


def pictures(evaluations: list[Evaluation], folder: Path) -> list[Path]:
    """Write PNG files and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = {nlr.NAME: measured_pictures.nlr_pictures, ml_energy.NAME: measured_pictures.ml_energy_pictures}
    return [path for evaluation in evaluations for path in draw[evaluation.name](evaluation, folder)]
