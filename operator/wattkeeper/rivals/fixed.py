"""Fleets that nobody moves: sized once, at full power, under one cap, or at one clock."""

from dataclasses import dataclass

from wattkeeper.rivals.types import Decision, Look


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """The same replicas, cap and clock for ever."""

    name: str
    replicas: int
    power_cap_watts: float | None = None
    clock_mhz: float | None = None
    period_seconds: float = 3600.0

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ValueError(f"a fixed fleet needs at least one replica, not {self.replicas}")

    def decide(self, look: Look) -> Decision:
        """Looks at nothing."""
        del look
        return Decision(
            replicas=self.replicas, power_cap_watts=self.power_cap_watts, clock_mhz=self.clock_mhz, reason="fixed"
        )
