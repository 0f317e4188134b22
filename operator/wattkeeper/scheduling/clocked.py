"""Our own: policies that wait, but never longer than the latency SLO allows.

An iteration of few requests costs about as much time at busy power as one of many. Fewer, fuller iterations do the same
work for less energy, and what they cost in latency is bounded by clocks: an iteration is launched at the latest one
TPOT after the last one was, and before any request has waited for longer than its part of the TTFT.
"""

import dataclasses
import math
from dataclasses import dataclass

from wattkeeper.scheduling.greedy import greedy
from wattkeeper.scheduling.types import Decision, View
from wattkeeper.scheduling.wait import Wait

_ENOUGH = 4
"""Residents that tell a rate of arrivals."""


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
        super().__post_init__()
        _check(self.tpot_seconds, self.wait_seconds)

    def decide(self, view: View) -> Decision:
        """A batch of all classes, or wait until a clock runs out."""
        begun = self.under_way(view)
        if begun is not None:
            return begun
        queues, stages = self.sort(view)
        ready = any(len(queue) >= each.threshold for queue, each in zip(queues, self.classes, strict=True))
        due = _oldest(view) + self.wait_seconds
        if view.running:
            due = min(due, view.last_start_seconds + self.tpot_seconds)
        if ready or view.draining or view.now_seconds >= due:
            period = 0.0 if view.draining else self.tpot_seconds
            return self.launch(view, range(len(self.classes)), queues, stages, period_seconds=period)
        return Decision(wait_until_seconds=due)


@dataclass(frozen=True, kw_only=True)
class Paced:
    """vLLM V1 whose iterations start at least `pace_seconds` apart, unless its guard says that there is no time for it.

    The guard lifts the pace while a request that was there at the last launch still waits, a prompt is under way, any
    request has waited for `wait_seconds`, or KV memory may run short: residents at a pace are more, and all of them
    still grow. So it is not what they hold that is compared with memory, but what they will hold at the end of their
    answers, and what residents at that pace come to hold if requests go on coming as fast. Where nobody knows an
    answer's length it is taken to be `output_tokens`, and twice what is answered so far once that is more.

    Without the guard (`guarded=False`) it is stable only while prompts arriving per pace fit the token budget and
    residents at that pace fit the KV memory.
    """

    pace_seconds: float
    """At most the TPOT that is allowed."""
    wait_seconds: float
    """Longest time in the queue before a launch."""
    output_tokens: int = 0
    """Length of an answer where it is not known; the mean of past answers or somewhat more."""
    memory_share: float = 0.9
    """Of the KV memory: as much as residents may come to hold."""
    guarded: bool = True
    name: str = "paced"
    token_budget: int | None = None

    def __post_init__(self) -> None:
        _check(self.pace_seconds, self.wait_seconds)

    def decide(self, view: View) -> Decision:
        """An iteration of vLLM V1, or wait until it is due."""
        due = view.last_start_seconds + self.pace_seconds
        short_until = self._short_until(view) if self.guarded else -math.inf
        if self.guarded:
            hurry = view.now_seconds < short_until or self._hurry(view)
            due = -math.inf if hurry else min(due, _oldest(view) + self.wait_seconds)
        if view.now_seconds < due:
            return Decision(wait_until_seconds=due)
        decision = greedy(view, token_budget=self.token_budget)
        if not self.guarded:
            return dataclasses.replace(decision, period_seconds=self.pace_seconds)
        if view.waiting:
            # Whoever waits now will have waited since the last launch.
            return decision
        if view.now_seconds < short_until:
            return dataclasses.replace(decision, repeats_until_seconds=short_until)
        # One more token answered by a resident is at most two more expected of it.
        lasting = self._spare_tokens(view) // (2 * max(1, len(view.running)))
        return dataclasses.replace(
            decision, period_seconds=self.pace_seconds, repeats=min(decision.repeats, max(1, lasting))
        )

    def _hurry(self, view: View) -> bool:
        if any(not request.decoding for request in view.running):
            return True
        return any(request.arrival_seconds <= view.last_start_seconds for request in view.waiting)

    def _short_until(self, view: View) -> float:
        """Until when KV memory does not allow the pace: inf where residents' full length exceeds it, -inf if it does.

        At a pace p, requests that come at a rate r and hold w token iterations each come to hold r p w tokens. The rate
        is that of the younger half of the residents: k of them since s seconds, so that time alone lowers it.
        """
        if self._spare_tokens(view) < 0:
            return math.inf
        residents, half = view.running, len(view.running) // 2
        if half < _ENOUGH:
            return -math.inf
        since = min(request.arrival_seconds for request in residents[-half:])
        work = 0.0
        for request in residents:
            answer = request.expected_output_tokens or self.output_tokens
            work += answer * (request.prompt_tokens + 0.5 * answer)
        return since + half * self.pace_seconds * work / len(residents) / self._room(view)

    def _room(self, view: View) -> float:
        return self.memory_share * view.limits.kv_blocks * view.limits.block_size

    def _spare_tokens(self, view: View) -> int:
        """KV tokens left where all residents have come to the end of their answers; below 0 where they do not fit."""
        held = sum(
            request.prompt_tokens
            + (request.expected_output_tokens or max(self.output_tokens, 2 * request.generated_tokens))
            for request in view.running
        )
        return int(self._room(view)) - held


def _oldest(view: View) -> float:
    """When the request that waits longest came; inf where none waits."""
    return min((request.arrival_seconds for request in view.waiting), default=math.inf)


def _check(tpot_seconds: float, wait_seconds: float) -> None:
    if not (0.0 <= tpot_seconds < math.inf and 0.0 <= wait_seconds < math.inf):
        raise ValueError(f"clocks must be finite and not negative, not {tpot_seconds} and {wait_seconds} seconds")
