"""WAIT: batches that wait for company, for answers of known length (Ao et al., arXiv 2504.11320, Alg. 1).

A class j is ready once n_j of its requests wait. A batch takes, of every ready class, at most n_j waiting requests and
at most n_j residents of every stage (tokens answered so far); residents of other classes pause. While thresholds meet
the conditions of `wattkeeper.queueing.thresholds` no stage ever holds more than n_j residents, so KV memory never
exceeds sum(n_j w_j) and nothing is evicted.

One request in every stage of a long answer may be more than memory holds. `stride` makes stages coarser, which is ours
and not the paper's: a launch then is a run of so many iterations, a stage so many tokens. Nobody enters in the middle
of a launch, so that stages advance together and the invariant holds of coarse stages as it does of single ones.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from wattkeeper.scheduling import selective
from wattkeeper.scheduling.types import UNLIMITED, Decision, PolicyError, Request, View


@dataclass(frozen=True, kw_only=True)
class WaitClass:
    """Requests of up to these lengths, and how many of them a batch waits for."""

    prompt_tokens: int
    output_tokens: int
    threshold: int
    """n_j: at least 1."""

    def __post_init__(self) -> None:
        if min(self.prompt_tokens, self.output_tokens, self.threshold) < 1:
            raise ValueError(f"a class of WAIT needs lengths and a threshold of at least 1: {self}")


@dataclass(frozen=True, kw_only=True)
class Wait:
    """The literal algorithm. Where no request will come any more it stops waiting."""

    classes: tuple[WaitClass, ...]
    name: str = "wait"
    stride: int = 1
    """Iterations of a launch; 1 is the paper's algorithm."""
    _known: dict[tuple[int, int], int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"a launch of {self.stride} iterations serves nobody")

    def decide(self, view: View) -> Decision:
        """A batch of the ready classes, or wait."""
        begun = self.under_way(view)
        if begun is not None:
            return begun
        queues, stages = self.sort(view)
        ready = [
            j
            for j, each in enumerate(self.classes)
            if len(queues[j]) >= each.threshold or (view.draining and (queues[j] or stages[j]))
        ]
        return self.launch(view, ready, queues, stages) if ready else Decision()

    def under_way(self, view: View) -> Decision | None:
        """The next iterations of a launch that has begun and is not at its end; None where there is none."""
        if self.stride == 1:
            return None
        selected = [request for request in view.running if request.generated_tokens % self.stride]
        if not selected:
            return None
        left = {self.stride - request.generated_tokens % self.stride for request in selected}
        return selective.compose(
            self.name,
            view,
            selected=selected,
            entering=(),
            victims=selective.youngest_first(view.running, selected),
            repeats=min(left),
        )

    def sort(self, view: View) -> tuple[list[list[Request]], list[dict[int, list[Request]]]]:
        """Per class: who waits, and the residents by stage."""
        queues: list[list[Request]] = [[] for _ in self.classes]
        stages: list[dict[int, list[Request]]] = [defaultdict(list) for _ in self.classes]
        for request in view.waiting:
            queues[self._class(request)].append(request)
        for request in view.running:
            stages[self._class(request)][request.generated_tokens // self.stride].append(request)
        return queues, stages

    def launch(
        self,
        view: View,
        ready: Sequence[int],
        queues: Sequence[Sequence[Request]],
        stages: Sequence[dict[int, list[Request]]],
        period_seconds: float = 0.0,
    ) -> Decision:
        """A batch of these classes. Where nobody waits and all of them run, no stage catches up with another."""
        selected = [
            request for j in ready for stage in stages[j].values() for request in stage[: self.classes[j].threshold]
        ]
        together = not view.waiting and len(selected) == sum(len(stage) for j in ready for stage in stages[j].values())
        return selective.compose(
            self.name,
            view,
            selected=selected,
            entering=[request for j in ready for request in queues[j][: self.classes[j].threshold]],
            victims=selective.youngest_first(view.running, selected),
            repeats=UNLIMITED if together and self.stride == 1 else 1,
            period_seconds=period_seconds,
        )

    def _class(self, request: Request) -> int:
        """The class of these lengths, else the smallest that is no shorter in either."""
        output = request.expected_output_tokens
        if output is None:
            raise PolicyError(f"{self.name} needs answer lengths, and the engine knows none; nested WAIT does not")
        lengths = (request.prompt_tokens, output)
        if lengths not in self._known:
            fitting = [
                (each.prompt_tokens + each.output_tokens, j)
                for j, each in enumerate(self.classes)
                if each.prompt_tokens >= lengths[0] and each.output_tokens >= lengths[1]
            ]
            if not fitting:
                raise PolicyError(f"{self.name} has no class for a prompt of {lengths[0]} and {output} output tokens")
            self._known[lengths] = min(fitting)[1]
        return self._known[lengths]
