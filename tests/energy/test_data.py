import json
import shutil

import numpy as np
import pandas as pd
import pytest

from wattkeeper.domain import data_files
from wattkeeper.domain.errors import DataFileError
from wattkeeper.energy import data, sources


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
    with pytest.raises(DataFileError, match=r"missing: get it with `wattkeeper data fetch .*`, or copy .* at commit"):
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
        {"num_gpus": "two"},
        {"tensor_parallel": -1},
    ],
)
def test_wrong_units_and_gaps_are_refused(tmp_path, change):
    with pytest.raises(DataFileError, match=r"contradicting rows: 1\n.*row 2"):
        data.load_ml_energy(_folder(tmp_path, [_ml_energy(), _ml_energy(**change)]), check=False)


@pytest.mark.parametrize("change", [{"gpu_model": "Z9"}, {"task": "poems"}])
def test_unknown_gpu_or_task(tmp_path, change):
    with pytest.raises(DataFileError, match=r"llm_v3_flat.csv, row 1: unknown (GPU 'Z9'|task 'poems')"):
        data.load_ml_energy(_folder(tmp_path, [_ml_energy(**change)]), check=False)


def _nlr(tmp_path, **changes):
    """Three runs of which the second failed; `changes` are of the third."""
    good = {
        "run_completed": "True", "hf-output-len": 256, "request_rate_x": 10, "completed": 1000,
        "total_input_tokens": 120000, "total_output_tokens": 160000, "duration": 100.0, "output_throughput": 1600.0,
        "mean_tpot_ms": 20.0, "mean_power[W]": 2000.0, "p90_ttft_ms": 40.0,
    }  # fmt: skip
    failed = dict.fromkeys(good, "") | {"run_completed": "False", "hf-output-len": 256}
    folder = tmp_path / data.NLR_H100.folder
    folder.mkdir(parents=True)
    pd.DataFrame([good, failed, good | changes]).to_csv(folder / data.NLR_H100.flat_file, index=False)
    return tmp_path


def test_failed_runs_are_left_out_and_named(tmp_path):
    folder = _nlr(tmp_path)
    table = data.load_nlr(folder, check=False)
    assert table["joules_per_token"].tolist() == [1.25, 1.25]
    assert table["group_workload"].tolist() == ["short prompts|256"] * 2
    assert table["inter_token_seconds"].tolist() == [0.02, 0.02]
    assert [str(row) for row in data.failed_runs(folder)] == [
        "energy/nlr-h100/inference_online_finite_llama3_70b.csv, row 2: the run failed (run_completed is False)"
    ]
    assert data.columns(data.NLR_H100, folder, numbers=("p90_ttft_ms",))["p90_ttft_ms"].tolist() == [40.0, 40.0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"run_completed": "yes"}, "run_completed is 'yes', not True or False"),
        ({"mean_power[W]": 2.0}, "the watts are below those of an idle card"),
        ({"duration": 10.0}, "tokens per second, time and watts do not agree"),
        ({"total_output_tokens": 0}, "output_tokens is missing, zero"),
        ({"mean_power[W]": 4300.0}, "over what these cards and their host can draw"),
        ({"hf-output-len": 0}, "output_cap_tokens is zero"),
    ],
)
def test_impossible_nlr_rows(tmp_path, change, reason):
    with pytest.raises(DataFileError, match=rf"llama3_70b\.csv, row 3: .*{reason}"):
        data.load_nlr(_nlr(tmp_path, **change), check=False)


def test_further_columns_without_a_figure_are_refused(tmp_path):
    with pytest.raises(DataFileError, match=r"row 3: p90_ttft_ms is missing or no number"):
        data.columns(data.NLR_H100, _nlr(tmp_path, p90_ttft_ms="slow"), numbers=("p90_ttft_ms",))


def test_rows_are_counted_in_their_own_file(tmp_path):
    folder = tmp_path / data.ML_ENERGY_V3.folder
    folder.mkdir(parents=True)
    for path in data.ML_ENERGY_V3.paths:
        row = {key: value for key, value in _ml_energy().items() if key != "task"}
        rows = [row, row | {"avg_output_len": 0.0}] if "image-chat" in path else [row]
        (folder / path.rpartition("/")[2]).write_text(json.dumps({"configurations": rows}))
    with pytest.raises(DataFileError, match=r"energy/ml-energy-v3/image-chat\.json, row 2: output_tokens is"):
        data.load_ml_energy(tmp_path, check=False)


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
    same = sources.content_sha256(frame)
    assert sources.content_sha256(frame.iloc[::-1][["b", "a"]]) == same
    assert sources.content_sha256(frame.assign(a=[1.0, 2.0000000001])) != same


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
    assert [row.row for row in data.failed_runs(data_folder)] == [687, 709]


@pytest.mark.data
def test_one_changed_digit_is_noticed(data_folder, tmp_path):
    folder = tmp_path / data.ML_ENERGY_V3.folder
    folder.mkdir(parents=True)
    copy = folder / data.ML_ENERGY_V3.flat_file
    shutil.copyfile(data_folder / data.ML_ENERGY_V3.folder / data.ML_ENERGY_V3.flat_file, copy)
    copy.write_text(copy.read_text().replace("7.997300215982722", "7.997300215982723", 1))
    with pytest.raises(DataFileError, match="not the expected one"):
        data.load_ml_energy(tmp_path)
