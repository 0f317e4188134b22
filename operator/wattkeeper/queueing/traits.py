"""Moments of workloads and the sample points that percentiles are integrated over, one entry per candidate.

Prompt and output lengths are taken as independent. A share `prefix_hit_ratio` of each prompt costs no prefill work but
still occupies KV memory and is read by attention.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from wattkeeper.domain.workload import FloatArray, LengthDistribution, Workload
from wattkeeper.queueing.types import IndexArray

_GOLDEN = 0.6180339887498949
_PLASTIC = 0.7548776662466927
BODY_NODES = 20
TAIL_NODES = 12
OUTPUT_NODES = 16


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What the queueing formulas need of the requests of each candidate, arrays of shape (N,).

    Tokens, with k = output tokens - 1 decode steps.
    """

    computed_mean: FloatArray
    """Prompt tokens that prefill computes (prefix hits left out)."""
    computed_variance: FloatArray
    products_mean: FloatArray
    """Positions that one prompt's attention multiplies: (l^2 - hit^2) / 2."""
    computed_squared: FloatArray
    computed_products: FloatArray
    products_squared: FloatArray
    steps_mean: FloatArray
    steps_variance: FloatArray
    kv_integral: FloatArray
    """KV tokens summed over the decode steps of one request: E[k l + k (k + 1) / 2]."""
    context_mean: FloatArray
    """Mean context of a decoding sequence at a random time, in tokens."""
    prompt_mean: FloatArray
    prompt_squared: FloatArray
    """Second moment of whole prompts."""
    whole_products_mean: FloatArray
    """As `products_mean` for prompts of which nothing is cached."""

    def take(self, at: IndexArray | slice) -> "Traits":
        """The traits of the candidates that an index picks."""
        return Traits(**{field.name: getattr(self, field.name)[at] for field in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """Weighted sample requests: `weight` sums to one over the last axis; arrays of shape (N, K)."""

    weight: FloatArray
    computed: FloatArray
    products: FloatArray
    residual: FloatArray
    """Share of the running iteration that an arrival still waits for, 0..1."""
    normal: FloatArray
    """Standard normal score of the occupancy that an arrival meets."""


@dataclass(frozen=True)
class Quantiles:
    """Lengths at the asked percentiles, over their means; arrays of shape (N,)."""

    long_prompt: FloatArray
    """Of prompts at the TTFT percentile."""
    short_answer: FloatArray
    """Decode steps at 100 less the TPOT percentile: short answers feel a stall most."""


@functools.lru_cache(maxsize=2048)
def _moments(prompt: LengthDistribution, output: LengthDistribution, prefix_hit_ratio: float) -> tuple[float, ...]:
    """The fields of `Traits` for one kind of requests."""
    length = np.asarray(prompt.tokens)
    weight = np.asarray(prompt.weights)
    steps = np.maximum(np.asarray(output.tokens) - 1.0, 0.0)
    steps_weight = np.asarray(output.weights)
    computed, products = _prefill(length, prefix_hit_ratio)
    prompt_mean = prompt.mean
    k1 = float(steps @ steps_weight)
    k2 = float(np.square(steps) @ steps_weight)
    kv_integral = k1 * prompt_mean + 0.5 * (k2 + k1)
    c1 = float(computed @ weight)
    c2 = float(np.square(computed) @ weight)
    return (
        c1,
        max(c2 - c1 * c1, 0.0),
        float(products @ weight),
        c2,
        float((computed * products) @ weight),
        float(np.square(products) @ weight),
        k1,
        max(k2 - k1 * k1, 0.0),
        kv_integral,
        kv_integral / k1 if k1 > 0 else prompt_mean,
        prompt_mean,
        prompt.second_moment,
        0.5 * prompt.second_moment,
    )


def of(workloads: Sequence[Workload], rows: Sequence[int]) -> Traits:
    """Moments of workloads, each repeated as often as its entry of `rows` says."""
    table = np.array([_moments(item.prompt, item.output, _hit_ratio(item)) for item in workloads])
    columns = np.repeat(table, rows, axis=0).T
    return Traits(**{field.name: column for field, column in zip(fields(Traits), columns, strict=True)})


def prompt_nodes(workloads: Sequence[Workload], percentile: float, of_row: IndexArray) -> Nodes:
    """Sample requests for the time to first token, denser in the tail that the percentile (0..100) looks at.

    `of_row` (N,) says which workload each row belongs to.
    """
    tail = min(0.25, 2.5 * (1.0 - percentile / 100.0))
    weight = np.concatenate([np.full(BODY_NODES, (1.0 - tail) / BODY_NODES), np.full(TAIL_NODES, tail / TAIL_NODES)])
    samples = [_prompt_samples(item.prompt, _hit_ratio(item), tail) for item in workloads]
    index = np.arange(BODY_NODES + TAIL_NODES) + 1.0
    score = np.clip(np.mod(0.5 + index * _PLASTIC, 1.0), 0.01, 0.99)
    shape = (len(of_row), BODY_NODES + TAIL_NODES)
    return Nodes(
        weight=np.broadcast_to(weight, shape),
        computed=np.stack([computed for computed, _ in samples])[of_row],
        products=np.stack([products for _, products in samples])[of_row],
        residual=np.broadcast_to(np.mod(0.5 + index * _GOLDEN, 1.0), shape),
        normal=np.broadcast_to(_normal_score(score), shape),
    )


@functools.lru_cache(maxsize=2048)
def _prompt_samples(prompt: LengthDistribution, prefix_hit_ratio: float, tail: float) -> tuple[FloatArray, FloatArray]:
    body = (np.arange(BODY_NODES) + 0.5) / BODY_NODES * (1.0 - tail)
    upper = 1.0 - tail + (np.arange(TAIL_NODES) + 0.5) / TAIL_NODES * tail
    return _prefill(_quantiles(prompt, np.concatenate([body, upper])), prefix_hit_ratio)


def output_nodes(workloads: Sequence[Workload], of_row: IndexArray) -> tuple[FloatArray, FloatArray]:
    """Decode steps and weights of sample answers of at least two tokens; arrays of shape (N, K).

    `of_row` (N,) says which workload each row belongs to.
    """
    samples = [_output_samples(item.output) for item in workloads]
    longest = max(len(steps) for steps, _ in samples)
    # Shorter lists are filled up with their last answer at no weight.
    steps = np.stack([np.append(steps, np.full(longest - len(steps), steps[-1])) for steps, _ in samples])
    weight = np.stack([np.append(weight, np.zeros(longest - len(weight))) for _, weight in samples])
    return steps[of_row], weight[of_row]


def quantiles(
    workloads: Sequence[Workload], ttft_percentile: float, tpot_percentile: float, of_row: IndexArray
) -> Quantiles:
    """Lengths at the percentiles (0..100) over their means; arrays of shape (N,)."""
    table = np.array([_quantile_row(item.prompt, item.output, ttft_percentile, tpot_percentile) for item in workloads])
    return Quantiles(*table[of_row].T)


@functools.lru_cache(maxsize=2048)
def _quantile_row(
    prompt: LengthDistribution, output: LengthDistribution, ttft_percentile: float, tpot_percentile: float
) -> tuple[float, float]:
    steps = max(output.mean - 1.0, 1e-3)
    return (
        prompt.quantile(ttft_percentile / 100.0) / prompt.mean,
        max(output.quantile(1.0 - tpot_percentile / 100.0) - 1.0, 0.3) / steps,
    )


@functools.lru_cache(maxsize=2048)
def _output_samples(output: LengthDistribution) -> tuple[FloatArray, FloatArray]:
    """One decode step where there are no answers of two tokens."""
    steps = np.asarray(output.tokens) - 1.0
    weight = np.asarray(output.weights)
    several = (steps >= 0.5) & (weight > 0)  # lengths are means of classes, so they need not be whole
    if not several.any():
        return np.ones(1), np.ones(1)
    steps, weight = np.maximum(steps[several], 1.0), weight[several] / weight[several].sum()
    if len(steps) <= OUTPUT_NODES:
        return steps, weight
    kept = LengthDistribution(tokens=tuple(steps.tolist()), weights=tuple(weight.tolist()))
    at = (np.arange(OUTPUT_NODES) + 0.5) / OUTPUT_NODES
    return _quantiles(kept, at), np.full(OUTPUT_NODES, 1.0 / OUTPUT_NODES)


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
