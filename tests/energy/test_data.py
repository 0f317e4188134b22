import json
import shutil

import numpy as np
import pandas as pd
import pytest

from wattkeeper.domain import data_files
from wattkeeper.domain.errors import DataFileError
from wattkeeper.energy import data


def test_no_folder_named(monkeypatch):
    monkeypatch.delenv(data_files.DATA_VARIABLE, raising=False)
    with pytest.raises(DataFileError, match="--data DIR or set WATTKEEPER_DATA"):
        data_files.data_folder(None)


def test_folder_that_does_not_exist(monkeypatch, tmp_path):
    monkeypatch.setenv(data_files.DATA_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(DataFileError, match="does not exist"):
        data_files.data_folder(None)
    assert data_files.data_folder(tmp_path) == tmp_path


@pytest.mark.parametrize("load", [data.load_ml_energy, data.load_nlr])
def test_missing_file_says_where_to_get_it(load, tmp_path):
    with pytest.raises(DataFileError, match=r"missing: copy .* at commit"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "\x00\x00", "a,b\n1,2\n"])
def test_a_file_that_is_not_the_data(tmp_path, text):
    folder = tmp_path / data.NLR_H100.folder
    folder.mkdir(parents=True)
    (folder / data.NLR_H100.flat_file).write_text(text)
    with pytest.raises(DataFileError, match="nlr-h100"):
        data.load_nlr(tmp_path)


def _ml_energy(**changes):
    row = {
        "task": "gpqa", "model_id": "acme/Foo-13B-Instruct", "gpu_model": "H100", "weight_precision": "bfloat16",
        "architecture": "Dense Transformer", "num_gpus": 2, "tensor_parallel": 1, "data_parallel": 1, "max_num_seqs": 8,
        "avg_batch_size": 7.9, "avg_output_len": 500.0, "avg_power_watts": 800.0, "energy_per_token_joules": 2.0,
        "median_itl_ms": 20.0, "output_throughput_tokens_per_sec": 400.0, "total_params_billions": 13.0,
        "activated_params_billions": 13.0,
    }  # fmt: skip
    return row | changes


def _folder(tmp_path, rows):
    folder = tmp_path / data.ML_ENERGY_V3.folder
    folder.mkdir(parents=True)
    pd.DataFrame(rows).to_csv(folder / data.ML_ENERGY_V3.flat_file, index=False)
    return tmp_path


def test_units_of_the_table(tmp_path):
    table = data.load_ml_energy(_folder(tmp_path, [_ml_energy()]), check=False)
    row = table.iloc[0]
    assert list(table.columns) == list(data.RUN_COLUMNS)
    assert row["gpu_watts"] == 400.0
    assert row["inter_token_seconds"] == 0.02
    assert row["parameters"] == 13e9
    assert row["gpu"] == "nvidia-h100-sxm"
    assert row["group_backbone"] == "foo-13b"
    assert np.isnan(row["requests_per_second"])


@pytest.mark.parametrize(
    "change",
    [
        {"avg_power_watts": 0.8},
        {"energy_per_token_joules": 2000.0},
        {"median_itl_ms": 0.02},
        {"median_itl_ms": float("nan")},
        {"avg_output_len": -1.0},
        {"output_throughput_tokens_per_sec": "fast"},
    ],
)
def test_wrong_units_and_gaps_are_refused(tmp_path, change):
    with pytest.raises(DataFileError, match=r"contradicting rows: 1\n.*row 2"):
        data.load_ml_energy(_folder(tmp_path, [_ml_energy(), _ml_energy(**change)]), check=False)


@pytest.mark.parametrize("change", [{"gpu_model": "Z9"}, {"task": "poems"}])
def test_unknown_gpu_or_task(tmp_path, change):
    with pytest.raises(DataFileError, match="unknown GPU or task"):
        data.load_ml_energy(_folder(tmp_path, [_ml_energy(**change)]), check=False)


def test_other_content_is_refused(tmp_path):
    with pytest.raises(DataFileError, match=r"1 rows, SHA-256 .* is not the expected one"):
        data.load_ml_energy(_folder(tmp_path, [_ml_energy()]))


def test_upstream_files_and_a_flat_copy_are_equally_good(tmp_path):
    rows = [_ml_energy(task=task) for task in ("gpqa", "image-chat", "lm-arena-chat", "sourcegraph-fim", "video-chat")]
    flat = data.load_ml_energy(_folder(tmp_path / "flat", rows), check=False)
    folder = tmp_path / "upstream" / data.ML_ENERGY_V3.folder
    folder.mkdir(parents=True)
    for row in rows:
        configuration = {key: value for key, value in row.items() if key != "task"}
        (folder / f"{row['task']}.json").write_text(json.dumps({"configurations": [configuration]}))
    upstream = data.load_ml_energy(tmp_path / "upstream", check=False)
    pd.testing.assert_frame_equal(flat, upstream)


def test_content_checksum_ignores_order_and_sees_every_value():
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]})
    same = data.content_sha256(frame)
    assert data.content_sha256(frame.iloc[::-1][["b", "a"]]) == same
    assert data.content_sha256(frame.assign(a=[1.0, 2.0000000001])) != same


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("Qwen/Qwen3-VL-235B-A22B-Instruct-FP8", "qwen3-235b-a22b"),
        ("Qwen/Qwen3-235B-A22B-Thinking-2507", "qwen3-235b-a22b"),
        ("meta-llama/Llama-3.3-70B-Instruct", "llama-3-70b"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3-8b"),
        ("google/gemma-3-12b-it", "gemma-3-12b"),
    ],
)
def test_backbone(model, expected):
    assert data.backbone(model) == expected


@pytest.mark.data
def test_ml_energy_runs(data_folder):
    table = data.load_ml_energy(data_folder)
    assert len(table) == data.ML_ENERGY_V3.rows
    assert table["model"].nunique() == 34
    assert table["group_backbone"].nunique() == 18
    assert table["gpu_watts"].between(100, 1000).all()


@pytest.mark.data
def test_nlr_runs(data_folder):
    table = data.load_nlr(data_folder)
    assert len(table) == data.NLR_H100.rows
    assert table["group_workload"].nunique() == 6
    assert table["group_rate"].nunique() == 19
    assert table["node_watts"].between(1500, 3000).all()


@pytest.mark.data
def test_one_changed_digit_is_noticed(data_folder, tmp_path):
    folder = tmp_path / data.ML_ENERGY_V3.folder
    folder.mkdir(parents=True)
    copy = folder / data.ML_ENERGY_V3.flat_file
    shutil.copyfile(data_folder / data.ML_ENERGY_V3.folder / data.ML_ENERGY_V3.flat_file, copy)
    copy.write_text(copy.read_text().replace("7.997300215982722", "7.997300215982723", 1))
    with pytest.raises(DataFileError, match="not the expected one"):
        data.load_ml_energy(tmp_path)
