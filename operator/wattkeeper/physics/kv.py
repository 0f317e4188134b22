"""KV memory: bytes per token and how many tokens fit.

bytes per token and GPU = layers/PP * max(1, kv_heads/TP) * 2 * head_dim * dtype bytes (K and V); MLA keeps one latent
vector per token and layer on every rank. This is vLLM's own rule for full attention; hybrid and sliding-window models
differ, so what a running engine reports in `vllm:cache_config_info` always wins.
"""

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.observation import KvCacheInfo
from wattkeeper.physics.catalogue import Attention, ModelSpec
from wattkeeper.physics.profile import GpuSpec, ServingProfile

OVERHEAD_BYTES = 3.5e9
OVERHEAD_SHARE = 0.03
"""Activations, CUDA graphs and library buffers: an allowance, from start-up logs of 8B and 70B models."""

_NEW_DEFAULT_UTILISATION = 0.92
_OLD_DEFAULT_UTILISATION = 0.90
_FIRST_VERSION_WITH_NEW_DEFAULT = (0, 20)


def dtype_bytes(kv_cache_dtype: str | None) -> float:
    """Bytes of one KV element; unknown and "auto" are 2 (bf16)."""
    name = (kv_cache_dtype or "auto").lower()
    if name.startswith(("fp8", "int8")):
        return 1.0
    if name.startswith(("nvfp4", "int4")):
        return 0.5625  # 4 bits and one 8-bit scale per 16 elements
    return 2.0


def bytes_per_token(
    model: ModelSpec, *, tensor_parallel: int, pipeline_parallel: int, kv_cache_dtype: str | None
) -> float:
    """KV bytes of one token on one GPU."""
    layers = model.kv_layers / pipeline_parallel
    if model.attention is Attention.MLA:
        return layers * model.kv_latent_dim * dtype_bytes(kv_cache_dtype)
    return layers * max(1.0, model.kv_heads / tensor_parallel) * 2 * model.head_dim * dtype_bytes(kv_cache_dtype)


def default_memory_utilisation(engine: EngineSettings) -> float:
    """The default of --gpu-memory-utilization in this vLLM version (the older, smaller one where unknown)."""
    if engine.vllm_version is not None and engine.vllm_version >= _FIRST_VERSION_WITH_NEW_DEFAULT:
        return _NEW_DEFAULT_UTILISATION
    return _OLD_DEFAULT_UTILISATION


def roofline_capacity_tokens(
    gpu: GpuSpec, *, weight_bytes_per_gpu: float, kv_bytes_per_token: float, memory_utilisation: float
) -> float:
    """Tokens that fit beside the weights on each GPU of the group; 0 where the weights do not fit."""
    free = gpu.memory_bytes * (memory_utilisation - OVERHEAD_SHARE) - OVERHEAD_BYTES - weight_bytes_per_gpu
    return max(free, 0.0) / kv_bytes_per_token


def capacity_tokens(profile: ServingProfile, engine: EngineSettings, live: KvCacheInfo | None) -> float:
    """KV tokens that one replica holds with these settings.

    `live` is what a running engine with the same memory settings reports (pass None for settings not rolled out yet);
    it wins, rescaled where its KV dtype is another. `profile` must be built for the engine's KV dtype.
    """
    if live is not None:
        tokens = _live_tokens(live)
        if tokens is not None:
            if live.cache_dtype is not None and engine.kv_cache_dtype is not None:
                tokens *= dtype_bytes(live.cache_dtype) / dtype_bytes(engine.kv_cache_dtype)
            return tokens
    if engine.kv_cache_memory_bytes is not None:
        return engine.kv_cache_memory_bytes / profile.kv_bytes_per_token * engine.data_parallel_size
    if engine.gpu_memory_utilization is None:
        return profile.kv_capacity_tokens
    change = engine.gpu_memory_utilization - default_memory_utilisation(engine)
    extra = profile.gpu.memory_bytes * change / profile.kv_bytes_per_token * engine.data_parallel_size
    return max(profile.kv_capacity_tokens + extra, 0.0)


def _live_tokens(live: KvCacheInfo) -> float | None:
    if live.size_tokens is not None:
        return float(live.size_tokens)
    if live.num_gpu_blocks is not None and live.block_size is not None:
        return float(max(live.num_gpu_blocks - 1, 0) * live.block_size)  # one block is vLLM's null block
    return None
