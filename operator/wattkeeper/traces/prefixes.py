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
        if cache_blocks is None:
            return self._seen_before()
        if cache_blocks < 0:
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
            while len(held) > cache_blocks:
                held.popitem(last=False)
        return found

    def _seen_before(self) -> IntArray:
        """Blocks of each request, from its beginning on, that any earlier request had; shape (N,)."""
        count = len(self.offsets) - 1
        owner = np.repeat(np.arange(count), np.diff(self.offsets))
        _, first, number = np.unique(self.ids, return_index=True, return_inverse=True)
        missed = np.flatnonzero(owner[first][number] == owner)
        # The first miss of a request ends its run; without any the run is the whole request.
        following = np.append(missed, len(self.ids))[np.searchsorted(missed, self.offsets[:-1])]
        return np.asarray(np.minimum(following, self.offsets[1:]) - self.offsets[:-1])

    def pick(self, index: IntArray, copy: IntArray | None = None) -> "PrefixBlocks":
        """Blocks of requests `index`, in that order; a request of copy k > 0 gets ids that no other copy has."""
        counts = np.diff(self.offsets)[index]
        offsets = np.concatenate(([0], np.cumsum(counts)))
        at = np.repeat(self.offsets[index] - offsets[:-1], counts) + np.arange(offsets[-1])
        ids = self.ids[at]
        if copy is not None and len(ids):
            ids = ids + np.repeat(copy, counts) * (int(self.ids.max()) + 1)
        return PrefixBlocks(block_tokens=self.block_tokens, ids=ids, offsets=offsets)


@dataclass(frozen=True, kw_only=True)
class PrefixTrace(Trace):
    """A trace whose prompts are known by their blocks; `cached_tokens` are the hits of a cache without limit.

    Parts and copies of it (`until`, `between`, `repeated`, `scaled`) keep the blocks, and hits are counted anew. Each
    copy stands for other users with conversations of the same shape: requests of one copy share blocks with each other
    as the recorded ones do, and none with another copy. Otherwise a trace played twice would hit every block the second
    time, which no recording shows.
    """

    blocks: PrefixBlocks

    def _columns(self) -> Iterator[FloatArray | IntArray]:
        yield from super()._columns()
        yield from (self.blocks.ids, self.blocks.offsets)

    def arrivals(self) -> Iterator[Arrival]:
        """The requests one by one, with their blocks."""
        offsets = self.blocks.offsets.tolist()
        for index, plain in enumerate(super().arrivals()):
            yield plain._replace(blocks=tuple(self.blocks.ids[offsets[index] : offsets[index + 1]].tolist()))

    def pick(self, times: FloatArray, index: IntArray, span_seconds: float, copy: IntArray | None = None) -> Trace:
        """Requests `index` at other times, sorted, with their blocks; see the class about copies."""
        order = np.argsort(times, kind="stable")
        plain = super().pick(times, index, span_seconds)
        return with_blocks(plain, self.blocks.pick(index[order], None if copy is None else copy[order]))

    def cached_under(self, cache_blocks: int | None) -> IntArray:
        """Prompt tokens of each request that a cache of so many blocks holds; shape (N,)."""
        tokens = self.blocks.hits(cache_blocks=cache_blocks) * self.blocks.block_tokens
        return np.minimum(tokens, self.prompt_tokens)


def with_blocks(trace: Trace, blocks: PrefixBlocks) -> PrefixTrace:
    """A trace and the blocks of its prompts, hits counted."""
    return PrefixTrace(
        times_seconds=trace.times_seconds,
        prompt_tokens=trace.prompt_tokens,
        output_tokens=trace.output_tokens,
        cached_tokens=np.minimum(blocks.hits() * blocks.block_tokens, trace.prompt_tokens),
        span_seconds=trace.span_seconds,
        repairs=trace.repairs,
        blocks=blocks,
    )
