import numpy as np
import pytest

from wattkeeper.energy.held_out import HeldOut, optimistic_share
from wattkeeper.evaluation import energy_scores, rendering


def held(**changed):
    measured = np.array([1.0, 2.0, 4.0, 5.0])
    values = {
        "data": "made",
        "target": "J/token",
        "split": "unseen curve",
        "groups": np.array(["a", "a", "b", "b"]),
        "fold": np.array([0, 0, 1, 1]),
        "measured": measured,
        "predicted": {"model": measured * np.array([1.1, 0.9, 1.0, 1.2]), "bad": measured * 3.0},
        "interval": {"model": (measured * 0.95, measured * np.array([1.2, 1.2, 0.99, 1.2]))},
        "floor": 96.0,
    }
    return HeldOut(**values | changed)


def test_scores_are_100_less_the_mean_error_with_an_interval_over_groups():
    found = energy_scores.scores(held())
    assert found["model"].value == pytest.approx(90.0)
    assert found["model"].low == pytest.approx(90.0)
    assert found["bad"].value == pytest.approx(-100.0)


def test_intervals_count_what_is_inside():
    found = energy_scores.intervals(held())["model"]
    assert found.coverage == 0.75
    assert found.worst == 0.5
    assert found.width == pytest.approx(np.median(np.sqrt([1.2 / 0.95, 1.2 / 0.95, 0.99 / 0.95, 1.2 / 0.95])) - 1)


def test_tables_and_json_tell_the_same():
    warm = held(calibration="+1 random", predicted={"model": np.array([1.0, 2.0, 4.0, 5.0])}, notes=("said",))
    made = energy_scores.tables([held(), warm])
    assert [table.key for table in made] == ["made-j-per-token-cold", "made-j-per-token-readings", "intervals"]
    text = rendering.markdown(made[0])
    assert "90.0 (90-90)" in text
    assert "96.0" in text
    assert "said" in rendering.markdown(made[1])
    plain = energy_scores.to_dict([held()])
    assert plain[0]["scores"]["model"]["value"] == 90.0
    assert plain[0]["intervals"]["model"]["coverage"] == 0.75


def test_a_score_below_all_use_is_called_so():
    assert energy_scores.Score(value=-5e6, low=-9e6, high=1.0).text() == "useless"


def test_optimistic_rows_are_counted():
    made = held()
    assert optimistic_share(made.predicted["model"], made.measured) == 0.5


def test_a_note_of_all_rows_stands_once_and_others_in_their_row():
    made = energy_scores.tables([held(notes=("for all", "first")), held(split="unseen model", notes=("for all",))])[0]
    assert made.note.endswith("; for all")
    assert made.columns[-1] == "notes"
    assert [row[-1] for row in made.rows] == ["first", ""]
    assert "notes" not in energy_scores.tables([held(notes=("for all",))])[0].columns


def test_arrays_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="need 4 entries"):
        held(groups=np.array(["a"]))
