import functools
import http.server
import pathlib
import re
import threading

import pandas as pd
import pytest
from typer.testing import CliRunner

from wattkeeper.cli import main
from wattkeeper.domain.errors import ChangedDataError, DataFileError
from wattkeeper.energy.row_checks import RefusedRow, RefusedRowsError
from wattkeeper.evaluation import fetch_data, kernel_data, public_data
from wattkeeper.evaluation.public_data import Content, Download, PublicData
from wattkeeper.physics import composition
from wattkeeper.traces.sources import State

GOOD = b"a\n1\n"


class Quiet(http.server.SimpleHTTPRequestHandler):
    torn = False

    def log_message(self, *_):
        pass

    def send_header(self, name, value):
        super().send_header(name, "1000" if self.torn and name == "Content-Length" else value)


@pytest.fixture
def upstream(tmp_path):
    """(folder that is served, its address)"""
    Quiet.torn = False
    served = tmp_path / "served"
    (served / "o/r/c").mkdir(parents=True)
    for name in ("one.csv", "two.csv"):
        (served / "o/r/c" / name).write_bytes(GOOD)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(served)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield served, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    return path


def wanted(**changes):
    def read(folder, check):
        for name in ("set/one.csv", "set/two.csv"):
            content = (folder / name).read_bytes()
            if check and content != GOOD:
                raise ChangedDataError(f"{name}: other content")
            if b"-1" in content:
                raise RefusedRowsError([RefusedRow(file=name, row=1, reason="negative")])
        return Content(rows=2)

    names = ("set/one.csv", "set/two.csv")
    return PublicData(
        **{
            "name": "some", "kind": "energy", "licence": "MIT", "origin": "https://example.org/o/r at c",
            "copies": (names,), "read": read,
            "downloads": tuple(Download(path=f"o/r/c/{name[4:]}", target=name) for name in names),
        } | changes
    )  # fmt: skip


def test_fetched_once_and_left_alone_then(upstream, folder):
    lines = []
    fetch_data.fetch(wanted(), folder, base_url=upstream[1] + "/", report=lines.append)
    fetch_data.fetch(wanted(), folder, base_url="http://127.0.0.1:1", report=lines.append)
    assert lines == ["some: fetched 2 files, content as expected", "some: as expected"]
    assert wanted().check(folder).content.rows == 2
    assert [path.name for path in folder.iterdir()] == ["set"]


def test_wrong_content_is_refused_and_leaves_nothing(upstream, folder):
    (upstream[0] / "o/r/c/two.csv").write_bytes(b"a\n2\n")
    with pytest.raises(DataFileError, match=r"nothing is kept: set/two\.csv: other content"):
        fetch_data.fetch(wanted(), folder, base_url=upstream[1], report=print)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("fault", ["absent", "torn", "no server"])
def test_what_does_not_arrive_says_what_to_copy(upstream, folder, fault):
    served, url = upstream
    Quiet.torn = fault == "torn"
    if fault == "absent":
        (served / "o/r/c/two.csv").unlink()
    flat = wanted(copies=(("set/flat.csv",), *wanted().copies))
    message = r"copy it by hand: https://example\.org/o/r at c -> set/one\.csv, set/two\.csv of the data"
    with pytest.raises(DataFileError, match=message):
        fetch_data.fetch(flat, folder, base_url="http://127.0.0.1:1" if fault == "no server" else url, report=print)
    assert not list(folder.iterdir())


def test_other_content_is_not_overwritten(upstream, folder):
    (folder / "set").mkdir()
    for name in ("one.csv", "two.csv"):
        (folder / "set" / name).write_bytes(b"a\n-1\n")
    found = wanted().check(folder)
    assert (found.state, [row.row for row in found.refused]) == (State.CHANGED, [1])
    with pytest.raises(DataFileError, match="move those files away first"):
        fetch_data.fetch(wanted(), folder, base_url=upstream[1], report=print)
    assert (folder / "set/one.csv").read_bytes() == b"a\n-1\n"


def test_what_no_program_can_fetch(folder):
    with pytest.raises(DataFileError, match=r"no program can fetch it .*; copy it by hand"):
        fetch_data.fetch(wanted(downloads=()), folder, report=print)


def test_every_set_is_named_once_and_downloads_make_a_full_copy():
    assert len({each.name for each in public_data.ALL}) == len(public_data.ALL)
    for each in public_data.ALL:
        if each.downloads and each.convert is None:
            assert tuple(download.target for download in each.downloads) in each.copies, each.name
    with pytest.raises(DataFileError, match="no public data is called nope; known are ml-energy-v3"):
        public_data.find(["nope"])


def test_command_lines(tmp_path, folder):
    run = CliRunner().invoke(main.app, ["data", "list", "--data", str(folder)])
    assert run.exit_code == 0
    assert "ml-energy-v3 (energy, can be fetched)  [absent]" in run.stdout
    rows = tmp_path / "runs.csv"
    rows.write_text(
        "model,gpu,num_gpus,weight_precision,batch,prompt_tokens,output_tokens,tokens_per_second,inter_token_seconds,"
        "gpu_watts\nacme/foo-8b,nvidia-h100-sxm,1,bfloat16,8,300,200,400,0.02,300\nacme/foo-8b,nvidia-h100-sxm,1,bfloat16,8,300,0,400,0.02,300\n"
    )
    run = CliRunner().invoke(main.app, ["data", "check", "--rows", str(rows)])
    assert run.exit_code == 1
    assert f"{rows}, row 2: output_tokens is missing, zero" in run.stdout
    assert "1 row can be used, 1 is refused" in run.stdout


@pytest.mark.parametrize("moved", [False, True])
def test_a_killed_fetch_leaves_all_or_nothing(upstream, folder, monkeypatch, moved):
    """Killed just before or just after the one rename: a second one would leave half of the set."""
    rename = pathlib.Path.replace
    renames = []

    def killed(self, target):
        renames.append(target)
        if moved:
            rename(self, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(pathlib.Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        fetch_data.fetch(wanted(), folder, base_url=upstream[1], report=print)
    assert renames == [folder / "set"]
    assert wanted().check(folder).state is (State.AS_EXPECTED if moved else State.ABSENT)
    monkeypatch.undo()
    fetch_data.fetch(wanted(), folder, base_url=upstream[1], report=print)
    assert wanted().check(folder).state is State.AS_EXPECTED


def test_an_empty_folder_may_be_there_but_no_other_files(upstream, folder):
    (folder / "set").mkdir()
    fetch_data.fetch(wanted(), folder, base_url=upstream[1], report=print)
    assert wanted().check(folder).state is State.AS_EXPECTED
    other = folder / "other"
    (other / "set").mkdir(parents=True)
    (other / "set/notes.txt").write_text("mine")
    with pytest.raises(DataFileError, match=r"holds other files \(notes\.txt\).*move them away first"):
        fetch_data.fetch(wanted(), other, base_url=upstream[1], report=print)
    assert [path.name for path in (other / "set").iterdir()] == ["notes.txt"]


def test_a_single_file_joins_a_folder_with_others(upstream, folder):
    (folder / "set").mkdir()
    (folder / "set/two.csv").write_bytes(b"mine")
    one = wanted(
        copies=(("set/one.csv",),),
        downloads=(Download(path="o/r/c/one.csv", target="set/one.csv"),),
        read=lambda folder, _: Content(rows=len((folder / "set/one.csv").read_bytes())),
    )
    lines = []
    fetch_data.fetch(one, folder, base_url=upstream[1], report=lines.append)
    assert lines == ["some: fetched 1 file, content as expected"]
    assert (folder / "set/two.csv").read_bytes() == b"mine"


def test_half_a_copy_is_named_and_not_touched(upstream, folder):
    (folder / "set").mkdir()
    (folder / "set/one.csv").write_bytes(GOOD)
    flat = wanted(copies=(("set/flat.csv",), *wanted().copies))
    found = flat.check(folder)
    assert found.state is State.INCOMPLETE
    assert found.message.startswith("set/two.csv is missing: copy from https://example.org/o/r at c")
    with pytest.raises(DataFileError, match="Nothing is overwritten: move those files away first"):
        fetch_data.fetch(flat, folder, base_url=upstream[1], report=print)
    many = wanted(copies=(("set/one.csv", "a", "b", "c", "d"),))
    assert many.check(folder).message.startswith("a, b, c and 1 more are missing")


def test_every_commit_is_a_whole_one():
    for each in public_data.ALL:
        for download in each.downloads:
            assert re.fullmatch(r"[^/]+/[^/]+/[0-9a-f]{40}/.+", download.path), each.name


def test_check_names_what_loaders_leave_out_and_counts_many_refusals(monkeypatch, folder):
    row = RefusedRow(file="f", row=3, reason="failed")
    good = wanted(read=lambda *_: Content(rows=1, left_out=(row,), notes=("2 requests repaired",)))

    def refuse(*_):
        raise RefusedRowsError([RefusedRow(file="f", row=number, reason="bad") for number in range(1, 31)])

    monkeypatch.setattr(public_data, "ALL", (good, wanted(name="worse", read=refuse)))
    (folder / "set").mkdir()
    for name in ("one.csv", "two.csv"):
        (folder / "set" / name).write_bytes(GOOD)
    run = CliRunner().invoke(main.app, ["data", "check", "--data", str(folder)])
    assert run.exit_code == 1
    assert run.stdout.splitlines() == [
        "some: as expected, 1 rows", "  left out: f, row 3: failed", "  2 requests repaired", "worse: cannot be read",
        "  impossible rows", "  refused: f, row 1: bad (30 rows)",
    ]  # fmt: skip
    assert "not as expected: 1 of 2 sets of data" in run.stderr


@pytest.mark.data
@pytest.mark.parametrize("wanted", kernel_data.ALL, ids=lambda each: each.source.name)
def test_kernel_tables_are_the_expected_ones(data_folder, wanted):
    assert sum(map(len, kernel_data.load(wanted, data_folder))) == wanted.source.rows


def test_a_changed_kernel_table_and_an_impossible_row(tmp_path):
    for table in kernel_data.LAYERS.tables:
        path = tmp_path / table.file
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = [*composition._VIDUR_COLUMNS, *composition._VIDUR_COUNTS]
        pd.DataFrame([dict.fromkeys(columns, 1.0)] * 3).to_csv(path, index=False)
    with pytest.raises(ChangedDataError, match=r"kernels/vidur-mlp: the content \(9 rows"):
        kernel_data.load(kernel_data.LAYERS, tmp_path)
    assert [len(each) for each in kernel_data.load(kernel_data.LAYERS, tmp_path, check=False)] == [3, 3, 3]
    path.write_text(path.read_text().replace("1.0", "-1.0", 1))
    with pytest.raises(RefusedRowsError, match=r"mlp_h100_Llama-2-7b-hf\.csv, row 1: time_stats"):
        kernel_data.load(kernel_data.LAYERS, tmp_path, check=False)


def test_what_is_converted_arrives_as_one_file(upstream, folder):
    def convert(arrived, data):
        (data / "set").mkdir()
        (data / "set/flat.csv").write_bytes(b"".join((arrived / name).read_bytes() for name in ("one", "two")))

    made = wanted(
        copies=(("set/flat.csv",),),
        downloads=tuple(Download(path=f"o/r/c/{name}.csv", target=name) for name in ("one", "two")),
        convert=convert,
        read=lambda where, _: Content(rows=len((where / "set/flat.csv").read_bytes())),
    )
    lines = []
    fetch_data.fetch(made, folder, base_url=upstream[1], report=lines.append)
    assert lines == ["some: fetched 2 files, content as expected"]
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*")] == ["set", "set/flat.csv"]
