"""What services of one deployment read while no power limit held their watts; kept over a restart.

Readings at a limit say how high it is and not what the card wants, so what was read before the limit is all that a plan
knows (`energy.caution`). An operator that starts while limits are in force begins with what its predecessor read.
"""

import functools
import logging
import math
import zlib
from collections.abc import Set
from dataclasses import dataclass, field

from wattkeeper.api.calibration import FullPowerStatus
from wattkeeper.controller.clock import from_rfc3339, to_rfc3339
from wattkeeper.controller.service import ServiceKey
from wattkeeper.energy.learnt import HALF_LIFE_SECONDS
from wattkeeper.physics.profile import EnergyCoefficients, Provenance, ServingProfile

_log = logging.getLogger(__name__)
KEPT_SECONDS = 2.0 * HALF_LIFE_SECONDS
"""Older readings are not begun with: those beside them have lost three quarters of their weight by then."""
_WRITTEN_AGAIN_SECONDS = 86_400.0
_SKEW_SECONDS = 3600.0
"""Wall time by which a reading may lie ahead, where two machines disagree."""


@dataclass(frozen=True, kw_only=True)
class FullPower:
    """A `ServingProfile.cap_caution` that was read."""

    factor: float
    seconds: float
    """Wall time of the reading."""
    estimate: str
    """What the factor multiplies: `estimate_of` the profile."""


@dataclass(kw_only=True)
class FullPowerReadings:
    """Of all services of one deployment: the largest speaks for those that have read nothing."""

    kept: FullPower | None = None
    """Of operators and services before."""
    _read: dict[ServiceKey, FullPower | None] = field(default_factory=dict)

    def of(self, service: ServiceKey, profile: ServingProfile) -> float | None:
        """The factor that a service last read, or begins with; None: nothing is known of this profile."""
        found = self._read.setdefault(service, self.most())
        if found is not None and found.estimate != estimate_of(profile):
            _not_used("/".join(service), "the estimate of the watts has changed since")
            found = self._read[service] = None
        return None if found is None else found.factor

    def take(self, service: ServiceKey, reading: FullPower | None) -> None:
        """A service read this; None: what it read is not believed any more."""
        self._read[service] = reading

    def most(self) -> FullPower | None:
        """What others begin with, and what is kept."""
        if not self._read:
            return self.kept
        return max((each for each in self._read.values() if each is not None), key=lambda it: it.factor, default=None)

    def keep_only(self, alive: Set[ServiceKey]) -> None:
        """Forget services that are gone; what the last one read stays for the next."""
        gone = [service for service in self._read if service not in alive]
        if gone and len(gone) == len(self._read):
            self.kept = self.most()
        for service in gone:
            del self._read[service]


def estimate_of(profile: ServingProfile) -> str:
    """Hash of what a factor multiplies: it changes with the catalogue, and with power terms in a ModelProfile."""
    return _estimate(profile.energy, profile.energy_provenance)


@functools.lru_cache(maxsize=4096)
def _estimate(energy: EnergyCoefficients, provenance: Provenance) -> str:
    return f"{zlib.crc32(f'{energy} {provenance.value}'.encode()):08x}"


def to_status(reading: FullPower | None) -> FullPowerStatus | None:
    """As status keeps it."""
    if reading is None:
        return None
    return FullPowerStatus(watts_factor=reading.factor, time=to_rfc3339(reading.seconds), estimate=reading.estimate)


def changed(old: FullPowerStatus | None, new: FullPowerStatus | None) -> bool:
    """True where the difference is worth a write: the same factor is written anew after a while, or it would age."""
    if old is None or new is None:
        return old is not new
    if (old.watts_factor, old.estimate) != (new.watts_factor, new.estimate):
        return True
    before, after = from_rfc3339(old.time), from_rfc3339(new.time)
    return before is None or (after is not None and after - before > _WRITTEN_AGAIN_SECONDS)


def from_status(status: FullPowerStatus | None, *, wall: float, service: str) -> FullPower | None:
    """What status kept, where it can still hold; else None, with the reason in the log. `wall` is the time now."""
    if status is None:
        return None
    factor, time = status.watts_factor, from_rfc3339(status.time)
    if not math.isfinite(factor) or factor < 1.0:
        _not_used(service, f"its factor is {factor}, not a number of 1 or more")
    elif time is None:
        _not_used(service, f"its time {status.time!r} is none")
    elif time > wall + _SKEW_SECONDS:
        _not_used(service, f"its time {status.time} is still to come")
    elif time < wall - KEPT_SECONDS:
        _not_used(service, f"it is of {status.time}, more than {KEPT_SECONDS / 86_400:.0f} days ago")
    else:
        return FullPower(factor=factor, seconds=min(time, wall), estimate=status.estimate)
    return None


def _not_used(service: str, why: str) -> None:
    _log.warning(
        "%s: the kept reading of watts at full power is not used (%s); limits are planned with caution until there is "
        "a new one",
        service,
        why,
    )
