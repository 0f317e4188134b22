import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from wattkeeper.cli.evaluate_measured import measured
from wattkeeper.domain import data_files as data
from wattkeeper.evaluation import measured as evaluation
from wattkeeper.evaluation.measured_result import Evaluation

APP = typer.Typer()
APP.command()(measured)


def empty(folder: Path, *, seed: int, tell) -> Evaluation:
    tell("working")
    return Evaluation(
        name=f"seed {seed}", title="T", goal=0.1, targets=(), rows=None, scores=(), notes=("A note.",), parameters={}
    )


def test_json_has_only_the_named_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "TABLES", {"nlr": empty, "ml-energy": empty})
    result = CliRunner().invoke(
        APP, ["--data", str(tmp_path), "--only", "ml-energy", "--seed", "3", "--output", "json"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [each["name"] for each in found] == ["seed 3"]


def test_a_missing_data_folder_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(data.DATA_VARIABLE, raising=False)
    result = CliRunner().invoke(APP, [])
    assert result.exit_code == 1
    assert result.stderr.strip() == f"wattkeeper: no data folder: pass --data DIR or set {data.DATA_VARIABLE}"
