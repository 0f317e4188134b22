"""What a policy wants, checked before it is done: impossible wishes are clamped and counted, nonsense is an error."""

import math
from dataclasses import dataclass, replace

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.replay.result import Note
from wattkeeper.rivals.types import Decision, Look, Policy
from wattkeeper.twin import hardware
from wattkeeper.twin.hardware import Card, ReplicaHardware


class PolicyError(WattkeeperError):
    """A policy raised, or decided what makes no sense; the message names it and the time."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A decision that can be carried out; None leaves a lever as it is."""

    replicas: int | None
    watts: float | None
    """Limit of each GPU; the card's default limit releases it."""
    clock_mhz: float | None
    gpu_limits: dict[str, tuple[float | None, float | None]] | None
    """(watts, MHz) by GPU of a policy that sets each by itself."""
    hardware: ReplicaHardware | None
    """Other engine arguments, as the engine would run with them."""


class DecisionCheck:
    """Asks one policy, and keeps book of what had to be put right."""

    def __init__(self, policy: Policy, *, model: str, card: Card, max_replicas: int) -> None:
        self._policy, self._model, self._card, self._max_replicas = policy, model, card, max_replicas
        self._repairs: dict[str, Note] = {}
        self._engines: dict[EngineSettings, ReplicaHardware | None] = {}
        self._time_seconds = 0.0

    @property
    def repairs(self) -> tuple[Note, ...]:
        """What was put right, with counts."""
        return tuple(self._repairs.values())

    def decide(self, look: Look) -> Checked:
        """Raises PolicyError where the policy raises or a number is no number."""
        self._time_seconds = look.time_seconds
        try:
            wanted = self._policy.decide(look)
        except WattkeeperError as error:
            raise self._error(str(error)) from error
        except Exception as error:
            raise self._error(f"it raised {type(error).__name__}: {error}") from error
        if not isinstance(wanted, Decision):
            raise self._error(f"it returned {wanted!r} instead of a Decision")
        return Checked(
            replicas=self._replicas(wanted.replicas),
            watts=self._watts(wanted.power_cap_watts),
            clock_mhz=self._clock(wanted.clock_mhz),
            gpu_limits=None
            if wanted.gpu_limits is None
            else {uuid: (self._watts(watts), self._clock(clock)) for uuid, (watts, clock) in wanted.gpu_limits.items()},
            hardware=None if wanted.engine is None else self._hardware(wanted.engine),
        )

    def _replicas(self, wanted: int | None) -> int | None:
        if wanted is None:
            return None
        if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 0:
            raise self._error(f"it wants {wanted!r} replicas: give a whole number from zero up")
        if wanted > self._max_replicas:
            self._repaired(f"more replicas than the GPUs hold, cut to {self._max_replicas}")
        return min(wanted, self._max_replicas)

    def _watts(self, wanted: float | None) -> float | None:
        return self._within("power limit", wanted, self._card.minimum_cap_watts, self._card.tdp_watts, "W")

    def _clock(self, wanted: float | None) -> float | None:
        return self._within("clock", wanted, self._card.minimum_clock_mhz, self._card.maximum_clock_mhz, "MHz")

    def _within(self, what: str, wanted: float | None, low: float, high: float, unit: str) -> float | None:
        if wanted is None:
            return None
        if not math.isfinite(wanted) or wanted <= 0:
            raise self._error(f"it wants a {what} of {wanted!r} {unit}: give a positive, finite number")
        if not low <= wanted <= high:
            self._repaired(f"a {what} outside the card's {low:g} to {high:g} {unit}, clamped")
        return min(max(wanted, low), high)

    def _hardware(self, engine: EngineSettings) -> ReplicaHardware | None:
        if engine not in self._engines:
            try:
                self._engines[engine] = hardware.replica_hardware(
                    model=self._model, accelerator=self._card.name, engine=engine
                )
            except WattkeeperError as error:
                self._engines[engine] = None
                self._repaired(f"arguments that vLLM would not start with, not rolled out: {error}")
        return self._engines[engine]

    def _repaired(self, text: str) -> None:
        known = self._repairs.get(text) or Note(text=text, count=0, first_seconds=self._time_seconds)
        self._repairs[text] = replace(known, count=known.count + 1)

    def _error(self, what: str) -> PolicyError:
        return PolicyError(f"policy {self._policy.name} at {self._time_seconds:.0f} s: {what}")
