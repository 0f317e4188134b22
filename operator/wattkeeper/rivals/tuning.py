"""A small search for a policy's best parameters, on other days than those that it is tested on.

Least energy among the parameters that reach the goal; where none does, the highest attainment. One parameter after the
other, each by successive narrowing: the ends and the middle of its grid, then the part around the best of them, until
the neighbours of the best are known or its share of the evaluations is used up. The defaults are always tried, so that
tuning never ends worse than the documentation does on the tuning days.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from wattkeeper.rivals.registry import STATIC_PEAK, Rival
from wattkeeper.rivals.settings import Parameters, PolicySettingsError, Setting

EVALUATIONS = 10
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
    names = [name for name, values in grid.items() if values]
    for index, name in enumerate(names):
        # The first parameter is the one that matters most.
        share = search.left if index == len(names) - 1 else math.ceil(search.left / 2)
        best = _narrowed(search, best, name, tuple(grid[name]), share)
    return Tuned(
        parameters=best.parameters,
        energy_joules=best.energy_joules,
        attainment=best.attainment,
        goal=goal,
        trials=tuple(search.trials.values()),
    )


def tune_all(
    setting: Setting,
    *,
    rivals: Sequence[Rival],
    evaluate: Callable[[Rival, Setting, Parameters], tuple[float, float]],
    goal: float,
    evaluations: int = EVALUATIONS,
) -> tuple[Setting, dict[str, Tuned]]:
    """Every policy tuned on the same days, by name, and the setting that they are then built with.

    The static fleet comes first: how many replicas the peak really needs is what the others' grids start from.
    """
    found: dict[str, Tuned] = {}
    for rival in sorted(rivals, key=lambda rival: rival.name != STATIC_PEAK):
        found[rival.name] = tune(
            defaults=rival.defaults(setting),
            grid=rival.grid(setting),
            evaluate=partial(evaluate, rival, setting),
            goal=goal,
            evaluations=evaluations,
        )
        if rival.name == STATIC_PEAK:
            setting = setting.with_peak(round(found[rival.name].parameters["replicas"]))
    return setting, found


def _narrowed(search: "_Search", start: Trial, name: str, values: tuple[float, ...], share: int) -> Trial:
    """The best along one parameter, the others as in `start`."""
    at_most = search.left - share
    found: dict[int, Trial] = {}
    low, high = 0, len(values) - 1
    best = start
    while search.left > at_most:
        unknown = [index for index in dict.fromkeys(((low + high) // 2, low, high)) if index not in found]
        if not unknown:
            break
        for index in unknown:
            if search.left <= at_most and not search.known({**start.parameters, name: values[index]}):
                break
            found[index] = search.tried({**start.parameters, name: values[index]})
        if not found:
            break
        leader = min(found, key=lambda index: (search.rank(found[index]), index))
        best = min(best, found[leader], key=search.rank)
        below = [index for index in found if index < leader]
        above = [index for index in found if index > leader]
        low, high = _between(max(below, default=leader), leader, min(above, default=leader))
    return best


def _between(below: int, leader: int, above: int) -> tuple[int, int]:
    """The middles of the two gaps beside the leader; the leader itself where a gap is closed."""
    return leader - (leader - below) // 2, leader + (above - leader) // 2


@dataclass
class _Search:
    evaluate: Evaluate
    goal: float
    left: int
    trials: dict[tuple[tuple[str, float], ...], Trial] = field(default_factory=dict)

    def known(self, parameters: Parameters) -> bool:
        return tuple(sorted(parameters.items())) in self.trials

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
