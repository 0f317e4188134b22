"""Prefix blocks of prompts, and how much of them a cache of a given size would have held.

A prompt is cut into blocks of a fixed number of tokens; a block's id stands for its content and all before it, as vLLM
hashes them. A request hits the longest run of blocks from its beginning that the cache holds. Least recently used
blocks go first; of one request its last blocks go first, as vLLM frees them, since a block without those before it is
of no use.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from wattkeeper.traces.trace import Arrival, FloatArray, IntArray, Trace


@dataclass(frozen=True, kw_only=True)
class PrefixBlocks:
    """Block ids of all requests of a trace, in its order."""

    block_tokens: int
    ids: IntArray
    """Shape (B,): of all requests, one after the other."""
    offsets: IntArray
    """Shape (N + 1,): request i has `ids[offsets[i]:offsets[i + 1]]`."""

    def __post_init__(self) -> None:
        if self.block_tokens < 1:
            raise ValueError(f"blocks must hold at least one token, not {self.block_tokens}")
        if len(self.offsets) < 1 or self.offsets[0] != 0 or self.offsets[-1] != len(self.ids):
            raise ValueError("offsets of prefix blocks must lead from zero to the number of ids")

    def of(self, request: int) -> IntArray:
        """The ids of one request."""
        return self.ids[self.offsets[request] : self.offsets[request + 1]]

    def hits(self, *, cache_blocks: int | None = None) -> IntArray:
        """Blocks of each request that a cache of `cache_blocks` holds when it comes; None: nothing is ever evicted.

        Shape (N,). Requests come one after the other, each computed at once.
        """
        if cache_blocks is not None and cache_blocks < 0:
            raise ValueError(f"a cache cannot hold {cache_blocks} blocks")
        held: OrderedDict[int, None] = OrderedDict()
        found = np.zeros(len(self.offsets) - 1, dtype=np.int64)
        for request in range(len(found)):
            blocks = self.of(request).tolist()
            number = 0
            for block in blocks:
                if block not in held:
                    break
                number += 1
            found[request] = number
            for block in reversed(blocks):
                held[block] = None
                held.move_to_end(block)
            while cache_blocks is not None and len(held) > cache_blocks:
                held.popitem(last=False)
        return found


@dataclass(frozen=True, kw_only=True)
class PrefixTrace(Trace):
    """A trace whose prompts are known by their blocks; `cached_tokens` are the hits of a cache without limit.

    Copies of a request (`repeated`, `scaled`) have its blocks: the same content comes again.
    """

    blocks: PrefixBlocks

    def arrivals(self) -> Iterator[Arrival]:
        """The requests one by one, with their blocks."""
        offsets = self.blocks.offsets.tolist()
        for index, plain in enumerate(super().arrivals()):
            yield plain._replace(blocks=tuple(self.blocks.ids[offsets[index] : offsets[index + 1]].tolist()))

    def _pick(self, times: FloatArray, index: IntArray, span_seconds: float) -> "PrefixTrace":
        plain = super()._pick(times, index, span_seconds)
        chosen = [self.blocks.of(request) for request in index[np.argsort(times, kind="stable")].tolist()]
        blocks = PrefixBlocks(
            block_tokens=self.blocks.block_tokens,
            ids=np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64),
            offsets=np.cumsum([0, *map(len, chosen)], dtype=np.int64),
        )
        return PrefixTrace(
            times_seconds=plain.times_seconds,
            prompt_tokens=plain.prompt_tokens,
            output_tokens=plain.output_tokens,
            cached_tokens=np.minimum(blocks.hits() * blocks.block_tokens, plain.prompt_tokens),
            span_seconds=span_seconds,
            repairs=self.repairs,
            blocks=blocks,
        )

    def cached_under(self, cache_blocks: int | None) -> IntArray:
        """Prompt tokens of each request that a cache of so many blocks holds; shape (N,)."""
        tokens = self.blocks.hits(cache_blocks=cache_blocks) * self.blocks.block_tokens
        return np.minimum(tokens, self.prompt_tokens)
