"""`wattkeeper reproduce pays`, as small as it goes."""

import json
import math

import pytest
import typer
from typer.testing import CliRunner

from wattkeeper.cli import reproduce
from wattkeeper.evaluation import pays, pays_page
from wattkeeper.evaluation.wait_paper import Estimate
from wattkeeper.replica import policed


def test_every_policy_has_figures_or_a_reason_at_every_point(tmp_path, monkeypatch):
    monkeypatch.setattr(pays, "workloads", lambda data: [pays.fixed(512, 20), pays.fixed(512, 1000)])
    app = typer.Typer()
    app.callback()(lambda: None)
    reproduce.register(app)
    page = tmp_path / "page.md"
    sections = ("summary", "ratios", "figures")
    page.write_text(
        "".join(f"<!-- reproduce pays: {name} -->\n<!-- /reproduce pays: {name} -->\n" for name in sections)
    )
    words = ["reproduce", "pays", "--requests", "40", "--seeds", "1", "--output", "json", "--page", str(page)]
    result = CliRunner().invoke(app, [*words, "--pictures", str(tmp_path / "pictures")])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert len(rows) == 2 * 2 * len(pays.LOADS) * 12
    for row in rows:
        if row["e2e_seconds"] is None:
            assert row["policy"] in ("wait", "nested-wait")
            assert row["note"].startswith("no thresholds: ")
        else:
            assert row["e2e_seconds"]["mean"] >= row["ttft_seconds"]["mean"] > 0.0
            assert row["joules_per_token"]["mean"] > 0.0
        if row["policy"] == pays.BASELINE:
            assert row["e2e_ratio"]["mean"] == row["joules_ratio"]["mean"] == 1.0
    assert page.read_text().count("\n### ") == 2 * 2 * 2
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["pays-energy.png", "pays-latency.png"]


def test_energy_is_that_of_the_parts_and_of_idle_time():
    """One request alone on the card, by hand: static and idle watts, 5 iterations, 4 decodes, 100 prompt tokens."""
    replica = pays.Replica.of_twin()
    requests = pays.fixed(100, 5).draw(rate=1.0, count=1, seed=0)
    activity = policed.serve(replica.config(), requests, pays.VllmV1()).outcome.activity
    iteration, decode, kv, prompt, product = replica.joules
    expected = (
        replica.idle_watts * float(requests.arrival_seconds[0])
        + replica.static_watts * activity.busy_seconds
        + 5 * iteration
        + 4 * decode
        + (101 + 102 + 103 + 104) * kv
        + 100 * prompt
        + 5000 * product
    )
    assert math.isclose(replica.energy_joules(activity), expected)


def test_generated_lengths_resemble_the_recorded_ones():
    conv = next(each for each in pays.workloads(None) if each.name.startswith("conv"))
    assert 120 < float(sorted(conv.output_tokens)[len(conv.output_tokens) // 2]) < 140
    assert conv.prompt_tokens.max() <= pays.LONGEST_PROMPT


@pytest.mark.parametrize(
    ("mean", "half_width", "better", "worse"), [(0.9, 0.05, 1, 0), (0.9, 0.2, 0, 0), (1.1, 0.05, 0, 1)]
)
def test_a_policy_is_better_only_where_its_interval_says_so(mean, half_width, better, worse):
    ratio = Estimate(mean=mean, half_width=half_width)
    row = pays.Result(
        lengths="a", tight=False, kv_tokens=1, load="low", rate=1.0, policy="x", e2e_ratio=ratio, joules_ratio=ratio,
        evictions_percent=Estimate(mean=0.0, half_width=0.0),
    )  # fmt: skip
    cells = pays_page.summary([row]).splitlines()[-1].split(" | ")
    assert [int(cell) for cell in cells[2:4]] == [better, worse]
