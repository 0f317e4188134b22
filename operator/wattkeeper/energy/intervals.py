"""How wide an interval must be so that it holds for a group never seen, not only for another row of a known one.

Rows of one group miss together, so that N rows of K groups are worth little more than K misses. Conformal prediction
for groups (Dunn, Wasserman, Ramdas 2022, Distribution-Free Prediction Sets for Two-Layer Hierarchical Models): each
group counts once whatever its rows, and the group to come counts as one more, whose miss is beyond all others.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.workload import FloatArray

COVERAGE = 0.9


def units(groups: npt.NDArray[np.str_], fold: npt.NDArray[np.int_], *, finest: int = 3) -> npt.NDArray[np.str_]:
    """What folds hold out together: the column of `groups` (N, G) with the fewest members of those that never cross.

    `finest` is taken where every column crosses folds.
    """
    whole = [
        column for column in groups.T if all(len(np.unique(fold[column == name])) == 1 for name in np.unique(column))
    ]
    return min(whole, key=lambda column: len(np.unique(column)), default=groups[:, finest])


def by_unit(misses: FloatArray, members: Sequence[str] | npt.NDArray[np.str_]) -> float:
    """The width that 90 % of a new group's rows stay within; misses (N,) are absolute, each of `members` counts once.

    With fewer than ten units no finite width can promise that: the largest miss is returned.
    """
    names, codes = np.unique(np.asarray(members), return_inverse=True)
    weight = 1.0 / np.bincount(codes)[codes] / (len(names) + 1.0)
    order = np.argsort(misses)
    reached = np.cumsum(weight[order]) >= COVERAGE - 1e-12
    return float(misses[order][int(np.argmax(reached)) if reached.any() else -1])
