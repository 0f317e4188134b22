"""KV memory: what a sequence holds on each GPU as a function of its context, and how many tokens fit.

Per layer that keeps every token, a token takes max(1, kv_heads / TP) * (key_dim + value_dim) * dtype bytes; MLA keeps
one latent vector on every rank. Sliding windows and chunks stop growing at their window, states of Mamba and linear
attention are constant, layers that share another's cache hold nothing. Layers are divided among pipeline stages; data
parallel ranks hold their own sequences. Where a model mixes kinds, vLLM pads each kind to a multiple of the smallest
one, so that one pool of equal blocks serves all. What a running engine reports in `vllm:cache_config_info` always wins.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.observation import KvCacheInfo
from wattkeeper.domain.workload import FloatArray
from wattkeeper.physics.architecture import Cache, CacheGroup, ModelSpec
from wattkeeper.physics.profile import GpuSpec, ServingProfile

OVERHEAD_BYTES = 3.5e9
OVERHEAD_SHARE = 0.03
"""Activations, CUDA graphs and library buffers: an allowance, from start-up logs of 8B and 70B models."""
NOMINAL_CONTEXT_TOKENS = 4096.0
"""Where one number of bytes per token must stand for windows and constants as well, it is that of this context."""
BLOCK_TOKENS = 16
"""vLLM's usual block. A window holds up to one block more than itself."""
STATE_BYTES = 4.0
"""Per value of a state: float32, as most configurations ask; bf16 states take half."""
_FP8_LATENT_BYTES = 656.0
"""Of fp8_ds_mla: 512 values in fp8, 4 scales in float32, 64 rope values in bf16."""
_NEARLY_EQUAL = 1.25
"""Kinds whose layer counts differ by less are padded to the larger one."""

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


@dataclass(frozen=True, kw_only=True)
class KvDemand:
    """Bytes that one sequence holds on one GPU, as a function of its context."""

    growing_bytes: float
    """Per token, without an end."""
    windows: tuple[tuple[float, float], ...] = ()
    """(bytes per token, tokens at which it stops growing)."""
    constant_bytes: float = 0.0
    """Per sequence."""

    @property
    def plain(self) -> bool:
        """True where memory is proportional to the context."""
        return not self.windows and self.constant_bytes == 0.0

    def sequence_bytes(self, context_tokens: npt.ArrayLike) -> FloatArray:
        """Bytes of one sequence of this context; shape of `context_tokens`."""
        tokens = np.asarray(context_tokens, dtype=np.float64)
        held = self.growing_bytes * tokens + self.constant_bytes
        for per_token, window in self.windows:
            held = held + per_token * np.minimum(tokens, window + BLOCK_TOKENS)
        return np.asarray(held)

    def bytes_per_token(self, context_tokens: float = NOMINAL_CONTEXT_TOKENS) -> float:
        """Mean bytes per token of a sequence of this context."""
        return float(self.sequence_bytes(context_tokens)) / context_tokens

    def step_bytes(self, context_tokens: npt.ArrayLike) -> FloatArray:
        """Bytes that a decode step moves for one sequence: windows read, states read and written."""
        tokens = np.asarray(context_tokens, dtype=np.float64)
        moved = self.growing_bytes * tokens + 2.0 * self.constant_bytes
        for per_token, window in self.windows:
            moved = moved + per_token * np.minimum(tokens, window)
        return np.asarray(moved)


def demand(
    model: ModelSpec, *, tensor_parallel: int, pipeline_parallel: int = 1, kv_cache_dtype: str | None = None
) -> KvDemand:
    """What a sequence of `model` holds on one GPU of a replica. Data parallel ranks divide sequences, not layers."""
    groups = [group for group in model.groups if group.cache is not Cache.SHARED]
    slots = _padded_layers(groups)
    growing, constant, windows = 0.0, 0.0, []
    for group, layers in zip(groups, slots, strict=True):
        on_stage = layers / pipeline_parallel
        if group.cache is Cache.STATE:
            constant += on_stage * group.state_values * STATE_BYTES / tensor_parallel
            continue
        per_token = on_stage * _layer_bytes(group, tensor_parallel, kv_cache_dtype)
        if group.grows:
            growing += per_token
        else:
            windows.append((per_token, float(group.window)))
    return KvDemand(growing_bytes=growing, windows=tuple(windows), constant_bytes=constant)


def bytes_per_token(
    model: ModelSpec, *, tensor_parallel: int, pipeline_parallel: int, kv_cache_dtype: str | None
) -> float:
    """KV bytes of one token on one GPU, at `NOMINAL_CONTEXT_TOKENS` where it depends on the context."""
    return demand(
        model,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
        kv_cache_dtype=kv_cache_dtype,
    ).bytes_per_token()


def _layer_bytes(group: CacheGroup, tensor_parallel: int, kv_cache_dtype: str | None) -> float:
    """Of one token in one layer on one GPU."""
    if group.cache is Cache.LATENT:
        packed = (kv_cache_dtype or "").lower() == "fp8_ds_mla"
        latent = _FP8_LATENT_BYTES if packed else group.latent_dim * dtype_bytes(kv_cache_dtype)
        return latent + group.indexer_bytes
    heads = max(1.0, group.kv_heads / tensor_parallel)
    return heads * (group.key_dim + group.value_dim) * dtype_bytes(kv_cache_dtype)


def _padded_layers(groups: list[CacheGroup]) -> list[int]:
    """Layers of each group as vLLM allocates them: equal pools need equal numbers of layers."""
    counts = [group.layers for group in groups]
    if len(counts) < 2:
        return counts
    size = max(counts) if max(counts) < _NEARLY_EQUAL * min(counts) else min(counts)
    return [math.ceil(count / size) * size for count in counts]


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


def capacity_tokens(
    profile: ServingProfile,
    engine: EngineSettings,
    live: KvCacheInfo | None,
    *,
    context: KvDemand | None = None,
    context_tokens: float = NOMINAL_CONTEXT_TOKENS,
) -> float:
    """KV tokens that one replica holds with these settings.

    `live` is what a running engine with the same memory settings reports (pass None for settings not rolled out yet);
    it wins, rescaled where its KV dtype is another. `profile` must be built for the engine's KV dtype. With `context`
    (the model's demand) an estimate holds for sequences of `context_tokens` on average instead of the nominal context.
    """
    if live is not None:
        tokens = _live_tokens(live)
        if tokens is not None:
            if live.cache_dtype is not None and engine.kv_cache_dtype is not None:
                tokens *= dtype_bytes(live.cache_dtype) / dtype_bytes(engine.kv_cache_dtype)
            return tokens
    scale = 1.0 if context is None else profile.kv_bytes_per_token / context.bytes_per_token(context_tokens)
    if engine.kv_cache_memory_bytes is not None:
        return scale * engine.kv_cache_memory_bytes / profile.kv_bytes_per_token * engine.data_parallel_size
    if engine.gpu_memory_utilization is None:
        return scale * profile.kv_capacity_tokens
    change = engine.gpu_memory_utilization - default_memory_utilisation(engine)
    extra = profile.gpu.memory_bytes * change / profile.kv_bytes_per_token * engine.data_parallel_size
    return scale * max(profile.kv_capacity_tokens + extra, 0.0)


def _live_tokens(live: KvCacheInfo) -> float | None:
    if live.size_tokens is not None:
        return float(live.size_tokens)
    if live.num_gpu_blocks is not None and live.block_size is not None:
        return float(max(live.num_gpu_blocks - 1, 0) * live.block_size)  # one block is vLLM's null block
    return None
