"""A made-up report: days of traffic under all policies, with numbers that look like a replay's."""

import math
import random

from wattkeeper.replay.result import (
    QUANTILES,
    Columns,
    Energy,
    FleetFacts,
    Goals,
    Hours,
    Latency,
    Note,
    ReplayReport,
    Requests,
    Run,
    TraceFacts,
)

# Mean replicas at the mean rate, share of requests within the SLO, TTFT at the median.
POLICIES = {
    "static-peak": (8.0, 0.9991, 0.12),
    "static-p95": (7.0, 0.9952, 0.14),
    "static-cap": (8.0, 0.9938, 0.16),
    "static-clock": (8.0, 0.9949, 0.15),
    "hpa-waiting": (3.1, 0.9312, 0.41),
    "hpa-kv": (4.6, 0.9871, 0.19),
    "keda-in-flight": (4.4, 0.9902, 0.18),
    "wva": (3.6, 0.9621, 0.27),
    "wattkeeper": (4.1, 0.9931, 0.17),
}


def report(*, hours: float = 24.0, seeds: int = 2, policies=tuple(POLICIES), interval_seconds: float = 60.0):
    runs = tuple(
        run(policy, seed, hours=hours, interval_seconds=interval_seconds)
        for policy in policies
        for seed in range(seeds)
    )
    return ReplayReport(
        traces=(
            TraceFacts(
                name="azure-2024-conv, Tuesday", requests=int(3600 * hours), span_seconds=3600 * hours,
                mean_requests_per_second=1.0, peak_requests_per_second=2.3, mean_prompt_tokens=1155.0,
                mean_output_tokens=211.0, repairs=("3 requests without output tokens were left out",),
            ),
        ),
        fleet=FleetFacts(
            model="llama-3.1-70b", accelerator="H100-SXM", gpus=16, gpus_per_replica=2, max_replicas=8,
            startup_seconds=90.0, router="least-outstanding", engine={"max_num_seqs": 256}, parked_counts=False,
        ),
        goals=Goals(ttft_seconds=1.0, tpot_seconds=0.05, percentile=95.0, min_attainment=0.99),
        runs=runs,
        baseline="static-peak",
        settings={"scrape interval, s": 15.0, "gaps, %": 1.0, "tuned on": "Monday"},
        notes=("The GPUs are simulated.",),
        version="0.1.0",
    )  # fmt: skip


def run(policy: str, seed: int, *, hours: float, interval_seconds: float) -> Run:
    mean, share, ttft = POLICIES[policy]
    rng = random.Random(f"{policy}{seed}")
    count = int(hours * 3600 / interval_seconds)
    times = [interval_seconds * (index + 1) for index in range(count)]
    rate = [max(0.0, 1.0 - 0.8 * math.cos(2 * math.pi * time / 86400)) for time in times]
    fixed = policy.startswith("static")
    ready = [round(mean if fixed else min(8.0, max(1.0, mean * (0.4 + 0.6 * each)))) for each in rate]
    watts = [2 * pods * (260.0 + 180.0 * min(1.0, 4 * each / pods)) for pods, each in zip(ready, rate, strict=True)]
    arrived = [round(interval_seconds * each) for each in rate]
    met = [min(each, round(each * share * rng.uniform(0.995, 1.005))) for each in arrived]
    late = [ttft * (1 + each) * rng.lognormvariate(0.0, 0.25) * (30 if rng.random() > share else 1) for each in rate]
    per_hour = int(3600 / interval_seconds)
    starts = range(0, count, per_hour)
    energy = [sum(watts[at : at + per_hour]) * interval_seconds / 3.6e6 for at in starts]
    capped = policy == "static-cap" or policy == "wattkeeper"
    none = (None,) * count
    finished, total = sum(arrived), sum(arrived)
    lost = {"no_ready_pod": round(0.001 * total)} if policy == "hpa-waiting" else {}
    return Run(
        policy=policy,
        trace="azure-2024-conv, Tuesday",
        seed=seed,
        parameters={"replicas": 8} if fixed else {"target": 5.0, "min_replicas": 1.0, "down_window_seconds": 300.0},
        energy=Energy(
            busy_kwh=0.8 * sum(energy), idle_kwh=0.15 * sum(energy), startup_kwh=0.05 * sum(energy), parked_kwh=0.0
        ),
        requests=Requests(
            arrived=total, finished=finished - sum(lost.values()), unfinished=0, lost=lost, met=sum(met),
            missed_ttft=total - sum(met) - sum(lost.values()), missed_tpot=0, prompt_tokens=1155 * total,
            output_tokens=211 * total,
        ),
        ttft=_latency(ttft, 0.7),
        tpot=_latency(0.02 + 0.02 * ttft, 0.25),
        windows_below_goal=min(1.0, 8 * (1 - share)),
        replica_changes=0 if fixed else 41,
        rollouts=2 if policy == "wattkeeper" else 0,
        cap_changes=37 if policy == "wattkeeper" else 0,
        replica_hours=sum(ready) * interval_seconds / 3600,
        columns=Columns(
            interval_seconds=interval_seconds, time_seconds=tuple(times), power_watts=tuple(watts),
            desired=tuple(ready), ready=tuple(ready), starting=(0,) * count, draining=(0,) * count,
            cap_watts=tuple(450.0 + 100 * each for each in rate) if capped else none,
            clock_limit_mhz=(1400.0,) * count if policy == "static-clock" else none, clock_mhz=none,
            requests_per_second=tuple(rate), met=tuple(met), arrived=tuple(arrived),
            ttft_p95_seconds=tuple(late), tpot_p95_seconds=tuple(0.02 + 0.02 * each for each in late),
            running=(0,) * count, waiting=(0,) * count, kv_usage=none,
            max_num_batched_tokens=(2048,) * count, max_num_seqs=(256,) * count,
        ),
        hours=Hours(
            energy_kwh=tuple(energy), arrived=tuple(sum(arrived[at : at + per_hour]) for at in starts),
            met=tuple(sum(met[at : at + per_hour]) for at in starts),
            output_tokens=tuple(211 * sum(arrived[at : at + per_hour]) for at in starts),
        ),
        repairs=(Note(text="more replicas than GPUs: 9 were asked for", count=3, first_seconds=3600.0),)
        if policy == "hpa-waiting"
        else (),
        remarks=(Note(text="plan refused: TTFT predicted above target", count=5, first_seconds=120.0),)
        if policy == "wattkeeper"
        else (),
        wall_seconds=12.0,
    )  # fmt: skip


def _latency(median: float, sigma: float) -> Latency:
    values = [median * math.exp(sigma * 2.4 * (2 * share - 1) ** 3 + sigma * (share - 0.5)) for share in QUANTILES]
    return Latency(p50_seconds=values[50], p95_seconds=values[95], p99_seconds=values[99], grid_seconds=tuple(values))
