"""One replica under any scheduling policy: the policy decides, this loop checks, prices and keeps the account.

It checks that an engine could do what the policy (`wattkeeper.scheduling`) decides and prices iterations in the MIXED
form of `physics.step`. With the policy `greedy.VllmV1` its results are those of `replica.stepper`.

Macro-steps: where a policy says that a decision repeats (`Decision.repeats`), k iterations of n decodes with contexts
of c tokens in all are one step of

    T(k) = k (d0 + dN n + dKV (c + n)) + dKV n k (k - 1) / 2     [seconds]

with k the least of: what the policy says, iterations to the next completion, to the end of the free blocks, and those
that start before the next arrival. Results equal iteration by iteration (`macro_steps=False`) to rounding; the cost
grows with requests and with how many are resident, not with tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wattkeeper.physics import step as step_time
from wattkeeper.replica.types import Activity, Outcome, ReplicaConfig, Requests
from wattkeeper.scheduling.types import Decision, EngineLimits, Policy, PolicyError, View, lasting_steps


@dataclass(eq=False, slots=True)
class Job:
    """A request as engine and policy see it."""

    index: int
    arrival_seconds: float
    prompt_tokens: int
    output_tokens: int
    hit_tokens: int
    expected_output_tokens: int | None
    target_tokens: int
    generated_tokens: int = 0
    computed_tokens: int = 0
    decoding: bool = False
    blocks: int = 0
    preemptions: int = 0
    first_token_seconds: float = math.nan
    finish_seconds: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Served:
    """What became of the requests, and the most that was ever held."""

    outcome: Outcome
    peak_blocks: int
    peak_residents: int

    def joules(self, *, idle_watts: float, busy_watts: float) -> float:
        """Energy of the whole run: busy while an iteration runs, idle between."""
        activity = self.outcome.activity
        return busy_watts * activity.busy_seconds + idle_watts * (activity.span_seconds - activity.busy_seconds)


Observer = Callable[[View, Decision], None]


class PolicedReplica:
    """An engine whose scheduler is a policy."""

    def __init__(self, config: ReplicaConfig, policy: Policy, *, macro_steps: bool = True) -> None:
        self.policy = policy
        self.macro_steps = macro_steps
        self.limits = EngineLimits(
            token_budget=config.max_num_batched_tokens,
            max_num_seqs=config.max_num_seqs,
            kv_blocks=config.kv_blocks,
            block_size=config.block_size,
            watermark_blocks=config.watermark_blocks,
            long_prefill_token_threshold=config.long_prefill_token_threshold,
            chunked_prefill=config.chunked_prefill,
        )
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.free_blocks = config.kv_blocks
        self.now = 0.0
        self.last_start = -math.inf
        self.peak_blocks = 0
        self.peak_residents = 0
        d0, dt, dn, dkv, da = step_time.at_clock(config.iteration, config.clock_ratio)
        self._times = (float(d0), float(dt), float(dn), float(dkv), float(da))
        self._sums = dict.fromkeys(
            ("busy", "steps", "prefill_steps", "prefill", "products", "decodes", "kv", "n_s", "kv_s", "squared"), 0.0
        )

    def play(self, jobs: list[Job], observer: Observer | None = None) -> None:
        """Serve jobs (ascending arrivals) to the end. PolicyError where the policy asks for what cannot be."""
        coming, head = jobs, 0
        while head < len(coming) or self.waiting or self.running:
            while head < len(coming) and coming[head].arrival_seconds <= self.now:
                self.waiting.append(coming[head])
                head += 1
            following = coming[head].arrival_seconds if head < len(coming) else math.inf
            if not self.waiting and not self.running:
                self.now = following
                continue
            view = View(
                limits=self.limits,
                now_seconds=self.now,
                last_start_seconds=self.last_start,
                waiting=self.waiting,
                running=self.running,
                free_blocks=self.free_blocks,
                draining=math.isinf(following),
            )
            decision = self.policy.decide(view)
            if observer is not None:
                observer(view, decision)
            if decision.preempted or decision.tokens:
                self._apply(decision, following if self.macro_steps else self.now)
                continue
            until = min(following, decision.wait_until_seconds)
            if not self.now < until < math.inf:
                raise PolicyError(
                    f"{self.policy.name} schedules nothing at {self.now:.3f} s and waits until {until}: "
                    f"{len(self.waiting)} requests wait and {len(self.running)} are resident"
                )
            self.now = until

    def _apply(self, decision: Decision, until: float) -> None:
        for request in decision.preempted:
            job = self._own(request)
            self.running.remove(job)
            self.free_blocks += job.blocks
            job.blocks = job.computed_tokens = job.hit_tokens = 0
            job.decoding = False
            job.preemptions += 1
            self.waiting.insert(0, job)
        for request in decision.admitted:
            job = self._own(request)
            if self.waiting and self.waiting[0] is job:
                del self.waiting[0]
            else:
                self.waiting.remove(job)
            job.computed_tokens = job.hit_tokens
            self.running.append(job)
        if decision.tokens:
            batch = [(self._own(request), count) for request, count in decision.tokens]
            if decision.repeats > 1 and until > self.now:
                self._repeat([job for job, _ in batch], decision, until)
            else:
                self._iterate(batch)

    def _own(self, request: object) -> Job:
        if not isinstance(request, Job):
            raise PolicyError(f"{self.policy.name} names a request that is not of this engine")
        return request

    def _iterate(self, batch: list[tuple[Job, int]]) -> None:
        """One iteration."""
        size, free = self.limits.block_size, self.free_blocks
        decodes = kv = prefill = 0
        products = 0.0
        for job, count in batch:
            have = job.computed_tokens
            if job.decoding:
                decodes += 1
                kv += have + 1
            else:
                prefill += count
                products += count * (have + 0.5 * count)
            if count < 1 or have + count > job.target_tokens:
                lacking = job.target_tokens - have
                raise PolicyError(f"{self.policy.name} gives {count} tokens to a request that lacks {lacking}")
            blocks = (have + count + size - 1) // size
            free -= blocks - job.blocks
            job.blocks = blocks
        self._take(free, decodes + prefill)
        d0, dt, dn, dkv, da = self._times
        seconds = d0 + dn * decodes + dkv * kv + dt * prefill + da * products
        sums = self._sums
        sums["prefill_steps"] += prefill > 0
        sums["prefill"] += prefill
        sums["products"] += products
        self._pass(steps=1, first=seconds, growth=0.0, decodes=decodes, kv=kv, start_of_last=self.now)
        for job, count in batch:
            job.computed_tokens += count
            if job.computed_tokens < job.target_tokens:
                continue
            if not job.generated_tokens:
                job.first_token_seconds = self.now
            job.decoding = True
            job.generated_tokens += 1
            job.target_tokens += 1
            if job.generated_tokens == job.output_tokens:
                self._finish(job)

    def _repeat(self, batch: list[Job], decision: Decision, until: float) -> None:
        """Many iterations of the same decodes: as many as start before `until` and are alike."""
        limits, count = self.limits, len(batch)
        if not all(job.decoding for job in batch) or any(tokens != 1 for _, tokens in decision.tokens):
            raise PolicyError(f"{self.policy.name} wants to repeat an iteration that is not of decodes alone")
        until = min(until, decision.repeats_until_seconds)
        most = min(decision.repeats, *(job.output_tokens - job.generated_tokens for job in batch))
        most = max(1, lasting_steps(batch, blocks=self.free_blocks, block_size=limits.block_size, most=most))
        kv = sum(job.computed_tokens for job in batch) + count
        d0, _, dn, dkv, _ = self._times
        first, growth = d0 + dn * count + dkv * kv, dkv * count
        period = decision.period_seconds
        if first < period:
            # As long as an iteration is shorter than the pace the next one starts at the pace.
            paced = most if growth <= 0.0 else min(most, int((period - first) / growth) + 1)
            steps = _starts(until - self.now, first=period, growth=0.0, most=paced)
            start_of_last = self.now + (steps - 1) * period
        else:
            steps = _starts(until - self.now, first=first, growth=growth, most=most)
            start_of_last = self.now + (steps - 1) * first + growth * ((steps - 1) * (steps - 2) // 2)
        size, free = limits.block_size, self.free_blocks
        for job in batch:
            blocks = (job.computed_tokens + steps + size - 1) // size
            free -= blocks - job.blocks
            job.blocks = blocks
        self._take(free, count)
        self._pass(steps=steps, first=first, growth=growth, decodes=count, kv=kv, start_of_last=start_of_last)
        for job in batch:
            job.computed_tokens += steps
            job.generated_tokens += steps
            job.target_tokens += steps
            if job.generated_tokens == job.output_tokens:
                self._finish(job)

    def _finish(self, job: Job) -> None:
        job.finish_seconds = self.now
        self.running.remove(job)
        self.free_blocks += job.blocks

    def _take(self, free: int, tokens: int) -> None:
        """From now on so many blocks are free; what is taken must be there."""
        self._check(free, tokens)
        self.free_blocks = free
        self.peak_blocks = max(self.peak_blocks, self.limits.kv_blocks - free)
        self.peak_residents = max(self.peak_residents, len(self.running))

    def _pass(self, *, steps: int, first: float, growth: float, decodes: int, kv: int, start_of_last: float) -> None:
        """Account for iterations, the first of `first` seconds, each further one `growth` longer, and pass their time.

        All have so many decodes, the first reads `kv` tokens and each further one `decodes` more.
        """
        once = steps * (steps - 1) // 2
        twice = once * (2 * steps - 1) / 3.0
        busy = steps * first + growth * once
        sums = self._sums
        sums["busy"] += busy
        sums["steps"] += steps
        sums["decodes"] += steps * decodes
        sums["kv"] += steps * kv + decodes * once
        sums["n_s"] += decodes * busy
        sums["kv_s"] += steps * kv * first + (kv * growth + decodes * first) * once + decodes * growth * twice
        sums["squared"] += steps * first * first + 2.0 * first * growth * once + growth * growth * twice
        self.last_start = start_of_last
        self.now = start_of_last + first + growth * (steps - 1)

    def _check(self, free: int, tokens: int) -> None:
        limits = self.limits
        for what, over in (
            ("KV blocks", free < 0),
            (f"tokens per iteration ({tokens} of {limits.token_budget})", tokens > limits.token_budget),
            ("requests in service", len(self.running) > limits.max_num_seqs),
        ):
            if over:
                raise PolicyError(f"{self.policy.name} schedules more {what} than the engine has")

    def activity(self, preemptions: int) -> Activity:
        """Sums since the start; preemptions are counted with the requests."""
        sums = self._sums
        return Activity(
            span_seconds=self.now,
            busy_seconds=sums["busy"],
            steps=int(sums["steps"]),
            prefill_steps=int(sums["prefill_steps"]),
            prefill_tokens=int(sums["prefill"]),
            attention_products=sums["products"],
            decode_tokens=int(sums["decodes"]),
            kv_read_tokens=int(sums["kv"]),
            sequence_seconds=sums["n_s"],
            kv_token_seconds=sums["kv_s"],
            step_seconds_squared=sums["squared"],
            preemptions=preemptions,
        )


def _starts(span: float, *, first: float, growth: float, most: int) -> int:
    """Iterations back to back, of `first`, `first + growth`, ... seconds, that start within `span`; 1 .. `most`."""
    if most * first + growth * (most * (most - 1) // 2) <= span:
        return most
    linear = first - 0.5 * growth
    steps = int(2.0 * span / (linear + math.sqrt(linear * linear + 2.0 * growth * span))) + 1
    steps = max(1, min(steps, most))
    while steps < most and steps * first + growth * (steps * (steps - 1) // 2) < span:
        steps += 1
    while steps > 1 and (steps - 1) * first + growth * ((steps - 1) * (steps - 2) // 2) >= span:
        steps -= 1
    return steps


def serve(
    config: ReplicaConfig,
    requests: Requests,
    policy: Policy,
    *,
    known_lengths: bool = False,
    observer: Observer | None = None,
    macro_steps: bool = True,
) -> Served:
    """Serve all requests to the end. `known_lengths`: policies see how long answers will be.

    `observer` sees each view and decision: with `macro_steps=False` those of every iteration.
    """
    outputs = np.minimum(requests.output_tokens, config.longest_context + 1 - requests.prompt_tokens)
    accepted = (outputs >= 1) & (requests.prompt_tokens + outputs - 1 <= config.largest_footprint)
    hits = np.zeros(len(requests), dtype=np.int64) if requests.hit_tokens is None else requests.hit_tokens
    hits = np.minimum(hits, requests.prompt_tokens - 1) // config.block_size * config.block_size
    columns = (requests.arrival_seconds, requests.prompt_tokens, outputs, hits)
    jobs = [
        Job(
            index=int(index),
            arrival_seconds=arrival,
            prompt_tokens=prompt,
            output_tokens=output,
            hit_tokens=hit,
            expected_output_tokens=output if known_lengths else None,
            target_tokens=prompt,
        )
        for index, arrival, prompt, output, hit in zip(
            np.flatnonzero(accepted), *(column[accepted].tolist() for column in columns), strict=True
        )
    ]
    replica = PolicedReplica(config, policy, macro_steps=macro_steps)
    replica.play(jobs, observer)
    times = np.full((2, len(requests)), np.nan)
    times[:, accepted] = [[job.first_token_seconds for job in jobs], [job.finish_seconds for job in jobs]]
    preemptions = np.zeros(len(requests), dtype=np.int64)
    preemptions[accepted] = [job.preemptions for job in jobs]
    activity = replica.activity(int(preemptions.sum()))
    return Served(
        outcome=Outcome(
            arrival_seconds=requests.arrival_seconds,
            output_tokens=outputs,
            first_token_seconds=times[0],
            finish_seconds=times[1],
            preemptions=preemptions,
            refused=~accepted,
            front_end_seconds=config.front_end_seconds,
            activity=activity,
        ),
        peak_blocks=replica.peak_blocks,
        peak_residents=replica.peak_residents,
    )
