"""Iterations of which only some residents are part: the others pause and keep their KV memory."""

from collections.abc import Iterable, Sequence

from wattkeeper.scheduling.greedy import serve_running
from wattkeeper.scheduling.types import Decision, Draft, PolicyError, Request, View


def compose(
    name: str,
    view: View,
    *,
    selected: Sequence[Request],
    entering: Iterable[Request],
    victims: Sequence[Request],
    repeats: int = 1,
    period_seconds: float = 0.0,
) -> Decision:
    """One token for each selected resident, and the whole prompts of those that enter while budget and blocks last.

    Overflow repair: where a selected resident finds no block, `victims` (not selected, the last to go first) lose
    theirs, then the last of the selected; nobody enters then. Within the conditions of WAIT that never happens. Where
    nothing can run at all everything resident does, so that no choice of thresholds can stop the engine for ever.
    `repeats` and `period_seconds` are the decision's where all selected run.
    """
    draft = Draft.of(view)
    if any(not request.decoding for request in selected):
        raise PolicyError(f"{name} computes prompts whole and found one begun by another policy; let it finish first")
    spare = list(victims)
    place, end = 0, len(selected)
    while place < end and draft.budget > 0:
        while not draft.serve(selected[place], 1):
            if spare:
                draft.preempt(spare.pop(0))
                continue
            end -= 1
            draft.preempt(selected[end])
            if place == end:
                break
        place += 1
    if not draft.preempted:
        for request in entering:
            count = request.target_tokens - request.hit_tokens
            if count > view.limits.token_budget:
                raise PolicyError(f"{name} computes prompts whole: {count} tokens exceed the token budget; raise it")
            if count > draft.budget or draft.seats <= 0 or view.limits.blocks(request.target_tokens) > draft.free:
                break
            draft.admit(request, count)
    if not draft.tokens and view.running and not draft.preempted:
        serve_running(draft, view)
        repeats = 1
    return draft.decision(repeats=repeats if end == len(draft.tokens) else 1, period_seconds=period_seconds)


def youngest_first(residents: Sequence[Request], selected: Sequence[Request]) -> list[Request]:
    """Residents that are not selected, the last admitted first."""
    chosen = {id(request) for request in selected}
    return [request for request in reversed(residents) if id(request) not in chosen]
