"""What a refit taught of a profile: as it is applied to it, told in words, and kept in the status over a restart.

What is planned with is the profile with its step-time terms multiplied by what was found, on a grid of a few percent:
then a plan does not change with the last digit, and services on equal hardware keep equal profiles, which the models
judge in one call. Where the load does not tell the terms apart, they move together (the level); where too little was
seen, or nothing fits, the profile stays as it was, and with a poor fit it counts as an estimate.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from wattkeeper.api.service_status import ProfileStatus
from wattkeeper.physics.profile import IterationCoefficients, Provenance, ServingProfile
from wattkeeper.physics.refit import LEAST_WINDOWS, Estimate, Refit, RefitStatus

NO_SERIES = "NoSeries"
NOT_STARTED = "NotStarted"

LEAST_ERROR = 0.03
"""No refit claims a smaller relative error of step time: what simulated engines show at loads that tell all terms."""
_GRID_LOG = 0.04
_ERROR_GRID_LOG = 0.4
_STAY = 0.75
"""A value on a grid stays until the new one is further away than this share of a step."""
_SMALLEST_FACTOR, _LARGEST_FACTOR = 0.2, 5.0
"""Factors outside are no engine of this profile, but a wrong model, unit or pod."""
_BEYOND_LOAD = 1.5
"""The error stated holds up to this many times the largest load seen."""
_POOR_FIT_WIDENING = 1.5
_POOR_FIT_ERROR = 0.25


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a refit says, as it is applied, shown and remembered."""

    of: str
    """Names the profile and engine that it was learnt of."""
    state: str
    """A `RefitStatus` value, or NO_SERIES or NOT_STARTED."""
    level: float = 1.0
    """Measured over the profile's step time."""
    factors: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """On the fixed part, the part per token and the part per KV token; 1 where nothing is applied."""
    relative_error: float | None = None
    """Of the step time of the profile with the factors; None: the profile's own."""
    confidence: float = 0.0
    windows: int = 0
    weak: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """True where the factors are measured."""
        return self.state in (RefitStatus.IDENTIFIED.value, RefitStatus.LOAD_TOO_STEADY.value)


def of_estimate(
    estimate: Estimate,
    refit: Refit,
    *,
    before: Learned,
    base: ServingProfile,
    begin: IterationCoefficients,
    of: str,
) -> Learned:
    """An estimate as it is applied: factors on the base profile, on a grid, with the error that is left."""
    state = estimate.status.value
    windows = estimate.windows
    if estimate.status is RefitStatus.TOO_FEW_WINDOWS:
        return Learned(of=of, state=state, windows=windows)
    # The refit may have begun from what was learnt earlier; level and factors are said of the profile.
    start = _factors(begin, base.iteration)
    found = tuple(a * b for a, b in zip(start, _factors(estimate.iteration, begin), strict=True))
    level = estimate.level * float(np.median(start))
    if estimate.status is RefitStatus.POOR_FIT or not all(_SMALLEST_FACTOR < each < _LARGEST_FACTOR for each in found):
        error = max(_POOR_FIT_WIDENING * base.relative_error, estimate.spread, _POOR_FIT_ERROR)
        return Learned(
            of=of, state=RefitStatus.POOR_FIT.value, level=level, relative_error=_error_on_grid(error, before),
            windows=windows,
        )  # fmt: skip
    # Where a poor fit or too little came before, `before` has factors of one, which is as good a place to start from.
    factors = [_on_grid(each, old, _GRID_LOG) for each, old in zip(found, before.factors, strict=True)]
    error = min(_error_on_grid(_relative_error(estimate, refit), before), base.relative_error)
    return Learned(
        of=of,
        state=state,
        level=level,
        factors=(factors[0], factors[1], factors[2]),
        relative_error=error,
        confidence=estimate.confidence,
        windows=windows,
        weak=estimate.weak,
    )


def _relative_error(estimate: Estimate, refit: Refit) -> float:
    """One sigma of the step time, at the median of the load seen and somewhat beyond its largest."""
    terms = refit.rows[:, 2:5]
    covariance = np.array(estimate.covariance)
    factors = np.array(_factors(estimate.iteration, refit.prior))
    points = (np.median(terms, axis=0), terms.max(axis=0) * np.array([1.0, _BEYOND_LOAD, _BEYOND_LOAD]))
    errors = [math.sqrt(max(float(each @ covariance @ each), 0.0)) / float(each @ factors) for each in points]
    return max(LEAST_ERROR, *errors)


def _factors(found: IterationCoefficients, begin: IterationCoefficients) -> tuple[float, float, float]:
    """Of the fixed, the per-token and the KV term; 1 for a term that the profile does not have."""

    def ratio(name: str) -> float:
        before = float(getattr(begin, name))
        return float(getattr(found, name)) / before if before > 0.0 else 1.0

    return ratio("d0_seconds"), ratio("dt_seconds_per_token"), ratio("dkv_seconds_per_kv_token")


def scaled(iteration: IterationCoefficients, factors: Sequence[float]) -> IterationCoefficients:
    """Terms with the factors of the fixed, the per-token and the KV part."""
    fixed, token, memory = factors
    own = iteration.dn_seconds_per_decode
    return replace(
        iteration,
        d0_seconds=iteration.d0_seconds * fixed,
        dt_seconds_per_token=iteration.dt_seconds_per_token * token,
        dn_seconds_per_decode=None if own is None else own * token,
        da_seconds_per_token_squared=iteration.da_seconds_per_token_squared * token,
        dkv_seconds_per_kv_token=iteration.dkv_seconds_per_kv_token * memory,
    )


def applied(base: ServingProfile, learned: Learned) -> ServingProfile:
    """The profile with what was learnt; itself where that is nothing."""
    if learned.relative_error is None:
        return base
    if learned.state == RefitStatus.POOR_FIT.value:
        return replace(
            base,
            provenance=Provenance.ESTIMATED,
            relative_error=learned.relative_error,
            notes=(*base.notes, "measured steps do not fit this form"),
        )
    if not learned.fits:
        return base
    identified = learned.state == RefitStatus.IDENTIFIED.value
    return replace(
        base,
        iteration=scaled(base.iteration, learned.factors),
        provenance=Provenance.FITTED if identified else base.provenance,
        relative_error=learned.relative_error,
        notes=(*base.notes, "step time refitted to the running engines"),
    )


def _on_grid(value: float, before: float, step_log: float) -> float:
    """The nearest point of a grid in logarithms; the one before unless it is clearly left."""
    if abs(math.log(value / before)) <= _STAY * step_log:
        return before
    return round(math.exp(step_log * round(math.log(value) / step_log)), 4)


def _error_on_grid(error: float, before: Learned) -> float:
    nearest = round(math.exp(_ERROR_GRID_LOG * round(math.log(error) / _ERROR_GRID_LOG)), 4)
    known = nearest if before.relative_error is None else before.relative_error
    return max(LEAST_ERROR, _on_grid(error, known, _ERROR_GRID_LOG))


def describe(learned: Learned, dropped: Mapping[str, int]) -> str:
    """What is known of the step time, and why it is not more, in words."""
    if learned.state == NO_SERIES:
        return "step time not measured: these engines serve no iteration_tokens_total"
    if learned.state in (NOT_STARTED, RefitStatus.TOO_FEW_WINDOWS.value):
        why = max(dropped, key=lambda reason: dropped[reason], default=None)
        most = "" if why is None else f", most others left out for {why}"
        return f"step time not measured yet: {learned.windows} of {LEAST_WINDOWS} windows{most}"
    if not learned.fits:
        return f"measured steps do not fit this profile (level {learned.level:.2f}): it stays, with a wider margin"
    text = f"measured steps take {learned.level:.2f} times the profile's"
    if learned.relative_error is not None:
        text += f", known to {learned.relative_error:.0%} from {learned.windows} windows"
    return text if not learned.weak else f"{text}; the load does not tell {', '.join(learned.weak)} apart"


def to_status(learned: Learned, profile: ServingProfile | None, *, name: str | None = None) -> ProfileStatus:
    """As status shows and keeps it; `name` is that of the ModelProfile."""
    if profile is None:
        return ProfileStatus()
    fixed, token, memory = learned.factors
    return ProfileStatus(
        accelerator=profile.gpu.name,
        gpus_per_replica=profile.gpus_per_replica,
        model_profile=name,
        source=profile.provenance.value,
        refit=learned.state,
        level=_rounded(learned.level),
        confidence=_rounded(learned.confidence),
        relative_error=_rounded(profile.relative_error),
        windows=learned.windows,
        weak_terms=list(learned.weak),
        d0_factor=fixed,
        dt_factor=token,
        dkv_factor=memory,
        learned_of=learned.of,
    )


def from_status(kept: ProfileStatus) -> Learned:
    """What was learnt before a restart; of use only where it is said of the same profile and its terms are measured."""
    factors = (kept.d0_factor, kept.dt_factor, kept.dkv_factor)
    learned = Learned(
        of=kept.learned_of,
        state=kept.refit,
        level=kept.level,
        factors=factors,
        relative_error=kept.relative_error,
        confidence=kept.confidence,
        windows=kept.windows,
        weak=tuple(kept.weak_terms),
    )
    sane = all(_SMALLEST_FACTOR < each < _LARGEST_FACTOR for each in factors)
    return learned if learned.fits and sane else Learned(of="", state=NOT_STARTED)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
