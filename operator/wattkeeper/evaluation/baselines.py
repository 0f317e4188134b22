"""What is published or obvious, given the same coefficients: the bars that the latency model has to clear.

Study's capacity, with k decode steps, P prefill seconds, c the mean context of a decoder:

    N = min(S, eta C / c)    m = min(N / (E[k] + 1), B / E[computed + k])    lam* = m / (d0 + m E[P + k (dN + dKV c)])

`mm1` and `mmc` see a server (or one server per slot) of that capacity with exponential service; decode steps take the
fluid time d0 / (1 - lam E[...]). `wva` is the state-dependent chain of llm-d's autoscaler (`queueing.mean_chain`): it
knows means only, and dN, dA and prefix hits have no place in its form, so it is given the computed prompt tokens and
dT.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.workload import FloatArray
from wattkeeper.evaluation.methods import Latencies, Method, truth
from wattkeeper.evaluation.runs import Run
from wattkeeper.physics import step
from wattkeeper.queueing import mean_chain

StringArray = npt.NDArray[np.str_]

KV_EFFICIENCY = 0.65
"""Fitted in the study; 1 is what KV memory would hold without waste."""
_QUEUE_PER_SLOT = 10


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Of the requests and the coefficients of each run, at its clock; arrays of shape (N,), seconds and tokens."""

    computed: FloatArray
    steps: FloatArray
    context: FloatArray
    fixed: FloatArray
    prefill: FloatArray
    decode: FloatArray
    """Of one decode step of one sequence with the mean context."""
    rate: FloatArray
    slots: FloatArray
    budget: FloatArray
    kv_tokens: FloatArray

    @property
    def work(self) -> FloatArray:
        """Seconds of iterations that one request adds."""
        return self.prefill + self.steps * self.decode


def moments(runs: Sequence[Run]) -> Moments:
    """Of every run."""
    columns = np.array([_moments(run) for run in runs]).T
    names = ("computed", "steps", "context", "fixed", "prefill", "decode", "rate", "slots", "budget", "kv_tokens")
    return Moments(**dict(zip(names, columns, strict=True)))


def _moments(run: Run) -> tuple[float, ...]:
    point, workload = run.point, run.workload
    d0, dt, dn, dkv, da = map(float, step.at_clock(point.iteration, point.clock_ratio))
    length, weight = np.array(workload.prompt.tokens), np.array(workload.prompt.weights)
    steps = np.maximum(np.array(workload.output.tokens) - 1.0, 0.0)
    steps_weight = np.array(workload.output.weights)
    computed = np.maximum(length * (1.0 - workload.prefix_hit_ratio), 1.0)
    prefill = dt * computed + da * computed * (length - 0.5 * computed)
    k1, k2 = float(steps @ steps_weight), float(steps**2 @ steps_weight)
    prompt = workload.prompt.mean
    context = prompt + 0.5 * (k2 + k1) / k1 if k1 > 0.0 else prompt
    return (
        float(computed @ weight), k1, context, d0, float(prefill @ weight), dn + dkv * context,
        workload.requests_per_second, point.max_num_seqs, point.max_num_batched_tokens, run.kv_tokens,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """The study's closed form for each run; arrays of shape (N,)."""

    requests_per_second: FloatArray
    residents: FloatArray


def capacity(m: Moments, *, kv_efficiency: float = KV_EFFICIENCY) -> Capacity:
    """The closed form above."""
    in_memory = kv_efficiency * m.kv_tokens / m.context
    residents = np.minimum(m.slots, in_memory)
    by_slots = residents / (m.steps + 1.0)
    by_budget = m.budget / (m.computed + m.steps)
    finished = np.minimum(by_slots, by_budget)
    return Capacity(requests_per_second=finished / (m.fixed + finished * m.work), residents=residents)


def binding(m: Moments) -> StringArray:
    """What limits each run at saturation if no KV memory is wasted: "slots", "budget" or "KV"; shape (N,)."""
    in_memory = m.kv_tokens / m.context
    by_slots = np.minimum(m.slots, in_memory) / (m.steps + 1.0)
    by_budget = m.budget / (m.computed + m.steps)
    return np.where(by_budget < by_slots, "budget", np.where(in_memory < m.slots, "KV", "slots"))


def mm1(runs: Sequence[Run], percentile: float) -> Latencies:
    """One server, and the percentile of its exponential wait."""
    m = moments(runs)
    limit = capacity(m).requests_per_second
    return _queue(m, limit, np.minimum(m.rate / limit, 1.0), percentile)


def mmc(runs: Sequence[Run], percentile: float) -> Latencies:
    """A server for each request that fits, and the percentile of the exponential wait (Erlang C)."""
    m = moments(runs)
    found = capacity(m)
    limit, servers = found.requests_per_second, np.maximum(np.rint(found.residents), 1.0)
    return _queue(m, limit, erlang_c(servers, m.rate / limit), percentile)


def mm1_mean(runs: Sequence[Run], percentile: float) -> Latencies:
    """The mean of `mm1` taken for every percentile."""
    del percentile
    m = moments(runs)
    limit = capacity(m).requests_per_second
    return _queue(m, limit, np.minimum(m.rate / limit, 1.0), None)


def mmc_mean(runs: Sequence[Run], percentile: float) -> Latencies:
    """The mean of `mmc` taken for every percentile."""
    del percentile
    m = moments(runs)
    found = capacity(m)
    limit, servers = found.requests_per_second, np.maximum(np.rint(found.residents), 1.0)
    return _queue(m, limit, erlang_c(servers, m.rate / limit), None)


def erlang_c(servers: FloatArray, utilisation: FloatArray) -> FloatArray:
    """Probability of waiting with so many servers, each this much used on average; 1 where overloaded."""
    offered = servers * utilisation
    blocking, result = np.ones_like(servers), np.ones_like(servers)
    for k in range(1, int(servers.max(initial=1.0)) + 1):
        blocking = offered * blocking / (k + offered * blocking)
        result = np.where(servers == k, blocking, result)
    return np.where(utilisation < 1.0, result / np.maximum(1.0 - utilisation * (1.0 - result), 1e-12), 1.0)


def _queue(m: Moments, limit: FloatArray, waits: FloatArray, percentile: float | None) -> Latencies:
    """Exponential wait with probability `waits`, then the request's own prefill; None: the mean wait."""
    room = np.maximum(limit - m.rate, 1e-300)
    share = np.inf if percentile is None else 1.0 - percentile / 100.0
    wait = waits / room if percentile is None else np.log(np.maximum(waits / share, 1.0)) / room
    decoding = np.maximum(1.0 - m.rate * m.work, 1e-300)
    steady = m.rate < limit
    return Latencies(
        ttft_seconds=np.where(steady, wait + m.fixed + m.prefill, np.inf),
        tpot_seconds=np.where(steady & (m.rate * m.work < 1.0), m.fixed / decoding, np.inf),
    )


def wva(runs: Sequence[Run], percentile: float) -> Latencies:
    """Means of the state-dependent chain, taken for every percentile."""
    del percentile
    found = [mean_chain.means(server, run.workload.requests_per_second) for server, run in _servers(runs)]
    return Latencies(
        ttft_seconds=np.array([float(each.ttft_seconds) for each in found]),
        tpot_seconds=np.array([float(each.itl_seconds) for each in found]),
    )


def wva_capacity_rps(runs: Sequence[Run]) -> FloatArray:
    """The chain's rate with all slots taken."""
    return np.array([server.fastest for server, _ in _servers(runs)])


def _servers(runs: Sequence[Run]) -> list[tuple[mean_chain.Server, Run]]:
    m = moments(runs)
    return [
        (
            mean_chain.Server(
                alpha_seconds=float(m.fixed[i]),
                beta_seconds_per_token=float(step.at_clock(run.point.iteration, run.point.clock_ratio)[1]),
                gamma_seconds_per_kv_token=float(step.at_clock(run.point.iteration, run.point.clock_ratio)[3]),
                prompt_tokens=float(m.computed[i]),
                output_tokens=max(run.workload.output.mean, 1.0),
                max_num_seqs=run.point.max_num_seqs,
                max_queue=_QUEUE_PER_SLOT * run.point.max_num_seqs,
            ),
            run,
        )
        for i, run in enumerate(runs)
    ]


def scaled(method: Method) -> Method:
    """A method times one factor per metric that makes its median right; fitted to every second run, used on the others.

    A help that no user has: the factor comes from the very grid that is scored.
    """

    def factored(runs: Sequence[Run], percentile: float) -> Latencies:
        found, real = method(runs, percentile), truth(runs, percentile)
        return Latencies(
            ttft_seconds=_factored(found.ttft_seconds, real.ttft_seconds, np.nanmedian),
            tpot_seconds=_factored(found.tpot_seconds, real.tpot_seconds, np.nanmedian),
        )

    return factored


def _factored(found: FloatArray, real: FloatArray, middle: Callable[[FloatArray], float]) -> FloatArray:
    result = found.copy()
    for fold in (0, 1):
        result[fold::2] *= float(middle(real[1 - fold :: 2] / found[1 - fold :: 2])) if len(found) > 1 else 1.0
    return result
