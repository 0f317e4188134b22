"""The profile that plans and replays of a service go by: its own, with caution about what a limit would do to it."""

import math
from dataclasses import dataclass, replace

from wattkeeper.controller.resolve import Service
from wattkeeper.domain.observation import ServiceObservation
from wattkeeper.domain.workload import Workload
from wattkeeper.energy import caution
from wattkeeper.energy.calibration import Calibration
from wattkeeper.energy.model import EnergyModel
from wattkeeper.physics.profile import ServingProfile

_REFRESH_SECONDS = 60.0
"""Decision time between two looks at the readings: they are a mean over minutes."""
_MOST_WAIT_SECONDS = 600.0
"""Decision time; a replica that is busy a twentieth of the time is read by then."""


@dataclass(kw_only=True)
class Caution:
    """What is known of one service. Lost at a restart: readings at a limit that is in force then say little."""

    factor: float | None = None
    free: float | None = None
    """The factor of the last readings that no limit held."""
    looked: float | None = None
    """Decision time of the last look."""

    def look(
        self,
        service: Service,
        observation: ServiceObservation,
        calibration: Calibration | None,
        *,
        cap_watts: float | None,
        model: EnergyModel,
        now: float,
    ) -> None:
        """Take in what readings under the limit in force (None: none) say, at most once a minute."""
        profile, workload = service.profile, observation.workload
        if profile is None or workload is None or (self.looked is not None and now - self.looked < _REFRESH_SECONDS):
            return
        if calibration is None:
            self.factor = self.free = None
            return
        found = _read(profile, workload, calibration, cap_watts=cap_watts, model=model)
        if found is None:
            return
        self.looked = now
        self.factor = caution.remembered(self.free, found, unread=caution.unread(profile))
        self.free = self.free if found.at_limit else found.factor

    def waits(self, profile: ServingProfile, *, measured: bool, cap_watts: float | None, seen_seconds: float) -> bool:
        """True where power is better left alone: at full power a reading is on its way that a limit would spoil.

        For `_MOST_WAIT_SECONDS` at most, `seen_seconds` being how long the service has been looked at, and not where
        no watts are `measured` or a limit is in force already.
        """
        unread = self.factor is None and math.isinf(caution.unread(profile))
        return unread and measured and cap_watts is None and seen_seconds < _MOST_WAIT_SECONDS

    def of(self, profile: ServingProfile) -> ServingProfile:
        """With the caution that was found, or as much as an unread deployment needs."""
        return replace(profile, cap_caution=caution.unread(profile) if self.factor is None else self.factor)


def cautious(
    profile: ServingProfile,
    workload: Workload,
    calibration: Calibration | None,
    *,
    cap_watts: float | None,
    model: EnergyModel,
) -> ServingProfile:
    """The profile with the caution of somebody who knows the readings alone."""
    found = None
    if calibration is not None:
        found = _read(profile, workload, calibration, cap_watts=cap_watts, model=model)
    unread = caution.unread(profile)
    known = None if found is None else caution.remembered(None, found, unread=unread)
    return Caution(factor=known).of(profile)


def _read(
    profile: ServingProfile,
    workload: Workload,
    calibration: Calibration,
    *,
    cap_watts: float | None,
    model: EnergyModel,
) -> caution.Read | None:
    return caution.from_readings(
        profile,
        calibration,
        model=model,
        prompt_tokens=workload.prompt.mean * (1.0 - workload.prefix_hit_ratio),
        output_tokens=workload.output.mean,
        cap_watts=cap_watts,
    )
