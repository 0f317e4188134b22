"""On-line correction of one service's watts: learns the bias from measured power and knows when not to be trusted.

Errors are taken in logarithms: e = ln(measured / predicted), with `predicted` the uncorrected estimate at the state
that was measured. A fast exponential average of e is the bias, a slow one its memory; the average distance to the bias
is the spread. One to three measured points remove most of a cold model's error, so the first samples weigh most (1/n),
and a single wild reading is clipped to a few spreads.
"""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

FAST_WEIGHT = 0.1
"""Weight of a new sample in bias and spread: at a 15 s tick a memory of 2.5 minutes."""
SLOW_WEIGHT = 0.005
"""Weight in the slow bias: a memory of 50 minutes."""
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
TRUST_DRIFT_LOG = 0.2
"""Distance between fast and slow bias that counts as drift."""
REGAIN = 0.75
"""Trust once lost comes back only within this share of the bounds, so that it does not flap."""


@dataclass(frozen=True, kw_only=True)
class OnlineCorrection:
    """State of one service; immutable, plain numbers, kept in the object's status between restarts."""

    samples: int = 0
    bias_log: float = 0.0
    slow_bias_log: float = 0.0
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
        fast, slow = max(FAST_WEIGHT, 1.0 / samples), max(SLOW_WEIGHT, 1.0 / samples)
        distance = abs(error - self.bias_log) if self.samples else 0.0
        after = OnlineCorrection(
            samples=samples,
            bias_log=self.bias_log + fast * (error - self.bias_log),
            slow_bias_log=self.slow_bias_log + slow * (error - self.slow_bias_log),
            spread_log=self.spread_log + fast * (distance - self.spread_log),
        )
        bound = 1.0 if self.trusted else REGAIN
        return OnlineCorrection(**{**asdict(after), "trusted": samples < MIN_SAMPLES or after._excess <= bound})

    @property
    def _excess(self) -> float:
        """How far the worst of bias, spread and drift is, in units of its bound."""
        return max(
            abs(self.bias_log) / TRUST_BIAS_LOG,
            self.spread_log / TRUST_SPREAD_LOG,
            abs(self.bias_log - self.slow_bias_log) / TRUST_DRIFT_LOG,
        )

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
        numbers = [state["samples"], state["bias_log"], state["slow_bias_log"], state["spread_log"]]
        plain = all(isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
        if not plain or not isinstance(state["trusted"], bool) or state["samples"] < 0 or state["spread_log"] < 0:
            return OnlineCorrection()
        if max(abs(state["bias_log"]), abs(state["slow_bias_log"])) > CLIP_LOG:
            return OnlineCorrection()
        return OnlineCorrection(**{**state, "samples": int(state["samples"])})


def _usable(watts: float) -> bool:
    return math.isfinite(watts) and watts > 0.0
