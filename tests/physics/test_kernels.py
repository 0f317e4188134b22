"""Kernel tables: made-up ones of known latencies, and the real ones where the data folder has them."""

import numpy as np
import pandas as pd
import pytest

from wattkeeper.domain.errors import DataFileError
from wattkeeper.physics import catalogue, composition, fitting, kernel_checks, kernel_tables
from wattkeeper.physics.fitting import FitError
from wattkeeper.physics.kernel_tables import KernelTables

SIZES = (1, 16, 256, 4096, 65536)


def latency(*sizes):
    return 1e-3 + 1e-9 * np.prod(sizes) ** 0.9


@pytest.fixture
def folder(tmp_path):
    """Tables of an A100: products of all sizes, attention of 8 heads with 2 KV heads."""
    products = [
        {"gemm_dtype": "bfloat16", "m": m, "n": n, "k": k, "latency": latency(m, n, k)}
        for m in SIZES
        for n in SIZES
        for k in SIZES
        if m * n * k < 1e13
    ]
    attention = [
        {
            "batch_size": batch, "isl": 1, "step": context - 1, "num_heads": 8, "num_key_value_heads": 2,
            "head_dim": 128, "kv_cache_dtype": "bfloat16", "latency": latency(batch, context),
        }
        for batch in (1, 8, 64, 512, 2048)
        for context in (16, 512, 16384)
    ]  # fmt: skip
    here = tmp_path / "kernels" / "aiconfigurator-vllm"
    here.mkdir(parents=True)
    name = "a100_sxm__{}__vllm__0.14.0__{}_perf.parquet"
    pd.DataFrame(products).to_parquet(here / name.format("gemm", "gemm"))
    for kind in ("generation_attention", "context_attention"):
        pd.DataFrame(attention).to_parquet(here / name.format("attention", kind))
    return tmp_path


def test_measured_sizes_come_back_and_others_lie_between(folder):
    tables = KernelTables(folder, "nvidia-a100-sxm")
    found = tables.matrix_product(np.array([16.0, 60.0, 256.0]), columns=4096, inner=256)
    np.testing.assert_allclose(found[[0, 2]], [latency(16, 4096, 256) * 1e-3, latency(256, 4096, 256) * 1e-3])
    assert found[0] < found[1] < found[2]


def test_sizes_beyond_the_table_and_gaps_in_it_take_time_in_proportion(folder):
    tables = KernelTables(folder, "nvidia-a100-sxm")
    rows = np.array([4096.0])
    largest = tables.matrix_product(rows, columns=65536, inner=256)
    assert tables.matrix_product(rows, columns=131072, inner=256) == pytest.approx(2 * largest)
    assert tables.matrix_product(rows * 16, columns=65536, inner=65536) > 10 * tables.matrix_product(
        rows, columns=65536, inner=4096
    )


def test_more_heads_than_measured_are_more_sequences(folder):
    tables = KernelTables(folder, "nvidia-a100-sxm")
    context = np.array([512.0])
    few = tables.decode_attention(np.array([64.0]), context, heads=8, kv_heads=2, head_dim=128)
    many = tables.decode_attention(np.array([16.0]), context, heads=32, kv_heads=8, head_dim=128)
    assert many == pytest.approx(few)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"heads": 12, "kv_heads": 4, "head_dim": 128}, "no attention with 12 heads, 4 KV heads"),
        ({"heads": 8, "kv_heads": 2, "head_dim": 64}, "of 64 per GPU"),
        ({"heads": 8, "kv_heads": 2, "head_dim": 128, "window": 128}, "window 128"),
    ],
)
def test_shapes_nobody_measured_are_refused(folder, shape, message):
    with pytest.raises(DataFileError, match=message):
        KernelTables(folder, "nvidia-a100-sxm").decode_attention(np.ones(1), np.ones(1), **shape)


def test_missing_tables_say_what_to_do(folder, tmp_path):
    with pytest.raises(DataFileError, match="no kernel tables of nvidia-l4"):
        KernelTables(folder, "nvidia-l4")
    with pytest.raises(DataFileError, match="is missing: `wattkeeper data fetch aiconfigurator-times"):
        KernelTables(folder, "nvidia-h100-sxm").matrix_product(np.ones(1), columns=1, inner=1)
    with pytest.raises(DataFileError, match="no matrix products in fp8"):
        KernelTables(folder, "nvidia-a100-sxm").matrix_product(np.ones(1), columns=1, inner=1, dtype="fp8")
    with pytest.raises(DataFileError, match="no table of routed experts"):
        KernelTables(folder, "nvidia-a100-sxm").experts(
            np.ones(1), hidden=1, intermediate=1, experts=1, per_token=1, shards=1
        )


def test_a_foreign_file_is_refused(folder):
    path = folder / "kernels/aiconfigurator-vllm/a100_sxm__gemm__vllm__0.14.0__gemm_perf.parquet"
    pd.DataFrame({"other": [1.0]}).to_parquet(path)
    kernel_tables._read.cache_clear()
    with pytest.raises(DataFileError, match="column latency is missing"):
        KernelTables(folder, "nvidia-a100-sxm").matrix_product(np.ones(1), columns=1, inner=1)
    pd.DataFrame({"latency": [1.0]}).to_parquet(path)
    kernel_tables._read.cache_clear()
    with pytest.raises(DataFileError, match="columns gemm_dtype"):
        KernelTables(folder, "nvidia-a100-sxm").matrix_product(np.ones(1), columns=1, inner=1)
    path.write_bytes(b"no parquet")
    kernel_tables._read.cache_clear()
    with pytest.raises(DataFileError, match="cannot be read"):
        KernelTables(folder, "nvidia-a100-sxm").matrix_product(np.ones(1), columns=1, inner=1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"latency": 0.0}, "latency is missing, zero"),
        ({"latency": float("nan")}, "latency is missing, zero"),
        ({"latency": 5e4}, "latency is absurd in milliseconds"),
        ({"latency": 1e-3}, "faster than the card can compute"),
        ({"latency": 9000.0}, "a hundred times as long as the card needs"),
        ({"n": 0}, "m, n or k is missing, zero"),
        ({"power": 0.4}, "kilowatts"),
        ({"power": 1200.0}, "over the limit of the card"),
        ({"power_limit": 600.0}, "power_limit is not the 700 W"),
    ],
)
def test_rows_that_no_card_can_measure_are_named(change, reason):
    good = {
        "gemm_dtype": "bfloat16", "m": 16384, "n": 16384, "k": 16384, "latency": 12.0, "power": 650.0,
        "power_limit": 700.0,
    }  # fmt: skip
    gpu = catalogue.gpu("nvidia-h200-sxm")
    assert kernel_checks.reasons(pd.DataFrame([good, good]), gpu) == {}
    found = kernel_checks.reasons(pd.DataFrame([good, good | change, good | change]), gpu)
    assert list(found) == [1, 2]
    assert reason in found[1]


def test_an_impossible_row_stops_a_fit(folder):
    path = folder / "kernels/aiconfigurator-vllm/a100_sxm__gemm__vllm__0.14.0__gemm_perf.parquet"
    frame = pd.read_parquet(path)
    frame.loc[[3, 5], "latency"] = -1.0
    frame.to_parquet(path)
    kernel_tables._read.cache_clear()
    with pytest.raises(DataFileError, match=r"row 4: latency is missing, .* \(and 1 more rows\): copy the table anew"):
        KernelTables(folder, "nvidia-a100-sxm").matrix_product(np.ones(1), columns=1, inner=1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.5", "-0.5", "row 2: time_stats.mlp_act.median is missing"),
        ("num_tokens", "tokens", "columns num_tokens are"),
    ],
)
def test_vidurs_files_are_checked(tmp_path, old, new, message):
    columns = [*composition._VIDUR_COLUMNS, "num_tokens", "num_tensor_parallel_workers"]
    frame = pd.DataFrame([dict.fromkeys(columns, 1)] * 2).astype({"time_stats.mlp_act.median": float})
    frame.loc[1, "time_stats.mlp_act.median"] = 0.5
    path = tmp_path / "kernels/vidur-mlp/mlp_a100_Llama-2-7b-hf.csv"
    path.parent.mkdir(parents=True)
    frame.to_csv(path, index=False)
    found = composition.vidur_linear(tmp_path, "meta-llama/Llama-2-7b-chat-hf", "nvidia-a100-sxm", 1)
    assert found.loc[1] == pytest.approx(8.75e-3)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataFileError, match=message):
        composition.vidur_linear(tmp_path, "meta-llama/Llama-2-7b-chat-hf", "nvidia-a100-sxm", 1)


def test_more_gpus_shorten_a_composed_step(folder):
    tables = KernelTables(folder, "nvidia-a100-sxm")
    model = catalogue.model("meta-llama/Llama-3.1-8B-Instruct")
    work = (np.array([0.0, 2048.0]), np.array([64.0, 0.0]), np.array([512.0, 512.0]))
    one, four = (composition.Composition(model=model, tables=tables, shards=n).seconds(*work) for n in (1, 4))
    assert (four < one).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deepseek-ai/DeepSeek-V3", "latent layers"),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", "state layers"),
        ("Qwen/Qwen3-32B-AWQ", "no measured kernels in int4"),
    ],
)
def test_architectures_without_measured_kernels_are_refused(folder, name, message):
    with pytest.raises(FitError, match=message):
        composition.Composition(model=catalogue.model(name), tables=KernelTables(folder, "nvidia-a100-sxm"), shards=1)


def test_a_model_that_does_not_fit_is_refused(folder):
    made = composition.Composition(
        model=catalogue.model("Qwen/Qwen2.5-72B-Instruct"), tables=KernelTables(folder, "nvidia-a100-sxm"), shards=1
    )
    with pytest.raises(FitError, match="does not fit 1 GPUs"):
        made.rows()


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "accelerator", "gpus"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "nvidia-h100-sxm", 1),
        ("meta-llama/Llama-3.1-70B-Instruct", "nvidia-h200-sxm", 4),
        ("Qwen/Qwen3-32B", "nvidia-b200", 1),
        ("meta-llama/Llama-2-7b-chat-hf", "nvidia-a100-sxm", 1),
    ],
)
def test_real_kernels_are_described_by_the_mixed_form(data_folder, name, accelerator, gpus):
    made = composition.Composition(
        model=catalogue.model(name), tables=KernelTables(data_folder, accelerator), shards=gpus
    )
    found = fitting.fit(made.rows())
    assert found.mape < 0.06
    assert found.r_squared > 0.98
    assert all(term.value > 0 for term in found.terms.values())


@pytest.mark.data
def test_vidurs_linear_layers_lie_near_the_matrix_products(data_folder):
    model, tables = catalogue.model("meta-llama/Llama-2-7b-chat-hf"), KernelTables(data_folder, "nvidia-h100-sxm")
    linear = composition.vidur_linear(data_folder, model.name, "nvidia-h100-sxm", 1)
    plain = fitting.fit(composition.Composition(model=model, tables=tables, shards=1).rows())
    vidur = fitting.fit(composition.Composition(model=model, tables=tables, shards=1, linear=linear).rows())
    assert vidur.value("d0") == pytest.approx(plain.value("d0"), rel=0.1)
    with pytest.raises(DataFileError, match="vidur has no linear layers of"):
        composition.vidur_linear(data_folder, "Qwen/Qwen3-8B", "nvidia-h100-sxm", 1)
