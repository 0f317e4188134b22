"""LightGBM behind a door: trees are fitted and read here, and a machine that cannot load it gets a plain error.

It is loaded at first use, not at import: its compiled part needs a system library (libgomp) that bare images lack.
Trees that must hold on such a machine as well are read by `domain.plain_trees`.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, Protocol, cast

import numpy as np

from wattkeeper.domain.errors import LibraryMissingError, ModelFileError
from wattkeeper.domain.workload import FloatArray


class Booster(Protocol):
    """A fitted sum of trees."""

    def predict(self, data: FloatArray, *, num_threads: int, pred_contrib: bool = False) -> object:
        """One value per row, or with `pred_contrib` one per row and column and their mean."""

    def model_to_string(self) -> str:
        """LightGBM's own text format."""


def require() -> None:
    """At the start of a command that fits trees only after minutes. Raises LibraryMissingError: LightGBM is missing."""
    _library()


def fitted(
    columns: FloatArray, target: FloatArray, *, settings: Mapping[str, Any], rounds: int,
    weight: FloatArray | None = None,
) -> Booster:  # fmt: skip
    """Trees for a table (N, F) and target (N,), the same bits on every run: one thread, no chance but the seed's.

    `weight` (N,) of each row; None: all alike. Raises LibraryMissingError: LightGBM cannot be loaded.
    """
    library = _library()
    fixed = {"deterministic": True, "force_row_wise": True, "num_threads": 1, "verbosity": -1}
    rows = library.Dataset(columns, label=target, weight=weight)
    return cast("Booster", library.train({**settings, **fixed}, rows, rounds))


def read(text: str) -> Booster:
    """The trees of a text.

    Raises LibraryMissingError: LightGBM cannot be loaded. ModelFileError: it cannot read the text.
    """
    library = _library()
    try:
        return cast("Booster", library.Booster(model_str=text))
    except library.basic.LightGBMError as error:
        raise ModelFileError(f"a booster that this LightGBM cannot read ({error})") from error


def predict(booster: Booster, columns: FloatArray) -> FloatArray:
    """One value per row, (N,), on one thread: passes of the operator share their cores with others."""
    return np.asarray(booster.predict(columns, num_threads=1), dtype=np.float64)


def shares(booster: Booster, columns: FloatArray) -> FloatArray:
    """What each column adds to each value, (N, F): TreeSHAP as LightGBM gives it (Lundberg et al. 2020)."""
    return np.asarray(booster.predict(columns, num_threads=1, pred_contrib=True), dtype=np.float64)[:, :-1]


def _library() -> ModuleType:
    try:
        import lightgbm
    except (ImportError, OSError) as error:
        raise LibraryMissingError(
            f"LightGBM cannot be loaded ({error}): install Wattkeeper with its dependencies again; a missing libgomp "
            "comes with the system package libgomp1"
        ) from error
    return lightgbm
