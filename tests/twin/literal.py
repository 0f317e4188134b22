"""An independent model of one replica that steps every iteration by itself: the oracle of the macro-stepper."""

import math
from dataclasses import dataclass, field

from wattkeeper.twin.hardware import ReplicaHardware

WINDOW_STEPS, MEMORY = 48, 3


@dataclass
class Job:
    arrival: float
    prompt: int
    output: int
    computed: int = 0
    generated: int = 0
    token_times: list = field(default_factory=list)
    scheduled: float | None = None
    preemptions: int = 0

    decoding: bool = False


def ceil_div(a, b):
    return -(-a // b)


class Literal:
    def __init__(self, hardware: ReplicaHardware, cap_watts=None, clock_mhz=None):
        self.hw = hardware
        self.cap = hardware.card.tdp_watts if cap_watts is None else cap_watts
        self.top = hardware.level_at_most(clock_mhz)
        self.now = 0.0
        self.joules = 0.0
        self.running, self.waiting, self.done = [], [], []
        self.preemptions = 0
        self.iterations = []
        self.itl = []
        self.window = WINDOW_STEPS * hardware.levels[-1].seconds[0]
        self.window_end = self.window
        self.loads = []
        self.recent = [self.top]

    def blocks(self, job):
        return ceil_div(job.computed, self.hw.block_size)

    def free(self):
        return self.hw.num_gpu_blocks - 1 - sum(self.blocks(job) for job in self.running)

    def cost(self, level, decodes, kv, tokens, attention):
        x = (1, decodes, kv, tokens, attention)
        seconds = sum(c * v for c, v in zip(level.seconds, x, strict=True))
        return seconds, self.hw.static_watts * seconds + sum(c * v for c, v in zip(level.joules, x, strict=True))

    def choose(self, *load):
        for index in range(self.top, -1, -1):
            seconds, joules = self.cost(self.hw.levels[index], *load)
            if joules <= self.cap * seconds:
                return index
        return 0

    def close_window(self):
        """Judge the mean load of a window that is over; the next clock is the lowest of the last three found."""
        if self.now < self.window_end:
            return
        if self.loads:
            mean = [sum(column) / len(self.loads) for column in zip(*self.loads, strict=True)]
            self.recent = [*self.recent, self.choose(*mean)][-MEMORY:]
            self.loads = []
        self.window_end = (math.floor(self.now / self.window) + 1) * self.window

    def preempt(self):
        victim = self.running.pop()
        victim.computed, victim.decoding = 0, False
        victim.preemptions += 1
        self.preemptions += 1
        self.waiting.insert(0, victim)
        return victim

    def step(self):
        budget, preempted = self.hw.max_num_batched_tokens, False
        decodes, prefills = [], []
        for job in list(self.running):
            if job not in self.running:
                continue
            chunk = 1 if job.decoding else min(job.prompt + job.generated - job.computed, budget)
            while job in self.running:
                need = ceil_div(job.computed + chunk, self.hw.block_size) - self.blocks(job)
                if need <= self.free():
                    break
                self.preempt()
                preempted = True
            if job in self.running:
                (decodes if job.decoding else prefills).append((job, job.computed, chunk))
                job.computed += chunk
                budget -= chunk
        while budget > 0 and self.waiting and not preempted and len(self.running) < self.hw.max_num_seqs:
            job = self.waiting[0]
            if ceil_div(job.prompt + job.generated, self.hw.block_size) > self.free():
                break
            self.waiting.pop(0)
            if job.scheduled is None:
                job.scheduled = self.now
            chunk = min(job.prompt + job.generated, budget)
            prefills.append((job, 0, chunk))
            job.computed = chunk
            budget -= chunk
            self.running.append(job)
        n = len(decodes)
        load = (
            n,
            sum(job.computed for job, _, _ in decodes),
            sum(chunk for _, _, chunk in prefills),
            sum(chunk * (history + chunk / 2) for _, history, chunk in prefills),
        )
        self.loads.append(load)
        seconds, joules = self.cost(self.hw.levels[min(self.recent)], *load)
        self.joules += joules
        self.now += seconds
        self.close_window()
        whole = [job for job, _, _ in prefills if job.computed == job.prompt + job.generated]
        if n or whole:
            self.iterations.append(n + sum(1 + (0 if job.token_times else job.prompt) for job in whole))
        for job, _, _ in decodes:
            self.token(job)
        for job, _, _ in prefills:
            if job.computed == job.prompt + job.generated:
                job.decoding = True
                self.token(job)

    def token(self, job):
        if job.token_times:
            self.itl.append(self.now - job.token_times[-1])
        job.token_times.append(self.now)
        job.generated += 1
        if job.generated == job.output:
            self.running.remove(job)
            self.done.append(job)

    def play(self, jobs):
        jobs = sorted(jobs, key=lambda job: job.arrival)
        index = 0
        while index < len(jobs) or self.running or self.waiting:
            while index < len(jobs) and jobs[index].arrival <= self.now:
                self.waiting.append(jobs[index])
                index += 1
            if not self.running and not self.waiting:
                self.joules += self.hw.idle_watts * (jobs[index].arrival - self.now)
                self.now = jobs[index].arrival
                self.close_window()
                continue
            self.step()
        return self
