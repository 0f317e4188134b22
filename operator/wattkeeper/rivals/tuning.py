"""A small search for a rival's parameters, on other days than those it is judged on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wattkeeper.rivals.registry import Parameters


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What some parameters came to on the tuning days."""

    parameters: Parameters
    energy_joules: float
    attainment: float


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The choice, and all that was tried."""

    parameters: Parameters
    met: bool
    """False: nothing reached the goal, and the best attainment was taken."""
    trials: tuple[Trial, ...]


def choose(trials: Sequence[Trial], *, goal: float) -> Tuned:
    """The least energy among those that reach the goal; else the best attainment. Raises ValueError without trials."""
    if not trials:
        raise ValueError("nothing was tried")
    good = [trial for trial in trials if trial.attainment >= goal]
    best = min(good, key=lambda t: t.energy_joules) if good else max(trials, key=lambda t: t.attainment)
    return Tuned(parameters=best.parameters, met=bool(good), trials=tuple(trials))


def search(grid: Sequence[Parameters], evaluate: Callable[[Parameters], Trial], *, goal: float, ordered: bool) -> Tuned:
    """Try parameters and choose. An ordered grid is halved, and the neighbour below the choice is tried as well.

    Raises ValueError for an empty grid.
    """
    tried: dict[int, Trial] = {}

    def good(index: int) -> bool:
        if index not in tried:
            tried[index] = evaluate(grid[index])
        return tried[index].attainment >= goal

    if ordered and len(grid) > 2:
        low, high = -1, len(grid) - 1
        if good(high):
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if good(middle) else (middle, high)
            if high > 0:
                good(high - 1)
        else:
            good(max(0, high - 1))
    else:
        for index in range(len(grid)):
            good(index)
    return choose([tried[index] for index in sorted(tried)], goal=goal)


def smallest(enough: Callable[[int], bool], *, guess: int, most: int) -> int | None:
    """The smallest count from 1 to `most` for which `enough` holds, if it holds for all larger ones; None: for none."""
    low, high = 0, max(1, min(guess, most))
    while not enough(high):
        if high == most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
