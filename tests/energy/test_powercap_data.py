import shutil

import numpy as np
import pandas as pd
import pytest

from wattkeeper.domain.errors import DataFileError
from wattkeeper.energy import caps_evaluate, powercap_data


def test_all_curves_with_plain_units(data_folder):
    table = powercap_data.load_cap_curves(data_folder)
    assert list(table.columns) == list(powercap_data.CAP_COLUMNS)
    assert len(table) == 230
    assert table["curve"].nunique() == 12
    pro = table[table["source"] == "rtx-pro-6000-caps"].set_index(["curve", "cap_watts"])
    # What the publishers' own summary says of the same cell, ramp and drain included.
    assert pro.loc[("phase1-dense-27b-n32", 300.0), "tokens_per_second"] == pytest.approx(1033.5, rel=0.02)
    assert pro.loc[("phase1-dense-27b-n32", 300.0), "sm_mhz"] == pytest.approx(1144, rel=0.02)
    assert len(powercap_data.load_clock_grid(data_folder)) == 28


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("92.2,189.72", "92.2,nan", "row 1: a figure is missing"),
        ("92.2,189.72", "92.2,18972", "row 1: more watts drawn than the limit allows"),
        ("92.2,189.72", "92.2,209.72", "row 1: more watts drawn than the limit allows"),
        ("92.2,189.72", "-92.2,189.72", "row 1: a figure is missing or not positive"),
    ],
)
def test_impossible_rows_are_refused_with_file_row_and_reason(data_folder, tmp_path, old, new, says):
    shutil.copytree(data_folder / "powercap", tmp_path / "powercap")
    path = tmp_path / "powercap/rtx-curves/powercap_curves.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DataFileError, match="is not the expected one"):
        powercap_data.load_cap_curves(tmp_path)
    with pytest.raises(DataFileError, match=says):
        powercap_data.load_cap_curves(tmp_path, check=False)


@pytest.mark.parametrize("column", ["sm_mhz", "tps"])
def test_words_for_numbers_are_no_missing_figures(data_folder, tmp_path, column):
    shutil.copytree(data_folder / "powercap", tmp_path / "powercap")
    path = tmp_path / "powercap/rtx-curves/powercap_curves.csv"
    table = pd.read_csv(path, dtype="str", keep_default_na=False)
    table.loc[4, column] = "fast"
    table.to_csv(path, index=False)
    with pytest.raises(DataFileError, match=f"row 5: {column} is no number"):
        powercap_data.load_rtx_curves(tmp_path, check=False)


def test_what_is_cut_of_the_sweep_is_counted(data_folder):
    note = powercap_data.warm_up_note(data_folder)
    assert "1748 of 40661 requests" in note
    assert "230 of 4103 power samples" in note


def test_a_missing_file_says_where_it_comes_from(tmp_path):
    with pytest.raises(DataFileError, match="club-3090"):
        powercap_data.load_cap_curves(tmp_path)


def test_the_highest_limit_is_the_reference_and_no_row(data_folder):
    found = caps_evaluate.curves(data_folder)
    assert found
    for curve in found:
        assert (np.diff(curve.cap_watts) > 0).all()
        assert (curve.relative > 0).all()
        assert curve.facts.uncapped_watts is not None
