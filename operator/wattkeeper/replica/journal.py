"""What a stepper writes down for metrics, in plain lists that cost little to append to and are read rarely."""


class Journal:
    """Iterations and passages of requests since the reader last emptied the lists."""

    def __init__(self) -> None:
        self.iterations: list[float] = []
        """Runs of iterations, five numbers each: seconds of the first, how much longer each next one is, their number,
        decoding sequences served in each, and tokens as vLLM counts them (whole prompts when done, one per sequence).
        Those without any token are left out."""
        self.admitted: list[tuple[int, float, int]] = []
        """Request, time and prompt tokens found in the cache, of first admissions."""
        self.first_tokens: list[tuple[int, float]] = []
        """Request, and when its first token was sampled."""
        self.finished: list[tuple[int, float]] = []
        """Request, and when its last token was sampled."""
        self.gaps: list[float] = []
        """Seconds between the last token before a preemption and the first after it."""
        self.preemptions = 0
        self._last_token: dict[int, float] = {}

    def preempted(self, i: int, now: float | None) -> None:
        """A request lost its KV memory; `now` where it was decoding, which is when its last token came."""
        self.preemptions += 1
        if now is not None:
            self._last_token[i] = now

    def resumed(self, i: int, now: float) -> None:
        """A preempted request has its next token."""
        self.gaps.append(now - self._last_token.pop(i))

    def renumber(self, dropped: int) -> None:
        """Requests are from now on known by an index that is less by so many."""
        self._last_token = {i - dropped: now for i, now in self._last_token.items()}
