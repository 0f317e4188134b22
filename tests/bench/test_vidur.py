"""The comparison with Vidur, without Vidur. No times are asserted."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from wattkeeper.bench import vidur, vidur_driver, vidur_tables
from wattkeeper.cli import main
from wattkeeper.domain.errors import DataFileError


def load(count: int = 3) -> vidur.Load:
    return vidur.Load(
        arrival_seconds=np.arange(1.0, count + 1.0),
        prompt_tokens=np.full(count, 600),
        output_tokens=np.array([1, *range(2, count + 1)]),
    )


def played(given: vidur.Load, *, ttft: float, tpot: float, evictions: int = 0) -> vidur.Played:
    first = given.arrival_seconds + ttft
    return vidur.Played(
        first_token_seconds=first,
        finish_seconds=first + tpot * (given.output_tokens - 1),
        cpu_seconds=1.0,
        wall_seconds=1.0,
        evictions=evictions,
        steps=9,
    )


@pytest.fixture
def settings(tmp_path):
    return vidur.Settings(vidur=tmp_path, python=Path(sys.executable), data=tmp_path, rounds=2)


@pytest.fixture
def result(settings):
    agreements = tuple(
        vidur.Agreement(
            rate=2.0, kv_blocks=blocks, load=load(), mended=mended,
            vidur=played(load(), ttft=0.1, tpot=0.02, evictions=evictions),
            twin=played(load(), ttft=0.1, tpot=tpot, evictions=evictions),
        )
        for blocks, mended, evictions, tpot in ((900, False, 0, 0.02), (50, False, 4, 0.01), (50, True, 4, 0.019))
    )  # fmt: skip
    speed = vidur.Speed(
        rate=2.0, what="same", vidur_seconds=(3.0, 2.0), twin_seconds=(0.01, 0.01), steps_per_request=9.0
    )
    return vidur.Result(settings=settings, agreements=agreements, speeds=(speed,), python="3.11", stand_in_profile=True)


def driver(monkeypatch, tmp_path, body: str) -> None:
    script = tmp_path / "driver.py"
    script.write_text("import json, sys\n_, root, job, result = sys.argv\n" + body)
    monkeypatch.setattr(vidur_driver, "__file__", str(script))


def test_no_vidur_says_how_to_get_it(tmp_path):
    with pytest.raises(vidur.VidurError, match=r"no Vidur in .*clone https://.* and check out 7d47513"):
        vidur.check(tmp_path, Path(sys.executable), forests=False)


def test_another_version_is_refused(tmp_path):
    (tmp_path / "vidur").mkdir()
    (tmp_path / "vidur" / "simulator.py").write_text("")
    with pytest.raises(vidur.VidurError, match="not the version that this command knows"):
        vidur.check(tmp_path, Path(sys.executable), forests=False)


def test_profiles_and_python_are_looked_for(tmp_path, monkeypatch):
    (tmp_path / "vidur").mkdir()
    (tmp_path / "vidur" / "simulator.py").write_text("")
    monkeypatch.setattr(vidur, "SOURCES_SHA256", vidur.sources_sha256(tmp_path / "vidur"))
    with pytest.raises(vidur.VidurError, match=r"no mlp\.csv.*--no-forests"):
        vidur.check(tmp_path, Path(sys.executable), forests=True)
    with pytest.raises(vidur.VidurError, match=r"no Python at .*pip install numpy"):
        vidur.check(tmp_path, tmp_path / "python", forests=False)
    vidur.check(tmp_path, Path(sys.executable), forests=False)


def test_the_command_explains_instead_of_tracing(tmp_path):
    options = ["--vidur", str(tmp_path), "--python", sys.executable, "--data", str(tmp_path)]
    answer = CliRunner().invoke(main.app, ["bench", "vidur", *options])
    assert answer.exit_code == 1 and "no Vidur in" in answer.output


def test_requests_come_from_the_trace(tmp_path):
    path = tmp_path / vidur.LENGTHS
    path.parent.mkdir(parents=True)
    lines = [f"2023-11-16 18:15:4{second}.0000000,{100 + second},{second + 1}" for second in range(5)]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]) + "\n")
    found = vidur.load_requests(tmp_path, rate=2.0, count=4, seed=0)
    assert [row[1:] for row in found.rows()] == [(100, 1), (101, 2), (102, 3), (103, 4)]
    assert np.all(np.diff(found.arrival_seconds) > 0.0)
    with pytest.raises(DataFileError, match="--requests"):
        vidur.load_requests(tmp_path, rate=2.0, count=6, seed=0)


def test_clipped_requests_keep_their_answers():
    given = vidur.Load(
        arrival_seconds=np.zeros(3), prompt_tokens=np.array([10, 90, 500]), output_tokens=np.array([5, 50, 200])
    )
    assert [row[1:] for row in given.clipped(100).rows()] == [(10, 5), (50, 50), (1, 99)]


def test_the_job_holds_the_twins_coefficients_and_limits(tmp_path):
    spec = vidur.replica_hardware(700)
    asked = vidur.job(load(), spec, predictor=vidur_driver.COEFFICIENTS, metrics=True, cache=tmp_path)
    assert json.loads(json.dumps(asked))["requests"] == [[1.0, 600, 1], [2.0, 600, 2], [3.0, 600, 3]]
    assert asked["blocks"] == 700 and asked["seconds"] == spec.levels[-1].seconds
    assert (asked["max_num_seqs"], asked["max_num_batched_tokens"]) == (128, 512)


def test_driver_and_command_exchange_files(settings, tmp_path, monkeypatch):
    driver(
        monkeypatch,
        tmp_path,
        "n = len(json.load(open(job))['requests'])\n"
        "json.dump({'python': '3.x', 'steps': 7, 'restarts': 1, 'cpu_seconds': 2, 'wall_seconds': 3,"
        "'first_token_seconds': [2.0] * n, 'finish_seconds': [4.0] * n}, open(result, 'w'))\n",
    )
    asked = vidur.job(load(), vidur.replica_hardware(), predictor="coefficients", metrics=False, cache=tmp_path)
    found, python = vidur.play_vidur(settings, asked)
    assert (found.steps, found.evictions, found.cpu_seconds, python) == (7, 1, 2.0, "3.x")
    assert found.finish_seconds.tolist() == [4.0, 4.0, 4.0]


def test_a_failing_driver_is_explained(settings, tmp_path, monkeypatch):
    driver(monkeypatch, tmp_path, "import module_that_nobody_has\n")
    asked = vidur.job(load(), vidur.replica_hardware(), predictor="coefficients", metrics=False, cache=tmp_path)
    with pytest.raises(vidur.VidurError, match=r"No module named 'module_that_nobody_has'.*pip install"):
        vidur.play_vidur(settings, asked)


def test_unfinished_requests_are_refused():
    result = {"first_token_seconds": [1.0, 0.0], "finish_seconds": [2.0, 0.0]}
    with pytest.raises(vidur.VidurError, match="finished 1 of 2 requests"):
        vidur.parse(result, count=2)


def test_vidurs_steps_take_what_the_twins_take(monkeypatch):
    def form(*fields):
        return fields

    monkeypatch.setattr(vidur_driver.importlib, "import_module", lambda _: SimpleNamespace(ExecutionTime=form))
    monkeypatch.setattr(vidur_driver._Coefficients, "seconds", (1.0, 0.1, 0.01, 0.001, 1e-6), raising=False)
    requests = [
        SimpleNamespace(num_processed_tokens=50, is_prefill_complete=True),
        SimpleNamespace(num_processed_tokens=30, is_prefill_complete=False),
    ]
    fields = vidur_driver._Coefficients().get_execution_time(SimpleNamespace(requests=requests, num_tokens=[1, 20]), 0)
    assert sum(fields[1:]) == pytest.approx(1e3 * (1.0 + 0.1 + 0.5 + 0.02 + 1e-6 * 20 * 40))


def test_the_twin_plays_a_load():
    given = load()
    found = vidur.play_twin(given, vidur.replica_hardware(), cap_watts=None)
    d0, dn, dkv, dt, da = vidur.replica_hardware().levels[-1].seconds
    first = 2 * d0 + dt * 600 + da * (512 * 256 + 88 * (512 + 44))
    assert found.first_token_seconds - given.arrival_seconds == pytest.approx(np.full(3, first))
    assert found.finish_seconds[1] - found.first_token_seconds[1] == pytest.approx(d0 + dn + dkv * 601)
    assert found.evictions == 0


def test_tables_and_summary(result):
    agreement, speed = vidur_tables.tables(result)
    assert len(agreement.rows) == 9 and all(len(row) == len(agreement.columns) for row in agreement.rows)
    assert agreement.rows[0][2:] == ("0.100 / 0.100", "0.100 / 0.100", "0.100 / 0.100", "0.00 %", "0 / 0")
    assert agreement.rows[4][5:] == ("50.00 %", "4 / 4")
    assert speed.rows == (("2", "same", "9.0", "2.50", "10.0", "250 (200 to 300)"),)
    text = vidur_tables.summary(result)
    assert "as Vidur is, a mean, median or p95 differs by up to 50%" in text
    assert "put right, a mean, median or p95 differs by up to 5%" in text and "250 times as fast" in text


def test_one_token_answers_have_no_time_per_token(result):
    assert len(vidur_tables.latencies(result.agreements[0], result.agreements[0].vidur)["TPOT"]) == 2


def test_json_has_all_figures(result):
    found = json.loads(json.dumps(vidur_tables.to_dict(result)))
    assert found["agreement"][1]["seconds"]["TPOT"]["p50"] == pytest.approx({"vidur": 0.02, "twin": 0.01})
    assert found["speed"][0]["ratios"] == pytest.approx([300.0, 200.0])
