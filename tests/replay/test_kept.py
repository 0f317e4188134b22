import json
import os
import signal
import subprocess
import sys
import time

import pydantic
import pytest
from typer.testing import CliRunner

from wattkeeper.cli.main import app
from wattkeeper.replay import fingerprint
from wattkeeper.replay.kept import Kept
from wattkeeper.replay.result import ReplayReport
from wattkeeper.replay.stage import ReplayError

TRACE = "poisson:rate=3,for=12m,lengths=600~1/120~0.8"
OTHER = "poisson:rate=3,for=10m,lengths=600~1/120~0.8,seed=9"
FAST = ("--tick", "30s", "--no-check", "--replicas", "2", "--output", "json")
NUMBERS: pydantic.TypeAdapter[list[float]] = pydantic.TypeAdapter(list[float])


def replay(folder, *arguments: str):
    return CliRunner().invoke(app, ["replay", TRACE, *FAST, "--runs", str(folder), *arguments])


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_has_ended_is_taken_the_next_time(tmp_path):
    asked = ("--policies", "static-peak,hpa-kv,wattkeeper", "--tune-on", OTHER, "--evaluations", "3")
    first = replay(tmp_path, *asked)
    assert first.exit_code == 0, first.output
    assert first.stderr.count("played ") == 3
    there = names(tmp_path)
    assert sum(name.startswith("tuning-") for name in there) >= 4
    again = replay(tmp_path, *asked)
    assert again.stderr.count("kept ") == 3
    assert "played " not in again.stderr
    assert names(tmp_path) == there
    assert ReplayReport.from_json(again.stdout) == ReplayReport.from_json(first.stdout)


def test_several_processes_keep_and_find_the_same(tmp_path):
    asked = ("--policies", "static-peak,hpa-kv,wva", "--tune-on", OTHER, "--evaluations", "2", "--processes", "2")
    first = replay(tmp_path, *asked)
    assert first.exit_code == 0, first.output
    assert "tuned hpa-kv" in first.stderr, "what workers have to say is shown"
    again = replay(tmp_path, *asked[:-2])
    assert again.stderr.count("kept ") == 3
    assert ReplayReport.from_json(again.stdout) == ReplayReport.from_json(first.stdout)


@pytest.mark.parametrize(
    "changed",
    [
        ("--startup", "40s"),
        ("--interval", "30s"),
        ("--slo-tpot", "40ms"),
        ("--until", "11m"),
        ("--lost-scrapes", "0.1"),
    ],
)
def test_what_decides_a_result_makes_another_one(tmp_path, changed):
    replay(tmp_path, "--policies", "static-peak")
    again = replay(tmp_path, "--policies", "static-peak", *changed)
    assert again.exit_code == 0, again.output
    assert "played static-peak" in again.stderr
    assert len(names(tmp_path)) == 2


def test_choices_of_the_operator_leave_runs_of_rivals_alone(tmp_path):
    replay(tmp_path, "--policies", "static-peak,wattkeeper")
    again = replay(tmp_path, "--policies", "static-peak,wattkeeper", "--believe-time", "1.2")
    assert "kept static-peak" in again.stderr
    assert "played wattkeeper" in again.stderr


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda text: text[: len(text) // 2], "cut off or was changed"),
        (lambda text: text.replace('"seed":0', '"seed":1'), "cut off or was changed"),
        (lambda text: "", "holds no such result"),
        (lambda text: "[1]\n2\n", "does not begin with a head"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_played_again(tmp_path, spoil, what):
    first = replay(tmp_path, "--policies", "static-peak")
    (path,) = tmp_path.iterdir()
    whole = path.read_text(encoding="utf-8")
    path.write_text(spoil(whole), encoding="utf-8")
    only = replay(tmp_path, "--policies", "static-peak", "--only-kept")
    assert only.exit_code == 1
    assert what in only.stderr
    again = replay(tmp_path, "--policies", "static-peak")
    assert again.exit_code == 0
    assert path.name in again.stderr
    assert what in again.stderr
    assert "it is played again" in again.stderr
    assert ReplayReport.from_json(again.stdout).runs[0].energy == ReplayReport.from_json(first.stdout).runs[0].energy
    assert "kept static-peak" in replay(tmp_path, "--policies", "static-peak").stderr


def test_a_report_of_what_is_kept_names_what_is_not(tmp_path):
    replay(tmp_path, "--policies", "static-peak")
    found = replay(tmp_path, "--policies", "static-peak,wva", "--seeds", "2", "--only-kept")
    assert found.exit_code == 0, found.output
    report = ReplayReport.from_json(found.stdout)
    assert [(run.policy, run.seed) for run in report.runs] == [("static-peak", 0)]
    assert any("static-peak (seed 1), wva (seed 0), wva (seed 1)" in note for note in report.notes)
    assert len(names(tmp_path)) == 1


def test_a_tuning_that_is_not_kept_to_its_end_is_missing(tmp_path):
    replay(tmp_path, "--policies", "static-peak", "--tune-on", OTHER)
    found = replay(tmp_path, "--policies", "static-peak,wva", "--tune-on", OTHER, "--only-kept")
    assert found.exit_code == 0, found.output
    report = ReplayReport.from_json(found.stdout)
    assert report.policies() == ("static-peak",)
    assert any("wva (its tuning)" in note for note in report.notes)


def test_only_kept_needs_kept_runs(tmp_path):
    assert "there is no such folder" in replay(tmp_path / "none", "--only-kept").stderr
    done = CliRunner().invoke(app, ["replay", TRACE, *FAST, "--only-kept"])
    assert done.exit_code == 1
    assert "name the folder" in done.stderr


def test_a_killed_replay_leaves_what_had_ended_and_no_torn_file(tmp_path):
    folder = tmp_path / "runs"
    arguments = ["replay", "poisson:rate=3,for=3h,lengths=600~1/120~0.8", *FAST, "--runs", str(folder)]
    arguments += ["--policies", "static-peak,hpa-kv,keda-in-flight", "--seeds", "9"]
    with subprocess.Popen(
        [sys.executable, "-m", "wattkeeper.cli.main", *arguments],
        env={**os.environ, "PYTHONPATH": "operator"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None and not (folder.is_dir() and list(folder.glob("*.json"))):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    files = list(folder.glob("*.json"))
    assert files
    for path in files:
        head, line, _ = path.read_text(encoding="utf-8").split("\n")
        assert json.loads(head)["facts"]["trace"] == "poisson"
        assert json.loads(line)["policy"] == json.loads(head)["facts"]["policy"]


def test_a_part_that_a_kill_left_does_not_count_and_goes(tmp_path):
    kept = Kept(folder=tmp_path, adapter=NUMBERS)
    kept.put("a b", {"x": 1}, [1.0])
    (path,) = tmp_path.iterdir()
    path.rename(path.with_name(f"{path.name}.123.part"))
    assert kept.find("a b", {"x": 1}).result is None
    kept.put("a b", {"x": 1}, [2.0])
    assert names(tmp_path) == {path.name}
    assert kept.find("a b", {"x": 1}).result == [2.0]
    assert kept.find("a b", {"x": 2}).result is None


def test_where_nothing_can_be_kept_is_an_error(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ReplayError, match="cannot be kept"):
        Kept(folder=tmp_path / "file", adapter=NUMBERS).put("a", {}, [1.0])
    assert "cannot be kept" in replay(tmp_path / "file", "--policies", "static-peak").stderr


def test_rivals_do_not_depend_on_the_planner(tmp_path, monkeypatch):
    package = tmp_path / "wattkeeper"
    files = {
        "rivals/one.py": "from wattkeeper.twin import fleet\nX = 1\n",
        "twin/fleet.py": "Y = 2\n",
        "twin/hardware.py": "from importlib import resources\n",
        "twin/cards.yaml": "a: 1\n",
        "planner/plan.py": "Z = 3\n",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(fingerprint, "_ROOT", package)

    def now() -> str:
        fingerprint.of_modules.cache_clear()
        return fingerprint.of_modules("wattkeeper.rivals.one")

    def write(name: str, text: str) -> str:
        (package / name).write_text(text, encoding="utf-8")
        return now()

    before = now()
    assert write("planner/plan.py", "Z = 4\n") == before
    assert write("twin/cards.yaml", "a: 2\n") == before, "no module that is reached loads data"
    assert write("twin/fleet.py", '"""Words."""\n\n\nY = 2  # more words\n') == before
    assert write("twin/fleet.py", "from wattkeeper.twin import hardware\nY = 2\n") != before
    with_data = now()
    assert write("twin/cards.yaml", "a: 3\n") != with_data
    fingerprint.of_modules.cache_clear()
