"""State of one engine, its waiting queue, and what leaves the batch before its end.

Nothing here grows with the length of an answer. Decoding sequences advance together, so what they hold follows from
three sums: their number, their contexts, and how many contexts there are of each residue modulo the block size (only
looked at where memory may be short). A request's place in time is `end`, the number of the iteration that yields its
last token: its context is then `total - (end - iteration)`.
"""

import math
from bisect import bisect_right, insort
from collections.abc import Iterable, Mapping
from heapq import heappop
from operator import mul

from wattkeeper.replica.engine import Activity, Coefficients, EngineConfig, Work
from wattkeeper.replica.journal import Journal
from wattkeeper.replica.prefix import PrefixCache

KEY_BITS = 32
"""Completions are heap keys `end << KEY_BITS | index`; a key whose end is not the request's is void."""
KEY_MASK = (1 << KEY_BITS) - 1


class EngineState:
    """Queues, batch and sums of one replica; lists have one entry per accepted request, in order of arrival."""

    def __init__(self, config: EngineConfig, *, now: float = 0.0, journal: Journal | None = None) -> None:
        self.config = config
        self.journal = journal
        self.now = now
        """End of the last iteration, or the time that an idle replica was advanced to, in seconds."""
        self.idle_seconds = 0.0
        self._begin = now
        self._longest_context, self._largest_footprint = config.longest_context, config.largest_footprint
        self._coefficients = config.at_clock(config.clock_ratio)
        # Requests.
        self._arrival: list[float] = [math.inf]
        self._prompt: list[int] = []
        self._target: list[int] = []
        """Tokens to be in the KV cache before the next token can be sampled: the prompt, after a preemption more."""
        self._total: list[int] = []
        """Context when the last token is sampled."""
        self._computed: list[int] = []
        """Tokens in the KV cache; of those that wait, the ones that an admission finds there."""
        self._end: list[int] = []
        self._first: list[float] = []
        self._finish: list[float] = []
        self._priority: dict[int, int] = {}
        """Where it is not 0."""
        self._preempted: dict[int, int] = {}
        self._forgotten_preemptions = 0
        self._gone: set[int] = set()
        """Aborted before they were admitted, and not yet come to."""
        self._turned_away: list[int] = []
        """Found too many waiting."""
        # Queues.
        self._managed = config.priorities or config.max_queued_requests is not None
        """Arrivals go through `_front`. False: they wait where they are, from `_head` on."""
        self._head = 0
        """The first request that was never admitted; where the queue is managed, the first that has not come."""
        self._front: list[int] = []
        """Preempted requests, where the queue is managed all that wait; the last is the next to be admitted."""
        self._order: list[int] = []
        """Running requests in order of admission, finished ones not yet removed."""
        self._partials: list[int] = []
        self._running = 0
        self._slots = config.slots
        # Memory.
        self._cache: PrefixCache | None = None
        """None until a request brings blocks that others may share."""
        self._blocks = config.kv_blocks
        """KV blocks, each counted as often as it is shared."""
        self._promised = 0
        """Tokens that those running will hold at the end; while there is room for them all, memory cannot run out."""
        # Decoding sequences.
        self._step = 0
        self._decodes = 0
        self._kv_tokens = 0
        self._residues = [0] * config.block_size
        self._counted = True
        """The residues are kept; False: they were not needed, and `count_residues` finds them."""
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
        self._squared = 0.0

    def set_clock(self, clock_ratio: float, *, stretch: float = 1.0) -> None:
        """From now on iterate at this clock, over the largest; `stretch` multiplies all times on top."""
        if not (0.0 < clock_ratio <= 1.0 and stretch >= 1.0):
            raise ValueError(f"clock_ratio must be in (0, 1] and stretch at least 1, not {clock_ratio} and {stretch}")
        d0, dt, dn, dkv, da = (term * stretch for term in self.config.at_clock(clock_ratio))
        self._coefficients = (d0, dt, dn, dkv, da)

    def set_coefficients(self, coefficients: Coefficients) -> None:
        """From now on iterations cost this."""
        self._coefficients = coefficients

    def set_active_limit(self, max_num_active_seqs: int | None) -> None:
        """Admission limit from now on; what runs beyond it is served to its end."""
        if max_num_active_seqs is not None and max_num_active_seqs < 1:
            raise ValueError(f"max_num_active_seqs must be at least 1, not {max_num_active_seqs}")
        self._slots = min(self.config.max_num_seqs, max_num_active_seqs or self.config.max_num_seqs)

    @property
    def work(self) -> Work:
        """The sums from which a step form gives time and energy."""
        return self._step, self._decode_tokens, self._kv_read, self._prefill_tokens, self._products

    @property
    def busy_seconds(self) -> float:
        """Time with an iteration running."""
        return self.now - self._begin - self.idle_seconds

    @property
    def activity(self) -> Activity:
        """Sums since the start."""
        known = self.journal is None
        return Activity(
            span_seconds=self.now,
            busy_seconds=self.busy_seconds,
            steps=self._step,
            prefill_steps=self._prefill_steps,
            prefill_tokens=self._prefill_tokens,
            attention_products=self._products,
            decode_tokens=self._decode_tokens,
            kv_read_tokens=self._kv_read,
            sequence_seconds=self._sequence_seconds if known else math.nan,
            kv_token_seconds=self._kv_seconds if known else math.nan,
            step_seconds_squared=self._squared if known else math.nan,
            preemptions=self._forgotten_preemptions + sum(self._preempted.values()),
        )

    @property
    def running(self) -> int:
        """Requests admitted and not finished."""
        return self._running

    @property
    def outstanding(self) -> int:
        """Requests offered that are neither finished nor refused."""
        return self._running + len(self._front) + len(self._target) - self._head - len(self._gone)

    @property
    def idle(self) -> bool:
        """True where nothing runs or waits."""
        return not (self._running or self._front) and self._arrival[self._head] > self.now

    @property
    def next_arrival_seconds(self) -> float:
        """When the next request comes that was not come to yet; infinite where none is known."""
        return self._arrival[self._head]

    @property
    def waiting(self) -> int:
        """Requests that have come and are not admitted; those preempted are among them."""
        come = bisect_right(self._arrival, self.now, lo=self._head) - self._head
        return come + len(self._front) - sum(1 for i in self._gone if self._arrival[i] <= self.now)

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks in use, in whole blocks, 0..1; a shared block counts once."""
        return 1.0 - self._free_blocks() / self.config.kv_blocks

    def _free_blocks(self) -> int:
        if not self._counted:
            self.count_residues()
        return self._blocks - self.decode_blocks(0) - self.held_blocks()

    def held_blocks(self, completed: Iterable[int] = ()) -> int:
        """Blocks of prompts under way, and of those completed in this iteration."""
        size, computed = self.config.block_size, self._computed
        return sum([-(-computed[i] // size) for i in (*self._partials, *completed)])

    def count_residues(self) -> None:
        """Count the contexts of decoding sequences by their residue; kept from now on, until the engine is idle."""
        size, residues = self.config.block_size, self._residues
        residues[:] = [0] * size
        for key in self._ends:
            i = key & KEY_MASK
            if self._end[i] == key >> KEY_BITS:
                residues[(self._total[i] - self._end[i]) % size] += 1
        self._counted = True

    def next_end(self) -> int:
        """The iteration that yields the next last token, far away where nothing decodes; void keys before it go."""
        ends, end = self._ends, self._end
        while ends and end[ends[0] & KEY_MASK] != ends[0] >> KEY_BITS:
            heappop(ends)
        return ends[0] >> KEY_BITS if ends else KEY_MASK

    def decode_blocks(self, steps: int) -> int:
        """Blocks that decoding sequences hold after `steps` more tokens each."""
        size = self.config.block_size
        unused: int = sum(map(mul, self._residues, self._padding[(self._step + steps) % size]))
        return (self._kv_tokens + self._decodes * steps + unused) // size

    def fitting_steps(self, wanted: int) -> int:
        """How many of the wanted decode steps the free blocks allow where nothing else takes any."""
        size, residues = self.config.block_size, self._residues
        if self.decode_blocks(wanted) <= self._blocks:
            return wanted
        steps = min(wanted, max(0, (self._blocks * size - self._kv_tokens) // self._decodes - size + 1))
        free = self._blocks - self.decode_blocks(steps)
        while steps < wanted:
            free -= residues[-(self._step + steps) % size]
            if free < 0:
                break
            steps += 1
        return steps

    # Queue

    def _rank(self, i: int) -> tuple[int, float, int]:
        """Sorts those served last first."""
        return -self._priority.get(i, 0), -self._arrival[i], -i

    def _arrive(self, now: float, head: int) -> int:
        """Queue or refuse those that came up to now; the first that has not come."""
        arrival, front, most = self._arrival, self._front, self.config.max_queued_requests
        while arrival[head] <= now:
            if head in self._gone:
                self._gone.remove(head)
            elif most is not None and len(front) >= most:
                self._turned_away.append(head)
                if self._cache is not None:
                    self._cache.forget(head)
            elif self.config.priorities:
                insort(front, head, key=self._rank)
            else:
                front.insert(0, head)
            head += 1
        return head

    # Leaving before the end

    def preempt(self, i: int, free: int, *, taken: int = 0) -> int:
        """Take a running request's KV memory and put it in front of the queue; returns the blocks that frees.

        `free` blocks are free before; `taken` are those that it got in this iteration as a decode.
        """
        decoding = i not in self._partials
        if decoding:
            self._target[i] = self._total[i] - (self._end[i] - self._step) + 1
        freed = self._leave(i, free, taken=taken, ended=False)
        self._computed[i] = 0
        self._preempted[i] = self._preempted.get(i, 0) + 1
        if self.journal is not None:
            self.journal.preempted(i, self.now if decoding else None)
        if self.config.priorities:
            insort(self._front, i, key=self._rank)
        else:
            self._front.append(i)
        return freed

    def abort(self, i: int) -> bool:
        """Give a request up; False where it is finished, refused or given up already."""
        if self._managed:
            self._head = self._arrive(self.now, self._head)
        if i >= self._head:
            if i in self._gone or i >= len(self._target):
                return False
            self._gone.add(i)
            self._managed = True
        elif i in self._front:
            self._front.remove(i)
        elif i in self._order and self._finish[i] < 0.0:
            self._leave(i, 0 if self._cache is None else self._free_blocks(), taken=0, ended=True)
            self._order.remove(i)
            return True
        else:
            return False
        if self._cache is not None:
            self._cache.forget(i)
        return True

    @property
    def has_refused(self) -> bool:
        """True where `take_refused` has something to give."""
        return bool(self._turned_away)

    @property
    def preempted(self) -> Mapping[int, int]:
        """How often a request was preempted, of those that were."""
        return self._preempted

    def take_refused(self) -> list[int]:
        """Requests that found too many waiting, since the last call."""
        refused = self._turned_away
        self._turned_away = []
        return refused

    def forget_finished(self) -> int:
        """Forget the oldest requests as far as they are finished; how many, by which all others' indices fall.

        What the journal says of requests must have been read before.
        """
        self._order[:] = [i for i in self._order if self._finish[i] < 0.0]
        drop = min([self._head, *self._order, *self._front])
        if not drop:
            return 0
        for column in (
            self._arrival, self._prompt, self._target, self._total, self._computed, self._end, self._first,
            self._finish,
        ):  # fmt: skip
            del column[:drop]
        for indices in (self._order, self._front, self._partials):
            indices[:] = [i - drop for i in indices]
        live = set(self._order)
        self._ends[:] = sorted(
            key - drop for key in self._ends if (key & KEY_MASK) - drop in live and self._is_end(key, drop)
        )
        self._head -= drop
        self._gone = {i - drop for i in self._gone}
        self._turned_away = [i - drop for i in self._turned_away if i >= drop]
        self._forgotten_preemptions += sum(count for i, count in self._preempted.items() if i < drop)
        self._preempted = {i - drop: count for i, count in self._preempted.items() if i >= drop}
        self._priority = {i - drop: value for i, value in self._priority.items() if i >= drop}
        for other in (self._cache, self.journal):
            if other is not None:
                other.renumber(drop)
        return drop

    def _is_end(self, key: int, drop: int) -> bool:
        return self._end[(key & KEY_MASK) - drop] == key >> KEY_BITS

    def unfinished(self) -> list[int]:
        """Requests that run, wait or have not come, in that order."""
        running = [i for i in self._order if self._finish[i] < 0.0]
        coming = [i for i in range(self._head, len(self._target)) if i not in self._gone]
        return running + self._front[::-1] + coming

    def _leave(self, i: int, free: int, *, taken: int, ended: bool) -> int:
        size = self.config.block_size
        if i in self._partials:
            blocks = -(-self._computed[i] // size)
            self._partials.remove(i)
        else:
            context = self._total[i] - (self._end[i] - self._step)
            blocks = -(-context // size) + taken
            self._decodes -= 1
            self._kv_tokens -= context
            if self._counted:
                self._residues[(context - self._step) % size] -= 1
            self._end[i] = -1
        self._running -= 1
        self._promised -= self._total[i]
        if self._cache is None:
            return blocks
        self._cache.sync(free)
        freed = self._cache.release(i, blocks, ended=ended)
        self._blocks = self.config.kv_blocks + self._cache.surplus
        return freed
