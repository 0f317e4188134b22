import pytest

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.errors import UnknownAcceleratorError, UnknownModelError
from wattkeeper.domain.observation import KvCacheInfo
from wattkeeper.physics import catalogue, kv, limits
from wattkeeper.physics.profile import Provenance
from wattkeeper.physics.profiles import ProfileOverrides, serving_profile

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"


def profile(model=LLAMA_8B, accelerator="h100", gpus=1, engine=None, overrides=None):
    engine = engine or EngineSettings(tensor_parallel_size=gpus)
    return serving_profile(
        model=model, accelerator=accelerator, gpus_per_replica=gpus, engine=engine, overrides=overrides
    )


def test_fitted_pair_is_marked_and_sourced():
    found = profile()
    assert found.provenance is Provenance.FITTED
    assert found.iteration.d0_seconds == pytest.approx(6.75e-3)
    assert any("ML.ENERGY" in note for note in found.notes)


def test_other_pairs_are_marked_as_estimates():
    found = profile("Qwen/Qwen3-32B", "l40s", 4)
    assert found.provenance is Provenance.ESTIMATED
    assert found.relative_error >= 0.2
    assert any("roofline" in note for note in found.notes)


def test_a_fit_holds_for_its_own_gpu_count_only():
    assert profile(gpus=4).provenance is Provenance.ESTIMATED


@pytest.mark.parametrize(
    ("model", "gpus", "accelerator"),
    [(LLAMA_8B, 1, "h100"), ("meta-llama/Llama-3.1-70B-Instruct", 4, "h100"), ("meta-llama/Llama-2-7b", 1, "a100")],
)
def test_roofline_lies_near_the_fits(model, gpus, accelerator):
    fitted = profile(model, accelerator, gpus).iteration
    other = profile(model, accelerator, gpus * 2 if gpus == 1 else 8).iteration
    assert fitted.d0_seconds * 0.3 < other.d0_seconds < fitted.d0_seconds * 1.2
    assert other.dt_seconds_per_token < fitted.dt_seconds_per_token


def test_size_in_the_name_gives_a_rough_estimate():
    found = profile("acme/Foo-13B-chat", "a100")
    assert found.provenance is Provenance.ESTIMATED
    assert found.parameters == 13e9
    assert found.relative_error == 0.5
    mixture = profile("acme/Bar-30B-A3B-FP8", "h100")
    assert mixture.activated_parameters == 3e9
    assert mixture.iteration.d0_seconds < profile("acme/Bar-30B", "h100").iteration.d0_seconds


def test_unknown_names_are_refused():
    with pytest.raises(UnknownModelError):
        profile("acme/mystery")
    with pytest.raises(UnknownAcceleratorError):
        profile(accelerator="abacus-9000")


def test_overrides_win_and_a_complete_set_counts_as_measured():
    part = profile(overrides=ProfileOverrides(d0_seconds=5e-3))
    assert part.iteration.d0_seconds == 5e-3
    assert part.provenance is Provenance.FITTED
    whole = profile(
        overrides=ProfileOverrides(
            d0_seconds=5e-3, dt_seconds_per_token=3e-5, dkv_seconds_per_kv_token=1e-7, source="ModelProfile chat/own"
        )
    )
    assert whole.provenance is Provenance.MEASURED
    assert whole.iteration.decode_seconds_per_sequence == 3e-5
    assert whole.notes[-1] == "coefficients of ModelProfile chat/own"


def test_kv_bytes_follow_the_published_rule():
    model = catalogue.model(LLAMA_8B)
    rule = {"pipeline_parallel": 1, "kv_cache_dtype": None}
    assert kv.bytes_per_token(model, tensor_parallel=1, **rule) == 131_072
    assert kv.bytes_per_token(model, tensor_parallel=8, **rule) == 16_384
    assert kv.bytes_per_token(model, tensor_parallel=16, **rule) == 16_384  # at least one head per rank
    assert kv.bytes_per_token(model, tensor_parallel=1, pipeline_parallel=2, kv_cache_dtype="fp8_e4m3") == 32_768
    latent = catalogue.model("deepseek-ai/DeepSeek-V3")
    assert kv.bytes_per_token(latent, tensor_parallel=8, **rule) == 61 * 576 * 2


def test_capacity_prefers_what_the_engine_reports():
    found, engine = profile(), EngineSettings()
    assert kv.capacity_tokens(found, engine, None) == pytest.approx(420_000, rel=0.05)
    assert kv.capacity_tokens(found, engine, KvCacheInfo(size_tokens=123_456)) == 123_456
    assert kv.capacity_tokens(found, engine, KvCacheInfo(num_gpu_blocks=101, block_size=16)) == 1600
    assert kv.capacity_tokens(found, engine, KvCacheInfo()) == kv.capacity_tokens(found, engine, None)


def test_capacity_follows_memory_settings():
    found = profile()
    assert kv.capacity_tokens(found, EngineSettings(kv_cache_memory_bytes=131_072_000), None) == 1000
    more = kv.capacity_tokens(found, EngineSettings(gpu_memory_utilization=0.95), None)
    assert more - found.kv_capacity_tokens == pytest.approx(found.gpu.memory_bytes * 0.05 / 131_072)
    half = EngineSettings(kv_cache_dtype="fp8")
    eight_bit = profile(engine=half)
    assert eight_bit.kv_capacity_tokens == pytest.approx(2 * found.kv_capacity_tokens)
    assert eight_bit.iteration.dkv_seconds_per_kv_token == pytest.approx(found.iteration.dkv_seconds_per_kv_token / 2)
    live = KvCacheInfo(size_tokens=1000, cache_dtype="auto")
    assert kv.capacity_tokens(eight_bit, half, live) == 2000


def test_weights_that_do_not_fit_leave_no_kv():
    found = profile("deepseek-ai/DeepSeek-V3", "l4")
    assert found.kv_capacity_tokens == 0
    assert "the weights do not fit this many GPUs" in found.notes


def test_default_limits_depend_on_the_card():
    engine = EngineSettings()
    expected = {
        "h200": (1024, 8192),
        "b200": (1024, 16_384),
        "h100": (1024, 8192),
        "a100": (256, 2048),
        "l4": (256, 2048),
    }
    for name, (seqs, budget) in expected.items():
        gpu = catalogue.gpu(name)
        assert (limits.max_num_seqs(engine, gpu), limits.max_num_batched_tokens(engine, gpu)) == (seqs, budget)
    assert limits.max_num_seqs(EngineSettings(max_num_seqs=7), catalogue.gpu("l4")) == 7


@pytest.mark.parametrize("gpu", catalogue.gpus(), ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("model", catalogue.models(), ids=lambda model: model.name)
def test_every_pair_gives_a_sane_profile(gpu, model):
    found = profile(model.name, gpu.name, 8)
    numbers = [v for part in (found.iteration, found.energy) for v in vars(part).values() if v is not None]
    assert all(value >= 0 for value in numbers)
    assert found.iteration.d0_seconds > 0
    assert found.energy.idle_watts <= found.energy.static_watts < gpu.tdp_watts
