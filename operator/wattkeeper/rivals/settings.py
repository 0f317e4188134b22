"""What a policy is built from: bounds, goal, what was seen on other days, and what the accelerator allows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.domain.plan import RangeLever, Slo

Parameters = Mapping[str, float]
"""Values of a policy's parameters by name."""


class PolicySettingsError(WattkeeperError):
    """A policy was given settings or parameters that it cannot run with."""


@dataclass(frozen=True, kw_only=True)
class ServerModel:
    """One replica in the mean model of the queueing autoscaler (`queueing.mean_chain`), at full clock."""

    alpha_seconds: float
    """d0: of every step."""
    beta_seconds_per_token: float
    """Of a token that is computed, prompt or answer."""
    gamma_seconds_per_kv_token: float
    """Of a token of context that is read."""
    max_num_seqs: int

    @staticmethod
    def benchmarked(
        *,
        d0_seconds: float,
        prefill_seconds_per_token: float,
        decode_seconds_per_sequence: float,
        kv_seconds_per_token: float,
        prompt_tokens: float,
        output_tokens: float,
        max_num_seqs: int,
    ) -> "ServerModel":
        """What a fit to benchmark runs of an engine with these step times and mean lengths finds.

        The model has one term for computed tokens, so that what a decode costs goes into it by its share: over the
        out + 1 steps of a request, beta (in + out) = dT in + dN out.
        """
        total = prompt_tokens + output_tokens
        positive("prompt_tokens + output_tokens", total)
        return ServerModel(
            alpha_seconds=d0_seconds,
            beta_seconds_per_token=(
                prefill_seconds_per_token * prompt_tokens + decode_seconds_per_sequence * output_tokens
            )
            / total,
            gamma_seconds_per_kv_token=kv_seconds_per_token,
            max_num_seqs=max_num_seqs,
        )


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One service on its GPUs. What is known of the traffic comes from other days than those that are replayed."""

    min_replicas: int
    max_replicas: int
    """As many as there are GPUs for."""
    slo: Slo
    demand_rps: tuple[float, ...]
    """Requests per second in equal windows of the tuning days."""
    replica_rps: float
    """Requests per second that one replica serves within the SLO, as a load test shows; see `with_peak`."""
    server: ServerModel
    scrape_seconds: float = 15.0
    """Between two scrapes of a pod."""
    power_cap: RangeLever | None = None
    """Watts that each GPU can be limited to; None: it cannot."""
    clock: RangeLever | None = None
    """MHz that each GPU's SM clock can be limited to; None: it cannot."""

    def __post_init__(self) -> None:
        at_least("min_replicas", self.min_replicas, 1)
        at_least("max_replicas", self.max_replicas, self.min_replicas)
        positive("replica_rps", self.replica_rps)
        positive("scrape_seconds", self.scrape_seconds)
        if not self.demand_rps or not all(math.isfinite(rate) and rate >= 0.0 for rate in self.demand_rps):
            raise PolicySettingsError(
                "demand_rps must hold the request rate of at least one window of the tuning days, none of them "
                "negative: check that the tuning days have requests"
            )

    @property
    def stale_seconds(self) -> float:
        """Age from which a reading is gone (`rivals.readings`)."""
        return 2.0 * self.scrape_seconds

    def with_peak(self, replicas: int) -> "Setting":
        """The same where so many replicas are known to serve the busiest window of the tuning days."""
        at_least("replicas of the peak", replicas, 1)
        return replace(self, replica_rps=max(self.demand_rps) / replicas) if max(self.demand_rps) > 0.0 else self

    def replicas_for(self, percentile: float) -> int:
        """Replicas that serve this percentile (0..100) of the windows of the tuning days, within the bounds."""
        if not 0.0 <= percentile <= 100.0:
            raise PolicySettingsError(f"the percentile of demand must lie in 0..100, not {percentile:g}")
        rate = float(np.percentile(np.array(self.demand_rps), percentile))
        # A rate that is a whole number of replicas must not need one more for a rounding error.
        needed = math.ceil(rate / self.replica_rps - 1e-9)
        return min(max(needed, self.min_replicas), self.max_replicas)


def at_least(name: str, value: float, least: float) -> None:
    """Raise PolicySettingsError where `value` is below `least` or no number."""
    if not math.isfinite(value) or value < least:
        raise PolicySettingsError(f"{name} must be at least {least:g}, not {value:g}")


def positive(name: str, value: float) -> None:
    """Raise PolicySettingsError where `value` is not above zero and finite."""
    if not math.isfinite(value) or value <= 0.0:
        raise PolicySettingsError(f"{name} must be above 0, not {value:g}")


def whole(name: str, value: float) -> int:
    """The value as a whole number. Raises PolicySettingsError where it is none."""
    if not math.isfinite(value) or value != round(value):
        raise PolicySettingsError(f"{name} must be a whole number, not {value:g}")
    return round(value)


def within(name: str, value: float, lever: RangeLever) -> float:
    """The value itself. Raises PolicySettingsError where the accelerator cannot be set to it."""
    if not lever.minimum <= value <= lever.maximum:
        raise PolicySettingsError(f"{name} must lie in {lever.minimum:g}..{lever.maximum:g}, not {value:g}")
    return value
