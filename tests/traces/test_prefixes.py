"""Prefix hits under caches of given sizes."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattkeeper.traces.prefixes import PrefixBlocks

TREES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=25)
"""Prompts as paths: the same beginning is the same blocks."""


def blocks_of(paths) -> PrefixBlocks:
    numbers: dict[tuple[int, ...], int] = {}
    ids = [[numbers.setdefault(tuple(path[: end + 1]), len(numbers)) for end in range(len(path))] for path in paths]
    return PrefixBlocks(
        block_tokens=16,
        ids=np.array([each for request in ids for each in request], dtype=np.int64),
        offsets=np.cumsum([0, *map(len, ids)], dtype=np.int64),
    )


@settings(deadline=None)
@given(paths=TREES)
def test_more_cache_never_hits_less_and_enough_is_unlimited(paths):
    blocks = blocks_of(paths)
    hits = [blocks.hits(cache_blocks=size) for size in range(len(set(blocks.ids.tolist())) + 1)]
    assert not hits[0].any()
    for less, more in itertools.pairwise(hits):
        assert (less <= more).all()
    assert (hits[-1] == blocks.hits()).all()


def test_the_end_of_a_prompt_goes_first():
    blocks = blocks_of([[0, 0, 0], [0, 0, 0], [1], [0, 0, 0]])
    assert blocks.hits(cache_blocks=3).tolist() == [0, 3, 0, 2]


def test_what_cannot_be():
    with pytest.raises(ValueError, match="offsets"):
        PrefixBlocks(block_tokens=16, ids=np.array([1]), offsets=np.array([0, 2]))
    with pytest.raises(ValueError, match="cannot hold"):
        blocks_of([[0]]).hits(cache_blocks=-1)
