"""The roofline's constants from measured latencies of many pairs, and how far estimates of unseen families are off."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.workload import FloatArray
from wattkeeper.physics import catalogue, itl, kv, neighbours, profiles, roofline, step
from wattkeeper.physics.architecture import ModelSpec
from wattkeeper.physics.fitting import FitError
from wattkeeper.physics.itl import LatencyRuns
from wattkeeper.physics.profile import GpuSpec, IterationCoefficients
from wattkeeper.physics.roofline import WORK_TERMS, Constants

LARGEST_BATCH = 256.0
"""Beyond it runs are bound by the KV cache and by the host more than by the step."""
FASTEST = {"dense_read": 1.0, "expert_read": 1.0, "kv_read": 1.0, "compute": 1.2}
"""No kernel is faster than the data sheet. Steps of 1,024 prompt tokens composed of measured kernels take about 1.2
times as long as the data sheet says, on A100 to B200; median latencies of decodes tell nothing of it."""
DATA_SHEET = Constants(
    dense_read=1.18,
    expert_read=1.18,
    kv_read=1.18,
    compute=1.75,
    step_seconds=0.0,
    layer_seconds=0.0,
    collective_layer_seconds=0.0,
    expert_layer_seconds=0.0,
    quantised_expert_layer_seconds=0.0,
    sequence_seconds=0.0,
)
"""A roofline without any fit: 85 % of the bandwidth, 57 % of the operations, nothing else."""
HOST_BOUND = 2.0
"""A workload whose latency at the same batch is larger than another's by this factor is held up by the host."""
_HUBER = 0.15
_ROUNDS = 20


@dataclass(frozen=True, kw_only=True)
class PairRuns:
    """Closed-loop runs of one workload on one pair."""

    model: ModelSpec
    gpu: GpuSpec
    shards: int
    family: str
    """All models with the same backbone: held out together."""
    workload: str
    runs: LatencyRuns


@dataclass(frozen=True, kw_only=True)
class Score:
    """Relative errors of step time over runs."""

    runs: int
    median: float
    mean: float
    p90: float
    root_mean_square_log: float
    bias: float
    """Median of ln(estimate / measured)."""

    @classmethod
    def of(cls, predicted: FloatArray, measured: FloatArray) -> "Score":
        """Of estimates and measurements, (N,) each."""
        error, log = np.abs(predicted / measured - 1.0), np.log(predicted / measured)
        return cls(
            runs=len(measured),
            median=float(np.median(error)),
            mean=float(error.mean()),
            p90=float(np.quantile(error, 0.9)),
            root_mean_square_log=float(np.sqrt(np.square(log).mean())),
            bias=float(np.median(log)),
        )


def used(pairs: Sequence[PairRuns]) -> list[PairRuns]:
    """Runs up to `LARGEST_BATCH`."""
    kept = [replace(pair, runs=pair.runs.where(pair.runs.batch <= LARGEST_BATCH)) for pair in pairs]
    return [pair for pair in kept if len(pair.runs.batch)]


def without_host_bound(pairs: Sequence[PairRuns]) -> list[PairRuns]:
    """Without workloads that are slower than another of the same pair at the smallest batch by `HOST_BOUND`.

    The same work on the same card cannot take that much longer; what does is the host (measured watts fall as well).
    """
    fastest: dict[tuple[str, str, int], float] = {}
    for pair in pairs:
        key = (pair.model.name, pair.gpu.name, pair.shards)
        fastest[key] = min(fastest.get(key, np.inf), _first(pair))
    return [pair for pair in pairs if _first(pair) <= HOST_BOUND * fastest[pair.model.name, pair.gpu.name, pair.shards]]


def _first(pair: PairRuns) -> float:
    return float(pair.runs.inter_token_seconds[np.argmin(pair.runs.batch)])


def fit_constants(pairs: Sequence[PairRuns]) -> Constants:
    """Constants with the least absolute relative error beyond 15 %, squared below; none below `FASTEST`.

    Raises FitError: no runs.
    """
    if not pairs:
        raise FitError("no runs to fit the roofline's constants to")
    work = np.concatenate([_work(pair) for pair in pairs])
    other = np.concatenate([_other_seconds(pair) for pair in pairs])
    seconds = np.concatenate([pair.runs.inter_token_seconds for pair in pairs])
    lowest = np.array([FASTEST.get(name, 0.0) for name in WORK_TERMS])
    shares, wanted = work / seconds[:, None], 1.0 - (other + work @ lowest) / seconds
    weight, values = np.ones(len(seconds)), lowest
    for _ in range(_ROUNDS):
        root = np.sqrt(weight)
        matrix = shares * root[:, None]
        scale = np.linalg.norm(matrix, axis=0)
        scale[scale == 0] = 1.0
        values = lowest + optimize.nnls(matrix / scale, wanted * root)[0] / scale
        residual = np.log((work @ values + other) / seconds)
        weight = np.minimum(1.0, _HUBER / np.maximum(np.abs(residual), 1e-9))
    return Constants(**dict(zip(WORK_TERMS, map(float, values), strict=True)))


def _work(pair: PairRuns) -> FloatArray:
    rows = pair.runs.rows()
    return roofline.work(
        pair.model,
        pair.gpu,
        shards=pair.shards,
        demand=kv.demand(pair.model, tensor_parallel=pair.shards),
        sequences=rows.decode_sequences,
        context_tokens=rows.kv_tokens / rows.decode_sequences,
        prefill_tokens=rows.prefill_tokens,
    )


def _other_seconds(pair: PairRuns) -> FloatArray:
    """Exchange of activations and attention of prefill, which are not fitted."""
    rows = pair.runs.rows()
    exchange = roofline.exchange_seconds(pair.model, pair.gpu, shards=pair.shards)
    attention = roofline.attention_seconds(pair.model, pair.gpu, shards=pair.shards)
    tokens = rows.decode_sequences + rows.prefill_tokens
    return np.asarray(exchange * tokens + attention * rows.attention_products)


def estimate(pair: PairRuns, constants: Constants) -> IterationCoefficients:
    """The roofline's coefficients of a pair."""
    demand = kv.demand(pair.model, tensor_parallel=pair.shards)
    return roofline.iteration(pair.model, pair.gpu, shards=pair.shards, demand=demand, constants=constants)


def fitted_neighbours(pairs: Sequence[PairRuns], constants: Constants) -> list[neighbours.Neighbour]:
    """What fits to each pair's runs say about its estimate; pairs with too few runs are left out."""
    found = []
    for pair in pairs:
        prior = estimate(pair, constants)
        try:
            fitted = itl.fit_latencies(pair.runs, prior)
        except FitError:
            continue
        found.append(
            neighbours.neighbour(
                model=pair.model,
                gpu=pair.gpu,
                shards=pair.shards,
                fitted=fitted.iteration(prior),
                constants=constants,
            )
        )
    return found


def leave_one_out(pairs: Sequence[PairRuns], report: Callable[[str], None] = lambda _: None) -> dict[str, Score]:
    """How far estimates of step time are off for every run of `pairs`, its family unseen: by way of estimating.

    "data sheet": no fit at all. "constants": fitted to other families. "neighbours": corrected by their fits as well.
    """
    clean = without_host_bound(pairs)
    parts: dict[str, list[FloatArray]] = {"data sheet": [], "constants": [], "neighbours": [], "measured": []}
    for family in sorted({pair.family for pair in pairs}):
        report(f"without {family}")
        others = [pair for pair in clean if pair.family != family]
        constants = fit_constants(others)
        near = fitted_neighbours(others, constants)
        for pair in (each for each in pairs if each.family == family):
            plain = estimate(pair, constants)
            better, _ = neighbours.corrected(plain, model=pair.model, gpu=pair.gpu, shards=pair.shards, neighbours=near)
            parts["data sheet"].append(_seconds(pair, estimate(pair, DATA_SHEET)))
            parts["constants"].append(_seconds(pair, plain))
            parts["neighbours"].append(_seconds(pair, better))
            parts["measured"].append(pair.runs.inter_token_seconds)
    measured = np.concatenate(parts.pop("measured"))
    return {name: Score.of(np.concatenate(values), measured) for name, values in parts.items()}


def against_kernels() -> dict[str, Score]:
    """The roofline beside the catalogue's fits to measured kernels, by accelerator, over common steps."""
    errors: dict[str, list[FloatArray]] = {}
    prefill, sequences = np.array([0.0, 0.0, 0.0, 1024.0]), np.array([8.0, 64.0, 256.0, 32.0])
    for pair in catalogue.fitted_pairs():
        if pair.end_to_end:
            continue
        both = [
            step.step_seconds(
                profiles.serving_profile(
                    model=pair.models[0],
                    accelerator=pair.accelerator,
                    gpus_per_replica=pair.tensor_parallel,
                    engine=EngineSettings(tensor_parallel_size=pair.tensor_parallel),
                    use_fits=use_fits,
                ).iteration,
                prefill_tokens=prefill,
                decode_sequences=sequences,
                kv_tokens=sequences * neighbours.REFERENCE_CONTEXT_TOKENS,
                attention_products=prefill**2 / 2.0,
            )
            for use_fits in (False, True)
        ]
        errors.setdefault(pair.accelerator, []).append(np.stack(both))
    stacked = {name: np.concatenate(values, axis=1) for name, values in errors.items()}
    return {name: Score.of(both[0], both[1]) for name, both in stacked.items()}


def _seconds(pair: PairRuns, iteration: IterationCoefficients) -> FloatArray:
    rows = pair.runs.rows()
    return step.step_seconds(
        iteration,
        prefill_tokens=rows.prefill_tokens,
        decode_sequences=rows.decode_sequences,
        kv_tokens=rows.kv_tokens,
        attention_products=rows.attention_products,
    )
