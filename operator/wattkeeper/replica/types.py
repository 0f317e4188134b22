"""What a simulated replica is given and what it returns, with the planner's model of its speed."""

from dataclasses import dataclass

from wattkeeper.physics import step
from wattkeeper.physics.profile import IterationCoefficients
from wattkeeper.replica.engine import (
    Activity,
    BoolArray,
    Coefficients,
    EngineConfig,
    IntArray,
    Outcome,
    Prefix,
    Requests,
)

__all__ = ["Activity", "BoolArray", "IntArray", "Outcome", "Prefix", "ReplicaConfig", "Requests"]


@dataclass(frozen=True, kw_only=True)
class ReplicaConfig(EngineConfig):
    """Engine arguments and memory of one replica, and its speed as `physics.step` has it."""

    iteration: IterationCoefficients

    def at_clock(self, clock_ratio: float) -> Coefficients:
        """What an iteration costs at a clock over the largest, in (0, 1]."""
        d0, dt, dn, dkv, da = map(float, step.at_clock(self.iteration, clock_ratio))
        return d0, dt, dn, dkv, da
