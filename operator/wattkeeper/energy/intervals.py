"""How wide an interval must be so that it holds for a group never seen, not only for another row of a known one.

Rows of one group miss together, so that N rows of K groups are worth little more than K misses: each group counts
once, whatever its rows. The group to come is counted too, as one beyond all others; how much of it, is for the caller:

- A whole group (`WHOLE`) is strict conformal prediction for groups (Dunn, Wasserman, Ramdas 2022, Distribution-Free
  Prediction Sets for Two-Layer Hierarchical Models; Lee, Barber, Willett 2023, arXiv 2306.06342). It promises 90 % from
  nine groups on; with fewer nothing can, and the largest miss of all is taken. So it is for a few cards that were
  measured under power limits, where no data are left to tell whether less is enough.
- Half of one (`HALF`) is for the runs that the energy model is fitted to. With their ten groups or so a whole one is
  nearly the largest miss ever seen. On held-out backbones of the development rows (ten to train on) 97 % of rows were
  inside with the whole group, 92 % with half of it at two thirds of the width, 87 % with none.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.workload import FloatArray

COVERAGE = 0.9
WHOLE, HALF = 1.0, 0.5
"""Groups to come, each beyond all others."""


def units(groups: npt.NDArray[np.str_], fold: npt.NDArray[np.int_], *, finest: int = 3) -> npt.NDArray[np.str_]:
    """What folds hold out together: the column of `groups` (N, G) with the fewest members of those that never cross.

    `finest` is taken where every column crosses folds.
    """
    whole = [
        column for column in groups.T if all(len(np.unique(fold[column == name])) == 1 for name in np.unique(column))
    ]
    return min(whole, key=lambda column: len(np.unique(column)), default=groups[:, finest])


def by_unit(
    misses: FloatArray, members: Sequence[str] | npt.NDArray[np.str_], *, groups_to_come: float = HALF
) -> float:
    """The width that 90 % of a new group's rows stay within; misses (N,) are absolute, each of `members` counts once.

    With few groups (four or fewer with `HALF`, eight or fewer with `WHOLE`) no miss is far enough out, and the largest
    is taken. Raises ValueError: no groups.
    """
    if not len(misses):
        raise ValueError("at least one group is needed")
    names, codes = np.unique(np.asarray(members), return_inverse=True)
    weight = 1.0 / np.bincount(codes)[codes] / (len(names) + groups_to_come)
    order = np.argsort(misses)
    reached = np.cumsum(weight[order]) >= COVERAGE - 1e-9
    return float(misses[order][int(np.argmax(reached)) if reached.any() else -1])
