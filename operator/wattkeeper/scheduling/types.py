"""What an engine's scheduler can offer a policy, and what the policy answers.

Nothing here is a simulator's: a real engine has all of it before each iteration (vLLM V1: `Scheduler.waiting`,
`Scheduler.running`, `Request.num_computed_tokens`, the block pool, a clock). Standard library only, so that policies
can be loaded into an engine.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from wattkeeper.domain.errors import WattkeeperError

UNLIMITED = sys.maxsize


class PolicyError(WattkeeperError):
    """A policy cannot serve what it is given, or decided what the engine cannot do; the message names the policy."""


class Request(Protocol):
    """One request as the engine knows it. Policies read it and never write."""

    @property
    def arrival_seconds(self) -> float:
        """When it came, on the clock of `View.now_seconds`."""

    @property
    def prompt_tokens(self) -> int:
        """Length of its prompt."""

    @property
    def generated_tokens(self) -> int:
        """Tokens answered so far."""

    @property
    def target_tokens(self) -> int:
        """Tokens to be in the KV cache before the next one can be sampled: prompt and answer so far."""

    @property
    def computed_tokens(self) -> int:
        """Tokens in the KV cache; 0 while it waits."""

    @property
    def hit_tokens(self) -> int:
        """Prompt tokens that admission would find in the prefix cache, in whole blocks."""

    @property
    def decoding(self) -> bool:
        """True where all but the token sampled last is in the KV cache; False while a prompt is computed (again)."""

    @property
    def expected_output_tokens(self) -> int | None:
        """Length of the whole answer where the engine knows or predicts it; None: unknown."""


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """What does not change while the engine runs."""

    token_budget: int
    """Tokens that one iteration may compute: one per decode, the rest for prompts."""
    max_num_seqs: int
    """Most requests admitted at once."""
    kv_blocks: int
    block_size: int
    """Tokens per KV block."""
    watermark_blocks: int = 0
    """Blocks that an admission leaves free while anything runs."""
    long_prefill_token_threshold: int = 0
    """Most tokens of one prompt in one iteration; 0 = no limit of its own."""
    chunked_prefill: bool = True

    def blocks(self, tokens: int) -> int:
        """Blocks that hold so many tokens of one request."""
        return -(-tokens // self.block_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """The engine between two iterations."""

    limits: EngineLimits
    now_seconds: float
    last_start_seconds: float
    """When the last iteration was launched; -inf before the first."""
    waiting: Sequence[Request]
    """In queue order: preempted ones in front, then first come first served."""
    running: Sequence[Request]
    """Admitted and not finished, in order of admission; all hold KV memory, whether they run or pause."""
    free_blocks: int
    draining: bool = False
    """No request will come any more (shutdown, end of a trace): a policy that waits for company must not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """The next iteration, or none and until when to wait.

    Preemptions come first, then admissions, then tokens; running requests without tokens pause and keep their memory.
    """

    tokens: Sequence[tuple[Request, int]] = ()
    """Tokens of each request that runs: 1 for a decode, a chunk for a prompt."""
    admitted: Sequence[Request] = ()
    """Waiting requests that run from now on; each has an entry in `tokens`."""
    preempted: Sequence[Request] = ()
    """Running requests that lose their KV memory and wait in front, the last of them first."""
    wait_until_seconds: float = math.inf
    """Without tokens: ask again then, or at the next arrival."""
    repeats: int = 1
    """So many iterations in a row, this one included, would be decided alike as long as nobody arrives or finishes and
    blocks last. Above 1 only where nobody is admitted or preempted and all tokens are decodes: an engine that asks each
    time gets the same answers, a simulator may take the whole run in one step. A lower bound; 1 promises nothing."""
    period_seconds: float = 0.0
    """Of a run: its iterations start at least so far apart. Between them the policy would have the engine wait."""
    repeats_until_seconds: float = math.inf
    """Of a run: its iterations start before that."""


class Policy(Protocol):
    """Decides each iteration from the view alone: equal views, equal decisions."""

    @property
    def name(self) -> str:
        """Short name for tables and errors."""

    def decide(self, view: View) -> Decision:
        """Called whenever the engine is idle: after an iteration, an arrival, and at `wait_until_seconds`."""


@dataclass(kw_only=True, slots=True)
class Draft:
    """A decision being made: what is still free after each step."""

    limits: EngineLimits
    free: int
    """KV blocks."""
    budget: int
    """Tokens."""
    seats: int
    """Requests that may still be admitted."""
    tokens: list[tuple[Request, int]] = field(default_factory=list)
    admitted: list[Request] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)

    @staticmethod
    def of(view: View, *, token_budget: int | None = None) -> "Draft":
        """Nothing decided yet; a policy's own budget counts where it is the smaller one."""
        limits = view.limits
        return Draft(
            limits=limits,
            free=view.free_blocks,
            budget=limits.token_budget if token_budget is None else min(token_budget, limits.token_budget),
            seats=limits.max_num_seqs - len(view.running),
        )

    def more_blocks(self, request: Request, count: int) -> int:
        """Blocks that a running request lacks for `count` more tokens."""
        size, have = self.limits.block_size, request.computed_tokens
        return (have + count + size - 1) // size - (have + size - 1) // size

    def serve(self, request: Request, count: int) -> bool:
        """Give a running request tokens; False, and nothing is changed, where blocks or budget do not suffice."""
        need = self.more_blocks(request, count)
        if need > self.free or count > self.budget:
            return False
        self.free -= need
        self.budget -= count
        self.tokens.append((request, count))
        return True

    def admit(self, request: Request, count: int) -> None:
        """Admit a waiting request and compute `count` tokens beyond its prefix hits."""
        self.free -= self.limits.blocks(request.hit_tokens + count)
        self.budget -= count
        self.seats -= 1
        self.admitted.append(request)
        self.tokens.append((request, count))

    def preempt(self, request: Request) -> None:
        """Take a running request's memory. It must have no tokens in this draft."""
        self.free += self.limits.blocks(request.computed_tokens)
        self.seats += 1
        self.preempted.append(request)

    @property
    def steady(self) -> bool:
        """Whether this is an iteration of decodes alone, in which nobody enters or leaves."""
        if self.admitted or self.preempted or not self.tokens:
            return False
        return all(request.decoding for request, _ in self.tokens)

    def decision(self, *, repeats: int = 1, period_seconds: float = 0.0) -> Decision:
        """What was drafted; `repeats` counts where it is steady."""
        return Decision(
            tokens=self.tokens,
            admitted=self.admitted,
            preempted=self.preempted,
            repeats=repeats if repeats > 1 and self.steady else 1,
            period_seconds=period_seconds,
        )


def lasting_steps(requests: Sequence[Request], *, blocks: int, block_size: int, most: int) -> int:
    """How many decode steps of all these requests together so many more blocks allow, at most `most`."""
    if len(requests) * (-(-most // block_size)) <= blocks:
        return most
    # Requests by the steps after which each wants its next block.
    wants = [0] * block_size
    for request in requests:
        wants[-request.computed_tokens % block_size] += 1
    rounds, left = divmod(blocks, len(requests))
    steps = rounds * block_size
    for count in wants:
        left -= count
        if left < 0:
            break
        steps += 1
    return min(steps, most)
