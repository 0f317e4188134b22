"""Settings of one vLLM engine that matter to time, memory and energy."""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What one replica runs with. None means: vLLM's own default, not known to us."""

    max_num_seqs: int | None = None
    max_num_active_seqs: int | None = None
    """Admission limit below max_num_seqs (vLLM 0.31 and newer)."""
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_memory_bytes: int | None = None
    kv_cache_dtype: str | None = None
    block_size: int | None = None
    enable_prefix_caching: bool | None = None
    enable_chunked_prefill: bool | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    vllm_version: tuple[int, int] | None = None
    """(major, minor) where the image tag tells it."""

    def with_change(self, change: "EngineChange") -> "EngineSettings":
        """These settings after a change was rolled out."""
        settings: dict[str, Any] = change.as_dict()
        return replace(self, **settings)


@dataclass(frozen=True, kw_only=True)
class EngineChange:
    """Engine arguments that a plan may set; None means: leave as it is."""

    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_memory_bytes: int | None = None
    kv_cache_dtype: str | None = None

    def as_dict(self) -> dict[str, int | float | str]:
        """Only what is set, by field name."""
        return {name: value for name, value in self.__dict__.items() if value is not None}

    def __bool__(self) -> bool:
        return bool(self.as_dict())
