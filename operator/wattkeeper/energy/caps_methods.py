"""The models of throughput under a power limit side by side, and which of them training curves speak for.

The knee (`energy.caps`), the law with its numbers drawn (`energy.cap_beliefs`), and the mean of both. Which one
answers, and how wide its interval is, is learnt by holding out each group of the training curves in turn, apart for
each number of readings. So it differs between cold and after readings, and nothing of the curve asked about is in it.

The interval is `scale` sigmas of the model's own. Rows of one group err together, so every held-out group counts the
same, and the group to come as a whole one that is missed (`energy.intervals`).
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import intervals
from wattkeeper.energy.cap_beliefs import LimitBelief, SampledLaw
from wattkeeper.energy.caps import READING_NOISE_LOG, CapCurve, CapModel

KNEE, DRAWS, BOTH = "knee", "drawn law", "both"
METHODS = (KNEE, DRAWS, BOTH)
_RANDOM_DRAWS = 4
_SIGMA_SHARES = (0.16, 0.84)
IndexArray = npt.NDArray[np.int_]
Group = Callable[[CapCurve], str]
"""What is held out together."""


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """ln(relative throughput) at some limits and one sigma of it, the noise of a reading included; (N,) each."""

    log_relative: FloatArray
    sigma_log: FloatArray


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What training curves say of one number of readings."""

    method: str
    scale: dict[str, float]
    """Sigmas of an interval that holds `intervals.COVERAGE`, per method."""


@functools.cache
def hidden(curve: CapCurve) -> CapCurve:
    """Without the watts that it drew uncapped."""
    return replace(curve, facts=replace(curve.facts, uncapped_watts=None))


class CapMethods:
    """Both models, learnt from curves with their uncapped watts; `watts_known`: those asked about have them too."""

    def __init__(self, train: Sequence[CapCurve], *, watts_known: bool) -> None:
        self._watts_known = watts_known
        # The knee is a share of the reference watts, which must be the same kind in training.
        self._knee = CapModel(train if watts_known else [hidden(curve) for curve in train])
        self._law = SampledLaw(train)

    def belief(self, curve: CapCurve) -> LimitBelief:
        """Of the drawn law, before readings under a limit."""
        return self._law.belief(self._asked(curve).facts, curve.cap_watts)

    def foreseen(self, curve: CapCurve, belief: LimitBelief, picked: IndexArray) -> dict[str, Foreseen]:
        """Per method, at the limits of `curve` that are not `picked`: those were read."""
        asked = self._asked(curve)
        left = np.setdiff1d(np.arange(len(curve.cap_watts)), picked)
        knee = self._knee.knee(asked.facts, asked.take(picked))
        low, high = knee.quantiles(curve.cap_watts[left], _SIGMA_SHARES)
        middle = knee.relative(curve.cap_watts[left])
        after = belief.after(picked.tolist(), curve.relative[picked]).quantiles(
            (_SIGMA_SHARES[0], 0.5, _SIGMA_SHARES[1])
        )
        found = {KNEE: _foreseen(low, middle, high), DRAWS: _foreseen(*after[:, left])}
        both = list(found.values())
        found[BOTH] = Foreseen(
            log_relative=np.mean([each.log_relative for each in both], axis=0),
            sigma_log=np.mean([each.sigma_log for each in both], axis=0),
        )
        return found

    def _asked(self, curve: CapCurve) -> CapCurve:
        return curve if self._watts_known else hidden(curve)


def _foreseen(low: FloatArray, middle: FloatArray, high: FloatArray) -> Foreseen:
    spread = (np.log(high) - np.log(low)) / 2.0
    return Foreseen(log_relative=np.log(middle), sigma_log=np.hypot(spread, READING_NOISE_LOG))


def readings(curve: CapCurve, belief: LimitBelief, *, seed: int) -> Iterator[tuple[str, IndexArray]]:
    """Names of calibrations, and which of the ascending limits are read; *designed* ones say most by `belief`."""
    count = len(curve.cap_watts)
    first = belief.most_informative()
    second = belief.after([first], curve.relative[[first]]).most_informative()
    yield "cold", np.array([], dtype=np.int_)
    for number, designed in ((1, [first]), (2, sorted({first, second}))):
        rng = np.random.default_rng([seed, number, count])
        for _ in range(_RANDOM_DRAWS):
            yield f"+{number} random", np.sort(rng.permutation(count)[:number])
        yield f"+{number} designed", np.array(designed)


def choose(train: Sequence[CapCurve], group: Group, *, watts_known: bool, seed: int) -> dict[str, Chosen]:
    """Per calibration, from `train` with each of its groups held out in turn."""
    found: dict[str, dict[str, _HeldOut]] = {}
    for name in sorted({group(curve) for curve in train}):
        model = CapMethods([curve for curve in train if group(curve) != name], watts_known=watts_known)
        for curve in (curve for curve in train if group(curve) == name):
            belief = model.belief(curve)
            for calibration, picked in readings(curve, belief, seed=seed):
                measured = np.log(np.delete(curve.relative, picked))
                for method, foreseen in model.foreseen(curve, belief, picked).items():
                    held = found.setdefault(calibration, {}).setdefault(method, _HeldOut())
                    missed = np.abs(measured - foreseen.log_relative)
                    held.misses.append(missed)
                    held.sigmas.setdefault(name, []).append(missed / foreseen.sigma_log)
    return {
        calibration: Chosen(
            method=min(by_method, key=lambda method: by_method[method].mean_miss),
            scale={method: held.scale for method, held in by_method.items()},
        )
        for calibration, by_method in found.items()
    }


@dataclass(frozen=True)
class _HeldOut:
    """|ln(measured / foreseen)| of one method, and the same in sigmas by group."""

    misses: list[FloatArray] = field(default_factory=list)
    sigmas: dict[str, list[FloatArray]] = field(default_factory=dict)

    @property
    def mean_miss(self) -> float:
        return float(np.concatenate(self.misses).mean())

    @property
    def scale(self) -> float:
        misses = {name: np.concatenate(each) for name, each in self.sigmas.items()}
        members = np.repeat(list(misses), [len(each) for each in misses.values()])
        return intervals.by_unit(np.concatenate(list(misses.values())), members, groups_to_come=intervals.WHOLE)
