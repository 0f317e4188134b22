"""vLLM's own defaults of the scheduler limits, which depend on the card (get_batch_defaults of its server)."""

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.physics.profile import GpuSpec

_GIB = 2.0**30
_HUGE_MEMORY_BYTES = 160 * _GIB
_LARGE_MEMORY_BYTES = 70 * _GIB


def max_num_seqs(engine: EngineSettings, gpu: GpuSpec) -> int:
    """--max-num-seqs in force: as set, else vLLM's default for the card."""
    if engine.max_num_seqs is not None:
        return engine.max_num_seqs
    return 1024 if _is_large(gpu) else 256


def max_num_batched_tokens(engine: EngineSettings, gpu: GpuSpec) -> int:
    """--max-num-batched-tokens in force: as set, else vLLM's default for the card."""
    if engine.max_num_batched_tokens is not None:
        return engine.max_num_batched_tokens
    if gpu.memory_bytes >= _HUGE_MEMORY_BYTES:
        return 16384
    return 8192 if _is_large(gpu) else 2048


def _is_large(gpu: GpuSpec) -> bool:
    return gpu.memory_bytes >= _LARGE_MEMORY_BYTES and "a100" not in gpu.name
