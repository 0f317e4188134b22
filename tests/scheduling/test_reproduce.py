"""`wattkeeper reproduce wait`, as small as it goes."""

import json

import typer
from typer.testing import CliRunner

from wattkeeper.cli import reproduce
from wattkeeper.evaluation import wait_paper
from wattkeeper.evaluation.wait_paper import Estimate


def test_every_policy_has_a_row_and_figures_or_a_reason(tmp_path):
    app = typer.Typer()
    app.callback()(lambda: None)
    reproduce.register(app)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- reproduce wait -->\noutdated\n<!-- /reproduce wait -->\nafter\n")
    words = ["reproduce", "wait", "--requests", "40", "--seeds", "1", "--output", "json", "--page", str(page)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    cells = {(workload.name, rate) for workload in wait_paper.WORKLOADS for rate in workload.rates}
    assert {(row["workload"], row["rate"]) for row in rows} == cells
    assert len(rows) == 7 * len(cells)
    for row in rows:
        if row["e2e_seconds"] is None:
            assert (row["workload"], row["policy"]) == ("p512d1000", "wait")
            assert row["note"].startswith("no thresholds: ")
        else:
            assert row["e2e_seconds"]["mean"] >= row["ttft_seconds"]["mean"] > 0.0
            assert row["joules"]["mean"] > 0.0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "outdated" not in text
    assert text.count("\n| p512d") == sum(row["workload"].startswith("p512d") for row in rows)


def test_intervals_are_students():
    found = Estimate.of([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert abs(found.half_width - 4.303 / 3**0.5) < 1e-9
    assert Estimate.of([1.0]).half_width is None
    assert str(Estimate.of([1.0])) == "1.00"
