"""The twin against measured runs: the closed loop, what is in sample, tables and picture."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from wattkeeper.cli import main
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.energy import data
from wattkeeper.evaluation import measured_result, nlr_data, twin_measured, twin_tables
from wattkeeper.evaluation.twin_measured import EQUAL, IN, ITL, LISTED, NAMED, NLR, SIBLING, VARIED, Outcome
from wattkeeper.twin import hardware


def spec(places: int):
    engine = EngineSettings(max_num_seqs=places, max_model_len=4096, enable_prefix_caching=False)
    return hardware.replica_hardware(model="meta-llama/Llama-3.1-8B-Instruct", accelerator="h100-sxm", engine=engine)


def run(**changes) -> dict[str, object]:
    return {
        "model": "meta-llama/Llama-3.1-8B-Instruct", "gpu": "nvidia-h100-sxm", "architecture": "Dense Transformer",
        "multimodal": 0.0, "weight_precision": "bfloat16", "num_gpus": 1.0, "tensor_parallel": 1.0,
    } | changes  # fmt: skip


def test_one_place_is_one_request_after_the_other():
    d0, dn, dkv, dt, da = spec(1).levels[-1].seconds
    found = twin_measured.closed_loop(spec(1), prompt_tokens=100, output_tokens=51, variation=0.0, seed=0)
    whole = d0 + 100 * dt + da * 5000 + 50 * (d0 + dn) + dkv * sum(range(101, 151))
    assert found.tokens_per_second == pytest.approx(51 / whole, rel=1e-3)
    assert found.itl_seconds == pytest.approx(d0 + dn + dkv * 125.5, rel=1e-3)
    joules = np.array(spec(1).levels[-1].joules) @ [51, 50, sum(range(101, 151)), 100, 5000]
    assert found.gpu_watts == pytest.approx(130.0 + joules / whole, rel=1e-3)


def test_all_places_are_taken():
    found = twin_measured.closed_loop(spec(8), prompt_tokens=50, output_tokens=60, variation=0.7, seed=1)
    assert found.batch == pytest.approx(8.0, abs=0.3)
    assert found.tokens_per_second > 6 * 51 / 0.51


def test_too_little_memory_lowers_the_batch():
    tight = replace(spec(32), num_gpu_blocks=200)
    found = twin_measured.closed_loop(tight, prompt_tokens=200, output_tokens=200, variation=0.0, seed=1)
    assert found.batch < 20.0


def test_only_runs_that_the_twin_can_play_are_chosen():
    runs = [
        run(),
        run(num_gpus=2.0, tensor_parallel=2.0),
        run(model="meta-llama/Llama-3.1-70B-Instruct", num_gpus=4.0, tensor_parallel=4.0),
        run(model="meta-llama/Llama-3.3-70B-Instruct", num_gpus=4.0, tensor_parallel=4.0),
        run(model="Qwen/Qwen3-8B"),
        run(model="Qwen/Qwen3-14B"),
        run(gpu="nvidia-b200"),
        run(architecture="MoE"),
        run(multimodal=1.0),
        run(weight_precision="fp8"),
        run(num_gpus=8.0),
        run(model="somebody/no-size"),
    ]
    found = twin_measured.chosen_runs(pd.DataFrame(runs))
    assert found["split"].tolist() == [IN, SIBLING, IN, SIBLING, LISTED, NAMED]


@pytest.fixture
def outcome():
    frames = []
    for split, curve in ((IN, "a|1"), (SIBLING, "b|1"), (LISTED, "c|1"), (LISTED, "d|2"), (NAMED, "e|1")):
        for method in (VARIED, EQUAL):
            for target in twin_measured.CLOSED_TARGETS:
                frames.append(rows(split, method, target, curve, f"{curve}|lm-arena-chat", 1.0 + len(frames) / 100))
    frames += [rows(NLR, VARIED, target, "10.0", "short prompts|256", 1.2) for target in nlr_data.TARGETS]
    table = pd.concat(frames, ignore_index=True)
    table = table.assign(bias=table["predicted"] / table["measured"] - 1.0)
    scores = measured_result.scores(table, goal=0.15, seed=0, parts=(), split=IN, method=VARIED)
    return Outcome(rows=table, scores=scores, node_power_share=(0.8, 0.9))


def rows(split: str, method: str, target: str, group: str, model: str, ratio: float) -> pd.DataFrame:
    measured = np.array([1.0, 2.0, 10.0])
    return measured_result.rows_of(
        split=split, method=method, target=target, group=[group] * 3, x=np.array([8.0, 64.0, 512.0]),
        measured=measured, predicted=measured * ratio, parts={"model": [model] * 3},
    )  # fmt: skip


def test_tables_tell_the_splits_apart(outcome):
    errors, curves, batches, nlr, rates = twin_tables.tables(outcome)
    assert [row[0] for row in errors.rows][::2] == [IN, SIBLING, LISTED, NAMED]
    assert [row[1] for row in curves.rows] == [
        "in sample",
        "same architecture",
        "other model",
        "other model",
        "by name",
    ]
    assert curves.rows[0][2] == "+0 (+0 to +0)" and curves.rows[1][2] == "+8 (+8 to +8)"
    assert [row[0] for row in batches.rows][:2] == [
        "in sample, lm-arena-chat, batch 0 to 16",
        "in sample, lm-arena-chat, batch 16 to 64",
    ]
    assert nlr.rows[0][1].startswith("20.0") and "(0%)" in nlr.rows[0][1]
    assert [row[0] for row in rates.rows] == ["8", "64", "512"]


def test_the_summary_counts_only_what_nothing_was_fitted_to(outcome):
    text = twin_tables.summary(outcome)
    assert text.startswith("Median errors on 12 ML.ENERGY runs that nothing was fitted to")
    assert "On the 3 runs that the twin's tables were fitted to: ITL p50 0%" in text and "80% to 90%" in text


def test_json_has_no_nan(outcome):
    found = json.loads(json.dumps(twin_tables.to_dict(outcome), allow_nan=False))
    assert len(found["rows"]) == len(outcome.rows) and found["scores"][0]["median_low"] is None


def test_the_picture_is_written(outcome, tmp_path):
    assert twin_tables.picture(outcome, tmp_path / "new").stat().st_size > 10_000


def test_biases_are_signed(outcome):
    fitted = outcome.rows[(outcome.rows["split"] == IN) & (outcome.rows["method"] == VARIED)]
    assert twin_measured.biases(fitted, (ITL,)) == [pytest.approx((0.0, 0.0, 0.0), abs=1e-12)]


def test_the_command_needs_data(tmp_path):
    answer = CliRunner().invoke(main.app, ["evaluate", "twin", "--data", str(tmp_path)])
    assert answer.exit_code == 1 and "ml-energy" in answer.output


@pytest.mark.data
def test_the_measured_runs_that_the_twin_can_play(data_folder):
    found = twin_measured.chosen_runs(data.load_ml_energy(data_folder))
    assert found["split"].value_counts().to_dict() == {IN: 23, SIBLING: 11, LISTED: 31, NAMED: 28}
    assert (found.loc[found["split"] == IN, "task"] == "lm-arena-chat").all()
