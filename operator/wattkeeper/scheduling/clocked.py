"""Our own: policies that wait, but never longer than the latency SLO allows.

An iteration of few requests costs about as much time at busy power as one of many. Fewer, fuller iterations do the same
work for less energy, and what they cost in latency is bounded by clocks: an iteration is launched at the latest one
TPOT after the last one was, and before any request has waited for longer than its part of the TTFT.
"""

import math
from dataclasses import dataclass

from wattkeeper.scheduling.greedy import greedy
from wattkeeper.scheduling.types import Decision, View
from wattkeeper.scheduling.wait import Wait


@dataclass(frozen=True, kw_only=True)
class ClockedWait(Wait):
    """WAIT with clocks: launched by thresholds, by the TPOT clock, or by the oldest request in the queue.

    A batch takes all classes, so that the clock holds for each; at most n_j of every stage, as in WAIT.
    """

    tpot_seconds: float
    """Longest time between two launches while anything is resident."""
    wait_seconds: float
    """Longest time in the queue before a launch: the TTFT that is allowed, less an iteration."""
    name: str = "clocked-wait"

    def __post_init__(self) -> None:
        _check(self.tpot_seconds, self.wait_seconds)

    def decide(self, view: View) -> Decision:
        """A batch of all classes, or wait until a clock runs out."""
        queues, stages = self.sort(view)
        ready = any(len(queue) >= each.threshold for queue, each in zip(queues, self.classes, strict=True))
        due = _oldest(view) + self.wait_seconds
        if view.running:
            due = min(due, view.last_start_seconds + self.tpot_seconds)
        if ready or view.draining or view.now_seconds >= due:
            return self.launch(view, range(len(self.classes)), queues, stages)
        return Decision(wait_until_seconds=due)


@dataclass(frozen=True, kw_only=True)
class Paced:
    """vLLM V1 whose iterations start at least `pace_seconds` apart, unless its guard says that there is no time for it.

    The guard lifts the pace while a request that was there at the last launch still waits, a prompt is under way, any
    request has waited for `wait_seconds`, or KV memory is fuller than `memory_share`: near saturation this is vLLM V1.
    The share is far below one because residents at a pace are more, and all of them still grow.

    Without the guard (`guarded=False`) it is stable only while prompts arriving per pace fit the token budget and
    residents at that pace fit the KV memory.
    """

    pace_seconds: float
    """At most the TPOT that is allowed."""
    wait_seconds: float
    """Longest time in the queue before a launch."""
    memory_share: float = 0.5
    """Of the KV blocks."""
    guarded: bool = True
    name: str = "paced"
    token_budget: int | None = None

    def __post_init__(self) -> None:
        _check(self.pace_seconds, self.wait_seconds)

    def decide(self, view: View) -> Decision:
        """An iteration of vLLM V1, or wait until it is due."""
        due = view.last_start_seconds + self.pace_seconds
        if self.guarded:
            due = -math.inf if self._hurry(view) else min(due, _oldest(view) + self.wait_seconds)
        if view.now_seconds < due:
            return Decision(wait_until_seconds=due)
        return greedy(view, token_budget=self.token_budget)

    def _hurry(self, view: View) -> bool:
        if any(not request.decoding for request in view.running):
            return True
        if any(request.arrival_seconds <= view.last_start_seconds for request in view.waiting):
            return True
        return view.free_blocks < (1.0 - self.memory_share) * view.limits.kv_blocks


def _oldest(view: View) -> float:
    """When the request that waits longest came; inf where none waits."""
    return min((request.arrival_seconds for request in view.waiting), default=math.inf)


def _check(tpot_seconds: float, wait_seconds: float) -> None:
    if not (0.0 <= tpot_seconds < math.inf and 0.0 <= wait_seconds < math.inf):
        raise ValueError(f"clocks must be finite and not negative, not {tpot_seconds} and {wait_seconds} seconds")
