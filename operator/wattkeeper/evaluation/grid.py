"""The test grid: designed operating points of catalogue replicas under recorded lengths, on which nobody tunes.

A Latin hypercube over all factors at once: every level of every factor comes equally often (or as often as its share
says), whatever the number of points.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.workload import FloatArray
from wattkeeper.evaluation.points import Arrivals, OperatingPoint
from wattkeeper.evaluation.traffic import Recording, Traffic
from wattkeeper.physics import profiles
from wattkeeper.physics.profile import Provenance, ServingProfile
from wattkeeper.traces.trace import Lengths

POINTS = 512
REQUESTS = 40_000
LOADS = (0.10, 0.98)
KIND_SHARES = {
    "poisson": 0.40,
    "batches": 0.08,
    "gamma": 0.08,
    "on-off": 0.08,
    "clusters": 0.07,
    "wandering": 0.07,
    "surges": 0.07,
    "recorded": 0.15,
}
"""`recorded` is shared out among the others where nothing is recorded."""
_KV_TIGHT = 0.35
_FULL_CLOCK = 0.5
_HITS = ((0.6, 0.0), (0.8, 0.3), (1.0, 0.6))
_LONG_HITS = ((0.3, 0.0), (0.65, 0.3), (1.0, 0.6))
_LONG_PROMPT_TOKENS = 8000.0
_FACTORS = (
    "engine", "lengths", "load", "kind", "shape", "scale", "third", "seqs", "budget", "tight", "kv", "hit", "full",
    "clock",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A pair of the catalogue."""

    name: str
    model: str
    accelerator: str
    gpus: int = 1

    @functools.cached_property
    def profile(self) -> ServingProfile:
        """Coefficients as fitted, or of the roofline where the pair is not."""
        engine = EngineSettings(tensor_parallel_size=self.gpus)
        return profiles.serving_profile(
            model=self.model, accelerator=self.accelerator, gpus_per_replica=self.gpus, engine=engine
        )

    @property
    def fitted(self) -> bool:
        """Whether the coefficients were fitted to measurements."""
        return self.profile.provenance is Provenance.FITTED


ENGINES = (
    Engine(name="H100 Llama-3.1-8B", model="meta-llama/Llama-3.1-8B-Instruct", accelerator="nvidia-h100-sxm"),
    Engine(name="A100 Llama-2-7B", model="meta-llama/Llama-2-7b-chat-hf", accelerator="nvidia-a100-sxm"),
    Engine(
        name="H100x4 Llama-3.1-70B", model="meta-llama/Llama-3.1-70B-Instruct", accelerator="nvidia-h100-sxm", gpus=4
    ),
    Engine(name="H100 Llama-2-7B", model="meta-llama/Llama-2-7b-chat-hf", accelerator="nvidia-h100-sxm"),
    Engine(name="A100 Llama-3.1-8B", model="meta-llama/Llama-3.1-8B-Instruct", accelerator="nvidia-a100-sxm"),
    Engine(name="L40S Qwen2.5-7B", model="Qwen/Qwen2.5-7B-Instruct", accelerator="nvidia-l40s"),
    Engine(name="B200 Qwen2.5-32B", model="Qwen/Qwen2.5-32B-Instruct", accelerator="nvidia-b200"),
    Engine(
        name="H200x2 Llama-3.1-70B", model="meta-llama/Llama-3.1-70B-Instruct", accelerator="nvidia-h200-sxm", gpus=2
    ),
)
ENGINE_SHARES = (0.18, 0.18, 0.16, 0.12, 0.12, 0.08, 0.08, 0.08)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The points and what their recorded arrivals repeat."""

    points: tuple[OperatingPoint, ...]
    recordings: dict[str, Recording]
    """By name of the point; only points with recorded arrivals."""

    def arrivals_of(self, name: str) -> FloatArray | None:
        """Recorded times of a point, None where its arrivals are drawn."""
        recording = self.recordings.get(name)
        return None if recording is None else recording.times_seconds


def design(traffic: Traffic, *, points: int = POINTS, seed: int, requests: int = REQUESTS) -> Grid:
    """`points` operating points; the same seed and traffic give the same points.

    A point with recorded arrivals has at most as many requests as its recording, so that no path repeats itself.
    """
    rng = np.random.default_rng((seed, 4))
    cells = rng.permuted(np.tile(np.arange(points), (len(_FACTORS), 1)), axis=1)
    unit = (cells + rng.random(cells.shape)) / points
    made, recordings = [], {}
    for index, row in enumerate(unit.T):
        u = dict(zip(_FACTORS, map(float, row), strict=True))
        point, recording = _point(index, u, traffic, seed=seed, requests=requests)
        made.append(point)
        if recording is not None:
            recordings[point.name] = recording
    return Grid(points=tuple(made), recordings=recordings)


def _point(
    index: int, u: dict[str, float], traffic: Traffic, *, seed: int, requests: int
) -> tuple[OperatingPoint, Recording | None]:
    engine = ENGINES[_level(u["engine"], ENGINE_SHARES)]
    lengths = traffic.lengths[int(u["lengths"] * len(traffic.lengths))]
    shares = {kind: share for kind, share in KIND_SHARES.items() if kind != "recorded" or traffic.recordings}
    kind = list(shares)[_level(u["kind"], tuple(shares.values()))]
    recording = traffic.recordings[int(u["shape"] * len(traffic.recordings))] if kind == "recorded" else None
    clock = 1.0 if u["full"] < _FULL_CLOCK else 0.5 + 0.5 * u["clock"]
    seqs = 2 ** (4 + int(6 * u["seqs"]))
    long = float(lengths.prompt_tokens.mean()) > _LONG_PROMPT_TOKENS
    point = OperatingPoint(
        name=f"test-{seed}-{index}",
        engine=engine.name,
        iteration=engine.profile.iteration,
        clock_ratio=clock,
        lengths=lengths,
        arrivals=_arrivals(kind, u, _stay_seconds(engine, lengths, clock)),
        load=LOADS[0] + (LOADS[1] - LOADS[0]) * u["load"],
        max_num_seqs=seqs,
        max_num_batched_tokens=max(seqs, 2 ** (9 + int(5 * u["budget"]))),
        kv_share=0.3 * 4.0 ** u["kv"] if u["tight"] < _KV_TIGHT else None,
        hit_ratio=next(ratio for limit, ratio in (_LONG_HITS if long else _HITS) if u["hit"] < limit),
        requests=requests if recording is None else min(requests, len(recording.times_seconds)),
        seed=1_000_000 * (seed + 1) + index,
    )
    return point, recording


def _level(u: float, shares: tuple[float, ...]) -> int:
    edges = np.cumsum(shares) / sum(shares)
    return min(int(np.searchsorted(edges, u, side="right")), len(shares) - 1)


def _stay_seconds(engine: Engine, lengths: Lengths, clock: float) -> float:
    """About how long a request stays: what makes a burst short or long."""
    return engine.profile.iteration.d0_seconds / clock * (2.0 + float(lengths.output_tokens.mean()))


def _arrivals(kind: str, u: dict[str, float], stay_seconds: float) -> Arrivals:
    def between(low: float, high: float, name: str = "shape") -> float:
        return float(low * math.exp(u[name] * math.log(high / low)))

    parameters: dict[str, dict[str, float]] = {
        "poisson": {},
        "recorded": {},
        "batches": {"mean_size": between(1.5, 8.0)},
        "gamma": {"coefficient_of_variation": between(0.5, 4.0)},
        "on-off": {
            "peak": between(1.5, 5.0),
            "floor": 0.8 * u["third"],
            "on_seconds": stay_seconds * between(0.1, 20.0, "scale"),
        },
        "clusters": {"mean_size": between(2.0, 10.0), "spread_seconds": stay_seconds * between(0.05, 10.0, "scale")},
        "wandering": {"deviation": between(0.15, 0.7), "memory_seconds": stay_seconds * between(0.2, 60.0, "scale")},
        "surges": {
            "every_seconds": stay_seconds * between(3.0, 40.0, "scale"),
            "share": between(0.03, 0.35),
            "spread_seconds": stay_seconds * between(0.05, 1.5, "third"),
        },
    }
    return Arrivals(kind=kind, parameters=parameters[kind])
