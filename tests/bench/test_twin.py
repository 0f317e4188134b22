"""The benchmark of simulated fleets, on a made-up folder of traces."""

import json

import pytest
from typer.testing import CliRunner

from wattkeeper.bench import twin as benchmark
from wattkeeper.cli.main import app
from wattkeeper.traces.trace import TraceError


@pytest.fixture
def folder(tmp_path):
    rates = tmp_path / "traces" / benchmark.RATES_FILE
    rates.parent.mkdir(parents=True)
    lines = [f"{minute},,{1200 + minute % 7},1000,1300" for minute in range(0, 10080, 10)]
    rates.write_text("\n".join(["minute_since_start,start_utc,req_per_min,band_low,band_high", *lines]) + "\n")
    lengths = tmp_path / "traces" / benchmark.LENGTHS_FILE
    lengths.parent.mkdir(parents=True)
    lines = [f"2023-11-16 18:{minute:02}:00.0000000,{300 + 40 * minute},{20 + minute}" for minute in range(60)]
    lengths.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]) + "\n")
    return tmp_path


def test_a_stretch_has_the_rates_of_its_time(folder):
    source = benchmark.traffic(folder / "traces")
    trace = source.trace(from_seconds=3600.0, seconds=300.0, seed=1, factor=2.0)
    assert len(trace) == pytest.approx(2 * 20 * 300, rel=0.05)
    again = source.trace(from_seconds=3600.0, seconds=300.0, seed=1, factor=2.0)
    assert trace.times_seconds.tolist() == again.times_seconds.tolist()


def test_a_folder_with_other_files_is_explained(folder):
    lengths = folder / "traces" / benchmark.LENGTHS_FILE
    (folder / "traces" / benchmark.RATES_FILE).write_text(lengths.read_text())
    with pytest.raises(TraceError, match="expected rates"):
        benchmark.traffic(folder / "traces")


def test_errors_have_intervals_and_every_request_is_counted(folder, monkeypatch):
    monkeypatch.setattr(benchmark, "HELD_OUT_HOURS", (1.0, 2.0))
    source = benchmark.traffic(folder / "traces")
    found = benchmark.errors(source, seeds=2, seconds=40.0, simulated=(2,))
    assert {(error.moving, error.cells) for error in found} == {(False, 4), (True, 4)}
    assert all(error.low <= error.mean <= error.high and error.worst >= abs(error.mean) for error in found)
    energy = [error for error in found if error.figure == "energy"]
    assert all(error.worst < 5.0 for error in energy)
    run = benchmark.long_run(source, first_day=0.0, days=0.001, simulated=2)
    assert run.requests == run.finished + run.lost + run.unfinished
    assert run.peak_bytes > 2**20


def test_the_command_prints_tables_and_json(folder, monkeypatch):
    monkeypatch.setattr(benchmark, "COST_SECONDS", 20.0)
    monkeypatch.setattr(benchmark, "FLEETS", ((1, None), (4, 2)))
    command = ["bench", "twin", "--data", str(folder), "--part", "cost"]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0, told.output
    assert "per request" in told.stdout
    told = CliRunner().invoke(app, [*command, "--output", "json"])
    rows = json.loads(told.stdout)["cost"]
    assert [(row["replicas"], row["simulated"]) for row in rows] == [(1, None), (4, 2)]


def test_without_a_folder_the_command_says_what_to_do(monkeypatch):
    monkeypatch.delenv("WATTKEEPER_DATA", raising=False)
    told = CliRunner().invoke(app, ["bench", "twin"])
    assert told.exit_code != 0
    assert "--data" in told.output
