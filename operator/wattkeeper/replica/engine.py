"""What a simulated engine is given and what it returns. Arrays have one entry per request, in order of arrival.

Nothing here knows where the speed of an engine comes from: a configuration says what an iteration costs (`at_clock`),
and each user of the stepper has its own: the planner's models (`replica.types`) or the twin's tables.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.workload import FloatArray

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Coefficients = tuple[float, float, float, float, float]
"""Seconds per iteration, per prompt token, per decoding sequence, per KV token read, per squared token of attention."""

Work = tuple[int, int, int, int, float]
"""Iterations, decode tokens, KV tokens read, prompt tokens computed, attention products, as in `Activity`."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig(ABC):
    """Engine arguments and memory of one replica; what an iteration costs is for heirs to say."""

    clock_ratio: float = 1.0
    """Clock over the largest, in (0, 1]."""
    max_num_seqs: int = 256
    """Most requests in the batch."""
    max_num_active_seqs: int | None = None
    """Admission limit below `max_num_seqs`, as vLLM can change it while it runs. None: none."""
    max_queued_requests: int | None = None
    """A request that finds so many waiting is refused (the client sees 503). None: all may wait."""
    priorities: bool = False
    """vLLM's scheduling policy `priority`: lower values first, then earlier arrivals. False: in order of arrival."""
    prefix_caching: bool = True
    """Prompts' blocks are found by the ids that requests carry (`replica.prefix`). False: only `hit_tokens` count."""
    max_num_batched_tokens: int = 2048
    """Tokens that one iteration may compute: one per decode, the rest for prompts."""
    kv_blocks: int = 8192
    """Usable KV blocks: vLLM's `num_gpu_blocks` less its null block."""
    block_size: int = 16
    """Tokens per KV block."""
    watermark: float = 0.0
    """Share of all blocks that an admission must leave free while anything runs, in [0, 1)."""
    long_prefill_token_threshold: int = 0
    """Most tokens of one prompt in one iteration; 0 = no limit of its own."""
    chunked_prefill: bool = True
    """False: a prompt is computed in one iteration or not at all."""
    max_model_len: int | None = None
    """Longer prompts are refused, answers end here. None: only KV memory limits the length."""
    front_end_seconds: float = 0.0
    """HTTP, tokeniser and detokeniser: part of what the client sees, no engine time."""

    def __post_init__(self) -> None:
        if not 0.0 < self.clock_ratio <= 1.0:
            raise ValueError(f"clock_ratio must be in (0, 1], not {self.clock_ratio}")
        for name in ("max_num_seqs", "kv_blocks", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name, least in (("max_num_active_seqs", 1), ("max_queued_requests", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must not be below max_num_seqs "
                f"({self.max_num_seqs}): vLLM refuses to start"
            )
        if not 0.0 <= self.watermark < 1.0:
            raise ValueError(f"watermark must be in [0, 1), not {self.watermark}")
        if self.long_prefill_token_threshold < 0:
            raise ValueError(f"long_prefill_token_threshold must not be negative: {self.long_prefill_token_threshold}")
        if self.long_prefill_token_threshold and not self.chunked_prefill:
            raise ValueError("long_prefill_token_threshold splits prompts and needs chunked_prefill")
        if self.max_model_len is not None and self.max_model_len < 2:
            raise ValueError(f"max_model_len must be at least 2, not {self.max_model_len}")
        if self.front_end_seconds < 0.0:
            raise ValueError(f"front_end_seconds must not be negative: {self.front_end_seconds}")

    @abstractmethod
    def at_clock(self, clock_ratio: float) -> Coefficients:
        """What an iteration costs at a clock over the largest, in (0, 1]."""

    @property
    def slots(self) -> int:
        """Most requests in the batch by both limits."""
        return min(self.max_num_seqs, self.max_num_active_seqs or self.max_num_seqs)

    @property
    def longest_context(self) -> int:
        """Most tokens in the KV cache when the last one is sampled, by `max_model_len` alone."""
        return sys.maxsize >> 1 if self.max_model_len is None else self.max_model_len - 1

    @property
    def largest_footprint(self) -> int:
        """Most tokens of one request that KV memory holds and, without chunked prefill, one iteration computes."""
        tokens = self.kv_blocks * self.block_size
        return tokens if self.chunked_prefill else min(tokens, self.max_num_batched_tokens)

    @property
    def watermark_blocks(self) -> int:
        """Blocks that an admission must leave free, rounded down from the share of all blocks as vLLM does."""
        return int(self.watermark * (self.kv_blocks + 1))


@dataclass(frozen=True)
class Prefix:
    """Blocks of a prompt from its beginning: an id stands for the block's content and all before it."""

    ids: tuple[int, ...]
    block_tokens: int = 512

    def __post_init__(self) -> None:
        if self.block_tokens < 1 or (self.ids and min(self.ids) < 0):
            raise ValueError(f"a prefix needs ids from zero on and blocks of tokens, not {self.block_tokens}")


@dataclass(frozen=True, kw_only=True)
class Requests:
    """What arrives: seconds in ascending order from zero on, and tokens."""

    arrival_seconds: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    hit_tokens: IntArray | None = None
    """Prompt tokens found in the prefix cache (used in whole blocks, never the last token). None: none."""
    priorities: IntArray | None = None
    """Lower is served first, where the engine minds priorities. None: all alike."""
    prefixes: Sequence[Prefix | None] | None = None
    """Blocks of each prompt, where the engine's prefix cache finds them by id. None: nothing is shared."""

    def __post_init__(self) -> None:
        arrays = [self.arrival_seconds, self.prompt_tokens, self.output_tokens]
        arrays.extend(array for array in (self.hit_tokens, self.priorities) if array is not None)
        if len({array.shape for array in arrays}) != 1 or self.arrival_seconds.ndim != 1:
            raise ValueError(f"requests must be arrays of one shape (N,), not {[array.shape for array in arrays]}")
        if any(array.dtype.kind not in "iu" for array in arrays[1:]):
            raise ValueError("token counts of requests must be integers")
        if self.prefixes is not None and len(self.prefixes) != len(self):
            raise ValueError(f"{len(self.prefixes)} prefixes for {len(self)} requests")
        times = self.arrival_seconds
        if len(times) and not (np.isfinite(times).all() and times[0] >= 0.0 and (np.diff(times) >= 0.0).all()):
            raise ValueError("arrival times must be finite, not negative, and ascend")
        if len(times) and min(self.prompt_tokens.min(), self.output_tokens.min()) < 1:
            raise ValueError("prompts and answers need at least one token")
        if self.hit_tokens is not None and len(times) and self.hit_tokens.min() < 0:
            raise ValueError("prefix-hit tokens must not be negative")

    def __len__(self) -> int:
        return len(self.arrival_seconds)


@dataclass(frozen=True, kw_only=True)
class Activity:
    """Sums over iterations since the start, from which power and energy follow.

    Energy of a form linear in the work needs only the counts; one that depends on the state of the iteration needs the
    time integrals (divide by `busy_seconds` for means over busy time). An engine that keeps a journal does not keep
    these (nan): its runs of iterations say more.
    """

    span_seconds: float
    """From time zero to the end of the last iteration (or to the time advanced to)."""
    busy_seconds: float
    """Time with an iteration running."""
    steps: int
    """Iterations."""
    prefill_steps: int
    """Iterations that computed prompt tokens."""
    prefill_tokens: int
    """Prompt tokens computed, those computed again after a preemption included, prefix hits not."""
    attention_products: float
    """Sum over prefill chunks of chunk * (history + chunk / 2)."""
    decode_tokens: int
    """Decode steps of single sequences (the token that ends a prefill is none)."""
    kv_read_tokens: int
    """KV tokens that decodes read, summed over iterations."""
    sequence_seconds: float
    """Integral over time of the number of decoding sequences."""
    kv_token_seconds: float
    """Integral over time of the KV tokens of decoding sequences."""
    step_seconds_squared: float
    """Sum of squared iteration times: over `busy_seconds` it is the mean iteration time at a random busy instant."""
    preemptions: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of each request, in engine time; the latencies are what clients see. nan = did not happen."""

    arrival_seconds: FloatArray
    output_tokens: IntArray
    """Tokens answered: fewer than asked where `max_model_len` ended the answer."""
    first_token_seconds: FloatArray
    finish_seconds: FloatArray
    preemptions: IntArray
    refused: BoolArray
    """Can never run (too long for the model, for KV memory or, without chunked prefill, for the token budget), or found
    too many waiting."""
    front_end_seconds: float
    activity: Activity

    @property
    def ttft_seconds(self) -> FloatArray:
        """Time to first token."""
        return np.asarray(self.first_token_seconds - self.arrival_seconds + self.front_end_seconds)

    @property
    def tpot_seconds(self) -> FloatArray:
        """Mean time per output token after the first; nan for answers of one token."""
        gaps = np.where(self.output_tokens > 1, self.output_tokens - 1.0, np.nan)
        return np.asarray((self.finish_seconds - self.first_token_seconds) / gaps)

    @property
    def e2e_seconds(self) -> FloatArray:
        """Time from arrival to the last token."""
        return np.asarray(self.finish_seconds - self.arrival_seconds + self.front_end_seconds)
