"""vLLM's own start-up rules, checked before a patch is written.

vLLM finds a violation only when the pod starts, after the old pod may be gone. Rules: vllm/config/scheduler.py
(`verify_max_model_len`), config/cache.py, engine/arg_utils.py (defaults) of the releases 0.8 to 0.33, and the KV cache
check at start ("To serve at least one request with the model's max seq len ...").
"""

import math

from wattkeeper.domain.engine import EngineSettings

SMALLEST_DEFAULT_BATCHED_TOKENS = 2048
"""vLLM's smallest default of max_num_batched_tokens for a server on a GPU (larger cards: 8192, 16384)."""
SMALLEST_DEFAULT_SEQS = 256
"""vLLM's smallest default of max_num_seqs for a server on a GPU (larger cards: 1024)."""
_OLD_BLOCK_SIZES = (1, 8, 16, 32, 64, 128, 256)
_FREE_BLOCK_SIZES_FROM = (0, 17)
"""Releases read up to 0.16 list the sizes they take; 0.18 takes any."""
_CAPPED_SEQS_FROM = (0, 10)
"""From this release on an unset max_num_seqs is lowered to max_num_batched_tokens."""


def check_startup(settings: EngineSettings, *, kv_bytes_per_token: float | None = None) -> list[str]:
    """What would keep vLLM from starting, as sentences; empty: nothing that can be known.

    `kv_bytes_per_token` is per GPU. A setting of None is vLLM's default: only rules that any default could break are
    checked against it.
    """
    return [
        *_ranges(settings),
        *_batching(settings),
        *_kv_cache(settings, kv_bytes_per_token),
    ]


def _ranges(settings: EngineSettings) -> list[str]:
    problems = []
    for name in (
        "max_num_seqs",
        "max_num_active_seqs",
        "max_num_batched_tokens",
        "max_model_len",
        "kv_cache_memory_bytes",
        "block_size",
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "data_parallel_size",
    ):
        value = getattr(settings, name)
        if value is not None and value < 1:
            problems.append(f"{name} is {value}; it must be at least 1")
    share = settings.gpu_memory_utilization
    if share is not None and not (math.isfinite(share) and 0 < share <= 1):
        problems.append(f"gpu_memory_utilization is {share}; it must be above 0 and at most 1")
    size = settings.block_size
    version = settings.vllm_version
    listed = version is not None and version < _FREE_BLOCK_SIZES_FROM
    if size is not None and size >= 1 and listed and size not in _OLD_BLOCK_SIZES:
        problems.append(f"block_size is {size}; this vLLM takes {', '.join(map(str, _OLD_BLOCK_SIZES))}")
    return problems


def _batching(settings: EngineSettings) -> list[str]:
    problems = []
    tokens, seqs = settings.max_num_batched_tokens, settings.max_num_seqs
    active, length = settings.max_num_active_seqs, settings.max_model_len
    if tokens is not None and seqs is not None and tokens < seqs:
        problems.append(f"max_num_batched_tokens ({tokens}) is below max_num_seqs ({seqs})")
    if tokens is not None and seqs is None and 1 <= tokens < SMALLEST_DEFAULT_SEQS:
        version = settings.vllm_version
        if version is None or version < _CAPPED_SEQS_FROM:
            problems.append(
                f"max_num_batched_tokens ({tokens}) is below the default of max_num_seqs "
                f"({SMALLEST_DEFAULT_SEQS} or more); set max_num_seqs too"
            )
    if tokens is None and seqs is not None and seqs > SMALLEST_DEFAULT_BATCHED_TOKENS:
        problems.append(
            f"max_num_seqs ({seqs}) may be above the default of max_num_batched_tokens "
            f"({SMALLEST_DEFAULT_BATCHED_TOKENS} on small cards); set max_num_batched_tokens too"
        )
    if settings.enable_chunked_prefill is False and tokens is not None and length is not None and tokens < length:
        problems.append(
            f"max_num_batched_tokens ({tokens}) is below max_model_len ({length}) while chunked prefill is off"
        )
    if active is not None and seqs is not None and active > seqs:
        problems.append(f"max_num_active_seqs ({active}) is above max_num_seqs ({seqs})")
    return problems


def _kv_cache(settings: EngineSettings, kv_bytes_per_token: float | None) -> list[str]:
    memory, length = settings.kv_cache_memory_bytes, settings.max_model_len
    if memory is None or length is None or not kv_bytes_per_token or memory < 1:
        return []
    block = settings.block_size or 16
    blocks = math.floor(memory / (kv_bytes_per_token * block))
    needed = math.ceil(length / block)
    if blocks >= needed:
        return []
    return [
        f"kv_cache_memory_bytes ({memory}) holds {blocks * block} tokens per GPU, fewer than one request of "
        f"max_model_len ({length}); it needs {math.ceil(needed * block * kv_bytes_per_token)} bytes"
    ]
