import re
from dataclasses import replace

import numpy as np
import pytest

from tests.replay import made
from wattkeeper.replay import html, pictures, table, timeline
from wattkeeper.replay.result import Latency
from wattkeeper.replay.style import looks

TRACE = "azure-2024-conv, Tuesday"
PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def report():
    return made.report(hours=4.0, seeds=1)


@pytest.fixture(scope="module")
def drawn(report, tmp_path_factory):
    return pictures.draw(report, tmp_path_factory.mktemp("replay") / "new")


def test_three_pictures_per_trace(drawn):
    assert [path.name for path in drawn] == [
        "azure-2024-conv--tuesday-time.png",
        "azure-2024-conv--tuesday-plane.png",
        "azure-2024-conv--tuesday-latency.png",
    ]
    assert all(path.read_bytes().startswith(PNG) for path in drawn)


def test_every_known_policy_looks_different_and_always_the_same():
    found = looks(tuple(made.POLICIES))
    assert len({look.colour for look in found.values()}) == len(found)
    assert looks(("wva", "mine"))["wva"] == found["wva"]
    assert looks(("mine", "wva"))["mine"] == looks(("wva", "mine"))["mine"]


def test_policies_over_time_are_the_baseline_ours_and_the_best_at_the_goal(report):
    chosen = pictures._chosen(report, table.rows(report, TRACE))
    assert chosen[0] == "static-peak"
    assert chosen[-1] == "wattkeeper"
    assert len(chosen) == 4
    assert "hpa-waiting" not in chosen


def test_groups_take_what_is_known():
    values = [1.0, None, None, None, 5.0]
    assert np.array_equal(timeline.binned(values, 2, np.nanmean), [1.0, np.nan, 5.0], equal_nan=True)
    assert np.array_equal(timeline.binned([1, 2, 3, 4, 9], 2, np.nanmax), [2.0, 4.0, 9.0])


def test_nothing_finished_and_no_limits_can_be_drawn(report, tmp_path):
    none = Latency(p50_seconds=None, p95_seconds=None, p99_seconds=None, grid_seconds=())
    runs = []
    for run in report.runs[:2]:
        blank = (None,) * len(run.columns.time_seconds)
        columns = replace(run.columns, cap_watts=blank, ttft_p95_seconds=blank, tpot_p95_seconds=blank)
        dead = replace(run.requests, finished=0, met=0, output_tokens=0, unfinished=run.requests.arrived)
        hours = replace(run.hours, met=(0,) * len(run.hours.met))
        runs.append(replace(run, ttft=none, tpot=none, columns=columns, requests=dead, hours=hours))
    assert len(pictures.draw(replace(report, runs=tuple(runs)), tmp_path)) == 3


def test_chosen_policies_can_be_given(report, tmp_path):
    paths = pictures.draw(report, tmp_path, shown=("wva",))
    assert paths[0].stat().st_size > 0


def test_the_page_holds_everything_and_loads_nothing(report, drawn, tmp_path):
    path = tmp_path / "index.html"
    html.write(report, pictures=drawn, path=path)
    page = path.read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    for policy in made.POLICIES:
        assert policy in page
    assert "more replicas than GPUs: 9 were asked for" in page
    assert "plan refused: TTFT predicted above target" in page
    assert "3 requests without output tokens were left out" in page
    assert "scrape interval, s" in page
    assert "do not\ncount" in page


def test_the_headline_names_the_best_other_policy_at_the_goal(report):
    (line,) = html.headline(report)
    assert line.startswith(f"{TRACE}: ")
    assert "of the GPU energy of static-peak" in line
    assert "the best other policy at the goal" in line
    assert html.headline(replace(report, runs=report.of("static-peak"))) == ()


def test_text_of_a_user_is_escaped(report, tmp_path):
    path = tmp_path / "index.html"
    html.write(replace(report, notes=("<script>alert(1)</script>",)), pictures=(), path=path)
    assert "<script>" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("hours", "unit", "step"),
    [(0.5, "minutes", 5.0), (1.0, "minutes", 5.0), (2.0, "minutes", 10.0), (24.0, "hours", 2.0), (168.0, "days", 1.0)],
)
def test_the_axis_of_time_is_readable(hours, unit, step):
    name, _, found = timeline._unit(3600 * hours)
    assert (name, found) == (unit, step)
