"""What a sequence holds, for every kind of layer that vLLM serves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.observation import KvCacheInfo
from wattkeeper.physics import catalogue, kv
from wattkeeper.physics.architecture import Cache, CacheGroup
from wattkeeper.physics.profiles import serving_profile

TOKENS = st.integers(1, 1_000_000)
DTYPES = st.sampled_from([None, "auto", "fp8", "fp8_e5m2"])


def held(name, tokens, **changes):
    settings = {"tensor_parallel": 1, "pipeline_parallel": 1, "kv_cache_dtype": None, **changes}
    return float(kv.demand(catalogue.model(name), **settings).sequence_bytes(tokens))


def test_grouped_and_multi_head_attention():
    assert held("meta-llama/Llama-3.1-8B-Instruct", 1000) == 1000 * 32 * 8 * 2 * 128 * 2
    assert held("meta-llama/Llama-2-7b-chat-hf", 1000) == 1000 * 32 * 32 * 2 * 128 * 2
    assert held("meta-llama/Llama-3.1-8B-Instruct", 1000, pipeline_parallel=4) == 1000 * 8 * 8 * 2 * 128 * 2


def test_a_single_kv_head_is_on_every_rank():
    assert held("Qwen/Qwen3-Next-80B-A3B-Instruct", 10**6, tensor_parallel=8) > held(
        "Qwen/Qwen3-Next-80B-A3B-Instruct", 10**6, tensor_parallel=2
    ) - held("Qwen/Qwen3-Next-80B-A3B-Instruct", 0, tensor_parallel=2)


def test_latents_are_replicated_and_have_their_own_eight_bit_form():
    deepseek = "deepseek-ai/DeepSeek-V3"
    assert held(deepseek, 1000, tensor_parallel=8) == held(deepseek, 1000) == 1000 * 61 * 576 * 2
    assert held(deepseek, 1000, kv_cache_dtype="fp8") == 1000 * 61 * 576
    assert held(deepseek, 1000, kv_cache_dtype="fp8_ds_mla") == 1000 * 61 * 656
    assert held("deepseek-ai/DeepSeek-V3.2", 1000) == 1000 * 61 * (576 * 2 + 132)


def test_windows_stop_growing():
    mistral = "mistralai/Mistral-7B-v0.1"
    assert held(mistral, 4000) == 4000 * 131_072
    assert held(mistral, 32_000) == (4096 + 16) * 131_072


def test_local_layers_are_padded_to_multiples_of_the_global_ones():
    """Gemma 3 27B: 52 layers of a 1,024-token window become 60 beside 10 full ones."""
    per_layer = 16 * 2 * 128 * 2
    assert held("google/gemma-3-27b-it", 100_000) == per_layer * (10 * 100_000 + 60 * (1024 + 16))
    assert held("google/gemma-3-27b-it", 100_000, tensor_parallel=4) == held("google/gemma-3-27b-it", 100_000) / 4


def test_windows_may_have_heads_of_their_own():
    """MiMo-V2-Flash: 9 full layers of 4 KV heads, 39 windows of 128 tokens of 8 (padded to 45)."""
    full, window = 9 * 4 * (192 + 128) * 2, 45 * 8 * (192 + 128) * 2
    assert held("XiaomiMiMo/MiMo-V2-Flash", 10_000) == full * 10_000 + window * (128 + 16)


def test_chunks_hold_at_most_one_chunk():
    scout = "meta-llama/Llama-4-Scout-17B-16E-Instruct"
    per_layer = 8 * 2 * 128 * 2
    assert held(scout, 8000) == per_layer * 48 * 8000
    assert held(scout, 100_000) == per_layer * (12 * 100_000 + 36 * (8192 + 16))


def test_states_do_not_grow():
    """Nemotron Nano 9B v2: 27 Mamba-2 layers, padded to 28 beside 4 of attention."""
    inner = 128 * 80
    state = ((inner + 2 * 8 * 128) * 3 + inner * 128) * 4
    name = "nvidia/NVIDIA-Nemotron-Nano-9B-v2"
    assert held(name, 0) == 28 * state
    assert held(name, 1000) - held(name, 0) == 1000 * 4 * 8 * 2 * 128 * 2
    assert held(name, 0, tensor_parallel=2) == 14 * state
    assert held(name, 0, kv_cache_dtype="fp8") == held(name, 0)


def test_layers_that_share_a_cache_hold_nothing():
    gemma = catalogue.model("google/gemma-3n-E4B-it")
    assert sum(group.layers for group in gemma.groups) == gemma.layers
    assert held(gemma.name, 100) == 100 * 20 * 2 * 2 * 256 * 2


def test_reads_of_a_step_follow_what_is_kept():
    demand = kv.demand(catalogue.model("google/gemma-3-27b-it"), tensor_parallel=1)
    assert float(demand.step_bytes(500)) == float(demand.sequence_bytes(500))
    assert float(demand.step_bytes(50_000)) < float(demand.sequence_bytes(50_000))
    hybrid = kv.demand(catalogue.model("nvidia/NVIDIA-Nemotron-Nano-9B-v2"), tensor_parallel=1)
    assert float(hybrid.step_bytes(0)) == 2 * float(hybrid.sequence_bytes(0))  # read and written


@given(
    model=st.sampled_from(catalogue.models()), tp=st.sampled_from([1, 2, 4, 8, 16]), pp=st.sampled_from([1, 2, 4]),
    dtype=DTYPES, first=TOKENS, second=TOKENS,
)  # fmt: skip
@settings(deadline=None)
def test_memory_never_falls_with_the_context_nor_rises_with_more_gpus(model, tp, pp, dtype, first, second):
    demand = kv.demand(model, tensor_parallel=tp, pipeline_parallel=pp, kv_cache_dtype=dtype)
    short, long = sorted((first, second))
    low, high = (float(each) for each in demand.sequence_bytes(np.array([short, long])))
    assert 0 < low <= high
    assert demand.bytes_per_token(long) <= demand.bytes_per_token(short) * (1 + 1e-12)
    whole = float(kv.demand(model, tensor_parallel=1, kv_cache_dtype=dtype).sequence_bytes(long))
    assert whole / (tp * pp) * (1 - 1e-9) <= high <= whole / pp * (1 + 1e-9)


@given(
    groups=st.lists(
        st.tuples(st.sampled_from([Cache.FULL, Cache.SLIDING, Cache.STATE]), st.integers(1, 80)), min_size=1, max_size=3
    )
)
@settings(deadline=None)
def test_padding_makes_equal_pools_and_adds_less_than_a_pool_per_kind(groups):
    made = [CacheGroup(cache=cache, layers=layers) for cache, layers in groups]
    slots = kv._padded_layers(made)
    assert all(group.layers <= count for group, count in zip(made, slots, strict=True))
    if len(made) > 1:
        size = min(slots)
        assert all(count % size == 0 and count - group.layers < size for group, count in zip(made, slots, strict=True))


def test_capacity_depends_on_the_context_only_where_memory_does():
    engine = EngineSettings()
    for name, grows in (("Qwen/Qwen3-8B", False), ("google/gemma-3-12b-it", True), ("Qwen/Qwen3.5-27B", True)):
        profile = serving_profile(model=name, accelerator="b200", gpus_per_replica=1, engine=engine)
        demand = kv.demand(catalogue.model(name), tensor_parallel=1)
        short, nominal, long = (
            kv.capacity_tokens(profile, engine, None, context=demand, context_tokens=tokens)
            for tokens in (512.0, kv.NOMINAL_CONTEXT_TOKENS, 65_536.0)
        )
        assert nominal == pytest.approx(kv.capacity_tokens(profile, engine, None))
        assert (short < nominal < long) if grows else (short == nominal == long)


def test_a_live_engine_wins_at_any_context():
    engine, demand = EngineSettings(), kv.demand(catalogue.model("google/gemma-3-12b-it"), tensor_parallel=1)
    profile = serving_profile(model="google/gemma-3-12b-it", accelerator="h100", gpus_per_replica=1, engine=engine)
    live = KvCacheInfo(size_tokens=77)
    assert kv.capacity_tokens(profile, engine, live, context=demand, context_tokens=9.0) == 77


def test_data_parallel_ranks_hold_sequences_of_their_own():
    one = serving_profile(
        model="Qwen/Qwen3-8B", accelerator="h100", gpus_per_replica=1, engine=EngineSettings(data_parallel_size=1)
    )
    two = serving_profile(
        model="Qwen/Qwen3-8B", accelerator="h100", gpus_per_replica=2, engine=EngineSettings(data_parallel_size=2)
    )
    assert two.kv_capacity_tokens == pytest.approx(2 * one.kv_capacity_tokens)
    assert two.kv_bytes_per_token == one.kv_bytes_per_token
