import gzip
import json
from pathlib import Path

import pytest

from wattkeeper.domain import sealed
from wattkeeper.domain.errors import ModelFileError
from wattkeeper.energy import artefact, factors
from wattkeeper.energy.model import EnergyModel


@pytest.fixture
def shipped() -> str:
    return gzip.decompress(artefact.shipped_path().read_bytes()).decode()


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "model.json"
    path.write_text(text)
    return path


def _altered(text: str, *, seal: bool = True, learned: dict[str, object] | None = None, **changes: object) -> str:
    """The file with other payload parts; sealed with a matching checksum, as another program would write it."""
    document = json.loads(text)
    document["payload"].update(changes)
    document["payload"]["learned"].update(learned or {})
    if seal:
        document["sha256"] = sealed.digest(document["payload"])
    return json.dumps(document)


def test_shipped_file_is_small_and_reads_back_to_the_same_bytes(shipped):
    assert artefact.shipped_path().stat().st_size < 1_500_000
    payload, _ = artefact.load(artefact.shipped_path())
    assert artefact.dump(payload) == shipped
    assert payload.factors == factors.NAMES


def test_missing_file(tmp_path):
    with pytest.raises(ModelFileError, match=r"nothing\.json.*wattkeeper train"):
        EnergyModel.load(tmp_path / "nothing.json")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ModelFileError, match="cannot be read"):
        EnergyModel.load(tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, -3])
def test_truncated_file(tmp_path, shipped, keep):
    length = int(len(shipped) * keep) if isinstance(keep, float) else keep
    with pytest.raises(ModelFileError, match="truncated or no JSON"):
        EnergyModel.load(_write(tmp_path, shipped[:length]))


def test_binary_file(tmp_path):
    path = tmp_path / "model.json"
    path.write_bytes(b"\x89PNG\xff\xfe\x00")
    with pytest.raises(ModelFileError, match=r"model\.json"):
        EnergyModel.load(path)


@pytest.mark.parametrize("text", ["[]", "{}", "3", '{"format": "onnx"}'])
def test_another_format(tmp_path, text):
    with pytest.raises(ModelFileError, match="is no wattkeeper-energy-model"):
        EnergyModel.load(_write(tmp_path, text))


def test_a_newer_format_version(tmp_path, shipped):
    document = json.loads(shipped) | {"format_version": 99}
    with pytest.raises(ModelFileError, match="format 99"):
        EnergyModel.load(_write(tmp_path, json.dumps(document)))


def test_an_altered_number_is_noticed(tmp_path, shipped):
    with pytest.raises(ModelFileError, match="altered"):
        EnergyModel.load(_write(tmp_path, _altered(shipped, seal=False, residual_high=9.0)))


@pytest.mark.parametrize(
    "changes",
    [
        {"reference_watts": None},
        {"factor_low": [0.0]},
        {"residual_low": 1.0, "residual_high": -1.0},
        {"residual_high": float("nan")},
        {"half_width": {}},
        {"half_width": 3},
        {"deployments": None},
        {"surplus": 1},
    ],
)
def test_an_incomplete_payload(tmp_path, shipped, changes):
    with pytest.raises(ModelFileError, match="incomplete"):
        EnergyModel.load(_write(tmp_path, _altered(shipped, **changes)))


def test_other_factors(tmp_path, shipped):
    names = ["other", *factors.NAMES[1:]]
    with pytest.raises(ModelFileError, match="other factors"):
        EnergyModel.load(_write(tmp_path, _altered(shipped, factors=names)))


def test_another_physical_estimate(tmp_path, shipped):
    watts = [1.1 * value for value in json.loads(shipped)["payload"]["reference_watts"]]
    with pytest.raises(ModelFileError, match="another physical estimate"):
        EnergyModel.load(_write(tmp_path, _altered(shipped, reference_watts=watts)))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"boosters": []}, "boosters are missing"),
        ({"terms": ["step"]}, "other terms or columns"),
        ({"columns": []}, "other terms or columns"),
        ({"joules": {}}, "theta"),
        ({"residual_log": [0.0]}, "cannot be used"),
        ({"calibration": {"noise": 1.0}}, "cannot be used"),
    ],
)
def test_a_foreign_learned_part(tmp_path, shipped, changes, reason):
    with pytest.raises(ModelFileError, match=rf"model\.json cannot be used.*{reason}|{reason}.*wattkeeper train"):
        EnergyModel.load(_write(tmp_path, _altered(shipped, learned=changes)))


def test_a_deployment_without_its_groups(tmp_path, shipped):
    kept = json.loads(shipped)["payload"]["deployments"]
    with pytest.raises(ModelFileError, match="cannot be used"):
        EnergyModel.load(_write(tmp_path, _altered(shipped, deployments=[kept[0] | {"groups": ["a"]}])))


def test_a_booster_that_lightgbm_cannot_read(tmp_path, shipped):
    with pytest.raises(ModelFileError, match="booster"):
        EnergyModel.load(_write(tmp_path, _altered(shipped, learned={"boosters": ["tree\nversion=v4\n"]})))


def test_card_lies_beside_the_file_and_names_data_and_licence():
    card = artefact.shipped_path().with_name("MODEL_CARD.md").read_text()
    assert "ml-energy/leaderboard" in card
    assert "Licence" in card
    assert all(factor.name in card for factor in factors.FACTORS)
