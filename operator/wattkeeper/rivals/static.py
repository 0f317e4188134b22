"""Fleets that never change: a fixed number of replicas, at full power or under one limit that stays.

Source: a Deployment's `spec.replicas` (Kubernetes 1.35 documentation, "Deployments"), and `nvidia-smi -pl` or `-lgc`
set once when a node starts (NVIDIA documentation, "nvidia-smi"). Without metrics nothing changes: they use none.
"""

from wattkeeper.rivals.settings import PolicySettingsError, at_least, positive
from wattkeeper.rivals.types import Decision, Look, Sight

_PERIOD_SECONDS = 60.0


class Static:
    """So many replicas, each GPU under the same limit; None: no limit."""

    def __init__(
        self, *, name: str, replicas: int, power_cap_watts: float | None = None, clock_mhz: float | None = None
    ) -> None:
        at_least("replicas", replicas, 1)
        if power_cap_watts is not None and clock_mhz is not None:
            raise PolicySettingsError(f"{name}: give a power cap or a clock limit, not both")
        for what, value in (("power_cap_watts", power_cap_watts), ("clock_mhz", clock_mhz)):
            if value is not None:
                positive(what, value)
        self.name, self.sight = name, Sight.NONE
        self.period_seconds = _PERIOD_SECONDS
        limit = "" if power_cap_watts is None else f", {power_cap_watts:g} W per GPU"
        limit += "" if clock_mhz is None else f", {clock_mhz:g} MHz"
        self._decision = Decision(
            replicas=replicas,
            power_cap_watts=power_cap_watts,
            clock_mhz=clock_mhz,
            reason=f"fixed: {replicas} replicas{limit}",
        )

    def decide(self, look: Look) -> Decision:
        """Always the same."""
        del look
        return self._decision
