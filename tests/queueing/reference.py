"""A literal step loop of one vLLM-like replica: the oracle that closed forms are held against.

FCFS, chunked prefill within a token budget, an admission limit, KV memory in tokens with recompute preemption of the
youngest request, MIXED iteration time. Written for plainness, not speed, and shares no code with the product beyond
the coefficients.
"""

import collections
import dataclasses
import random

from wattkeeper.physics.profile import IterationCoefficients


@dataclasses.dataclass
class Request:
    arrival: float
    prompt: int
    output: int
    to_compute: int = 0
    """Prefill tokens left, after prefix hits (a preempted request computes prompt and answer so far again)."""
    history: int = 0
    resident: int = 0
    produced: int = 0
    first_token: float = 0.0
    finished: float = 0.0


@dataclasses.dataclass
class Outcome:
    ttft: list[float]
    tpot: list[float]
    busy_seconds: float
    seconds: float
    steps: int
    decode_tokens: int
    preemptions: int


def percentile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q / 100.0 * len(ordered)))]


def poisson(rng: random.Random, rate: float, count: int) -> list[float]:
    times, now = [], 0.0
    for _ in range(count):
        now += rng.expovariate(rate)
        times.append(now)
    return times


def batches(rng: random.Random, rate: float, count: int, mean_size: float) -> list[float]:
    """Geometric batches at Poisson instants: index of dispersion 2 * mean_size - 1 at every window."""
    times: list[float] = []
    now = 0.0
    while len(times) < count:
        now += rng.expovariate(rate / mean_size)
        times.append(now)
        while rng.random() > 1.0 / mean_size:
            times.append(now)
    return times[:count]


def run(  # noqa: C901 - one loop, to be read from top to bottom
    iteration: IterationCoefficients,
    requests: list[Request],
    *,
    max_num_seqs: int,
    budget: int,
    kv_capacity: int,
    prefix_hit_ratio: float = 0.0,
    warm_up: float = 0.1,
) -> Outcome:
    now = busy = 0.0
    steps = decoded = preemptions = next_arrival = 0
    waiting: collections.deque[Request] = collections.deque()
    running: list[Request] = []
    done: list[Request] = []
    for request in requests:
        request.to_compute = max(1, round(request.prompt * (1.0 - prefix_hit_ratio)))
        request.history = request.prompt - request.to_compute
    while len(done) < len(requests):
        if not running and not waiting and requests[next_arrival].arrival > now:
            now = requests[next_arrival].arrival
        while next_arrival < len(requests) and requests[next_arrival].arrival <= now:
            waiting.append(requests[next_arrival])
            next_arrival += 1
        left = budget
        kv_read = decodes = prefill = 0
        products = 0.0
        chunks: list[tuple[Request, int]] = []
        preempted = False
        used = sum(r.resident for r in running)
        index = 0
        while index < len(running) and left > 0:
            request = running[index]
            need = 1 if request.to_compute == 0 else min(request.to_compute, left)
            while used + need > kv_capacity:
                victim = running.pop()
                preemptions += 1
                preempted = True
                victim.to_compute = victim.prompt + victim.produced
                used -= victim.resident
                victim.history = victim.resident = 0
                waiting.appendleft(victim)
                if victim is request:
                    break
            else:
                chunks.append((request, need))
                left -= need
                used += need
                index += 1
                continue
            break
        while waiting and left > 0 and len(running) < max_num_seqs and not preempted:
            request = waiting[0]
            if used + request.history + request.to_compute > kv_capacity:
                break
            waiting.popleft()
            running.append(request)
            request.resident = request.history
            need = min(request.to_compute, left)
            chunks.append((request, need))
            left -= need
            used += request.history + need
        for request, need in chunks:
            if request.to_compute == 0:
                decodes += 1
                kv_read += request.resident
            else:
                prefill += need
                products += need * (request.history + need / 2.0)
        seconds = (
            iteration.d0_seconds
            + iteration.dt_seconds_per_token * prefill
            + iteration.decode_seconds_per_sequence * decodes
            + iteration.dkv_seconds_per_kv_token * kv_read
            + iteration.da_seconds_per_token_squared * products
        )
        now += seconds
        busy += seconds
        steps += 1
        decoded += decodes
        for request, need in chunks:
            request.resident += need
            if request.to_compute > 0:
                request.to_compute -= need
                request.history += need
                if request.to_compute > 0:
                    continue
            request.produced += 1
            if request.produced == 1:
                request.first_token = now
            if request.produced >= request.output:
                request.finished = now
                request.resident = 0
                running.remove(request)
                done.append(request)
    kept = sorted(done, key=lambda r: r.arrival)[int(warm_up * len(done)) :]
    return Outcome(
        ttft=[r.first_token - r.arrival for r in kept],
        tpot=[(r.finished - r.first_token) / (r.output - 1) for r in kept if r.output > 1],
        busy_seconds=busy,
        seconds=now,
        steps=steps,
        decode_tokens=decoded,
        preemptions=preemptions,
    )


def bursts(rng: random.Random, rate: float, count: int, *, peak: float = 4.0, on_seconds: float = 1.0) -> list[float]:
    """A Poisson process switched on at `peak` times the rate for `on_seconds` and off in between (both exponential)."""
    times: list[float] = []
    now = 0.0
    off_seconds = on_seconds * (peak - 1.0)
    while len(times) < count:
        now += rng.expovariate(1.0 / off_seconds)
        end = now + rng.expovariate(1.0 / on_seconds)
        while (now := now + rng.expovariate(rate * peak)) < end and len(times) < count:
            times.append(now)
        now = min(now, end)
    return times


def dispersion(times: list[float], window: float = 1.0) -> float:
    """Index of dispersion of counts per window."""
    counts = [0] * (int(times[-1] / window) + 1)
    for time in times:
        counts[int(time / window)] += 1
    mean = sum(counts) / len(counts)
    return sum((count - mean) ** 2 for count in counts) / len(counts) / mean
