"""Other schedulers that people compare with: Sarathi, vLLM V0, Orca.

What keeps a request out of an iteration of decodes alone (budget, seats, blocks, which only get fewer) keeps it out of
those that follow, so that such decisions repeat.
"""

from dataclasses import dataclass

from wattkeeper.scheduling.greedy import serve_running
from wattkeeper.scheduling.types import UNLIMITED, Decision, Draft, PolicyError, Request, View


@dataclass(frozen=True, kw_only=True)
class Sarathi:
    """Sarathi-Serve: all decodes, then prompts under way, then new ones, in chunks within a token budget.

    Agrawal et al., arXiv 2403.02310. Blocks for the whole prompt are set aside at admission, and a share of all blocks
    stays free. Its budget is small by default, to bound what a prompt adds to the decodes beside it.
    """

    token_budget: int = 512
    watermark: float = 0.01
    """Share of all blocks that an admission leaves free while anything runs."""
    name: str = "sarathi-512"

    def decide(self, view: View) -> Decision:
        """Run what can run."""
        draft = Draft.of(view, token_budget=self.token_budget)
        limits = view.limits
        order = sorted(view.running, key=lambda request: not request.decoding)
        for request in order:
            if draft.budget <= 0:
                break
            if request in draft.preempted:
                continue
            count = 1 if request.decoding else min(request.target_tokens - request.computed_tokens, draft.budget)
            while not draft.serve(request, count):
                victim = _youngest(view, draft)
                draft.preempt(victim)
                if victim is request:
                    break
        if draft.preempted:
            return draft.decision()
        promised = sum(
            limits.blocks(request.target_tokens) - limits.blocks(request.computed_tokens)
            for request in view.running
            if not request.decoding
        )
        promised -= sum(draft.more_blocks(request, count) for request, count in draft.tokens if not request.decoding)
        residents = len(view.running)
        for request in view.waiting:
            need = limits.blocks(request.target_tokens)
            spare = int(self.watermark * limits.kv_blocks) if residents else 0
            if draft.budget <= 0 or draft.seats <= 0 or need + promised + spare > draft.free:
                break
            count = min(request.target_tokens - request.hit_tokens, draft.budget)
            draft.admit(request, count)
            promised += need - limits.blocks(request.hit_tokens + count)
            residents += 1
        return draft.decision(repeats=UNLIMITED)


def _youngest(view: View, draft: Draft) -> Request:
    """The last admitted that has no tokens in this draft and was not preempted yet."""
    served = {id(request) for request, _ in draft.tokens} | {id(request) for request in draft.preempted}
    return next(request for request in reversed(view.running) if id(request) not in served)


@dataclass(frozen=True, kw_only=True)
class VllmV0:
    """vLLM before V1: whole prompts first, in iterations of their own; decodes only when none can be admitted."""

    token_budget: int = 4096
    watermark: float = 0.01
    name: str = "vllm-v0"

    def decide(self, view: View) -> Decision:
        """Prompts, or else decodes."""
        draft = Draft.of(view, token_budget=self.token_budget)
        limits = view.limits
        spare = int(self.watermark * limits.kv_blocks)
        for request in view.waiting:
            count = request.target_tokens - request.hit_tokens
            if count > min(self.token_budget, limits.token_budget):
                raise PolicyError(f"{self.name}: a prompt of {count} tokens exceeds the token budget; raise the budget")
            keep = spare if view.running or draft.admitted else 0
            if count > draft.budget or draft.seats <= 0 or limits.blocks(request.target_tokens) + keep > draft.free:
                break
            draft.admit(request, count)
        if not draft.admitted:
            serve_running(draft, view)
        return draft.decision(repeats=UNLIMITED)


@dataclass(frozen=True, kw_only=True)
class Orca:
    """Orca (Yu et al., OSDI 2022): whole prompts join the decodes; memory is set aside for the longest answer."""

    most_output_tokens: int
    """Answers are at most so long; longer ones may find no memory."""
    name: str = "orca"

    def decide(self, view: View) -> Decision:
        """Everything resident, and who fits with the longest answer."""
        draft = Draft.of(view)
        limits = view.limits
        serve_running(draft, view)
        reserved = sum(limits.blocks(request.prompt_tokens + self.most_output_tokens) for request in view.running)
        for request in () if draft.preempted else view.waiting:
            count = request.target_tokens - request.hit_tokens
            need = limits.blocks(request.prompt_tokens + self.most_output_tokens)
            if need > limits.kv_blocks or count > limits.token_budget:
                raise PolicyError(
                    f"{self.name}: {request.prompt_tokens} prompt tokens and the longest answer do not fit"
                )
            if count > draft.budget or draft.seats <= 0 or reserved + need > limits.kv_blocks:
                break
            draft.admit(request, count)
            reserved += need
        return draft.decision(repeats=UNLIMITED)
