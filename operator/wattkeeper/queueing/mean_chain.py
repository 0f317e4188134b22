"""Mean latencies of a replica from a birth-death chain whose service rate depends on its state: a published baseline.

The form of the llm-d workload-variant autoscaler's queue analyser: states n = 0 .. max_num_seqs + max_queue, and with
in / out tokens per request, c = (in + out) / (out + 1), m = in + out / 2,

    T(n) = alpha + n (beta c + gamma m)          mu(n) = n / (prefill(n) + out decode(n)), constant once all slots run
    prefill(n) = T(n) + (beta + gamma) in        decode(n) = T(n) + beta + gamma m
    TTFT = wait + prefill + decode               ITL = (service - prefill) / out

alpha, beta and gamma are d0, dT and dKV of the iteration model. It knows means of Poisson traffic with one length only;
tails and bursts are what `queueing.latency` is for, and this is the baseline it is compared with.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.workload import FloatArray

_BISECTIONS = 50


@dataclass(frozen=True, kw_only=True)
class Server:
    """One replica and its requests; numbers."""

    alpha_seconds: float
    beta_seconds_per_token: float
    gamma_seconds_per_kv_token: float
    prompt_tokens: float
    output_tokens: float
    max_num_seqs: int
    max_queue: int

    @property
    def valid(self) -> bool:
        """Whether all numbers are finite and in range."""
        times = (self.alpha_seconds, self.beta_seconds_per_token, self.gamma_seconds_per_kv_token)
        lengths = (self.prompt_tokens, self.output_tokens)
        finite = bool(np.isfinite([*times, *lengths]).all())
        positive = self.alpha_seconds > 0 and min(times) >= 0 and min(lengths) > 0
        return finite and positive and self.max_num_seqs >= 1 and self.max_queue >= 0

    def step_seconds(self, n: npt.ArrayLike) -> FloatArray:
        """T(n)."""
        compute = (self.prompt_tokens + self.output_tokens) / (self.output_tokens + 1.0)
        reads = self.prompt_tokens + 0.5 * self.output_tokens
        each = self.beta_seconds_per_token * compute + self.gamma_seconds_per_kv_token * reads
        return np.asarray(self.alpha_seconds + np.asarray(n, dtype=np.float64) * each)

    @property
    def prefill_extra(self) -> float:
        """prefill(n) - T(n)."""
        return (self.beta_seconds_per_token + self.gamma_seconds_per_kv_token) * self.prompt_tokens

    @property
    def decode_extra(self) -> float:
        """decode(n) - T(n)."""
        reads = self.prompt_tokens + 0.5 * self.output_tokens
        return self.beta_seconds_per_token + self.gamma_seconds_per_kv_token * reads

    def service_seconds(self, n: npt.ArrayLike) -> FloatArray:
        """prefill(n) + out decode(n)."""
        step = self.step_seconds(n)
        return np.asarray(step + self.prefill_extra + self.output_tokens * (step + self.decode_extra))

    @property
    def fastest(self) -> float:
        """Requests per second with all slots taken."""
        return float(self.max_num_seqs / self.service_seconds(self.max_num_seqs))


@dataclass(frozen=True, kw_only=True)
class Means:
    """Means at each rate; arrays of one shape, inf where the server or the rate is not valid."""

    ttft_seconds: FloatArray
    itl_seconds: FloatArray
    wait_seconds: FloatArray
    in_service: FloatArray
    throughput: FloatArray
    """Requests per second that are not turned away at a full queue."""


def means(server: Server, requests_per_second: npt.ArrayLike) -> Means:
    """Means at one or many rates, in requests per second of one replica; an idle server shows its empty latency."""
    rates = np.asarray(requests_per_second, dtype=np.float64)
    good = np.isfinite(rates) & (rates >= 0) & server.valid
    if not server.valid:
        never, none = np.full(rates.shape, np.inf), np.zeros(rates.shape)
        return Means(ttft_seconds=never, itl_seconds=never, wait_seconds=never, in_service=never, throughput=none)
    rate = np.where(good & (rates > 0), rates, 1e-12)
    n = np.arange(1.0, server.max_num_seqs + server.max_queue + 1.0)
    running = np.minimum(n, server.max_num_seqs)
    log_weight = np.log(rate)[..., None] * n - np.cumsum(np.log(running / server.service_seconds(running)))
    log_weight = np.concatenate([np.zeros((*rate.shape, 1)), log_weight], axis=-1)
    weight = np.exp(log_weight - log_weight.max(axis=-1, keepdims=True))
    weight /= weight.sum(axis=-1, keepdims=True)
    throughput = rate * (1.0 - weight[..., -1])
    in_service = weight[..., 1:] @ running
    wait = np.maximum(weight[..., 1:] @ n - in_service, 0.0) / throughput
    service = in_service / throughput
    # The step at the number in service for which a request would take just this long.
    outputs = server.output_tokens
    step = (service - server.prefill_extra - outputs * server.decode_extra) / (1.0 + outputs)
    prefill = step + server.prefill_extra
    return Means(
        ttft_seconds=np.where(good, wait + prefill + step + server.decode_extra, np.inf),
        itl_seconds=np.where(good, (service - prefill) / outputs, np.inf),
        wait_seconds=np.where(good, wait, np.inf),
        in_service=np.where(good, np.where(rates > 0, in_service, 0.0), np.inf),
        throughput=np.where(good, np.where(rates > 0, throughput, 0.0), 0.0),
    )


def largest_rate(server: Server, *, ttft_seconds: float, itl_seconds: float) -> float:
    """The largest rate whose mean TTFT and ITL meet their targets, by bisection; 0 where even an empty one does not."""

    def meets(rate: float) -> bool:
        found = means(server, rate)
        return bool(found.ttft_seconds <= ttft_seconds and found.itl_seconds <= itl_seconds)

    if not server.valid or not meets(0.0):
        return 0.0
    low, high = 0.0, server.fastest
    if meets(high):
        return high
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if meets(middle) else (low, middle)
    return low
