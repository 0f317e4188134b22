"""What a service is asked to do: arrival rate, burstiness, and the lengths of prompts and answers."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.arrivals import POISSON, Dispersion

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LengthDistribution:
    """A discrete distribution of token counts: `tokens` ascend, `weights` are positive and sum to one."""

    tokens: tuple[float, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.tokens or len(self.tokens) != len(self.weights):
            raise ValueError("a length distribution needs as many weights as token counts, at least one")
        if min(self.weights) < 0 or not math.isclose(sum(self.weights), 1.0, rel_tol=1e-6):
            raise ValueError("weights of a length distribution must be non-negative and sum to 1")

    @property
    def mean(self) -> float:
        """Mean length in tokens."""
        return float(np.dot(self.tokens, self.weights))

    @property
    def second_moment(self) -> float:
        """Mean of the squared length, in tokens squared."""
        return float(np.dot(np.square(self.tokens), self.weights))

    def quantile(self, q: float) -> float:
        """The smallest length with at least the share `q` at or below it."""
        index = int(np.searchsorted(np.cumsum(self.weights), q - 1e-12))
        return self.tokens[min(index, len(self.tokens) - 1)]

    @staticmethod
    def fixed(tokens: float) -> "LengthDistribution":
        """Every request has the same length."""
        return LengthDistribution(tokens=(tokens,), weights=(1.0,))

    @staticmethod
    def lognormal(*, mean: float, coefficient_of_variation: float, points: int = 24) -> "LengthDistribution":
        """A lognormal with the given mean and CV, as `points` equally likely lengths rescaled to the mean."""
        sigma = math.sqrt(math.log1p(coefficient_of_variation**2))
        normal = NormalDist()
        raw = np.array([math.exp(sigma * normal.inv_cdf((i + 0.5) / points)) for i in range(points)])
        tokens = np.maximum(raw * mean / raw.mean(), 1.0)
        return LengthDistribution(tokens=tuple(map(float, tokens)), weights=(1.0 / points,) * points)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Traffic of one service as the models see it. Rates are per service, not per replica."""

    requests_per_second: float
    prompt: LengthDistribution
    output: LengthDistribution
    dispersion: Dispersion = POISSON
    """Burstiness of the arrivals of the whole service."""
    prefix_hit_ratio: float = 0.0
    """Share of prompt tokens served from the prefix cache, 0..1."""

    def at_rate(self, requests_per_second: float) -> "Workload":
        """The same kind of requests at another rate."""
        return Workload(
            requests_per_second=requests_per_second,
            prompt=self.prompt,
            output=self.output,
            dispersion=self.dispersion,
            prefix_hit_ratio=self.prefix_hit_ratio,
        )
