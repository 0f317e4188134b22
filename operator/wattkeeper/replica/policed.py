"""One replica under any scheduling policy, iteration by iteration: every request is visited in every iteration.

The engine of `replica.stepper` without its shortcuts and without its scheduler: the policy decides
(`wattkeeper.scheduling`), this loop checks that an engine could do it, prices the iteration in the MIXED form of
`physics.step`, and keeps the account. With the policy `greedy.VllmV1` its results are those of the stepper.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wattkeeper.physics import step as step_time
from wattkeeper.replica.types import Activity, Outcome, ReplicaConfig, Requests
from wattkeeper.scheduling.types import Decision, EngineLimits, Policy, PolicyError, View


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

    def __init__(self, config: ReplicaConfig, policy: Policy) -> None:
        self.policy = policy
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
                self._apply(decision)
                continue
            until = min(following, decision.wait_until_seconds)
            if not self.now < until < math.inf:
                raise PolicyError(
                    f"{self.policy.name} schedules nothing at {self.now:.3f} s and waits until {until}: "
                    f"{len(self.waiting)} requests wait and {len(self.running)} are resident"
                )
            self.now = until

    def _apply(self, decision: Decision) -> None:
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
            self._iterate([(self._own(request), count) for request, count in decision.tokens])

    def _own(self, request: object) -> Job:
        if not isinstance(request, Job):
            raise PolicyError(f"{self.policy.name} names a request that is not of this engine")
        return request

    def _iterate(self, batch: list[tuple[Job, int]]) -> None:
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
        self._check(free, decodes + prefill)
        self.free_blocks = free
        self.peak_blocks = max(self.peak_blocks, self.limits.kv_blocks - free)
        self.peak_residents = max(self.peak_residents, len(self.running))
        d0, dt, dn, dkv, da = self._times
        base = d0 + dn * decodes + dkv * kv
        seconds = base + dt * prefill + da * products
        self.last_start = self.now
        self.now += seconds
        sums = self._sums
        for name, value in (
            ("busy", seconds),
            ("steps", 1),
            ("prefill_steps", prefill > 0),
            ("prefill", prefill),
            ("products", products),
            ("decodes", decodes),
            ("kv", kv),
            ("n_s", decodes * seconds),
            ("kv_s", kv * seconds),
            ("squared", seconds * seconds),
        ):
            sums[name] += value
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
                job.finish_seconds = self.now
                self.running.remove(job)
                self.free_blocks += job.blocks

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


def serve(
    config: ReplicaConfig,
    requests: Requests,
    policy: Policy,
    *,
    known_lengths: bool = False,
    observer: Observer | None = None,
) -> Served:
    """Serve all requests to the end; `observer` sees each view and decision. `known_lengths`: policies see answers."""
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
    replica = PolicedReplica(config, policy)
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
