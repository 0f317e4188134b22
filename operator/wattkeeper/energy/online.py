"""How far one service's measured watts are from the model, and whether it can still be trusted to describe them.

Errors are taken in logarithms: e = ln(measured / predicted), with `predicted` the uncalibrated estimate at the state
that was measured. An exponential average of e is the bias, the average distance to it the spread. A bias or a spread
beyond its bound means another GPU, model or unit than was said, not a correction. What is learnt of the watts, by
batch, is in `energy.learnt`; readings of a broken sensor never come here (`energy.sensor`).
"""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

FAST_WEIGHT = 0.1
"""Weight of a new sample: at a 15 s tick a memory of 2.5 minutes."""
MIN_SAMPLES = 3
"""Fewer measured points than this correct nothing."""
CLIP_LOG = math.log(4.0)
"""A reading further off than a factor of four is no model error but a wrong GPU, unit or pod: taken as that far off."""
CLIP_SPREADS = 4.0
"""A reading moves the averages by at most this many spreads (and at least `CLIP_FLOOR_LOG`)."""
CLIP_FLOOR_LOG = 0.1
TRUST_BIAS_LOG = math.log(1.5)
"""Bias beyond which the model is not describing this service."""
TRUST_SPREAD_LOG = 0.25
"""Mean distance to the bias beyond which the corrected estimate is too uncertain."""
REGAIN = 0.75
"""Trust once lost comes back only within this share of the bounds, so that it does not flap."""


@dataclass(frozen=True, kw_only=True)
class OnlineCorrection:
    """State of one service; immutable, plain numbers, kept in the object's status between restarts."""

    samples: int = 0
    bias_log: float = 0.0
    spread_log: float = 0.0
    trusted: bool = True

    def update(self, predicted_watts: float, measured_watts: float) -> "OnlineCorrection":
        """The state after one more pair; pairs that are not positive and finite change nothing.

        `predicted_watts` is the uncorrected estimate for the state in which `measured_watts` was measured.
        """
        if not (_usable(predicted_watts) and _usable(measured_watts)):
            return self
        error = min(max(math.log(measured_watts / predicted_watts), -CLIP_LOG), CLIP_LOG)
        samples = self.samples + 1
        if self.samples >= MIN_SAMPLES:
            reach = max(CLIP_SPREADS * self.spread_log, CLIP_FLOOR_LOG)
            error = min(max(error, self.bias_log - reach), self.bias_log + reach)
        fast = max(FAST_WEIGHT, 1.0 / samples)
        distance = abs(error - self.bias_log) if self.samples else 0.0
        after = OnlineCorrection(
            samples=samples,
            bias_log=self.bias_log + fast * (error - self.bias_log),
            spread_log=self.spread_log + fast * (distance - self.spread_log),
        )
        bound = 1.0 if self.trusted else REGAIN
        return OnlineCorrection(**{**asdict(after), "trusted": samples < MIN_SAMPLES or after._excess <= bound})

    @property
    def _excess(self) -> float:
        """How far the worse of bias and spread is, in units of its bound."""
        return max(abs(self.bias_log) / TRUST_BIAS_LOG, self.spread_log / TRUST_SPREAD_LOG)

    @property
    def factor(self) -> float:
        """What to multiply uncorrected watts with; 1 until enough was measured."""
        return math.exp(self.bias_log) if self.samples >= MIN_SAMPLES else 1.0

    @property
    def relative_error(self) -> float | None:
        """Mean relative error that remains after correction; None until enough was measured."""
        return math.expm1(self.spread_log) if self.samples >= MIN_SAMPLES else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, rounded: a status that does not change in the last digit is not written again."""
        return {name: round(value, 5) if isinstance(value, float) else value for name, value in asdict(self).items()}

    @staticmethod
    def from_dict(state: dict[str, Any] | None) -> "OnlineCorrection":
        """The state that `to_dict` wrote; anything else is a fresh start, for it is only a memory."""
        if not isinstance(state, dict) or set(state) != {field.name for field in fields(OnlineCorrection)}:
            return OnlineCorrection()
        numbers = [state["samples"], state["bias_log"], state["spread_log"]]
        plain = all(isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
        if not plain or not isinstance(state["trusted"], bool) or state["samples"] < 0 or state["spread_log"] < 0:
            return OnlineCorrection()
        if abs(state["bias_log"]) > CLIP_LOG:
            return OnlineCorrection()
        return OnlineCorrection(**{**state, "samples": int(state["samples"])})


def _usable(watts: float) -> bool:
    return math.isfinite(watts) and watts > 0.0
