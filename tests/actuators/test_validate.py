import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattkeeper.actuators.validate import check_startup
from wattkeeper.domain.engine import EngineSettings


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_num_seqs": 0}, "at least 1"),
        ({"max_num_batched_tokens": -5}, "at least 1"),
        ({"kv_cache_memory_bytes": 0}, "at least 1"),
        ({"gpu_memory_utilization": 0.0}, "above 0"),
        ({"gpu_memory_utilization": 1.01}, "at most 1"),
        ({"gpu_memory_utilization": float("nan")}, "above 0"),
        ({"block_size": 24, "vllm_version": (0, 11)}, "this vLLM takes"),
        ({"max_num_batched_tokens": 128, "max_num_seqs": 256}, "below max_num_seqs"),
        ({"max_num_batched_tokens": 128}, "set max_num_seqs too"),
        ({"max_num_batched_tokens": 128, "vllm_version": (0, 9)}, "set max_num_seqs too"),
        ({"max_num_seqs": 4096}, "set max_num_batched_tokens too"),
        ({"max_num_batched_tokens": 4096, "max_model_len": 8192, "enable_chunked_prefill": False}, "chunked prefill"),
        ({"max_num_seqs": 8, "max_num_active_seqs": 16}, "above max_num_seqs"),
    ],
)
def test_what_keeps_vllm_from_starting(fields, words):
    problems = check_startup(EngineSettings(**fields))
    assert len(problems) == 1 and words in problems[0]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_num_batched_tokens": 256, "max_num_seqs": 256, "gpu_memory_utilization": 1.0, "block_size": 16},
        {"max_num_batched_tokens": 128, "vllm_version": (0, 11)},
        {"max_num_batched_tokens": 512, "max_model_len": 131072, "enable_chunked_prefill": True},
        {"max_num_batched_tokens": 512, "max_model_len": 131072},
        {"block_size": 48, "vllm_version": (0, 33)},
        {"block_size": 48},
    ],
)
def test_what_does_not(fields):
    assert check_startup(EngineSettings(**fields)) == []


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.sampled_from([16, 32, 128]))
def test_one_request_must_fit(memory_mib, length, block):
    """As the engine counts: whole blocks of KV cache hold whole blocks of the longest request."""
    bytes_per_token = 131072.0
    settings = EngineSettings(kv_cache_memory_bytes=memory_mib * 2**20, max_model_len=length, block_size=block)
    fits = (memory_mib * 2**20) // int(bytes_per_token * block) >= -(-length // block)
    assert (check_startup(settings, kv_bytes_per_token=bytes_per_token) == []) is fits
    assert check_startup(settings) == []
