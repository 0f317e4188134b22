import numpy as np
import pandas as pd
import pytest

from wattkeeper.domain.errors import DataFileError
from wattkeeper.energy import data, estimate, learned, own_rows, terms
from wattkeeper.energy.row_checks import RefusedRowsError

GOOD = {
    "model": "acme/Foo-13B-Instruct", "gpu": "nvidia-h100-sxm", "num_gpus": 2, "weight_precision": "bfloat16",
    "batch": 8, "prompt_tokens": 300, "output_tokens": 200, "tokens_per_second": 400, "inter_token_seconds": 0.02,
    "gpu_watts": 400,
}  # fmt: skip


def write(tmp_path, *rows):
    path = tmp_path / "runs.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_a_bare_row_is_completed(tmp_path):
    table = own_rows.read(write(tmp_path, GOOD))
    assert tuple(table.columns) == data.RUN_COLUMNS
    row = table.iloc[0]
    assert row["joules_per_token"] == pytest.approx(2.0)
    assert row["group_curve"] == "acme/Foo-13B-Instruct|own|nvidia-h100-sxm|2|2"
    assert (row["group_backbone"], row["group_rate"], row["source"]) == ("foo-13b", "not given", "own")
    assert np.isnan(row["node_watts"])
    assert not row["prompt_assumed"]


def test_ranks_of_replicas_in_one_are_derived(tmp_path):
    row = own_rows.read(write(tmp_path, GOOD | {"num_gpus": 4, "data_parallel": 2})).iloc[0]
    assert (row["tensor_parallel"], row["data_parallel"]) == (2.0, 2.0)


def test_names_of_cards_as_dcgm_says_them(tmp_path):
    assert own_rows.read(write(tmp_path, GOOD | {"gpu": "NVIDIA H100 80GB HBM3"}))["gpu"].iloc[0] == "nvidia-h100-sxm"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gpu_watts": 800}, "over the rated power"),
        ({"gpu_watts": 0.4}, "below those of an idle card"),
        ({"gpu_watts": "400 W"}, "gpu_watts is '400 W', not a bare number"),
        ({"gpu_watts": ""}, "one of them is needed"),
        ({"gpu_watts": -400}, "gpu_watts is zero, negative"),
        ({"gpu_watts": "inf"}, "not finite"),
        ({"node_watts": 1000}, "do not mix"),
        ({"gpu_watts": "", "node_watts": 9000}, "more cards"),
        ({"output_tokens": 0}, "output_tokens is missing, zero"),
        ({"tokens_per_second": "nan"}, "tokens_per_second is missing"),
        ({"inter_token_seconds": 20}, "milliseconds"),
        ({"inter_token_seconds": 0.0002}, "far from tokens_per_second"),
        ({"joules_per_token": 1.0}, "is not the power of all cards"),
        ({"prefix_hit_ratio": 60}, "no share of the prompt tokens"),
        ({"prefix_hit_ratio": -0.1}, "no share of the prompt tokens"),
        ({"prefix_hit_ratio": 1}, "no share of the prompt tokens"),
        ({"gpu": "abacus-9"}, "no accelerator of the catalogue"),
        ({"model": ""}, "model is empty"),
        ({"model": "acme/foo"}, "model 'acme/foo' is not in the catalogue"),
        ({"weight_precision": "fp8"}, "by its name the model has bf16"),
        ({"weight_precision": "b16"}, "weight_precision is 'b16', none of bfloat16"),
        ({"num_gpus": 1.5}, "whole numbers"),
        ({"num_gpus": 3, "data_parallel": 2}, "whole numbers"),
        ({"tensor_parallel": 8}, "does not divide num_gpus"),
    ],
)
def test_impossible_rows_are_refused_with_file_row_and_reason(tmp_path, change, reason):
    path = write(tmp_path, GOOD, GOOD | change)
    table, refused = own_rows.scan(path)
    assert len(table) == 1
    assert [each.row for each in refused] == [2]
    assert reason in refused[0].reason
    with pytest.raises(RefusedRowsError, match=r"runs\.csv, row 2: "):
        own_rows.read(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD | {"gpu_wats": 1}], "unknown columns gpu_wats; known are source"),
        ([{k: v for k, v in GOOD.items() if k != "batch"}], "columns batch are missing"),
        ([{k: v for k, v in GOOD.items() if k != "gpu_watts"}], "one of the columns gpu_watts"),
    ],
)
def test_columns(tmp_path, rows, message):
    with pytest.raises(DataFileError, match=message):
        own_rows.read(write(tmp_path, *rows))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"a,b\n1,2,3\n4\n", b"\n\n"])
def test_what_is_no_table(tmp_path, content):
    path = tmp_path / "runs.csv"
    path.write_bytes(content)
    with pytest.raises(DataFileError, match=r"runs\.csv"):
        own_rows.read(path)


def test_no_rows_and_no_file(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(",".join(GOOD) + "\n")
    with pytest.raises(DataFileError, match="no rows"):
        own_rows.read(path)
    with pytest.raises(DataFileError, match="cannot be read"):
        own_rows.read(tmp_path / "none.csv")


def test_long_lists_are_shortened_but_complete(tmp_path):
    with pytest.raises(RefusedRowsError, match="and 3 more") as caught:
        own_rows.read(write(tmp_path, *[GOOD | {"output_tokens": 0}] * 8))
    assert len(caught.value.refused) == 8


HIT = GOOD | {"model": "meta-llama/Llama-3.1-8B-Instruct", "num_gpus": 1, "prompt_tokens": 1000, "max_num_seqs": 8,
              "gpu_watts": 300, "tokens_per_second": 400}  # fmt: skip


@pytest.fixture
def hits(tmp_path):
    """The same run, 0, 60 and 99.99 % of its prompt tokens from the prefix cache, and one that does not tell."""
    rows = [HIT | {"prefix_hit_ratio": share} for share in (0.0, 0.6, 0.9999, "")]
    return own_rows.read(write(tmp_path, *rows))


def test_what_the_prefix_cache_had_is_not_computed_but_attended_to(hits):
    (found,) = estimate.closed_loop_runs(hits)
    state = found.points
    assert state.prompt_tokens.tolist() == pytest.approx([1000.0, 400.0, 1.0, 1000.0])
    assert state.prefill_tokens.tolist() == pytest.approx([40.0, 16.0, 0.04, 40.0])
    assert state.kv_tokens[:2].tolist() == [8 * 1100.0] * 2
    assert np.diff(state.step_seconds[:3]).max() < 0.0, "less prefill, shorter steps"
    assert state.step_seconds[3] == state.step_seconds[0]


def test_the_learned_model_sees_the_same_work(hits):
    runs = learned.runs_of(hits)
    read, compute = (runs.term_seconds[:, terms.NAMES.index(name)] for name in ("kv_read", "prefill_compute"))
    assert read[1] == pytest.approx(read[0])
    assert compute[1] == pytest.approx(0.4 * compute[0])
    assert (runs.term_seconds[3] == runs.term_seconds[0]).all()
