"""How well the clock laws of the physics foresee throughput and watts of a card whose clocks are locked.

Rows are decode readings of one RTX 5090 over SM clocks, relative to the one at the highest SM clock, which is not
scored; each memory clock is a split of its own. Nothing is fitted: the laws know the rating, and the watts drawn at the
highest SM clock.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import caps, powercap_data
from wattkeeper.energy.caps import CapFacts
from wattkeeper.energy.held_out import HeldOut

THROUGHPUT, WATTS = "throughput at locked clock", "watts at locked clock"
DATA = "locked clocks"
PHYSICS = "physics"
_TDP_WATTS = 575.0
"""NVIDIA's rating of the RTX 5090."""


def held_out(folder: Path, *, report: Callable[[str], None]) -> list[HeldOut]:
    """Both targets at each memory clock; `seed` is of the shared form and changes nothing. Raises DataFileError."""
    report("locked clocks, one card")
    table = powercap_data.load_clock_grid(folder)
    clocks = sorted(table["memory_mhz"].unique(), reverse=True)
    return [
        _held(table[table["memory_mhz"] == clock].sort_values("sm_mhz"), target)
        for target in (THROUGHPUT, WATTS)
        for clock in clocks
    ]


def _held(rows: pd.DataFrame, target: str) -> HeldOut:
    top, below = rows.iloc[-1], rows.iloc[:-1]
    ratio = below["sm_mhz"].to_numpy(dtype=np.float64) / float(top["sm_mhz"])
    throughput, watts = caps.at_clock(_facts(float(top["watts"])), ratio)
    column = "tokens_per_second" if target == THROUGHPUT else "watts"
    measured: FloatArray = below[column].to_numpy(dtype=np.float64) / float(top[column])
    return HeldOut(
        data=DATA,
        target=target,
        split=f"one card, nothing fitted, memory at {top['memory_mhz']:.0f} MHz",
        groups=below["sm_mhz"].astype(int).astype(str).to_numpy(dtype=np.str_),
        fold=np.zeros(len(below), dtype=np.int_),
        measured=measured,
        predicted={
            PHYSICS: throughput if target == THROUGHPUT else watts,
            "proportional": ratio,
            "no effect": np.ones(len(below)),
        },
        x=below["sm_mhz"].to_numpy(dtype=np.float64),
        x_name="SM clock, MHz",
        series=np.full(len(below), f"memory at {top['memory_mhz']:.0f} MHz"),
    )


def _facts(watts: float) -> CapFacts:
    # The grid's source does not tell how many requests ran at once; the laws do not ask.
    return CapFacts(
        curve=DATA,
        gpu="RTX5090",
        model="",
        tdp_watts=_TDP_WATTS,
        highest_cap_watts=_TDP_WATTS,
        prefill=False,
        moe=False,
        concurrency=1.0,
        uncapped_watts=watts,
    )
