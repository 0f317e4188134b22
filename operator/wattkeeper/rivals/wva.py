"""A queueing autoscaler on means, in the way of llm-d's workload variant autoscaler.

Source: llm-d workload-variant-autoscaler 0.6 (its queue analyser, there as an experiment; guides "HPA integration" and
"Configuration"). Every 60 s (`GLOBAL_OPT_INTERVAL`) it takes the rate at which the router hands requests to replicas
(here: what they finish and how what they hold grows, which is the same where the router has no queue) and the mean
lengths of prompts and answers, and publishes how many replicas serve that rate with mean TTFT and mean ITL in target:
ceil(rate / largest rate that one replica serves so). The model is a chain of states with alpha, beta and gamma from a
benchmark, `max_num_seqs` slots and ten times as many places to wait, at no more than 99.9 % of its fastest rate
(`queueing.mean_chain`). A horizontal pod autoscaler follows the published number: external metric, average target 1,
window 240 s both ways, 10 pods in 150 s.

Without metrics the number published last is published again, else the replicas that there are. Not modelled: the tuner
of alpha, beta and gamma (off by default), and the choice among kinds of GPU.
"""

import bisect

from wattkeeper.domain.histogram import Histogram
from wattkeeper.domain.plan import Slo
from wattkeeper.queueing import mean_chain
from wattkeeper.rivals.hpa import SYNC_SECONDS, HorizontalPodAutoscaler
from wattkeeper.rivals.hpa_behavior import Behavior, ScalingPolicy, ScalingRules, Unit
from wattkeeper.rivals.hpa_metrics import ExternalMetric
from wattkeeper.rivals.readings import Readings
from wattkeeper.rivals.settings import PolicySettingsError, ServerModel, positive
from wattkeeper.rivals.types import Decision, Look, Sight

INTERVAL_SECONDS = 60.0
WINDOW_SECONDS = 240.0
_QUEUE_PER_SLOT = 10
_LARGEST_LOAD = 0.999
_STALE_SECONDS = 300.0
"""Its collector takes samples up to this old."""
_RULES = ScalingRules(
    window_seconds=WINDOW_SECONDS, policies=(ScalingPolicy(unit=Unit.PODS, value=10, period_seconds=150.0),)
)


class QueueingAutoscaler:
    """The analyser, what it published last, and the autoscaler that follows it.

    `slo_scale` multiplies both targets before the means are compared with them. The published one is 1: means within
    the percentile's target; a smaller one is what a user can do about tails.
    """

    def __init__(
        self,
        *,
        name: str,
        server: ServerModel,
        slo: Slo,
        min_replicas: int,
        max_replicas: int,
        slo_scale: float = 1.0,
        interval_seconds: float = INTERVAL_SECONDS,
        behavior: Behavior | None = None,
    ) -> None:
        positive("slo_scale", slo_scale)
        positive("interval_seconds", interval_seconds)
        if not _chain(server, 1.0, 1.0).valid:
            raise PolicySettingsError(
                f"{name}: the coefficients of a replica must be finite, none negative, alpha above 0: {server}"
            )
        self.name, self.sight = name, Sight.LAST
        self.period_seconds = SYNC_SECONDS
        self._server = server
        self._ttft = slo_scale * slo.ttft.seconds if slo.ttft is not None else float("inf")
        self._itl = slo_scale * slo.tpot.seconds if slo.tpot is not None else float("inf")
        self._minimum, self._maximum = min_replicas, max_replicas
        self._interval = interval_seconds
        self._published: int | None = None
        self._last_seconds: float | None = None
        self._lengths: tuple[float, float] | None = None
        self._autoscaler = HorizontalPodAutoscaler(
            name=name,
            metrics=(ExternalMetric(name="wva_desired_replicas", target=1.0, value=self._gauge),),
            min_replicas=min_replicas,
            max_replicas=max_replicas,
            behavior=behavior or Behavior(up=_RULES, down=_RULES),
            stale_seconds=_STALE_SECONDS,
        )

    def decide(self, look: Look) -> Decision:
        """One sync of the autoscaler; the analyser runs first where its interval has passed."""
        return self._autoscaler.decide(look)

    def _gauge(self, look: Look, readings: Readings | None) -> float:
        due = self._last_seconds is None or look.time_seconds - self._last_seconds >= self._interval
        if due or self._published is None:
            self._last_seconds = look.time_seconds
            found = self._analyse(readings)
            if found is not None:
                self._published = found
            elif self._published is None:
                self._published = look.desired_replicas
        return float(self._published)

    def _analyse(self, readings: Readings | None) -> int | None:
        """Replicas for what was measured; None: not enough was."""
        if readings is None:
            return None
        rates = [
            max(0.0, each.finished_per_second + (each.in_system_growth_per_second or 0.0))
            for each in readings.values()
            if each.finished_per_second is not None
        ]
        if not rates:
            return None
        prompt = _mean([each.prompt_tokens for each in readings.values() if each.prompt_tokens is not None])
        output = _mean([each.output_tokens for each in readings.values() if each.output_tokens is not None])
        if prompt is not None and output is not None:
            self._lengths = (prompt, output)
        if sum(rates) <= 0.0:
            return self._minimum
        if self._lengths is None:
            return None
        return self.replicas_for(sum(rates), prompt_tokens=self._lengths[0], output_tokens=self._lengths[1])

    def replicas_for(self, requests_per_second: float, *, prompt_tokens: float, output_tokens: float) -> int:
        """The fewest replicas whose share of the rate meets both targets by the model, within the bounds.

        Latencies grow with the rate, so this is ceil(rate / largest rate that meets them).
        """
        chain = _chain(self._server, prompt_tokens, output_tokens)

        def meets(replicas: int) -> bool:
            share = requests_per_second / replicas
            if share > _LARGEST_LOAD * chain.fastest:
                return False
            found = mean_chain.means(chain, share)
            return bool(found.ttft_seconds <= self._ttft and found.itl_seconds <= self._itl)

        candidates = range(self._minimum, self._maximum + 1)
        index = bisect.bisect_left(candidates, True, key=meets)
        return candidates[min(index, len(candidates) - 1)]


def _chain(server: ServerModel, prompt_tokens: float, output_tokens: float) -> mean_chain.Server:
    return mean_chain.Server(
        alpha_seconds=server.alpha_seconds,
        beta_seconds_per_token=server.beta_seconds_per_token,
        gamma_seconds_per_kv_token=server.gamma_seconds_per_kv_token,
        prompt_tokens=max(prompt_tokens, 1.0),
        output_tokens=max(output_tokens, 1.0),
        max_num_seqs=server.max_num_seqs,
        max_queue=_QUEUE_PER_SLOT * server.max_num_seqs,
    )


def _mean(parts: list[Histogram]) -> float | None:
    """Mean over all observations; None where there were none."""
    count = sum(part.count for part in parts)
    return sum(part.total for part in parts) / count if count > 0.0 else None
