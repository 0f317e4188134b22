"""Operating points of one replica: who serves, what is asked, how it arrives, how full it runs.

Two sets that share nothing but the code. *Training* points have random coefficients, synthetic lengths and random
limits; the correction of the latency model is fitted to them. *Test* points (`evaluation.grid`) have catalogue
coefficients and the lengths of recorded traffic, and nobody tunes on them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from wattkeeper.domain.workload import FloatArray
from wattkeeper.physics.profile import IterationCoefficients
from wattkeeper.replica import arrivals
from wattkeeper.replica.types import IntArray
from wattkeeper.traces.trace import Lengths

SYNTHETIC_KINDS = ("poisson", "batches", "gamma", "on-off", "clusters", "wandering", "surges", "mixed")
"""Arrival processes of the training set."""


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """An arrival process by name, with its parameters; times in its parameters are seconds."""

    kind: str
    parameters: dict[str, float] = field(default_factory=dict)

    def times(self, *, rate: float, count: int, seed: int, recorded: FloatArray | None = None) -> FloatArray:
        """`count` ascending arrival times at `rate` requests per second; `recorded` is what kind "recorded" repeats."""
        if self.kind == "recorded" and recorded is not None:
            start = int(np.random.default_rng(seed).integers(len(recorded)))
            return arrivals.replay(recorded, count=count, rate=rate, start=start)
        if self.kind not in _GENERATORS:
            raise ValueError(f"no arrival process {self.kind!r} (or nothing recorded to repeat)")
        return _GENERATORS[self.kind](rate=rate, count=count, seed=seed, **self.parameters)


def _mixed(*, rate: float, count: int, seed: int, **parameters: float) -> FloatArray:
    """Half of the requests in clusters, the other half at a wandering rate."""
    near = arrivals.clusters(rate=rate / 2.0, count=count, seed=seed, **_part(parameters, "clusters"))
    far = arrivals.wandering(rate=rate / 2.0, count=count, seed=seed + 1, **_part(parameters, "wandering"))
    return np.asarray(np.sort(np.concatenate([near, far]))[:count])


_GENERATORS: dict[str, Callable[..., FloatArray]] = {
    "poisson": arrivals.poisson,
    "batches": arrivals.batches,
    "gamma": arrivals.gamma,
    "on-off": arrivals.on_off,
    "clusters": arrivals.clusters,
    "wandering": arrivals.wandering,
    "surges": arrivals.surges,
    "mixed": _mixed,
}


def _part(parameters: dict[str, float], name: str) -> dict[str, float]:
    """Parameters of one of several processes, named "process.parameter"."""
    return {key.removeprefix(f"{name}."): value for key, value in parameters.items() if key.startswith(f"{name}.")}


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """One replica under one load."""

    name: str
    engine: str
    """Whose coefficients these are."""
    iteration: IterationCoefficients
    clock_ratio: float
    lengths: Lengths
    arrivals: Arrivals
    load: float
    """Rate over the rate at which the simulated replica saturates."""
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_share: float | None
    """KV memory over what a saturated replica with ample memory holds in decodes; None: ample."""
    hit_ratio: float
    """Share of each prompt in the prefix cache."""
    requests: int
    seed: int


def training_points(count: int, *, seed: int, requests: int = 20_000) -> list[OperatingPoint]:
    """Random points around and beyond what current models, cards and traffic look like."""
    return [_training_point(index, np.random.default_rng((seed, index)), requests) for index in range(count)]


def _training_point(index: int, rng: np.random.Generator, requests: int) -> OperatingPoint:
    seqs = int(2 ** rng.integers(4, 11))
    budget = max(seqs, int(2 ** rng.integers(9, 15)))
    iteration = _iteration(rng)
    lengths = _lengths(rng)
    return OperatingPoint(
        name=f"train-{index}",
        engine="random",
        iteration=iteration,
        clock_ratio=float(rng.uniform(0.35, 1.0)) if rng.random() < 0.5 else 1.0,
        lengths=lengths,
        arrivals=_arrivals(rng, _time_scale(iteration, lengths)),
        load=float(rng.uniform(0.05, 0.95)),
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        kv_share=float(rng.uniform(0.25, 1.3)) if rng.random() < 0.35 else None,
        hit_ratio=float(rng.uniform(0.05, 0.8)) if rng.random() < 0.25 else 0.0,
        requests=requests,
        seed=index,
    )


def _iteration(rng: np.random.Generator) -> IterationCoefficients:
    def around(middle: float, spread: float) -> float:
        return float(middle * math.exp(rng.uniform(-1.0, 1.0) * math.log(spread)))

    dt = around(4e-5, 4.0)
    return IterationCoefficients(
        d0_seconds=around(1e-2, 3.0),
        dt_seconds_per_token=dt,
        dkv_seconds_per_kv_token=around(1e-7, 6.0),
        da_seconds_per_token_squared=around(2e-9, 8.0),
        dn_seconds_per_decode=dt if rng.random() < 0.4 else around(6e-5, 4.0),
    )


def _lengths(rng: np.random.Generator) -> Lengths:
    prompts = _tokens(rng, low=30.0, high=20_000.0, most=130_000)
    outputs = _tokens(rng, low=4.0, high=900.0, most=6_000)
    # Longer prompts have somewhat longer or shorter answers: ranks are tied by a random correlation.
    tie = float(np.clip(rng.normal(0.0, 0.3), -0.7, 0.7))
    first = rng.standard_normal(len(prompts))
    second = tie * first + math.sqrt(1.0 - tie * tie) * rng.standard_normal(len(prompts))
    return Lengths(
        name="synthetic",
        prompt_tokens=np.sort(prompts)[np.argsort(np.argsort(first))],
        output_tokens=np.sort(outputs)[np.argsort(np.argsort(second))],
    )


def _tokens(rng: np.random.Generator, *, low: float, high: float, most: int) -> IntArray:
    """Fixed, lognormal, or a mixture of two lognormals."""
    size = 2048
    mean = math.exp(rng.uniform(math.log(low), math.log(high)))
    form = rng.random()
    if form < 0.12:
        drawn = np.full(size, mean)
    else:
        sigma = float(rng.uniform(0.2, 1.5))
        drawn = mean * np.exp(sigma * rng.standard_normal(size) - 0.5 * sigma * sigma)
        if form > 0.65:
            other = mean * math.exp(rng.uniform(-1.5, 1.5))
            narrow = float(rng.uniform(0.1, 0.8))
            mixed = other * np.exp(narrow * rng.standard_normal(size))
            drawn = np.where(rng.random(size) < rng.uniform(0.1, 0.6), mixed, drawn)
    return np.asarray(np.clip(np.rint(drawn), 1, most), dtype=np.int64)


def _time_scale(iteration: IterationCoefficients, lengths: Lengths) -> float:
    """About how long a request stays, in seconds: what makes a burst short or long."""
    return iteration.d0_seconds * (2.0 + float(lengths.output_tokens.mean()))


def _arrivals(rng: np.random.Generator, stay_seconds: float) -> Arrivals:
    def scale(low: float, high: float) -> float:
        return stay_seconds * math.exp(rng.uniform(math.log(low), math.log(high)))

    kind = "poisson" if rng.random() < 0.3 else str(rng.choice(SYNTHETIC_KINDS[1:]))
    parameters: dict[str, dict[str, float]] = {
        "poisson": {},
        "batches": {"mean_size": float(1.0 + rng.exponential(3.0))},
        "gamma": {"coefficient_of_variation": float(math.exp(rng.uniform(math.log(0.3), math.log(5.0))))},
        "on-off": {
            "peak": float(rng.uniform(1.3, 6.0)),
            "floor": float(rng.uniform(0.0, 0.9)),
            "on_seconds": scale(0.05, 300.0),
        },
        "clusters": {"mean_size": float(1.5 + rng.exponential(5.0)), "spread_seconds": scale(0.02, 20.0)},
        "wandering": {"deviation": float(rng.uniform(0.1, 0.8)), "memory_seconds": scale(0.1, 1000.0)},
        "surges": {
            "every_seconds": scale(2.0, 300.0),
            "share": float(rng.uniform(0.02, 0.4)),
            "spread_seconds": scale(0.02, 2.0),
        },
        "mixed": {
            "clusters.mean_size": float(1.5 + rng.exponential(5.0)),
            "clusters.spread_seconds": scale(0.02, 5.0),
            "wandering.deviation": float(rng.uniform(0.2, 0.9)),
            "wandering.memory_seconds": scale(1.0, 1000.0),
        },
    }
    return Arrivals(kind=kind, parameters=parameters[kind])
