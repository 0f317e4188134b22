"""Nested WAIT: WAIT for answers of unknown length (Ao, Luo, Simchi-Levi, Wang, arXiv 2504.11320, Alg. 2).

Segment k holds requests that have answered more tokens than segment k - 1 reaches and not more than its own end. Those
at its boundary (all that segment k - 1 lets through) are its queue; the queue of the first segment is the engine's.
The batch reaches down to the last segment K such that all queues up to it hold at least n_k requests, and takes at most
n_k of every stage of these; deeper segments pause and keep their memory. What pauses at boundaries needs a buffer,
which `wattkeeper.queueing.nested` sizes for a probability of overflow; where it overflows all the same, paused
residents lose their memory, those at boundaries first, the last admitted first.

Stages are tokens answered: a decode step l' of the paper is token l' + 1, because the prefill yields the first.
"""

import itertools
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass

from wattkeeper.scheduling import selective
from wattkeeper.scheduling.types import UNLIMITED, Decision, Request, View


@dataclass(frozen=True, kw_only=True)
class WaitSegment:
    """A stretch of answer lengths and how many requests a batch waits for at its start."""

    to_output_tokens: int
    """Answers that end in this segment have at most so many tokens."""
    threshold: int
    """n_k: at least 1."""


@dataclass(frozen=True, kw_only=True)
class NestedWait:
    """The literal algorithm; answers longer than the last segment stay in it."""

    segments: tuple[WaitSegment, ...]
    name: str = "nested-wait"

    def __post_init__(self) -> None:
        ends = [segment.to_output_tokens for segment in self.segments]
        if not ends or ends[0] < 1 or any(a >= b for a, b in itertools.pairwise(ends)):
            raise ValueError(f"segments must ascend from at least one output token, not {ends}")
        if any(segment.threshold < 1 for segment in self.segments):
            raise ValueError(f"thresholds must be at least 1: {self.segments}")

    def decide(self, view: View) -> Decision:
        """A batch down to the deepest segment whose queues all suffice, or wait."""
        ends = [segment.to_output_tokens for segment in self.segments]
        last = len(ends) - 1
        stages: list[dict[int, list[Request]]] = [defaultdict(list) for _ in ends]
        for request in view.running:
            # Answered g tokens: what comes next is token g + 1, and a segment ends with its last token.
            answered = request.generated_tokens
            stages[min(bisect_left(ends, answered + 1), last)][answered].append(request)
        queues = [len(view.waiting), *(len(stages[k + 1].get(ends[k], ())) for k in range(last))]
        short = (k for k, segment in enumerate(self.segments) if queues[k] < segment.threshold)
        depth = len(ends) if view.draining else next(short, len(ends))
        if not depth:
            return Decision()
        selected = [
            request
            for k in range(depth)
            for stage in stages[k].values()
            for request in stage[: self.segments[k].threshold]
        ]
        boundaries = {id(request) for k in range(last) for request in stages[k + 1].get(ends[k], ())}
        victims = selective.youngest_first(view.running, selected)
        # All run alike until one of them comes to the next segment, where fewer may be taken.
        together = view.draining and not view.waiting and len(selected) == len(view.running)
        distances = (ends[k] - answered for k in range(last) for answered, stage in stages[k].items() if stage)
        return selective.compose(
            self.name,
            view,
            selected=selected,
            entering=view.waiting[: self.segments[0].threshold],
            victims=sorted(victims, key=lambda request: id(request) not in boundaries),
            repeats=min(distances, default=UNLIMITED) if together else 1,
        )
