import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from wattkeeper.cli import main
from wattkeeper.evaluation import goals, methods, pictures, rendering, sla, tables, verdict_tables
from wattkeeper.evaluation.rendering import Table
from wattkeeper.evaluation.score import Spread, Verdicts


@pytest.fixture(scope="module")
def perfect(small_evaluation):
    """An evaluation in which every method knows the truth."""
    return replace(small_evaluation, methods=dict.fromkeys(small_evaluation.methods, methods.truth), answers={})


def cells(table, kind):
    return [cell for row in table.rows for cell in row if isinstance(cell, kind)]


def test_perfect_methods_have_neither_errors_nor_false_verdicts(perfect):
    for made in (tables.by_class(perfect), *tables.by_method(perfect), tables.by_view(perfect), tables.apart(perfect)):
        assert cells(made, Spread)
        assert all(cell.median == cell.p90 == 0.0 for cell in cells(made, Spread))
    for made in verdict_tables.verdict_tables(perfect)[:3]:
        for row in made.rows:
            first = next(cell for cell in row if isinstance(cell, Verdicts))
            assert first.false_met.percent == first.false_missed.percent == first.edge.percent == 0.0


def test_every_method_and_view_has_its_place(small_evaluation):
    ttft, _ = tables.by_method(small_evaluation)
    names = [row[0] for row in ttft.rows]
    assert {sla.MODEL, sla.FRESH, sla.STAGE, sla.STAGE_UPPER, *sla.BASELINES} <= set(names)
    assert set(small_evaluation.views) <= set(tables.by_view(small_evaluation).columns)
    assert all(len(row) == len(table.columns) for table in tables.tables(small_evaluation) for row in table.rows)


def test_goals_are_judged_both_ways(perfect, small_evaluation):
    verdict = {row[0]: row[-1] for row in goals.goals(perfect).rows if not str(row[0]).startswith("capacity")}
    assert set(verdict.values()) == {"yes"}
    assert len(goals.goals(small_evaluation).rows) >= 5


def test_forms_of_a_cell():
    spread = Spread(count=3, median=4.123, p90=12.6, median_interval=(1, 2), p90_interval=(3, 4))
    assert rendering.text(spread) == "4.1 / 13"
    assert rendering.text(replace(spread, p90=5000.0)) == "4.1 / >999"
    assert rendering.text(None) == "-"
    assert rendering.text(1.0) == "1.00"


def test_a_page_is_filled_between_its_marks_and_nowhere_else():
    page = "# Title\n<!-- x -->\nold\n<!-- /x -->\nrest\n"
    filled = rendering.filled(page, name="x", content="new")
    assert filled == "# Title\n<!-- x -->\n\nnew\n\n<!-- /x -->\nrest\n"
    assert rendering.filled(filled, name="x", content="new") == filled
    with pytest.raises(rendering.PageError, match="has no lines"):
        rendering.filled(page, name="y", content="new")


def test_the_place_on_a_page_is_checked_without_a_change(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("<!-- x -->\nold\n<!-- /x -->\n")
    rendering.check_place(path, name="x")
    assert "old" in path.read_text()
    with pytest.raises(rendering.PageError, match="has no lines"):
        rendering.check_place(path, name="y")


def test_markdown_has_a_row_per_row():
    table = Table(key="k", title="T", note="N.", columns=("a", "b"), rows=(("x", 1), ("y", None)))
    assert rendering.markdown(table).splitlines()[4:] == ["| a | b |", "|---|---|", "| x | 1 |", "| y | - |"]


def test_pictures_are_small(small_evaluation, tmp_path):
    paths = pictures.draw(small_evaluation, tmp_path / "new")
    assert [path.name for path in paths] == [
        "sla-predicted.png", "sla-error-by-load.png", "sla-false-verdicts.png"
    ]  # fmt: skip
    assert all(5_000 < path.stat().st_size < 120_000 for path in paths)


def test_command_prints_json_and_fills_a_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- evaluate sla -->\n<!-- /evaluate sla -->\n")
    result = CliRunner().invoke(
        main.app,
        ["evaluate", "sla", "--points", "8", "--requests", "600", "--output", "json", "--processes", "1",
         "--page", str(page), "--cache", str(tmp_path / "runs")],
        env={"WATTKEEPER_DATA": ""},
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["tables"][0]["key"] == "goals"
    assert "synthetic" in found["summary"]
    assert "## Noise floor" in page.read_text()
    assert list((tmp_path / "runs").glob("*.json"))


def test_command_says_what_is_missing(tmp_path):
    result = CliRunner().invoke(main.app, ["evaluate", "sla", "--data", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert "does not exist" in result.stderr


def test_a_wide_table_is_whole_in_a_pipe_and_told_row_by_row_on_a_narrow_terminal(capsys, monkeypatch):
    columns = ("held out", *(f"method number {index}" for index in range(12)))
    table = rendering.Table(key="wide", title="Wide", note="note", columns=columns, rows=(("curve", *range(100, 112)),))
    monkeypatch.setenv("COLUMNS", "60")
    rendering.show([table])
    piped = capsys.readouterr().out
    assert all(column in piped for column in columns)
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    rendering.show([table])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert [line.split() for line in lines if "number 11" in line] == [["method", "number", "11", "111"]]
