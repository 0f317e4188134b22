"""Trees in LightGBM's text format, evaluated with NumPy alone: they hold where LightGBM cannot be loaded.

Every leaf of a tree is one bit of a word. A row that turns right at a node cannot end in the leaves on its left, so a
node is a mask that clears them, and the lowest bit left after all masks of a tree is the row's leaf (QuickScorer,
Lucchese et al. 2015). A value turns right at the nodes of its column whose threshold it exceeds: their masks are joined
beforehand, one row of a table per interval between thresholds, so that a prediction is one look into a table per
column. Values of leaves are added tree by tree, as LightGBM adds them: the sums are the same bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.errors import ModelFileError
from wattkeeper.domain.workload import FloatArray

_END = "end of trees"
_VERSIONS = ("v3", "v4")
_OBJECTIVES = ("regression", "regression_l1", "huber")
"""Those whose answer is the sum of the leaves, without a function on top."""
_MOST_LEAVES = 64
"""Bits of a word."""
_ALL = (1 << _MOST_LEAVES) - 1
_CATEGORICAL, _DEFAULT_LEFT, _MISSING = 1, 2, 12
"""Bits of LightGBM's `decision_type`."""
_MISSING_NONE, _MISSING_NAN = 0, 8
_ZERO = float(np.float32(1e-35))
"""LightGBM takes what is not further from zero for zero."""
_EXPONENT_OF_ONE = 127
"""As a float of 32 bits has it; powers of two are exact."""
_ROWS = 512
"""At once: memory stays small for any table."""

_Words = npt.NDArray[np.unsignedinteger]
_Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class _Tree:
    """One tree of L leaves, numbered from left to right, and its L - 1 nodes."""

    column: _Indices
    threshold: FloatArray
    nan_left: npt.NDArray[np.bool_]
    """Which way a value goes that is not there."""
    cleared: _Words
    """All bits but those of the leaves on the left of each node."""
    values: FloatArray


class PlainTrees:
    """A sum of trees. Immutable; safe to share between threads."""

    def __init__(self, columns: int, trees: Sequence[_Tree]) -> None:
        """Joins the masks. `columns`: of the tables that it will be asked about."""
        self.columns = columns
        leaves = max(len(tree.values) for tree in trees)
        word = self._word = np.uint32 if leaves <= 32 else np.uint64
        self._values = np.zeros((len(trees), leaves))
        for index, tree in enumerate(trees):
            self._values[index, : len(tree.values)] = tree.values
        self._first_leaf = np.arange(len(trees), dtype=np.int32) * leaves
        owner = np.repeat(np.arange(len(trees)), [len(tree.column) for tree in trees])
        column = np.concatenate([tree.column for tree in trees])
        threshold = np.concatenate([tree.threshold for tree in trees])
        nan_left = np.concatenate([tree.nan_left for tree in trees])
        cleared = np.concatenate([tree.cleared for tree in trees]).astype(word)
        self._joined: list[tuple[int, FloatArray, _Words]] = []
        for number in np.unique(column):
            of = column == number
            limits, interval = np.unique(threshold[of], return_inverse=True)
            table = np.full((len(limits) + 2, len(trees)), np.iinfo(word).max, dtype=word)
            np.bitwise_and.at(table, (interval + 1, owner[of]), cleared[of])
            np.bitwise_and.accumulate(table[:-1], axis=0, out=table[:-1])
            right = of & ~nan_left
            np.bitwise_and.at(table[-1], owner[right], cleared[right])
            self._joined.append((int(number), limits, table))

    def predict(self, columns: FloatArray) -> FloatArray:
        """One value per row of a table (N, F), (N,). Raises ValueError: the table has another number of columns."""
        if columns.ndim != 2 or columns.shape[1] != self.columns:
            raise ValueError(f"trees of {self.columns} columns were asked about a table of shape {columns.shape}")
        found = np.empty(len(columns))
        for begin in range(0, len(columns), _ROWS):
            rows = slice(begin, begin + _ROWS)
            found[rows] = self._some(np.where(np.abs(columns[rows]) <= _ZERO, 0.0, columns[rows]))
        return found

    def _some(self, columns: FloatArray) -> FloatArray:
        left = np.full((len(columns), len(self._values)), np.iinfo(self._word).max, dtype=self._word)
        buffer = np.empty_like(left)
        for number, limits, table in self._joined:
            value = columns[:, number]
            interval = np.searchsorted(limits, value, side="left")
            interval[np.isnan(value)] = len(limits) + 1
            np.take(table, interval, axis=0, out=buffer, mode="clip")
            left &= buffer
        lowest = np.bitwise_and(left, np.negative(left, out=buffer), out=left).astype(np.float32)
        leaf = (lowest.view(np.int32) >> 23) - _EXPONENT_OF_ONE + self._first_leaf
        each = self._values.ravel().take(np.ascontiguousarray(leaf.T))
        # One tree after the other, as LightGBM adds. NumPy's sum does so over rows of an array in C order, but adds a
        # single column in pairs.
        return np.asarray(each.sum(axis=0) if len(columns) > 1 else np.add.accumulate(each, axis=0)[-1])


def read(text: str) -> PlainTrees:
    """The trees of a text that LightGBM wrote.

    Raises ModelFileError: it is no such text, is cut short, or holds what only LightGBM can evaluate (splits by
    category, zero as a missing value, linear leaves, several classes, averaged trees, more than 64 leaves, a function
    on top of the sum).
    """
    head, *bodies = text.partition(_END)[0].split("\nTree=")
    if not text.startswith("tree\n") or _END not in text:
        raise ModelFileError("trees that are no text of LightGBM's, or are cut short")
    try:
        columns = _columns(_fields(head), trees=len(bodies))
        return PlainTrees(columns, [_tree(_fields(body), columns) for body in bodies])
    except (KeyError, ValueError, OverflowError) as error:
        raise ModelFileError(f"trees that cannot be evaluated ({error})") from error


def _fields(section: str) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition("=") for line in section.splitlines())}


def _columns(head: dict[str, str], *, trees: int) -> int:
    """How many columns a table must have, of the part before the trees."""
    if head["version"] not in _VERSIONS:
        raise ValueError(f"version {head['version']} of the format, this program reads {' and '.join(_VERSIONS)}")
    if (head["num_class"], head["num_tree_per_iteration"]) != ("1", "1") or "average_output" in head:
        raise ValueError("several classes, or averaged trees")
    if head["objective"] not in _OBJECTIVES:
        raise ValueError(f"objective {head['objective']}")
    if trees == 0 or len(head["tree_sizes"].split()) != trees:
        raise ValueError("trees are missing")
    return int(head["max_feature_idx"]) + 1


def _tree(fields: dict[str, str], columns: int) -> _Tree:
    leaves = int(fields["num_leaves"])
    if not 1 <= leaves <= _MOST_LEAVES:
        raise ValueError(f"a tree of {leaves} leaves, at most {_MOST_LEAVES} can be read")
    if fields["num_cat"] != "0" or fields.get("is_linear", "0") != "0":
        raise ValueError("splits by category, or linear leaves")
    nodes = leaves - 1
    values = _floats(fields["leaf_value"], leaves)
    if nodes == 0:
        none = np.empty(0)
        return _Tree(
            column=none.astype(np.int64),
            threshold=none,
            nan_left=none > 0,
            cleared=none.astype(np.uint64),
            values=values,
        )
    column, kinds = _integers(fields["split_feature"], nodes), _integers(fields["decision_type"], nodes)
    threshold, missing = _floats(fields["threshold"], nodes), kinds & _MISSING
    if ((kinds & _CATEGORICAL) != 0).any() or not np.isin(missing, (_MISSING_NONE, _MISSING_NAN)).all():
        raise ValueError("splits by category, or zero as a missing value")
    if np.isnan(threshold).any() or column.min() < 0 or column.max() >= columns:
        raise ValueError("a split by a column that is not there, or by no number")
    order, cleared = _order(_integers(fields["left_child"], nodes), _integers(fields["right_child"], nodes))
    nan_left = np.where(missing == _MISSING_NAN, (kinds & _DEFAULT_LEFT) != 0, threshold >= 0.0)
    return _Tree(column=column, threshold=threshold, nan_left=nan_left, cleared=cleared, values=values[order])


def _order(left: _Indices, right: _Indices) -> tuple[_Indices, _Words]:
    """Leaves from left to right, (L,), and what each node clears, (L - 1,). A child below zero is the leaf `~child`."""
    order: list[int] = []
    cleared = np.zeros(len(left), dtype=np.uint64)
    seen: set[int] = set()

    def visit(child: int) -> None:
        """In order: after the left side of a node, its leaves are the last of `order`."""
        if child in seen or not -len(left) - 1 <= child < len(left):
            raise ValueError("nodes that form no tree")
        seen.add(child)
        if child < 0:
            order.append(~child)
            return
        first = len(order)
        visit(int(left[child]))
        cleared[child] = _ALL & ~(((1 << (len(order) - first)) - 1) << first)
        visit(int(right[child]))

    visit(0)
    if len(order) != len(left) + 1:
        raise ValueError("nodes that form no tree")
    return np.array(order), cleared


def _integers(text: str, count: int) -> _Indices:
    return np.array(_items(text, count), dtype=np.int64)


def _floats(text: str, count: int) -> FloatArray:
    return np.array(_items(text, count), dtype=np.float64)


def _items(text: str, count: int) -> list[str]:
    items = text.split()
    if len(items) != count:
        raise ValueError(f"{len(items)} values where {count} belong")
    return items
