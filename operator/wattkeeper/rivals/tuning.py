"""A search for a policy's best parameters, on other days than those that it is tested on.

Least energy among the parameters that reach the goal; where none does, the highest attainment. The first parameter is
the one that matters most. It is narrowed with the others at their defaults: the ends and the middle of its grid, then
the part around the best of them, until the neighbours of the best are known. Then the others move, one step at a time,
and with each step the first one moves along as far as that helps: what one gives away the other may win back, and a
search along one axis alone would stop at the edge of the goal. It ends where no step helps, or when the evaluations are
used up. The defaults are always tried, so that tuning never ends worse than the documentation does on the tuning days.
"""

import bisect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from wattkeeper.rivals.settings import Parameters, PolicySettingsError

EVALUATIONS = 20
_ALIKE = 0.002
"""Of energy and attainment."""
Evaluate = Callable[[Parameters], tuple[float, float]]
"""Energy in joules and attainment in 0..1 of the tuning days with these parameters."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One evaluation."""

    parameters: Parameters
    energy_joules: float
    attainment: float


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The best that was found, and all that was tried, the defaults first."""

    parameters: Parameters
    energy_joules: float
    attainment: float
    goal: float
    trials: tuple[Trial, ...]

    @property
    def met(self) -> bool:
        """Whether the goal was reached on the tuning days."""
        return self.attainment >= self.goal

    def text(self) -> str:
        """One line for a report."""
        values = ", ".join(f"{name} {value:g}" for name, value in self.parameters.items()) or "nothing to tune"
        missed = "" if self.met else f"; no trial reached {100 * self.goal:g} %, the best attainment was taken"
        return f"{values} ({100 * self.attainment:.2f} % on the tuning days, {len(self.trials)} trials{missed})"


def tune(
    *,
    defaults: Parameters,
    grid: Mapping[str, Sequence[float]],
    evaluate: Evaluate,
    goal: float,
    evaluations: int = EVALUATIONS,
) -> Tuned:
    """The best parameters within a number of evaluations; the same inputs give the same answer.

    Raises PolicySettingsError on a goal outside 0..1, no evaluations, a grid that does not ascend or names no
    parameter, and on an evaluation that returns no energy or no share.
    """
    _check(defaults, grid, goal, evaluations)
    search = _Search(evaluate=evaluate, goal=goal, left=evaluations)
    best = search.tried(dict(defaults))
    values = {name: tuple(each) for name, each in grid.items() if each}
    if values:
        first, *others = values
        best = _narrowed(search, best, first, values[first])
        best = _walked(search, best, first, others, values)
    return Tuned(
        parameters=best.parameters,
        energy_joules=best.energy_joules,
        attainment=best.attainment,
        goal=goal,
        trials=tuple(search.trials.values()),
    )


def _narrowed(search: "_Search", start: Trial, name: str, values: tuple[float, ...]) -> Trial:
    """The best along one parameter, the others as in `start`."""
    found: dict[int, Trial] = {}
    low, high = 0, len(values) - 1
    best = start
    while search.left:
        unknown = [index for index in dict.fromkeys(((low + high) // 2, low, high)) if index not in found]
        if not unknown:
            break
        for index in unknown:
            parameters = {**start.parameters, name: values[index]}
            trial = search.reached(parameters)
            if trial is not None:
                found[index] = trial
        leader = min(found, key=lambda index: (search.rank(found[index]), index))
        best = min(best, found[leader], key=search.rank)
        # As good as the leader is a whole stretch where nothing changes: the edge lies beyond its ends.
        first = last = leader
        while first - 1 in found and search.alike(found[first - 1], found[leader]):
            first -= 1
        while last + 1 in found and search.alike(found[last + 1], found[leader]):
            last += 1
        below = max((index for index in found if index < first), default=first)
        above = min((index for index in found if index > last), default=last)
        # The middles of the two gaps beside it; known values where a gap is closed.
        low, high = first - (first - below) // 2, last + (above - last) // 2
    return best


def _walked(
    search: "_Search", best: Trial, first: str, others: Sequence[str], values: Mapping[str, tuple[float, ...]]
) -> Trial:
    """The best that steps of the other parameters lead to, the first one moving along."""
    moved = True
    while moved and search.left:
        moved = False
        for name, step in itertools.product(others, (1, -1)):
            while (parameters := _stepped(best.parameters, name, values[name], step)) is not None:
                found = _climbed(search, parameters, first, values[first])
                if found is None or search.rank(found) >= search.rank(best):
                    break
                best, moved = found, True
    return best


def _climbed(search: "_Search", parameters: Parameters, name: str, values: tuple[float, ...]) -> Trial | None:
    """The best that steps along one parameter lead to from here; None: no evaluation is left."""
    start = best = search.reached(parameters)
    if start is None or best is None:
        return None
    for step in (1, -1):
        here = best
        while (following := _stepped(here.parameters, name, values, step)) is not None:
            found = search.reached(following)
            if found is None:
                return best
            better = search.rank(found) < search.rank(best)
            if not better and not search.alike(found, best):
                break
            # Where nothing changes, as with a target that asks for all replicas at all times, the edge lies further.
            here, best = found, found if better else best
        if best is not start:
            break
    return best


def _stepped(parameters: Parameters, name: str, values: tuple[float, ...], step: int) -> Parameters | None:
    """One value further on the grid; None at its end."""
    at = parameters[name]
    index = bisect.bisect_right(values, at) if step > 0 else bisect.bisect_left(values, at) - 1
    return {**parameters, name: values[index]} if 0 <= index < len(values) else None


@dataclass
class _Search:
    evaluate: Evaluate
    goal: float
    left: int
    trials: dict[tuple[tuple[str, float], ...], Trial] = field(default_factory=dict)

    def known(self, parameters: Parameters) -> bool:
        return tuple(sorted(parameters.items())) in self.trials

    def reached(self, parameters: Parameters) -> Trial | None:
        """The trial of these parameters; None: it is not known, and no evaluation is left."""
        return self.tried(parameters) if self.left or self.known(parameters) else None

    def tried(self, parameters: Parameters) -> Trial:
        """The trial of these parameters, evaluated once only."""
        key = tuple(sorted(parameters.items()))
        if key not in self.trials:
            self.left -= 1
            energy, attainment = self.evaluate(parameters)
            if not (math.isfinite(energy) and energy >= 0.0 and 0.0 <= attainment <= 1.0):
                raise PolicySettingsError(
                    f"the tuning run with {dict(parameters)} returned {energy:g} J and an attainment of "
                    f"{attainment:g}; energy must be finite and not negative, attainment a share in 0..1"
                )
            self.trials[key] = Trial(parameters=parameters, energy_joules=energy, attainment=attainment)
        return self.trials[key]

    def alike(self, one: Trial, other: Trial) -> bool:
        """Whether two trials differ by less than matters."""
        return (
            math.isclose(one.energy_joules, other.energy_joules, rel_tol=_ALIKE)
            and math.isclose(one.attainment, other.attainment, abs_tol=_ALIKE)
            and (one.attainment >= self.goal) == (other.attainment >= self.goal)
        )

    def rank(self, trial: Trial) -> tuple[float, float, float]:
        """Smaller is better."""
        if trial.attainment >= self.goal:
            return 0.0, trial.energy_joules, -trial.attainment
        return 1.0, -trial.attainment, trial.energy_joules


def _check(defaults: Parameters, grid: Mapping[str, Sequence[float]], goal: float, evaluations: int) -> None:
    if not 0.0 <= goal <= 1.0:
        raise PolicySettingsError(f"the goal of tuning is a share in 0..1, not {goal:g}")
    if evaluations < 1:
        raise PolicySettingsError(f"tuning needs at least one evaluation, not {evaluations}")
    for name, values in grid.items():
        if name not in defaults:
            raise PolicySettingsError(f"the grid names {name}, which is no parameter: {', '.join(defaults) or 'none'}")
        if any(later <= earlier for earlier, later in itertools.pairwise(values)):
            raise PolicySettingsError(f"the grid of {name} must ascend: {', '.join(f'{value:g}' for value in values)}")
