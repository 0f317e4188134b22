"""One request and the latencies that its client sees."""

from collections.abc import Sequence

FRONT_END_SECONDS = 0.005
"""HTTP, tokeniser and detokeniser: seen by the client in TTFT and end-to-end time, no engine time."""


class Request:
    """One request on its way through a replica. Times in seconds; `cached` prompt tokens may come from the cache."""

    __slots__ = (
        "arrival", "base", "blocks", "cached", "computed", "first_token", "generated", "last_token", "output",
        "preemptions", "prompt", "scheduled", "sequence", "weight",
    )  # fmt: skip

    def __init__(self, arrival: float, prompt: int, output: int, cached: int = 0, blocks: Sequence[int] = ()) -> None:
        self.arrival = arrival
        self.prompt = prompt
        self.output = output
        self.cached = cached
        self.blocks = blocks
        """Ids of the prompt's prefix blocks, for routers that look at them."""
        self.weight = 1
        """How many requests of the trace it stands for (see `twin.sampling`)."""
        self.computed = 0
        self.generated = 0
        self.preemptions = 0
        self.scheduled = -1.0
        self.first_token = -1.0
        self.last_token = -1.0
        self.base = 0
        """While decoding: tokens in the KV cache less the replica's decode step count."""
        self.sequence = -1
        """Entry number in the heap of completions; an entry with another number is void."""

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
