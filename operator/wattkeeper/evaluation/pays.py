"""When does WAIT pay? Scheduling policies on one replica: short and long answers, loads, token budgets, KV memory.

Times and energy are those that `twin.hardware` takes for Llama-3.1-8B on one H100 at its highest clock (fits to the
ML.ENERGY leaderboard v3): joules per iteration, decode, KV token read and prompt token, static watts while an iteration
runs, idle watts between. No power cap acts. Loads are shares of the rate that vLLM V1 (2,048 tokens per iteration) is
saturated at with the same lengths and memory.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.evaluation import workers
from wattkeeper.evaluation.wait_paper import Estimate
from wattkeeper.physics.profile import IterationCoefficients
from wattkeeper.queueing import policies
from wattkeeper.queueing.mix import Mix
from wattkeeper.replica import arrivals, policed, saturation
from wattkeeper.replica.types import Activity, IntArray, ReplicaConfig, Requests
from wattkeeper.scheduling.baselines import Sarathi, VllmV0
from wattkeeper.scheduling.clocked import ClockedWait, Paced
from wattkeeper.scheduling.forecast_memory import McSf
from wattkeeper.scheduling.greedy import Capped, RateLimited, VllmV1, rate_limit
from wattkeeper.scheduling.types import Policy
from wattkeeper.scheduling.wait import Wait, WaitClass
from wattkeeper.traces import sources
from wattkeeper.traces.trace import Trace
from wattkeeper.twin import hardware

MODEL, CARD = "meta-llama/Llama-3.1-8B-Instruct", "h100-sxm"
MAX_NUM_SEQS, TOKEN_BUDGET, BLOCK_SIZE = 256, 8192, 16
BASELINE = "vllm-v1-2048"
LOADS = {"low": 0.3, "medium": 0.6, "near": 0.9, "over": 1.15}
TIGHT_SHARE = 0.4
"""KV memory where it is tight, over what vLLM V1 holds in saturation where it is ample."""
PACE_SECONDS, WAIT_SECONDS = 0.025, 0.1
LONGEST_STRIDE = 64
LONGEST_PROMPT = 7_500
"""Recorded requests with longer prompts are left out: some policies compute prompts whole."""
_QUANTILES = (0.25, 0.5, 0.75, 1.0)
"""Answer lengths are put into classes that end here."""
_DRAWN = 20_000
_KNOWN = {"mc-sf", "wait", "clocked-wait"}
"""Policies that are told how long answers will be."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Pairs of prompt and answer that requests are drawn from."""

    name: str
    prompt_tokens: IntArray
    output_tokens: IntArray
    left_out: int = 0
    """Recorded requests with a prompt too long for a policy that computes it whole."""

    def draw(self, *, rate: float, count: int, seed: int) -> Requests:
        """Poisson arrivals."""
        at = np.random.default_rng((seed, 53)).integers(0, len(self.prompt_tokens), count)
        return Requests(
            arrival_seconds=arrivals.poisson(rate=rate, count=count, seed=seed),
            prompt_tokens=self.prompt_tokens[at],
            output_tokens=self.output_tokens[at],
        )

    @property
    def mean_output(self) -> float:
        """Tokens of an answer."""
        return float(self.output_tokens.mean())

    def ends(self) -> IntArray:
        """Answer lengths at which classes end."""
        return np.unique(np.quantile(self.output_tokens, _QUANTILES, method="higher").astype(np.int64))

    def mix(self, rate: float) -> Mix:
        """Classes by answer length, each with its mean prompt and its mean answer."""
        ends = self.ends()
        at = np.searchsorted(ends, self.output_tokens)
        counts = np.bincount(at, minlength=len(ends))
        return Mix.of(
            rates_per_second=rate * counts / counts.sum(),
            prompt_tokens=np.bincount(at, weights=self.prompt_tokens, minlength=len(ends)) / counts,
            decode_steps=np.bincount(at, weights=self.output_tokens, minlength=len(ends)) / counts - 1.0,
        )


def fixed(prompt: int, output: int) -> Lengths:
    """All requests alike."""
    return Lengths(name=f"p{prompt}d{output}", prompt_tokens=np.array([prompt]), output_tokens=np.array([output]))


def workloads(data: Path | None) -> list[Lengths]:
    """Short to long answers, the mix of the paper, and Azure's services of 2023, recorded or else drawn alike."""
    kinds = []
    for name, prompt, output in (("conv", (1020.0, 0.77), (129.0, 0.93)), ("code", (1469.0, 0.98), (13.0, 1.12))):
        trace = None if data is None else sources.load(sources.find(f"azure-2023-{name}"), data)
        if isinstance(trace, Trace):
            kept = trace.prompt_tokens <= LONGEST_PROMPT
            kinds.append(
                Lengths(
                    name=f"azure {name}",
                    prompt_tokens=trace.prompt_tokens[kept],
                    output_tokens=trace.output_tokens[kept],
                    left_out=int(np.count_nonzero(~kept)),
                )
            )
            continue
        rng = np.random.default_rng(len(name))
        drawn = [
            np.exp(rng.normal(np.log(median), sigma, _DRAWN)).astype(np.int64) for median, sigma in (prompt, output)
        ]
        kinds.append(
            Lengths(
                name=f"{name}, generated",
                prompt_tokens=np.clip(drawn[0], 1, LONGEST_PROMPT),
                output_tokens=np.clip(drawn[1], 1, 1000),
            )
        )
    papers = Lengths(name="p512d20/50", prompt_tokens=np.full(10, 512), output_tokens=np.repeat([20, 50], [7, 3]))
    return [fixed(512, 20), papers, fixed(512, 200), fixed(512, 1000), *kinds]


@dataclass(frozen=True, kw_only=True)
class Replica:
    """The engine under test and what its work costs."""

    iteration: IterationCoefficients
    kv_blocks: int
    joules: tuple[float, float, float, float, float]
    static_watts: float
    idle_watts: float

    @staticmethod
    def of_twin() -> "Replica":
        """As the twin's tables have it, at the highest clock."""
        found = hardware.replica_hardware(
            model=MODEL, accelerator=CARD, engine=EngineSettings(block_size=BLOCK_SIZE, max_num_seqs=MAX_NUM_SEQS)
        )
        level = found.levels[-1]
        d0, decode, kv, prefill, attention = level.seconds
        return Replica(
            iteration=IterationCoefficients(
                d0_seconds=d0,
                dt_seconds_per_token=prefill,
                dn_seconds_per_decode=decode,
                dkv_seconds_per_kv_token=kv,
                da_seconds_per_token_squared=attention,
            ),
            kv_blocks=found.num_gpu_blocks - 1,
            joules=level.joules,
            static_watts=found.static_watts,
            idle_watts=found.idle_watts,
        )

    def config(self, *, token_budget: int = TOKEN_BUDGET, kv_blocks: int | None = None) -> ReplicaConfig:
        """Engine settings."""
        return ReplicaConfig(
            iteration=self.iteration,
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=token_budget,
            kv_blocks=kv_blocks or self.kv_blocks,
            block_size=BLOCK_SIZE,
        )

    def energy_joules(self, activity: Activity) -> float:
        """Of a whole run."""
        per_iteration, per_decode, per_kv, per_prompt, per_product = self.joules
        return (
            self.static_watts * activity.busy_seconds
            + self.idle_watts * (activity.span_seconds - activity.busy_seconds)
            + per_iteration * activity.steps
            + per_decode * activity.decode_tokens
            + per_kv * activity.kv_read_tokens
            + per_prompt * activity.prefill_tokens
            + per_product * activity.attention_products
        )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One operating point; all policies and seeds are run on it."""

    lengths: Lengths
    tight: bool
    kv_blocks: int
    load: str
    rate: float
    requests: int
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """One policy on one operating point; intervals over seeds. None: its conditions fail, see `note`."""

    lengths: str
    tight: bool
    kv_tokens: int
    load: str
    rate: float
    policy: str
    note: str = ""
    throughput: Estimate | None = None
    """Requests finished per second in the middle of the run."""
    ttft_seconds: Estimate | None = None
    ttft_p95_seconds: Estimate | None = None
    e2e_seconds: Estimate | None = None
    e2e_p95_seconds: Estimate | None = None
    tpot_seconds: Estimate | None = None
    evictions_percent: Estimate | None = None
    joules_per_token: Estimate | None = None
    """Of an answer; the whole run, idle time included."""
    busy_percent: Estimate | None = None
    e2e_ratio: Estimate | None = None
    """Over vLLM V1 at 2,048 tokens with the same arrivals; so are the two below."""
    joules_ratio: Estimate | None = None
    throughput_ratio: Estimate | None = None
    """None where a run of the baseline was so short that nobody finished in its middle."""


def candidates(
    lengths: Lengths, *, rate: float, replica: Replica, kv_blocks: int
) -> Iterator[tuple[Policy | str, str]]:
    """(policy, what it runs with) or (name, why its conditions fail), the baseline first."""
    kv_tokens = kv_blocks * BLOCK_SIZE
    prompt, output = float(lengths.prompt_tokens.mean()), lengths.mean_output
    yield VllmV1(token_budget=2048, name=BASELINE), "budget 2048"
    for budget in (512, 8192):
        yield VllmV1(token_budget=budget, name=f"vllm-v1-{budget}"), f"budget {budget}"
    yield VllmV0(token_budget=TOKEN_BUDGET), "prefill first"
    yield Sarathi(), "budget 512"
    cap = max(1, min(MAX_NUM_SEQS, int(0.9 * kv_tokens / (prompt + output / 2))))
    yield Capped(limit=cap, token_budget=2048), f"{cap} in service"
    steps = max(1, round(output - 1))
    most = max(1, int(rate_limit(kv_tokens=kv_tokens, prompt_tokens=round(prompt), decode_steps=steps)))
    yield RateLimited(admissions=most, token_budget=2048), f"{most} admissions per iteration"
    yield McSf(), "lengths known"
    mix = lengths.mix(rate)
    wait = policies.choose(
        mix,
        replica.iteration,
        kv_capacity_tokens=kv_tokens - MAX_NUM_SEQS * (BLOCK_SIZE - 1),
        lengths_known=True,
        longest_stride=LONGEST_STRIDE,
    )
    # Thresholds come from the means of classes; the classes that the policy sorts into reach to their ends.
    longest, ends = int(lengths.prompt_tokens.max()), lengths.ends().tolist()
    chosen = wait.policy if isinstance(wait.policy, Wait) else None
    counts = [each.threshold for each in chosen.classes] if chosen else [1] * len(ends)
    stride = chosen.stride if chosen else 1
    classes = tuple(
        WaitClass(prompt_tokens=longest, output_tokens=end, threshold=count)
        for end, count in zip(ends, counts, strict=True)
    )
    note = f"n = {', '.join(map(str, counts))}" + (f", stages of {stride}" if stride > 1 else "")
    if chosen:
        yield Wait(classes=classes, stride=stride), note
    else:
        yield "wait", _reason(wait)
    nested = policies.choose(
        mix,
        replica.iteration,
        kv_capacity_tokens=kv_tokens - MAX_NUM_SEQS * (BLOCK_SIZE - 1),
        lengths_known=False,
    )
    if nested.policy is None:
        yield "nested-wait", _reason(nested)
    else:
        thresholds = [each.threshold for each in getattr(nested.policy, "segments", ())]
        yield nested.policy, f"n = {', '.join(map(str, thresholds))}"
    yield (
        ClockedWait(classes=classes, stride=stride, tpot_seconds=PACE_SECONDS, wait_seconds=WAIT_SECONDS),
        f"{note}; TPOT 25 ms, queue 100 ms",
    )
    yield (
        Paced(
            pace_seconds=PACE_SECONDS, wait_seconds=WAIT_SECONDS, token_budget=2048, output_tokens=max(1, round(output))
        ),
        "25 ms, queue 100 ms",
    )


def _reason(choice: policies.Choice) -> str:
    return "no thresholds: " + (", ".join(each.name for each in choice.plan.failures) or choice.plan.cause.value)


def cells(kinds: Sequence[Lengths], *, replica: Replica, requests: int, seeds: int) -> list[Cell]:
    """All operating points. Requests are fewer where answers are long."""
    found = []
    for lengths in kinds:
        every = lengths.draw(rate=1.0, count=3000, seed=99)
        drawn = {"prompt_tokens": every.prompt_tokens, "output_tokens": every.output_tokens}
        ample = saturation.saturation(replica.config(token_budget=2048), **drawn)
        held = ample.sequences * float((every.prompt_tokens + every.output_tokens / 2.0).mean())
        largest = int((lengths.prompt_tokens + lengths.output_tokens).max())
        tight_blocks = max(int(TIGHT_SHARE * held), largest + BLOCK_SIZE) // BLOCK_SIZE
        for tight, blocks in ((False, replica.kv_blocks), (True, tight_blocks)):
            full = saturation.saturation(replica.config(token_budget=2048, kv_blocks=blocks), **drawn)
            for load, share in LOADS.items():
                rate = share * full.requests_per_second
                found.append(
                    Cell(
                        lengths=lengths,
                        tight=tight,
                        kv_blocks=blocks,
                        load=load,
                        rate=rate,
                        requests=requests,
                        seeds=seeds,
                    )
                )
    return found


def measure(
    points: Sequence[Cell], *, processes: int = 1, done: Callable[[int], None] = lambda _: None
) -> list[Result]:
    """All policies on all points; `done(1)` after each point."""
    return [row for rows in workers.each(_cell, points, processes=processes, done=done) for row in rows]


def _cell(cell: Cell) -> list[Result]:
    replica = Replica.of_twin()
    rows: list[Result] = []
    base: list[dict[str, float]] = []
    for policy, note in candidates(cell.lengths, rate=cell.rate, replica=replica, kv_blocks=cell.kv_blocks):
        row = Result(
            lengths=cell.lengths.name,
            tight=cell.tight,
            kv_tokens=cell.kv_blocks * BLOCK_SIZE,
            load=cell.load,
            rate=cell.rate,
            policy=policy if isinstance(policy, str) else policy.name,
            note=note,
        )
        if not isinstance(policy, str):
            runs = [_run(cell, replica, policy, seed) for seed in range(cell.seeds)]
            base = base or runs
            figures: dict[str, Any] = {name: Estimate.of([run[name] for run in runs]) for name in runs[0]}
            ratios: dict[str, Any] = {
                f"{short}_ratio": Estimate.of([run[name] / first[name] for run, first in zip(runs, base, strict=True)])
                for short, name in (
                    ("e2e", "e2e_seconds"),
                    ("joules", "joules_per_token"),
                    ("throughput", "throughput"),
                )
                if all(first[name] for first in base)
            }
            row = dataclasses.replace(row, **figures, **ratios)
        rows.append(row)
    return rows


def _run(cell: Cell, replica: Replica, policy: Policy, seed: int) -> dict[str, float]:
    """Latencies are over requests that arrive in the middle 60 % of the run; energy and evictions over all of it."""
    requests = cell.lengths.draw(rate=cell.rate, count=cell.requests, seed=seed)
    config = replica.config(kv_blocks=cell.kv_blocks)
    outcome = policed.serve(config, requests, policy, known_lengths=policy.name in _KNOWN).outcome
    times = requests.arrival_seconds
    first, last = times[int(0.2 * cell.requests)], times[int(0.8 * cell.requests)]
    middle = (times >= first) & (times < last)
    finished = np.count_nonzero((outcome.finish_seconds >= first) & (outcome.finish_seconds < last))
    activity = outcome.activity
    return {
        "throughput": float(finished / (last - first)),
        "ttft_seconds": float(outcome.ttft_seconds[middle].mean()),
        "ttft_p95_seconds": float(np.quantile(outcome.ttft_seconds[middle], 0.95)),
        "e2e_seconds": float(outcome.e2e_seconds[middle].mean()),
        "e2e_p95_seconds": float(np.quantile(outcome.e2e_seconds[middle], 0.95)),
        "tpot_seconds": float(np.nanmean(outcome.tpot_seconds[middle])),
        "evictions_percent": 100.0 * float(outcome.preemptions.mean()),
        "joules_per_token": replica.energy_joules(activity) / float(outcome.output_tokens.sum()),
        "busy_percent": 100.0 * activity.busy_seconds / activity.span_seconds,
    }
