"""MC-SF: admit the shortest answers first, as long as memory lasts at every completion to come.

Jaillet, Jiang, Mellou, Molinaro, Podimata, Zhou, arXiv 2502.07115. Answer lengths are known (or predicted); every
resident request gets a token in every iteration, so the memory held at each later iteration follows.
"""

from dataclasses import dataclass

from wattkeeper.scheduling.greedy import serve_running
from wattkeeper.scheduling.types import UNLIMITED, Decision, Draft, EngineLimits, PolicyError, Request, View


@dataclass(frozen=True, kw_only=True)
class McSf:
    """Memory-constrained shortest first."""

    name: str = "mc-sf"

    def decide(self, view: View) -> Decision:
        """Everything resident, and the shortest answers that memory has room for to their end."""
        draft = Draft.of(view)
        serve_running(draft, view)
        if draft.preempted:
            return draft.decision()
        limits = view.limits
        # (tokens in memory before the next iteration that yields one, iterations that it still needs)
        courses = [self._course(request) for request in view.running]
        repeats = UNLIMITED
        for request in sorted(view.waiting, key=lambda each: (self._length(each), each.arrival_seconds)):
            count = request.target_tokens - request.hit_tokens
            course = self._course(request)
            if limits.blocks(sum(course) - 1) > limits.kv_blocks or count > limits.token_budget:
                raise PolicyError(f"{self.name}: {request.prompt_tokens} prompt tokens and their answer do not fit")
            if count > draft.budget or draft.seats <= 0 or not _lasts([*courses, course], limits):
                repeats = _lacking(courses, course, limits) if count <= draft.budget and draft.seats > 0 else UNLIMITED
                break
            draft.admit(request, count)
            courses.append(course)
        if len(draft.tokens) < len(view.running):
            return draft.decision()
        return draft.decision(repeats=min([repeats, *(left for _, left in courses)]))

    def _length(self, request: Request) -> int:
        expected = request.expected_output_tokens
        if expected is None:
            raise PolicyError(f"{self.name} needs answer lengths, and the engine knows none")
        return max(expected, request.generated_tokens + 1)

    def _course(self, request: Request) -> tuple[int, int]:
        return request.target_tokens, self._length(request) - request.generated_tokens


def _lasts(courses: list[tuple[int, int]], limits: EngineLimits) -> bool:
    """Whether memory suffices at the last iteration of each request: it only grows in between."""
    for moment in {left for _, left in courses}:
        held = sum(limits.blocks(tokens + moment - 1) for tokens, left in courses if left >= moment)
        if held > limits.kv_blocks:
            return False
    return True


def _lacking(courses: list[tuple[int, int]], course: tuple[int, int], limits: EngineLimits) -> int:
    """For how many iterations memory will not last for a newcomer, where nobody else comes or goes; at least 1.

    The later it comes, the less it holds at a given iteration; how much the others hold then is settled.
    """
    tokens, most = course
    longest = 1
    for moment in {most, *(left for _, left in courses if left <= most)}:
        held = sum(limits.blocks(own + moment - 1) for own, left in courses if left >= moment)
        room = max(0, limits.kv_blocks - held) * limits.block_size
        longest = max(longest, min(moment, tokens + moment - 1 - room))
    return longest
