"""What is lost by knowing lengths only as vLLM's bucket histograms, and whether that changes the verdict.

For real prompts and answers, once as they are and once as `telemetry.lengths` reads them back from buckets 1, 2, 5 and
so on up to the model's longest: p95 of TTFT and TPOT as `queueing.sla` predicts them and as the exact stepper simulates
them, at shares of the predicted capacity, and the largest rate that meets an SLO by either. Simulations of both draw
the same quantiles at the same arrivals, so that what differs is the lengths. Prompts and answers are drawn
independently, as the models take them. What is planned moves by as much as the largest rate does.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.errors import DataFileError
from wattkeeper.domain.histogram import Histogram
from wattkeeper.domain.workload import FloatArray, LengthDistribution, Workload
from wattkeeper.physics import limits, profiles
from wattkeeper.physics.profile import ServingProfile
from wattkeeper.queueing import sla
from wattkeeper.queueing.types import Candidates, SlaPrediction
from wattkeeper.replica import stepper
from wattkeeper.replica.types import IntArray, Outcome, ReplicaConfig, Requests
from wattkeeper.telemetry.lengths import length_distribution
from wattkeeper.traces import formats
from wattkeeper.traces.trace import Trace
from wattkeeper.twin.counters import length_bounds

MODEL, ACCELERATOR = "meta-llama/Llama-3.1-8B-Instruct", "h100-sxm"
LOADS = (0.3, 0.6, 0.8)
PERCENTILE = 95.0
REQUESTS = 12_000
_BLOCK_SIZE = 16
_BISECTIONS = 12
_HIGHEST_LOAD = 1.2


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Real lengths, and what a service with them typically promises."""

    name: str
    file: str
    """Below the data folder."""
    ttft_seconds: float
    tpot_seconds: float


RECORDINGS = (
    Recording(
        name="Azure 2023 conv", file="traces/azure-2023/AzureLLMInferenceTrace_conv.csv", ttft_seconds=0.5,
        tpot_seconds=0.04,
    ),
    Recording(
        name="Azure 2023 code", file="traces/azure-2023/AzureLLMInferenceTrace_code.csv", ttft_seconds=0.5,
        tpot_seconds=0.04,
    ),
    Recording(
        name="ShareGPT", file="traces/sharegpt/sharegpt_val_10k_llama2_lengths.csv", ttft_seconds=0.3,
        tpot_seconds=0.03,
    ),
    Recording(
        name="Mooncake", file="traces/mooncake/conversation_trace.jsonl", ttft_seconds=10.0, tpot_seconds=0.1,
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Prompts or answers as they are, and as their buckets tell."""

    true: LengthDistribution
    buckets: LengthDistribution


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure, four times: by model and by simulation, with true lengths and with those of buckets."""

    workload: str
    quantity: str
    """TTFT or TPOT, seconds at the 95th percentile, or rate, the largest that meets the SLO, per second."""
    load: float | None
    """Rate over predicted capacity; None for the largest rate."""
    predicted_true: float
    predicted_buckets: float
    simulated_true: float
    simulated_buckets: float

    @property
    def predicted_change(self) -> float:
        """Relative, by buckets, of what the model says."""
        return self.predicted_buckets / self.predicted_true - 1.0

    @property
    def simulated_change(self) -> float:
        """Relative, by buckets, of what is simulated."""
        return self.simulated_buckets / self.simulated_true - 1.0


def run(data_folder: Path, *, requests: int = REQUESTS, seed: int = 1) -> list[Row]:
    """All figures. Raises DataFileError where a recording is not there."""
    rows = []
    for recording in RECORDINGS:
        prompts, answers = _read(data_folder / recording.file)
        rows += judge(recording, prompts, answers, requests=requests, seed=seed)
    return rows


def judge(recording: Recording, prompts: IntArray, answers: IntArray, *, requests: int, seed: int) -> list[Row]:
    """The figures of one recording."""
    engine = EngineSettings()
    profile = profiles.serving_profile(model=MODEL, accelerator=ACCELERATOR, gpus_per_replica=1, engine=engine)
    longest = profile.max_model_len or int(max(prompts.max(), answers.max()))
    prompt, answer = (read_back(lengths, longest_tokens=longest) for lengths in (prompts, answers))
    cases = [
        _Case.of(profile, engine, *pair, requests=requests, seed=seed)
        for pair in ((prompt.true, answer.true), (prompt.buckets, answer.buckets))
    ]
    rows = []
    capacity = cases[0].capacity
    for load in LOADS:
        figures = [(case.predicted(load * capacity), case.simulated(load * capacity)) for case in cases]
        for index, quantity in enumerate(("TTFT", "TPOT")):
            (predicted_true, simulated_true), (predicted_buckets, simulated_buckets) = figures
            rows.append(
                Row(
                    workload=recording.name,
                    quantity=quantity,
                    load=load,
                    predicted_true=predicted_true[index],
                    predicted_buckets=predicted_buckets[index],
                    simulated_true=simulated_true[index],
                    simulated_buckets=simulated_buckets[index],
                )
            )
    goal = (recording.ttft_seconds, recording.tpot_seconds)
    most = [
        (_largest_rate(case.predicted, goal, capacity), _largest_rate(case.simulated, goal, capacity)) for case in cases
    ]
    rows.append(
        Row(
            workload=recording.name,
            quantity="rate",
            load=None,
            predicted_true=most[0][0],
            predicted_buckets=most[1][0],
            simulated_true=most[0][1],
            simulated_buckets=most[1][1],
        )
    )
    return rows


def read_back(lengths: IntArray, *, longest_tokens: int) -> Lengths:
    """Lengths as they are, and as telemetry reads them from the buckets that vLLM would fill with them."""
    lengths = np.clip(lengths, 1, longest_tokens)
    tokens, counts = np.unique(lengths, return_counts=True)
    bounds = (*length_bounds(longest_tokens), math.inf)
    histogram = Histogram(
        upper_bounds=bounds,
        cumulative=tuple(float((lengths <= bound).sum()) for bound in bounds),
        total=float(lengths.sum()),
    )
    found = length_distribution(histogram, longest_tokens=longest_tokens)
    if not isinstance(found, LengthDistribution):
        raise DataFileError(f"these lengths make no histogram: {found.value}")
    weights = counts / counts.sum()
    return Lengths(
        true=LengthDistribution(tokens=tuple(map(float, tokens)), weights=tuple(map(float, weights))), buckets=found
    )


def table(rows: Iterable[Row]) -> Table:
    """For people."""
    shown = Table("lengths", "what", "load", "model", "by buckets", "change", "simulated", "by buckets", "change")
    for row in rows:
        shown.add_row(
            row.workload,
            row.quantity,
            "-" if row.load is None else f"{row.load:.0%}",
            f"{row.predicted_true:.4g}",
            f"{row.predicted_buckets:.4g}",
            f"{row.predicted_change:+.1%}",
            f"{row.simulated_true:.4g}",
            f"{row.simulated_buckets:.4g}",
            f"{row.simulated_change:+.1%}",
        )
    return shown


@dataclass(frozen=True, kw_only=True)
class _Case:
    """One replica under Poisson arrivals of requests with these lengths."""

    profile: ServingProfile
    workload: Workload
    candidates: Candidates
    config: ReplicaConfig
    gaps: FloatArray
    """Between arrivals at rate one."""
    prompts: IntArray
    answers: IntArray

    @staticmethod
    def of(
        profile: ServingProfile, engine: EngineSettings, prompt: LengthDistribution, answer: LengthDistribution, *,
        requests: int, seed: int,
    ) -> "_Case":  # fmt: skip
        one = np.ones(1)
        slots, batched = (f(engine, profile.gpu) for f in (limits.max_num_seqs, limits.max_num_batched_tokens))
        gaps, prompt_draws, answer_draws = np.random.default_rng(seed).random((3, requests))
        longest = profile.max_model_len
        prompts = _at(prompt, prompt_draws)
        return _Case(
            profile=profile,
            workload=Workload(requests_per_second=1.0, prompt=prompt, output=answer),
            candidates=Candidates(
                replicas=one,
                power_cap_watts=one * np.nan,
                clock_ratio=one,
                max_num_seqs=one * slots,
                max_num_batched_tokens=one * batched,
                kv_capacity_tokens=one * profile.kv_capacity_tokens,
            ),
            config=ReplicaConfig(
                iteration=profile.iteration,
                max_num_seqs=slots,
                max_num_batched_tokens=batched,
                kv_blocks=int(profile.kv_capacity_tokens // _BLOCK_SIZE),
                block_size=_BLOCK_SIZE,
                max_model_len=longest,
            ),
            gaps=-np.log1p(-gaps),
            prompts=prompts if longest is None else np.minimum(prompts, longest - 1),
            answers=_at(answer, answer_draws),
        )

    @property
    def capacity(self) -> float:
        """Requests per second, by the model."""
        return float(self._predict(1.0).capacity_rps[0])

    def predicted(self, rate: float) -> tuple[float, float]:
        """TTFT and TPOT in seconds by the model."""
        found = self._predict(rate)
        return float(found.ttft_seconds[0]), float(found.tpot_seconds[0])

    def simulated(self, rate: float) -> tuple[float, float]:
        """The same by the stepper."""
        found: Outcome = stepper.simulate(
            self.config,
            Requests(
                arrival_seconds=np.cumsum(self.gaps) / rate, prompt_tokens=self.prompts, output_tokens=self.answers
            ),
        )
        ttft, tpot = (np.nanpercentile(values, PERCENTILE) for values in (found.ttft_seconds, found.tpot_seconds))
        return float(ttft), float(tpot)

    def _predict(self, rate: float) -> SlaPrediction:
        return sla.predict(
            self.profile,
            self.workload.at_rate(rate),
            self.candidates,
            ttft_percentile=PERCENTILE,
            tpot_percentile=PERCENTILE,
        )


def _largest_rate(
    latencies: Callable[[float], tuple[float, float]], goal: tuple[float, float], capacity: float
) -> float:
    """By bisection between nothing and somewhat more than the capacity; latencies grow with the rate."""
    low, high = 0.0, _HIGHEST_LOAD * capacity
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        met = all(value <= limit for value, limit in zip(latencies(middle), goal, strict=True))
        low, high = (middle, high) if met else (low, middle)
    return 0.5 * (low + high)


def _at(lengths: LengthDistribution, draws: FloatArray) -> IntArray:
    """Lengths at these quantiles, whole."""
    tokens, ends = np.asarray(lengths.tokens), np.cumsum(lengths.weights)
    index = np.minimum(np.searchsorted(ends, draws * ends[-1]), len(tokens) - 1)
    whole: IntArray = np.maximum(np.rint(tokens[index]), 1.0).astype(np.int64)
    return whole


def _read(path: Path) -> tuple[IntArray, IntArray]:
    """Prompt and answer tokens of a recording."""
    if not path.is_file():
        raise DataFileError(f"{path} is not there: it is one of the recordings that this evaluation rests on")
    if "sharegpt" in path.name:
        values = np.genfromtxt(path, delimiter=",", skip_header=1, usecols=(0, 1))
        return values[:, 0].astype(np.int64), values[:, 1].astype(np.int64)
    trace = formats.load(path)
    if not isinstance(trace, Trace):
        raise DataFileError(f"{path} holds rates and no requests")
    return trace.prompt_tokens, trace.output_tokens
