"""One request and the latencies that its client sees."""

from collections.abc import Sequence

FRONT_END_SECONDS = 0.005
"""HTTP, tokeniser and detokeniser: seen by the client in TTFT and end-to-end time, no engine time."""


class Request:
    """One request on its way through a replica. Times in seconds; `cached` prompt tokens may come from the cache."""

    __slots__ = (
        "arrival", "blocks", "cached", "first_token", "last_token", "output", "preemptions", "priority", "prompt",
        "refusal", "scheduled", "weight",
    )  # fmt: skip

    def __init__(
        self,
        arrival: float,
        prompt: int,
        output: int,
        cached: int = 0,
        blocks: Sequence[int] = (),
        priority: int = 0,
    ) -> None:
        self.arrival = arrival
        self.prompt = prompt
        self.output = output
        self.cached = cached
        """Where the prompt's blocks are known, what the replica's own cache held."""
        self.blocks = blocks
        """Ids of the prompt's prefix blocks."""
        self.priority = priority
        """Lower is served first, where the replica minds priorities."""
        self.weight = 1
        """How many requests of the trace it stands for (see `twin.sampling`)."""
        self.preemptions = 0
        self.refusal = ""
        """Why it was answered with an error: "too_long" or "queue_full"."""
        self.scheduled = -1.0
        self.first_token = -1.0
        self.last_token = -1.0

    @property
    def ttft_seconds(self) -> float:
        """Time from arrival to the first token."""
        return self.first_token - self.arrival + FRONT_END_SECONDS

    @property
    def tpot_seconds(self) -> float:
        """Mean time per output token after the first; 0 for one-token answers, as vLLM reports it."""
        if self.output < 2:
            return 0.0
        return (self.last_token - self.first_token) / (self.output - 1)
