"""A literal step loop of one replica: the oracle of the stepper.

Every request holds a list of block numbers, every iteration visits every request. Free blocks are a queue of numbers:
they are taken from its front and given back at its end, and keep what they hold until they are taken. Written for
plainness; of the product it uses nothing but the coefficients.
"""

import dataclasses
import math


@dataclasses.dataclass(eq=False)
class Job:
    arrival: float
    prompt: int
    output: int
    hit: int = 0
    priority: int = 0
    contents: list = dataclasses.field(default_factory=list)
    """What each full block of the prompt holds; nothing: the prompt is like no other."""
    found: int | None = None
    """Prompt tokens found in the cache at the first admission."""
    fate: str = ""
    answered: int = 0
    computed: int = 0
    """Tokens with an entry in the KV cache."""
    blocks: list = dataclasses.field(default_factory=list)
    token_times: list = dataclasses.field(default_factory=list)
    preemptions: int = 0
    decoding: bool = False
    """False while a prompt is computed, or computed again: even its last single token is then priced as prefill."""

    @property
    def tokens(self):
        return self.prompt + self.answered


@dataclasses.dataclass
class Iteration:
    seconds: float
    decodes: int
    kv: int
    prefill: int
    products: float
    kv_used: int


class Literal:
    def __init__(
        self, iteration, *, seqs, budget, blocks, size=16, watermark=0.0, threshold=0, chunked=True, max_len=None,
        most_waiting=None, priorities=False,
    ):  # fmt: skip
        self.c = iteration
        self.seqs, self.budget, self.size, self.watermark = seqs, budget, size, watermark
        self.threshold, self.chunked, self.max_len = threshold, chunked, max_len
        self.most_waiting, self.priorities = most_waiting, priorities
        self.pool = list(range(blocks))
        self.holds = {}
        """Block: what it holds."""
        self.copies = {}
        """Content: blocks that hold it, the oldest first."""
        self.users = dict.fromkeys(range(blocks), 0)
        self.all_blocks = blocks + 1  # vLLM counts its null block
        self.waiting, self.running, self.iterations = [], [], []
        self.now = 0.0
        self.idle = 0.0

    @classmethod
    def of(cls, config):
        """The engine that a ReplicaConfig describes."""
        return cls(
            config.iteration,
            seqs=config.slots,
            budget=config.max_num_batched_tokens,
            blocks=config.kv_blocks,
            size=config.block_size,
            watermark=config.watermark,
            threshold=config.long_prefill_token_threshold,
            chunked=config.chunked_prefill,
            max_len=config.max_model_len,
            most_waiting=config.max_queued_requests,
            priorities=config.priorities,
        )

    def possible(self, job):
        if self.max_len is not None:
            job.output = min(job.output, self.max_len - job.prompt)
            if job.output < 1:
                return False
        most = job.prompt + job.output - 1
        if not self.chunked and most > self.budget:
            return False
        return math.ceil(most / self.size) <= self.all_blocks - 1

    def more_blocks(self, job, tokens):
        """Blocks that the job lacks to hold so many tokens."""
        return math.ceil(tokens / self.size) - len(job.blocks)

    def take(self, job, count):
        for _ in range(count):
            block = self.pool.pop(0)
            if block in self.holds:
                self.copies[self.holds.pop(block)].remove(block)
            assert self.users[block] == 0
            self.users[block] = 1
            job.blocks.append(block)

    def give_back(self, job):
        for block in reversed(job.blocks):
            self.users[block] -= 1
            if self.users[block] == 0:
                self.pool.append(block)
        job.blocks = []

    def known(self, job):
        """Blocks from the beginning of the job that some block holds already, never that of its last token."""
        found = []
        for content in job.contents[: (job.tokens - 1) // self.size]:
            if not self.copies.get(content):
                break
            found.append(self.copies[content][0])
        return found

    def publish(self, job, tokens):
        """From when they are scheduled on, full blocks of the prompt are known."""
        for place, content in enumerate(job.contents[: tokens // self.size]):
            block = job.blocks[place]
            if block not in self.holds:
                self.holds[block] = content
                self.copies.setdefault(content, []).append(block)

    def preempt(self, job):
        self.running.remove(job)
        self.give_back(job)
        job.computed = job.hit = 0
        job.preemptions += 1
        job.decoding = False
        self.waiting.insert(0, job)

    def rank(self, job):
        return job.priority, job.arrival

    def arrive(self, job):
        if job.fate:
            return
        if self.most_waiting is not None and len(self.waiting) >= self.most_waiting:
            job.fate = "refused"
        else:
            self.waiting.append(job)

    def abort(self, job):
        if job.fate:
            return
        job.fate = "aborted"
        if job in self.running:
            self.running.remove(job)
            self.give_back(job)
        elif job in self.waiting:
            self.waiting.remove(job)

    def play(self, jobs, aborts=()):
        """Serve all; `aborts` are (time, job) in order of time."""
        aborts = list(aborts)
        coming = [job for job in jobs if self.possible(job)]
        while coming or self.waiting or self.running:
            if not self.waiting and not self.running and coming[0].arrival > self.now:
                self.idle += coming[0].arrival - self.now
                self.now = coming[0].arrival
            while coming and coming[0].arrival <= self.now:
                self.arrive(coming.pop(0))
            while aborts and aborts[0][0] <= self.now:
                self.abort(aborts.pop(0)[1])
            if self.waiting or self.running:
                self.iterate()
        return self

    def iterate(self):
        scheduled, preempted = self.serve()
        if not preempted:
            self.admit(scheduled)
        if scheduled:
            self.execute(scheduled)
        else:
            # The one to be served first was preempted itself: an empty step, which takes no time.
            assert preempted

    def serve(self):
        """Tokens for the running ones; whether any was preempted for them."""
        budget = self.budget
        scheduled = []
        preempted = False
        place = 0
        while place < len(self.running) and budget > 0:
            job = self.running[place]
            count = min(job.tokens - job.computed, budget)
            if self.threshold:
                count = min(count, self.threshold)
            while job in self.running and self.more_blocks(job, job.computed + count) > len(self.pool):
                victim = max(self.running, key=self.rank) if self.priorities else self.running[-1]
                place -= self.running.index(victim) < place
                for entry in [entry for entry in scheduled if entry[0] is victim]:
                    scheduled.remove(entry)
                    budget += entry[1]
                self.preempt(victim)
                preempted = True
            if job not in self.running:
                break
            self.take(job, self.more_blocks(job, job.computed + count))
            self.publish(job, job.computed + count)
            scheduled.append((job, count))
            budget -= count
            place += 1
        return scheduled, preempted

    def admit(self, scheduled):
        budget = self.budget - sum(count for _, count in scheduled)
        if self.priorities:
            self.waiting.sort(key=self.rank)
        while self.waiting and budget > 0 and len(self.running) < self.seqs:
            job = self.waiting[0]
            hit = min(job.hit, job.prompt - 1) // self.size * self.size
            found = self.known(job) if job.contents else []
            if job.contents:
                hit = len(found) * self.size
            count = job.tokens - hit
            if self.threshold:
                count = min(count, self.threshold)
            if not self.chunked and count > budget:
                break
            count = min(count, budget)
            spare = int(self.watermark * self.all_blocks) if self.running else 0
            unused = sum(self.users[block] == 0 for block in found)
            if self.more_blocks(job, job.tokens) - len(found) + unused + spare > len(self.pool):
                break
            self.waiting.pop(0)
            self.running.append(job)
            job.computed = hit
            if job.found is None:
                job.found = hit
            for block in found:
                if self.users[block] == 0:
                    self.pool.remove(block)
                self.users[block] += 1
            job.blocks = list(found)
            self.take(job, self.more_blocks(job, hit + count))
            self.publish(job, hit + count)
            scheduled.append((job, count))
            budget -= count

    def execute(self, scheduled):
        held = {block for job in self.running for block in job.blocks}
        assert len(held) + len(self.pool) == len(self.users)
        decodes = kv = prefill = 0
        products = 0.0
        for job, count in scheduled:
            if job.decoding:
                decodes += 1
                kv += job.computed + 1
            else:
                prefill += count
                products += count * (job.computed + count / 2)
        dn = self.c.decode_seconds_per_sequence
        seconds = (
            self.c.d0_seconds
            + dn * decodes
            + self.c.dkv_seconds_per_kv_token * kv
            + self.c.dt_seconds_per_token * prefill
            + self.c.da_seconds_per_token_squared * products
        )
        used = self.all_blocks - 1 - len(self.pool)
        self.iterations.append(Iteration(seconds, decodes, kv, prefill, products, used))
        self.now += seconds
        for job, count in scheduled:
            job.computed += count
            if job.computed == job.tokens:
                job.answered += 1
                job.decoding = True
                job.token_times.append(self.now)
                if job.answered == job.output:
                    job.fate = "finished"
                    self.running.remove(job)
                    self.give_back(job)
