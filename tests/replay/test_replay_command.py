import json

import pytest
import yaml
from typer.testing import CliRunner

from tests.replay.played import stage
from wattkeeper.cli.main import app
from wattkeeper.domain.errors import DataFileError
from wattkeeper.replay import manifests
from wattkeeper.replay.manifests import Levers
from wattkeeper.replay.result import ReplayReport

TRACE = "poisson:rate=3,for=12m,lengths=600~1/120~0.8"
FAST = ("--tick", "30s", "--no-check", "--replicas", "2")


def replay(*arguments: str):
    return CliRunner().invoke(app, ["replay", *arguments])


def test_a_table_and_what_must_be_said():
    done = replay(TRACE, *FAST, "--policies", "static-peak,wattkeeper")
    assert done.exit_code == 0, done.output
    assert "static-peak" in done.stdout
    assert "wattkeeper" in done.stdout
    assert "documented defaults" in done.stdout
    assert "without its replay stage" in done.stdout
    assert "played wattkeeper, seed 0" in done.stderr


def test_json_round_trip_with_seeds_and_tuning():
    done = replay(
        TRACE, *FAST, "--policies", "static-peak,hpa-waiting", "--seeds", "2", "--output", "json",
        "--tune-on", "poisson:rate=3,for=10m,lengths=600~1/120~0.8,seed=9", "--evaluations", "2",
        "--lost-scrapes", "0.1",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = ReplayReport.from_json(done.stdout)
    assert [(run.policy, run.seed) for run in found.runs] == [
        ("static-peak", 0), ("static-peak", 1), ("hpa-waiting", 0), ("hpa-waiting", 1),
    ]  # fmt: skip
    assert found.runs[0].requests.arrived != found.runs[1].requests.arrived, "another draw of the traffic"
    assert ReplayReport.from_json(found.to_json()) == found
    assert any("sized and tuned on" in note for note in found.notes)
    assert found.settings["lost_scrapes"] == 0.1
    assert found.baseline == "static-peak"


def test_page_and_pictures(tmp_path):
    page, pictures = tmp_path / "page.html", tmp_path / "pictures"
    done = replay(TRACE, *FAST, "--policies", "static-peak,hpa-kv", "--report", str(page), "--pictures", str(pictures))
    assert done.exit_code == 0, done.output
    assert "hpa-kv" in page.read_text(encoding="utf-8")
    assert len(list(pictures.glob("*.png"))) == 3


def test_a_users_own_manifests(tmp_path):
    given = manifests.made(stage(), Levers(power_cap=True))
    service, workload = tmp_path / "service.yaml", tmp_path / "workload.yaml"
    service.write_text(yaml.safe_dump(given.service), encoding="utf-8")
    workload.write_text(yaml.safe_dump(given.workload), encoding="utf-8")
    done = replay(
        TRACE, "--tick", "60s", "--no-check", "--policies", "wattkeeper", "--output", "json",
        "--service", str(service), "--workload", str(workload),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["fleet"]["engine"]["max_num_batched_tokens"] == 2048
    assert found["runs"][0]["columns"]["desired"][0] == 2


def test_policies_are_listed():
    done = replay("--list-policies")
    assert done.exit_code == 0
    assert "keda-in-flight" in done.stdout
    assert "wattkeeper-clock" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((TRACE, "--policies", "nobody"), "there is no policy 'nobody'"),
        ((TRACE, "--tune-on", TRACE), "tune on other days"),
        ((TRACE, "--prometheus-url", "http://127.0.0.1:1"), "not both"),
        (("no-such-trace",), "no trace 'no-such-trace'"),
        ((TRACE, "--slo-ttft", "soon"), "'soon' is no duration"),
        ((TRACE, "--slo-ttft", "none", "--slo-tpot", "none"), "needs a target"),
        ((TRACE, "--gpus", "1", "--replicas", "2"), "more --gpus"),
        ((TRACE, "--router", "fate"), "no router 'fate'"),
        ((TRACE, "--outage", "noon"), "write FROM-UNTIL"),
        ((TRACE, "--replicas", "1", "--seeds", "2", "--policies", "static-peak,static-peak"), "once"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments, what):
    done = replay(*arguments)
    assert done.exit_code == 1
    assert what in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_no_report_is_an_error():
    with pytest.raises(DataFileError, match="no report"):
        ReplayReport.from_json("{}")
    with pytest.raises(DataFileError, match="no report"):
        ReplayReport.from_json("not JSON")
