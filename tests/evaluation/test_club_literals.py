"""Readings of club-3090 out of the programs that draw them."""

import re

import pytest

from wattkeeper.domain.errors import DataFileError
from wattkeeper.energy import powercap_data
from wattkeeper.evaluation import club_literals, public_data


def curve(mhz):
    """Two readings: limit, tokens per second (twice where decode was measured), watts and perhaps MHz, tokens per J."""
    return [(200, 90.0, *mhz[0]), (250, 100.0, *mhz[1])]


@pytest.fixture
def programs(tmp_path):
    folder = tmp_path / "programs"
    folder.mkdir()
    decode = curve([(91.0, 190.0, 900, 0.4), (99.0, 240.0, 1000, 0.4)])
    prefill = curve([(190.0, 900, 0.4), (240.0, 1000, 0.4)])
    for name in club_literals.CURVE_PROGRAMS:
        rows = prefill if "prefill" in name else decode
        lists = "\n".join(f"{variable} = {rows}" for variable in ("decode_single", "decode_concurrent", "data"))
        (folder / name).write_text(f"import nowhere\n\n{lists}\nnowhere.plot(data)\n")
    (folder / club_literals.CLOCK_PROGRAMS[0]).write_text("data = [(405, 180, 27.0, 35.0, 47.0, 0.58)]\n")
    return folder


def test_lists_become_the_files_that_are_read_and_no_program_is_run(programs, tmp_path):
    club_literals.write_curves(programs, tmp_path)
    table = powercap_data.load_rtx_curves(tmp_path, check=False)
    assert len(table) == 16
    assert table["curve"].nunique() == 8
    by_curve = table.groupby("curve")
    assert set(by_curve["tokens_per_second"].first()) == {90.0}
    assert set(by_curve["watts"].last()) == {240.0}
    known = table.dropna(subset=["sm_mhz"])
    assert set(known["gpu"]) == {"RTX3090"}
    assert set(known["sm_mhz"]) == {900.0, 1000.0}
    club_literals.write_clocks(programs, tmp_path)
    clocks = powercap_data.load_clock_grid(tmp_path, check=False)
    assert clocks.iloc[0].to_dict() == {"memory_mhz": 405.0, "sm_mhz": 180.0, "tokens_per_second": 31.0, "watts": 47.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data = [(1, 2", "no program with a list"),
        ("data = open('x')", "no program with a list"),
        ("other = []", "is no list of tuples of 5 numbers"),
        ("data = [(200, 90.0, 190.0)]", "is no list of tuples of 5 numbers"),
        ("data = [(200, 90.0, 91.0, 'many', 900)]", "is no list of tuples of 5 numbers"),
    ],
)
def test_another_program_is_refused(programs, tmp_path, text, message):
    (programs / "power-cap-3090-qwen36.py").write_text(text)
    with pytest.raises(DataFileError, match=message):
        club_literals.write_curves(programs, tmp_path)


@pytest.mark.parametrize("name", ["club-3090-caps", "club-3090-clocks"])
def test_what_is_fetched_is_every_program_at_one_commit(name):
    (wanted,) = public_data.find([name])
    assert wanted.convert is not None
    for download in wanted.downloads:
        assert re.fullmatch(rf"noonghunna/club-3090/[0-9a-f]{{40}}/docs/img/{download.target}", download.path)
