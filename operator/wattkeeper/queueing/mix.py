"""Request classes and the sums over them that the fluid model needs.

A request of class j has l_j prompt tokens, takes one prefill iteration and l'_j decode iterations. Summed over the
l'_j + 1 iterations of its life it occupies

    w_j = (l'_j + 1) (l_j + l'_j / 2)     KV tokens x iterations

(Ao, Luo, Simchi-Levi, Wang, arXiv 2504.11320, section 3), of which decode reads w_j - l_j.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.workload import FloatArray, LengthDistribution, Workload
from wattkeeper.queueing import traits
from wattkeeper.queueing.types import ObjectArray
from wattkeeper.queueing.verdict import Cause

LARGEST_LENGTH = 1e12
"""Tokens beyond any request: longer ones are not lengths."""


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Request classes; arrays of shape (J,). Anything may be in them: `problem` says whether they make sense."""

    rates_per_second: FloatArray
    prompt_tokens: FloatArray
    decode_steps: FloatArray
    """l': decode iterations after the prefill iteration (in vLLM, output tokens less the first)."""
    cached_tokens: FloatArray
    """Prompt tokens taken from the prefix cache: no prefill work, but resident and read all the same."""

    @staticmethod
    def of(
        *,
        rates_per_second: npt.ArrayLike,
        prompt_tokens: npt.ArrayLike,
        decode_steps: npt.ArrayLike,
        cached_tokens: npt.ArrayLike = 0.0,
    ) -> "Mix":
        """Classes from numbers or sequences that broadcast against the rates; cached tokens default to none."""
        rates = np.atleast_1d(np.asarray(rates_per_second, dtype=np.float64))
        others = [np.asarray(each, dtype=np.float64) for each in (prompt_tokens, decode_steps, cached_tokens)]
        prompt, steps, cached = (np.full(rates.shape, each) if each.ndim == 0 else each for each in others)
        return Mix(rates_per_second=rates, prompt_tokens=prompt, decode_steps=steps, cached_tokens=cached)

    @staticmethod
    def of_workload(workload: Workload, replicas: float = 1.0) -> "Mix":
        """Every pair of a prompt length and an answer length as one class, at one replica's share of the rate."""
        prompt, output = np.asarray(workload.prompt.tokens), np.asarray(workload.output.tokens)
        chance = np.outer(workload.prompt.weights, workload.output.weights).ravel()
        lengths = np.repeat(prompt, len(output))
        hits = min(max(workload.prefix_hit_ratio, 0.0), 1.0)
        return Mix(
            rates_per_second=chance * (workload.requests_per_second / replicas),
            prompt_tokens=lengths,
            decode_steps=np.maximum(np.tile(output, len(prompt)) - 1.0, 0.0),
            cached_tokens=np.clip(lengths * hits, 0.0, np.maximum(lengths - 1.0, 0.0)),
        )

    @property
    def kv_integral(self) -> FloatArray:
        """w_j of each class, in KV tokens x iterations."""
        return (self.decode_steps + 1.0) * (self.prompt_tokens + 0.5 * self.decode_steps)

    @property
    def computed_tokens(self) -> FloatArray:
        """Prompt tokens that prefill computes."""
        return self.prompt_tokens - self.cached_tokens

    @property
    def products(self) -> FloatArray:
        """Positions that a prompt's attention multiplies: computed (cached + computed / 2)."""
        return self.computed_tokens * (self.cached_tokens + 0.5 * self.computed_tokens)

    def scaled(self, factor: float) -> "Mix":
        """The same classes with all rates times `factor`."""
        return Mix(
            rates_per_second=self.rates_per_second * factor,
            prompt_tokens=self.prompt_tokens,
            decode_steps=self.decode_steps,
            cached_tokens=self.cached_tokens,
        )

    def take(self, at: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> "Mix":
        """The classes that an index or a mask picks."""
        return Mix(**{field.name: getattr(self, field.name)[at] for field in fields(self)})

    def problem(self) -> Cause:
        """`Cause.NONE` where the classes make sense, `Cause.IDLE` where all rates are zero, else what is wrong."""
        rates = self.rates_per_second
        if rates.ndim != 1 or any(getattr(self, field.name).shape != rates.shape for field in fields(self)):
            return Cause.SHAPES_DISAGREE
        if not len(rates):
            return Cause.NO_CLASSES
        if not np.isfinite(rates).all():
            return Cause.RATE_NOT_FINITE
        if (rates < 0).any():
            return Cause.RATE_NEGATIVE
        lengths = np.stack([self.prompt_tokens, self.decode_steps, self.cached_tokens])
        if not (np.isfinite(lengths) & (lengths >= 0) & (lengths <= LARGEST_LENGTH)).all():
            return Cause.LENGTH_INVALID
        if (self.prompt_tokens <= 0).any() or (self.cached_tokens > self.prompt_tokens).any():
            return Cause.LENGTH_INVALID
        return Cause.NONE if (rates > 0).any() else Cause.IDLE


@dataclass(frozen=True, kw_only=True)
class Load:
    """Sums over the classes of a mix, per second; arrays of one shape (any), so that many loads are judged at once.

    All sums are zero where `cause` names bad input.
    """

    cause: ObjectArray
    """`Cause` of each load: NONE, IDLE, or what is wrong with the classes."""
    requests: FloatArray
    computed_tokens: FloatArray
    decode_steps: FloatArray
    kv_reads: FloatArray
    """KV tokens that decode reads: sum of lambda_j (w_j - l_j)."""
    kv_integral: FloatArray
    """W: sum of lambda_j w_j."""
    products: FloatArray
    longest_tokens: FloatArray
    """KV tokens of the longest request at its end (not per second)."""

    @staticmethod
    def of(mix: Mix) -> "Load":
        """Sums over one mix; arrays of shape ()."""
        cause = mix.problem()
        if cause not in (Cause.NONE, Cause.IDLE):
            return _load(cause, (0.0,) * 7)
        rates = mix.rates_per_second
        with np.errstate(over="ignore", invalid="ignore"):
            sums = (
                float(rates.sum()),
                float(rates @ mix.computed_tokens),
                float(rates @ mix.decode_steps),
                float(rates @ (mix.kv_integral - mix.prompt_tokens)),
                float(rates @ mix.kv_integral),
                float(rates @ mix.products),
                float((mix.prompt_tokens + mix.decode_steps).max()),
            )
        return _load(cause, sums)

    @staticmethod
    def of_workload(workload: Workload, replicas: float = 1.0) -> "Load":
        """Sums over a workload from the moments of its lengths (prompt and answer independent); shape ()."""
        cause = _workload_problem(workload, replicas)
        if cause not in (Cause.NONE, Cause.IDLE):
            return _load(cause, (0.0,) * 7)
        rate = workload.requests_per_second / replicas
        request = traits.of([workload], [1])
        kv_integral = float(request.kv_integral[0])
        per_request = (
            1.0,
            float(request.computed_mean[0]),
            float(request.steps_mean[0]),
            kv_integral,
            kv_integral + float(request.prompt_mean[0]),
            float(request.products_mean[0]),
        )
        longest = _longest(workload.prompt) + max(_longest(workload.output) - 1.0, 0.0)
        return _load(cause, (*(rate * each for each in per_request), longest))

    @staticmethod
    def stack(loads: Sequence["Load"]) -> "Load":
        """Loads of equal shape along a new first axis."""
        return Load(**{f.name: np.stack([getattr(load, f.name) for load in loads]) for f in fields(Load)})


def _load(cause: Cause, sums: tuple[float, ...]) -> Load:
    if not np.isfinite(sums).all():
        cause, sums = Cause.RATE_NOT_FINITE, (0.0,) * len(sums)
    names = [field.name for field in fields(Load) if field.name != "cause"]
    label = np.empty((), dtype=object)
    label[()] = cause
    return Load(cause=label, **{name: np.asarray(value) for name, value in zip(names, sums, strict=True)})


def _longest(lengths: LengthDistribution) -> float:
    return max(tokens for tokens, weight in zip(lengths.tokens, lengths.weights, strict=True) if weight > 0)


def _workload_problem(workload: Workload, replicas: float) -> Cause:
    rate = workload.requests_per_second
    if not np.isfinite(rate) or not np.isfinite(replicas):
        return Cause.RATE_NOT_FINITE
    if rate < 0:
        return Cause.RATE_NEGATIVE
    if replicas <= 0:
        return Cause.LIMITS_CONTRADICT
    tokens = np.asarray([*workload.prompt.tokens, *workload.output.tokens, workload.prefix_hit_ratio])
    usable = np.isfinite(tokens) & (tokens >= 0) & (tokens <= LARGEST_LENGTH)
    if not usable.all() or min(workload.prompt.tokens) <= 0:
        return Cause.LENGTH_INVALID
    return Cause.NONE if rate > 0 else Cause.IDLE
