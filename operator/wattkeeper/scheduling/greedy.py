"""Policies that run whenever there is something to run: vLLM V1 and what limits its admissions.

vLLM V1 (its `v1/core/sched/scheduler.py`): running requests first, in order of admission, one token per decode and a
chunk per prompt under way; then waiting ones first come first served while budget, seats and blocks last. Where a
running request finds no block the last admitted loses its own and is computed again; nothing is admitted then.
"""

from dataclasses import dataclass

from wattkeeper.scheduling.types import UNLIMITED, Decision, Draft, EngineLimits, View


def serve_running(draft: Draft, view: View) -> None:
    """Tokens for running requests in order of admission; where blocks run out the last admitted is preempted."""
    running, limits = view.running, view.limits
    longest = limits.long_prefill_token_threshold or limits.token_budget
    place, end = 0, len(running)
    while place < end and draft.budget > 0:
        request = running[place]
        count = 1 if request.decoding else min(request.target_tokens - request.computed_tokens, longest, draft.budget)
        while not draft.serve(request, count):
            end -= 1
            draft.preempt(running[end])
            if place == end:
                return
        place += 1


def admit_waiting(
    draft: Draft, view: View, *, most_residents: int = UNLIMITED, most_admissions: int = UNLIMITED
) -> None:
    """Admit first come first served; the first that does not fit blocks those behind it."""
    limits = view.limits
    longest = limits.long_prefill_token_threshold or limits.token_budget
    residents = len(view.running) - len(draft.preempted)
    for place, request in enumerate(view.waiting):
        if draft.budget <= 0 or draft.seats <= 0 or residents >= most_residents or place >= most_admissions:
            return
        count = min(request.target_tokens - request.hit_tokens, longest)
        if not limits.chunked_prefill and count > draft.budget:
            return
        spare = limits.watermark_blocks if residents else 0
        if limits.blocks(request.target_tokens) + spare > draft.free:
            return
        draft.admit(request, min(count, draft.budget))
        residents += 1


def greedy(
    view: View,
    *,
    token_budget: int | None = None,
    most_residents: int = UNLIMITED,
    most_admissions: int = UNLIMITED,
) -> Decision:
    """One iteration of vLLM V1, with limits on requests in service and on admissions per iteration.

    Whoever could not be admitted beside decodes alone cannot be in the iterations that follow, because free blocks only
    get fewer in them: the decision repeats.
    """
    draft = Draft.of(view, token_budget=token_budget)
    serve_running(draft, view)
    if not draft.preempted:
        admit_waiting(draft, view, most_residents=most_residents, most_admissions=most_admissions)
    return draft.decision(repeats=UNLIMITED)


@dataclass(frozen=True, kw_only=True)
class VllmV1:
    """vLLM V1 as it is; `token_budget` counts where it is below the engine's."""

    name: str = "vllm-v1"
    token_budget: int | None = None

    def decide(self, view: View) -> Decision:
        """Run what can run."""
        return greedy(view, token_budget=self.token_budget)


@dataclass(frozen=True, kw_only=True)
class Capped:
    """At most `limit` requests in service ("tl" of arXiv 2504.11320, section 6, without the waiting)."""

    limit: int
    name: str = "capped"
    token_budget: int | None = None

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"a cap of {self.limit} requests serves nobody")

    def decide(self, view: View) -> Decision:
        """Run what can run within the cap."""
        return greedy(view, token_budget=self.token_budget, most_residents=self.limit)


@dataclass(frozen=True, kw_only=True)
class RateLimited:
    """At most `admissions` new requests per iteration.

    In saturated homogeneous load greedy admission runs into a limit cycle of evictions; admitting no more than
    `rate_limit` per iteration keeps out of it (Ao, Dong, Luo, Simchi-Levi, arXiv 2606.15555).
    """

    admissions: int
    name: str = "rate-limited"
    token_budget: int | None = None

    def __post_init__(self) -> None:
        if self.admissions < 1:
            raise ValueError(f"{self.admissions} admissions per iteration serve nobody")

    def decide(self, view: View) -> Decision:
        """Run what can run, admitting at most so many."""
        return greedy(view, token_budget=self.token_budget, most_admissions=self.admissions)


def safe_cap(limits: EngineLimits, *, prompt_tokens: int, output_tokens: int) -> int:
    """Requests in service that never run out of KV blocks, whatever their progress: each may reach its full length."""
    return limits.kv_blocks // limits.blocks(prompt_tokens + output_tokens)


def rate_limit(*, kv_tokens: float, prompt_tokens: int, decode_steps: int) -> float:
    """x*: admissions per iteration that fill the KV memory and no more (arXiv 2606.15555).

    x* = M / sum(l + 1 + j, j = 0 .. l' - 1), with one request of each age resident per admission.
    """
    if decode_steps < 1:
        return kv_tokens / (prompt_tokens + 1)
    return kv_tokens / (decode_steps * (prompt_tokens + 1) + decode_steps * (decode_steps - 1) / 2)
