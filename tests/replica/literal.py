"""A literal step loop of one replica: the oracle of the stepper.

Every request holds a list of block numbers, every iteration visits every request. Written for plainness; of the product
it uses nothing but the coefficients.
"""

import dataclasses
import math


@dataclasses.dataclass(eq=False)
class Job:
    arrival: float
    prompt: int
    output: int
    hit: int = 0
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
        self, iteration, *, seqs, budget, blocks, size=16, watermark=0.0, threshold=0, chunked=True, max_len=None
    ):
        self.c = iteration
        self.seqs, self.budget, self.size, self.watermark = seqs, budget, size, watermark
        self.threshold, self.chunked, self.max_len = threshold, chunked, max_len
        self.pool = list(range(blocks))
        self.all_blocks = blocks + 1  # vLLM counts its null block
        self.waiting, self.running, self.iterations = [], [], []
        self.now = 0.0
        self.idle = 0.0

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
            job.blocks.append(self.pool.pop())

    def preempt(self, job):
        self.running.remove(job)
        self.pool.extend(job.blocks)
        job.blocks = []
        job.computed = job.hit = 0
        job.preemptions += 1
        job.decoding = False
        self.waiting.insert(0, job)

    def play(self, jobs):
        coming = [job for job in jobs if self.possible(job)]
        while coming or self.waiting or self.running:
            if not self.waiting and not self.running and coming[0].arrival > self.now:
                self.idle += coming[0].arrival - self.now
                self.now = coming[0].arrival
            while coming and coming[0].arrival <= self.now:
                self.waiting.append(coming.pop(0))
            self.iterate()
        return self

    def iterate(self):
        budget = self.budget
        scheduled = []
        preempted = False
        for job in list(self.running):
            if budget == 0:
                break
            if job not in self.running:
                continue
            count = min(job.tokens - job.computed, budget)
            if self.threshold:
                count = min(count, self.threshold)
            while job in self.running and self.more_blocks(job, job.computed + count) > len(self.pool):
                self.preempt(self.running[-1])
                preempted = True
            if job not in self.running:
                break
            self.take(job, self.more_blocks(job, job.computed + count))
            scheduled.append((job, count))
            budget -= count
        while self.waiting and budget > 0 and len(self.running) < self.seqs and not preempted:
            job = self.waiting[0]
            hit = min(job.hit, job.prompt - 1) // self.size * self.size
            count = job.tokens - hit
            if self.threshold:
                count = min(count, self.threshold)
            if not self.chunked and count > budget:
                break
            count = min(count, budget)
            spare = int(self.watermark * self.all_blocks) if self.running else 0
            if self.more_blocks(job, job.tokens) + spare > len(self.pool):
                break
            self.waiting.pop(0)
            self.running.append(job)
            job.computed = hit
            self.take(job, self.more_blocks(job, hit + count))
            scheduled.append((job, count))
            budget -= count
        self.execute(scheduled)

    def execute(self, scheduled):
        assert scheduled
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
                    self.running.remove(job)
                    self.pool.extend(job.blocks)
