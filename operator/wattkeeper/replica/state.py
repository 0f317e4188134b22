"""State of one engine, and the rare iteration in which running requests compete for KV blocks.

Nothing here grows with the length of an answer. Decoding sequences advance together, so what they hold follows from
three sums: their number, their contexts, and how many contexts there are of each residue modulo the block size (only
looked at where memory may be short). A request's place in time is `end`, the number of the iteration that yields its
last token: its context is then `total - (end - iteration)`.
"""

import math
from operator import mul

from wattkeeper.physics import step as step_time
from wattkeeper.replica.types import Activity, ReplicaConfig

KEY_BITS = 32
"""Completions are heap keys `end << KEY_BITS | index`; a key whose end is not the request's is void."""
KEY_MASK = (1 << KEY_BITS) - 1


class EngineState:
    """Queues, batch and sums of one replica; lists have one entry per accepted request, in order of arrival."""

    def __init__(self, config: ReplicaConfig) -> None:
        self.config = config
        self.now = 0.0
        """End of the last iteration, or the time that an idle replica was advanced to, in seconds."""
        self.idle_seconds = 0.0
        d0, dt, dn, dkv, da = step_time.at_clock(config.iteration, config.clock_ratio)
        self._coefficients = (float(d0), float(dt), float(dn), float(dkv), float(da))
        # Requests.
        self._arrival: list[float] = [math.inf]
        self._target: list[int] = []
        """Tokens to be in the KV cache before the next token can be sampled: the prompt, after a preemption more."""
        self._total: list[int] = []
        """Context when the last token is sampled."""
        self._hit: list[int] = []
        self._computed: list[int] = []
        self._end: list[int] = []
        self._first: list[float] = []
        self._finish: list[float] = []
        self._preempted: dict[int, int] = {}
        # Queues.
        self._head = 0
        """The first request that was never admitted."""
        self._front: list[int] = []
        """Preempted requests; the last is the next to be admitted."""
        self._order: list[int] = []
        """Running requests in order of admission, finished ones not yet removed."""
        self._partials: list[int] = []
        self._partial_blocks = 0
        self._running = 0
        # Decoding sequences.
        self._step = 0
        self._decodes = 0
        self._kv_tokens = 0
        self._residues = [0] * config.block_size
        self._ends: list[int] = []
        size = config.block_size
        self._padding = [[-(residue + offset) % size for residue in range(size)] for offset in range(size)]
        """Unused slots of a sequence's last block, by offset (iteration modulo size) and residue."""
        # Sums.
        self._prefill_steps = 0
        self._prefill_tokens = 0
        self._products = 0.0
        self._decode_tokens = 0
        self._kv_read = 0
        self._sequence_seconds = 0.0
        self._kv_seconds = 0.0
        self._prefill_squared = 0.0
        """Sum over iterations of their length times the part of it that prefill took, in seconds squared."""

    def set_clock(self, clock_ratio: float, *, stretch: float = 1.0) -> None:
        """From now on iterate at this clock, over the largest; `stretch` multiplies all times on top.

        `Activity.step_seconds_squared` then speaks of the last clock alone.
        """
        if not (0.0 < clock_ratio <= 1.0 and stretch >= 1.0):
            raise ValueError(f"clock_ratio must be in (0, 1] and stretch at least 1, not {clock_ratio} and {stretch}")
        d0, dt, dn, dkv, da = (float(term) * stretch for term in step_time.at_clock(self.config.iteration, clock_ratio))
        self._coefficients = (d0, dt, dn, dkv, da)

    @property
    def activity(self) -> Activity:
        """Sums since the start."""
        d0, _, dn, dkv, _ = self._coefficients
        busy = self.now - self.idle_seconds
        decode_squared = d0 * busy + dn * self._sequence_seconds + dkv * self._kv_seconds
        return Activity(
            span_seconds=self.now,
            busy_seconds=busy,
            steps=self._step,
            prefill_steps=self._prefill_steps,
            prefill_tokens=self._prefill_tokens,
            attention_products=self._products,
            decode_tokens=self._decode_tokens,
            kv_read_tokens=self._kv_read,
            sequence_seconds=self._sequence_seconds,
            kv_token_seconds=self._kv_seconds,
            step_seconds_squared=decode_squared + self._prefill_squared,
            preemptions=sum(self._preempted.values()),
        )

    @property
    def running(self) -> int:
        """Requests admitted and not finished."""
        return self._running

    @property
    def outstanding(self) -> int:
        """Requests offered that are neither finished nor refused."""
        return self._running + len(self._front) + len(self._target) - self._head

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks in use, in whole blocks, 0..1."""
        return (self.decode_blocks(0) + self._partial_blocks) / self.config.kv_blocks

    def decode_blocks(self, steps: int) -> int:
        """Blocks that decoding sequences hold after `steps` more tokens each."""
        size = self.config.block_size
        unused: int = sum(map(mul, self._residues, self._padding[(self._step + steps) % size]))
        return (self._kv_tokens + self._decodes * steps + unused) // size

    def fitting_steps(self, wanted: int) -> int:
        """How many of the wanted decode steps the free blocks allow where nothing else takes any."""
        size, residues = self.config.block_size, self._residues
        if self.decode_blocks(wanted) <= self.config.kv_blocks:
            return wanted
        steps = min(wanted, max(0, (self.config.kv_blocks * size - self._kv_tokens) // self._decodes - size + 1))
        free = self.config.kv_blocks - self.decode_blocks(steps)
        while steps < wanted:
            free -= residues[-(self._step + steps) % size]
            if free < 0:
                break
            steps += 1
        return steps

    def serve_in_order(self, completed: list[int]) -> tuple[int, int, int, float]:
        """One iteration's tokens, request by request in order of admission; where blocks run out the last is preempted.

        For iterations in which the running requests want more KV blocks than there are; nothing is admitted in them.
        The token budget always reaches the last one: it was met when that one was admitted, and what those before it
        want only shrinks. Appends the requests whose prompt is now complete to `completed` and returns decoding
        sequences served, KV tokens they read, prompt tokens and attention products.
        """
        config, size, step = self.config, self.config.block_size, self._step
        limit = config.long_prefill_token_threshold or config.max_num_batched_tokens
        order, partials, total, end = self._order, set(self._partials), self._total, self._end
        order[:] = [i for i in order if self._finish[i] < 0.0]
        wanting = [k for k, i in enumerate(order) if i in partials or (total[i] - end[i] + step) % size == 0]
        free = config.kv_blocks - self.decode_blocks(0) - self._partial_blocks
        tokens, prompts, products = 0, 0, 0.0
        for place in wanting:
            if place >= len(order):
                break
            i = order[place]
            if i in partials:
                have = self._computed[i]
                decodes_before = place - prompts
                chunk = min(self._target[i] - have, limit, config.max_num_batched_tokens - decodes_before - tokens)
                need = -(-(have + chunk) // size) - -(-have // size)
            else:
                need = 1
            while need > free and place < len(order):
                free += self._preempt(order.pop())
            if place >= len(order):
                break
            free -= need
            if i in partials:
                self._partial_blocks += need
                self._computed[i] = have + chunk
                tokens += chunk
                prompts += 1
                products += chunk * (have + 0.5 * chunk)
                if have + chunk == self._target[i]:
                    self._partials.remove(i)
                    completed.append(i)
        return self._decodes, self._kv_tokens + self._decodes, tokens, products

    def _preempt(self, i: int) -> int:
        """Take a running request's KV memory and put it in front of the queue; returns the blocks it held."""
        size = self.config.block_size
        if i in self._partials:
            blocks = -(-self._computed[i] // size)
            self._partials.remove(i)
            self._partial_blocks -= blocks
        else:
            context = self._total[i] - (self._end[i] - self._step)
            blocks = -(-context // size)
            self._decodes -= 1
            self._kv_tokens -= context
            self._residues[(context - self._step) % size] -= 1
            self._target[i] = context + 1
            self._end[i] = -1
        self._computed[i] = self._hit[i] = 0
        self._running -= 1
        self._preempted[i] = self._preempted.get(i, 0) + 1
        self._front.append(i)
        return blocks
