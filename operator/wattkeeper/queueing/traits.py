"""Moments of a workload and the sample points that percentiles are integrated over.

Prompt and output lengths are taken as independent. A share `prefix_hit_ratio` of each prompt costs no prefill work but
still occupies KV memory and is read by attention.
"""

import functools
from dataclasses import dataclass

import numpy as np

from wattkeeper.domain.workload import FloatArray, LengthDistribution, Workload

_GOLDEN = 0.6180339887498949
_PLASTIC = 0.7548776662466927
BODY_NODES = 20
TAIL_NODES = 12


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What the queueing formulas need of one request; tokens, with k = output tokens - 1 decode steps."""

    computed_mean: float
    """Prompt tokens that prefill computes (prefix hits left out)."""
    computed_variance: float
    products_mean: float
    """Positions that one prompt's attention multiplies: (l^2 - hit^2) / 2."""
    computed_squared: float
    computed_products: float
    products_squared: float
    steps_mean: float
    steps_variance: float
    kv_integral: float
    """KV tokens summed over the decode steps of one request: E[k l + k (k + 1) / 2]."""
    context_mean: float
    """Mean context of a decoding sequence at a random time, in tokens."""
    prompt_mean: float


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """Weighted sample requests: `weight` sums to one; all arrays of shape (K,)."""

    weight: FloatArray
    computed: FloatArray
    products: FloatArray
    residual: FloatArray
    """Share of the running iteration that an arrival still waits for, 0..1."""
    normal: FloatArray
    """Standard normal score of the occupancy that an arrival meets."""


@functools.lru_cache(maxsize=2048)
def traits(prompt: LengthDistribution, output: LengthDistribution, prefix_hit_ratio: float) -> Traits:
    """Moments of one kind of requests."""
    length = np.asarray(prompt.tokens)
    weight = np.asarray(prompt.weights)
    steps = np.maximum(np.asarray(output.tokens) - 1.0, 0.0)
    steps_weight = np.asarray(output.weights)
    computed, products = _prefill(length, prefix_hit_ratio)
    k1 = float(steps @ steps_weight)
    k2 = float(np.square(steps) @ steps_weight)
    kv_integral = k1 * prompt.mean + 0.5 * (k2 + k1)
    c1 = float(computed @ weight)
    c2 = float(np.square(computed) @ weight)
    return Traits(
        computed_mean=c1,
        computed_variance=max(c2 - c1 * c1, 0.0),
        products_mean=float(products @ weight),
        computed_squared=c2,
        computed_products=float((computed * products) @ weight),
        products_squared=float(np.square(products) @ weight),
        steps_mean=k1,
        steps_variance=max(k2 - k1 * k1, 0.0),
        kv_integral=kv_integral,
        context_mean=kv_integral / k1 if k1 > 0 else prompt.mean,
        prompt_mean=prompt.mean,
    )


def of(workload: Workload) -> Traits:
    """Moments of a workload."""
    return traits(workload.prompt, workload.output, _hit_ratio(workload))


def prompt_nodes(workload: Workload, percentile: float) -> Nodes:
    """Sample requests for the time to first token, denser in the tail that the percentile (0..100) looks at."""
    return _prompt_nodes(workload.prompt, _hit_ratio(workload), percentile)


@functools.lru_cache(maxsize=2048)
def _prompt_nodes(prompt: LengthDistribution, prefix_hit_ratio: float, percentile: float) -> Nodes:
    tail = min(0.25, 2.5 * (1.0 - percentile / 100.0))
    body = (np.arange(BODY_NODES) + 0.5) / BODY_NODES * (1.0 - tail)
    upper = 1.0 - tail + (np.arange(TAIL_NODES) + 0.5) / TAIL_NODES * tail
    weight = np.concatenate([np.full(BODY_NODES, (1.0 - tail) / BODY_NODES), np.full(TAIL_NODES, tail / TAIL_NODES)])
    computed, products = _prefill(_quantiles(prompt, np.concatenate([body, upper])), prefix_hit_ratio)
    index = np.arange(BODY_NODES + TAIL_NODES) + 1.0
    score = np.clip(np.mod(0.5 + index * _PLASTIC, 1.0), 0.01, 0.99)
    return Nodes(
        weight=weight,
        computed=computed,
        products=products,
        residual=np.mod(0.5 + index * _GOLDEN, 1.0),
        normal=_normal_score(score),
    )


@functools.lru_cache(maxsize=2048)
def output_nodes(output: LengthDistribution, points: int = 16) -> tuple[FloatArray, FloatArray]:
    """Decode steps and weights of sample answers of at least two tokens; one step where there are none such."""
    steps = np.asarray(output.tokens) - 1.0
    weight = np.asarray(output.weights)
    several = (steps >= 0.5) & (weight > 0)  # lengths are means of classes, so they need not be whole
    if not several.any():
        return np.ones(1), np.ones(1)
    steps, weight = np.maximum(steps[several], 1.0), weight[several] / weight[several].sum()
    if len(steps) <= points:
        return steps, weight
    kept = LengthDistribution(tokens=tuple(steps.tolist()), weights=tuple(weight.tolist()))
    return _quantiles(kept, (np.arange(points) + 0.5) / points), np.full(points, 1.0 / points)


def _hit_ratio(workload: Workload) -> float:
    return min(max(workload.prefix_hit_ratio, 0.0), 1.0)


def _prefill(length: FloatArray, hit_ratio: float) -> tuple[FloatArray, FloatArray]:
    """Computed tokens (at least one: the last is never taken from the cache) and attention products of prompts."""
    computed = np.maximum(length * (1.0 - hit_ratio), 1.0)
    history = np.maximum(length - computed, 0.0)
    return computed, computed * (history + 0.5 * computed)


def _quantiles(lengths: LengthDistribution, at: FloatArray) -> FloatArray:
    index = np.searchsorted(np.cumsum(lengths.weights), at)
    return np.asarray(lengths.tokens)[np.minimum(index, len(lengths.tokens) - 1)]


def _normal_score(probability: FloatArray) -> FloatArray:
    """Inverse of the normal distribution (Tukey's lambda approximation, within 0.01 for 0.01..0.99)."""
    return np.asarray(4.91 * (probability**0.14 - (1.0 - probability) ** 0.14))
