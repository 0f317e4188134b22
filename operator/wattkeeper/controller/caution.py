"""The profile that plans and replays of a service go by: its own, with caution about what a limit would do to it."""

import math
from dataclasses import dataclass, replace

from wattkeeper.controller import full_power
from wattkeeper.controller.full_power import FullPower, FullPowerReadings
from wattkeeper.controller.service import Service
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
_SETTLE_LOOKS = 3
"""Looks after the last one at a limit until readings are believed to be free of it: they are means over minutes."""


@dataclass(kw_only=True)
class Caution:
    """What is known of one service. What no limit held is kept over a restart (`controller.full_power`)."""

    factor: float | None = None
    looked: float | None = None
    """Decision time of the last look."""
    estimate: str = ""
    """Hash of the estimate that the factor multiplies."""
    settling: int = 0
    """Looks to come whose readings may still be of a limit."""

    def look(
        self,
        service: Service,
        observation: ServiceObservation,
        calibration: Calibration | None,
        *,
        read: FullPowerReadings,
        cap_watts: float | None,
        model: EnergyModel,
        now: float,
        wall: float,
    ) -> None:
        """Take in what readings under the limit in force (None: none) say, at most once a minute.

        `read` is what the services of the pair read at full power; `now` is decision time, `wall` the wall time.
        """
        profile, workload = service.profile, observation.workload
        if profile is None:
            return
        if calibration is None:
            self.factor = None
            read.take(service.key, None)
            return
        estimate = full_power.estimate_of(profile)
        if estimate != self.estimate:
            self.factor, self.looked, self.estimate = None, None, estimate
        free = read.of(service.key, profile)
        if self.factor is None and free is not None:
            # What was kept is believed; readings beside it may still be of a limit that is gone.
            self.factor, self.settling = free, _SETTLE_LOOKS
        if workload is None or (self.looked is not None and now - self.looked < _REFRESH_SECONDS):
            return
        found = _read(profile, workload, calibration, cap_watts=cap_watts, model=model)
        if found is None:
            return
        self.looked = now
        self.settling = _SETTLE_LOOKS if found.at_limit else max(0, self.settling - 1)
        held = replace(found, at_limit=found.at_limit or self.settling > 0)
        self.factor = caution.remembered(free, held, unread=caution.unread(profile))
        if not held.at_limit:
            read.take(service.key, FullPower(factor=found.factor, seconds=wall, estimate=estimate))

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
    read: FullPower | None,
    cap_watts: float | None,
    model: EnergyModel,
) -> ServingProfile:
    """The profile with the caution of somebody who knows the readings, and what was `read` at full power, alone."""
    if calibration is None:
        return Caution().of(profile)
    free = read.factor if read is not None and read.estimate == full_power.estimate_of(profile) else None
    found = _read(profile, workload, calibration, cap_watts=cap_watts, model=model)
    known = free if found is None else caution.remembered(free, found, unread=caution.unread(profile))
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
