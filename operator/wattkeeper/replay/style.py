"""One look for all pictures of a replay: the same colour, line and marker per policy everywhere.

Policies are told apart without colours too. Colours are Okabe and Ito's, made for colour-blind readers, and Paul Tol's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

OURS = "wattkeeper"
"""Name of the planner in reports: shown beside the baseline, and in the headline."""
GOAL_COLOUR = "#b2182b"
DPI = 110
Line = Literal["-", "--", "-.", ":"]


@dataclass(frozen=True)
class Look:
    """Of one policy."""

    colour: str
    line: Line = "-"
    marker: str = "o"
    width: float = 1.6


_KNOWN = {
    OURS: Look("#009e73", "-", "*", 2.4),
    "static-peak": Look("#7f7f7f", "-", "s"),
    "static-p95": Look("#333333", "--", "D"),
    "static-cap": Look("#cc79a7", "-", "v"),
    "static-clock": Look("#882255", "--", "^"),
    "hpa-waiting": Look("#d55e00", "-", "o"),
    "hpa-kv": Look("#e69f00", "--", "P"),
    "keda-in-flight": Look("#0072b2", "-", "X"),
    "wva": Look("#56b4e9", "-", "h"),
}
_OTHERS = (
    Look("#117733", "-.", "<"),
    Look("#44aa99", ":", ">"),
    Look("#999933", "-.", "p"),
    Look("#aa4499", ":", "d"),
    Look("#661100", "-.", "8"),
)


def looks(policies: Sequence[str]) -> dict[str, Look]:
    """Of every policy; names that are not known take the other looks in their order."""
    others = [policy for policy in policies if policy not in _KNOWN]
    spare = {policy: _OTHERS[index % len(_OTHERS)] for index, policy in enumerate(others)}
    return {policy: _KNOWN.get(policy) or spare[policy] for policy in policies}


def dress(axes: Any) -> None:
    """Grid and no box."""
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def logarithmic(axis: Any) -> None:
    """Plain numbers at 1, 2 and 5 of each decade on an axis that is logarithmic already."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def entry(label: str, *, colour: str, line: Line = "-", width: float = 1.2) -> Line2D:
    """A line for a legend."""
    return Line2D([], [], color=colour, linestyle=line, linewidth=width, label=label)
