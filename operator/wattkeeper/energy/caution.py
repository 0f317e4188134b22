"""With which watts a plan counts under power limits, where the card's own were never read, and where they were.

A limit slows a card down by as much as the card would draw above it. The estimate of a pair that nobody measured is of
datacentre cards; workstation and gaming cards were seen to draw 1.3 to 1.7 times as much in decode
(docs/accuracy/energy.md), and a limit that seems harmless at the estimate then takes a third of the throughput. So:

- before any reading, an estimated pair is planned as if it drew its rated power at any work;
- readings of the deployment at full power say what it draws: their upper end counts, never less than the estimate;
- a pair whose energy was fitted or measured is believed until readings go beyond its interval.

Readings at a limit in force say how high it is and not what the card wants: see `remembered`.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from wattkeeper.energy import points
from wattkeeper.energy.calibration import Calibration
from wattkeeper.energy.model import MEASURED_HALF_WIDTH_LOG, EnergyModel
from wattkeeper.physics.profile import Provenance, ServingProfile

_SIGMAS = 1.28
"""Nine in ten such deployments draw less."""
_AT_LIMIT = 0.9
"""Share of a limit from which on what is drawn may be its doing: it is held as a mean, at busy times alone."""
_LEAST_WEIGHT = 2.0
"""Ticks of a busy replica that must stand behind a reading: the first ones see start-ups and half windows."""
_STEP = 0.05
"""Factors are rounded up to these steps, so that a reading more does not make a new profile."""


def unread(profile: ServingProfile) -> float:
    """`ServingProfile.cap_caution` before anything was read."""
    return math.inf if profile.energy_provenance is Provenance.ESTIMATED else 1.0


@dataclass(frozen=True, kw_only=True)
class Read:
    """What readings of a deployment say of its `ServingProfile.cap_caution`."""

    factor: float
    at_limit: bool
    """True where they are about as high as the limit in force: without it the card may draw more."""


def from_readings(
    profile: ServingProfile,
    calibration: Calibration,
    *,
    model: EnergyModel,
    prompt_tokens: float,
    output_tokens: float,
    cap_watts: float | None,
) -> Read | None:
    """After readings of a deployment with these mean lengths (prefix hits taken off) under a limit (None: without one).

    The largest ratio over the batches read of what the deployment draws to the physical estimate, both above the floor.
    1 where a measured pair draws no more than its interval says. None where no batch was read for long enough.
    """
    batch = np.array([reading.batch for reading in calibration.readings if reading.weight >= _LEAST_WEIGHT])
    if not len(batch):
        return None
    state = points.closed_loop(
        replace(profile, cap_caution=1.0),
        batch=batch,
        prompt_tokens=np.full_like(batch, max(prompt_tokens, 1.0)),
        output_tokens=np.full_like(batch, max(output_tokens, 1.0)),
        multimodal=np.zeros_like(batch),
    )
    learnt, spread = calibration.factor_and_spread(batch)
    drawn = model.busy_watts([state])[0] * learnt
    sure = profile.energy_provenance is not Provenance.ESTIMATED
    most = drawn if sure else drawn * np.exp(_SIGMAS * spread)
    floor = profile.energy.static_watts
    ratio = float(np.max((most - floor) / np.maximum(state.busy_watts - floor, 1.0)))
    if sure and (drawn <= state.busy_watts * math.exp(MEASURED_HALF_WIDTH_LOG)).all():
        ratio = 1.0
    return Read(
        factor=max(1.0, round(_STEP * math.ceil(ratio / _STEP - 1e-9), 2)),
        at_limit=cap_watts is not None and float(np.max(drawn)) >= _AT_LIMIT * cap_watts,
    )


def remembered(before: float | None, now: Read, *, unread: float) -> float:
    """The factor to go by: readings at a limit can only add to what was known `before` it (None: nothing)."""
    if not now.at_limit:
        return now.factor
    return max(unread if before is None else before, now.factor)
