import numpy as np

from wattkeeper.energy import caps_evaluate, clocks_evaluate, ml_energy_evaluate, nlr_evaluate
from wattkeeper.energy.held_out import HeldOut
from wattkeeper.evaluation import energy_pictures

MEASURED = np.array([0.5, 0.8, 0.6, 0.9])


def held(methods, **changed):
    values = {
        "data": "made",
        "target": "J/token",
        "split": "unseen GPU",
        "groups": np.array(["a", "a", "b", "b"]),
        "fold": np.array([0, 0, 1, 1]),
        "measured": MEASURED,
        "predicted": dict.fromkeys(methods, 1.1 * MEASURED),
    }
    return HeldOut(**values | changed)


LINES = {"x": np.array([300.0, 200.0, 200.0, 300.0]), "x_name": "W", "series": np.array(["a 1", "a 1", "b 1", "b 1"])}


def test_each_kind_of_data_has_its_picture(tmp_path):
    found = [
        held([ml_energy_evaluate.MODEL, ml_energy_evaluate.PRIOR]),
        held([nlr_evaluate.MODEL, nlr_evaluate.TREES], **LINES),
        held([caps_evaluate.MODEL], target=caps_evaluate.TARGET, **LINES),
        held([caps_evaluate.MODEL], target=caps_evaluate.TARGET, calibration="+2 designed", **LINES),
        held([clocks_evaluate.PHYSICS], data=clocks_evaluate.DATA, target=clocks_evaluate.WATTS, **LINES),
    ]
    paths = energy_pictures.draw(found, tmp_path / "new")
    assert [path.name for path in paths] == [
        "energy-predicted.png", "energy-limits.png", "energy-rates.png", "energy-clocks.png",
    ]  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_data_that_were_not_asked_for_have_none(tmp_path):
    assert energy_pictures.draw([held(["model"])], tmp_path) == []


def test_a_series_is_sorted_by_its_x():
    made = held([caps_evaluate.MODEL], **LINES)
    first = energy_pictures._series(made, made.groups == "a")[0]
    assert first[1] == "a 1"
    assert list(first[2]) == [1, 0]
