"""A queueing autoscaler on means, in the way of llm-d's workload-variant-autoscaler (v0.5 to v0.9).

Every 60 s: arrival rate and mean lengths of the last window go into a state-dependent M/M/1/K chain of one replica
(`queueing.mean_chain`: iteration time linear in the batch, queue of ten times the batch), which gives mean TTFT and
mean inter-token latency; a bisection finds the largest rate per replica at which both means are within the targets;
replicas = ceil(rate / that). It publishes the number as a gauge on which an HPA acts; the chart's HPA stabilises for
240 s both ways and adds at most 10 pods in 150 s. `headroom` multiplies the measured rate; the project's own default is
none (1.0), because it takes the targets for means: with tail targets it has to be tuned.

Its coefficients are the ones that a perfect tuner would find: the same that the planner starts from.
"""

import math
from collections import deque
from dataclasses import dataclass, field, replace

from wattkeeper.queueing import mean_chain
from wattkeeper.rivals.hpa import Stabiliser
from wattkeeper.rivals.types import Decision, Look

PERIOD_SECONDS = 60.0
STABILISATION_SECONDS = 240.0
_PODS, _PODS_PERIOD_SECONDS = 10, 150.0


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Latencies that the means are held against, in seconds; None: not a goal."""

    ttft_seconds: float | None
    itl_seconds: float | None


@dataclass(kw_only=True)
class MeanQueue:
    """The autoscaler. `server` gives the coefficients; its lengths are replaced by the measured means."""

    name: str
    server: mean_chain.Server
    targets: Targets
    minimum: int
    maximum: int
    headroom: float = 1.0
    power_cap_watts: float | None = None
    period_seconds: float = PERIOD_SECONDS
    _stabiliser: Stabiliser = field(init=False)
    _added: deque[tuple[float, int]] = field(default_factory=deque)
    _known: dict[tuple[float, float], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0.0 < self.headroom < math.inf:
            raise ValueError(f"headroom multiplies the rate and must be positive, not {self.headroom}")
        self._stabiliser = Stabiliser(
            minimum=self.minimum,
            maximum=self.maximum,
            down_window_seconds=STABILISATION_SECONDS,
            up_window_seconds=STABILISATION_SECONDS,
        )

    def decide(self, look: Look) -> Decision:
        """Without a rate or lengths: what there is."""
        keep = Decision(power_cap_watts=self.power_cap_watts, reason="MetricsMissing")
        if look.snapshot is None:
            return keep
        readings = [look.snapshot.pods[key] for key in look.ready_pods if key in look.snapshot.pods]
        rates = [
            each.finished_per_second + (each.in_system_growth_per_second or 0.0)
            for each in readings
            if each.finished_per_second is not None
        ]
        finished = sum(each.finished_per_second or 0.0 for each in readings)
        if not rates or finished <= 0.0:
            return keep
        rate = max(0.0, sum(rates))
        prompt = sum(each.prompt_tokens_per_second or 0.0 for each in readings) / finished
        output = sum(each.generation_tokens_per_second or 0.0 for each in readings) / finished
        most = self._per_replica(prompt, output)
        # Targets that even an idle replica misses: as many as there may be.
        wanted = max(1, math.ceil(self.headroom * rate / most)) if most > 0.0 else self.maximum
        current, now = look.desired_replicas, look.time_seconds
        replicas = self._stabiliser.settle(wanted, current, now)
        while self._added and self._added[0][0] <= now - _PODS_PERIOD_SECONDS:
            self._added.popleft()
        if replicas > current:
            replicas = min(replicas, current + max(0, _PODS - sum(count for _, count in self._added)))
            self._added.append((now, replicas - current))
        return Decision(replicas=replicas, power_cap_watts=self.power_cap_watts)

    def _per_replica(self, prompt: float, output: float) -> float:
        """Sized again where a mean length moved by two per cent; an answer has at least two tokens in its form."""
        key = tuple(round(1.02 ** round(math.log(max(each, 2.0), 1.02)), 2) for each in (prompt, output))
        found = self._known.get((key[0], key[1]))
        if found is None:
            found = mean_chain.largest_rate(
                replace(self.server, prompt_tokens=key[0], output_tokens=key[1]),
                ttft_seconds=math.inf if self.targets.ttft_seconds is None else self.targets.ttft_seconds,
                itl_seconds=math.inf if self.targets.itl_seconds is None else self.targets.itl_seconds,
            )
            self._known[key[0], key[1]] = found
        return found
