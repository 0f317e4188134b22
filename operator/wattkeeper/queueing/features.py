"""What the learnt correction of the latency model knows of a candidate, all of it without a unit.

Two kinds of columns. *Hardship* grows with the rate and falls with clock, replicas and KV memory (analytic latency,
utilisation, occupancy); latencies are taken relative to what a lone request would see at full clock. *Kind* says what
sort of replica and traffic it is; nothing in it moves with the rate or the clock. Trees that are monotone in the
columns with a sign therefore keep the order that the closed forms have.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from wattkeeper.domain.workload import FloatArray
from wattkeeper.queueing import latency
from wattkeeper.queueing.capacity import Coefficients
from wattkeeper.queueing.traits import Quantiles

_SMALL = 1e-6
_MOST_KV_CONTEXTS = 1e5
_MOST_KV_SLOTS = 30.0
_NO_BURST = 1e-3
_LIVES = (1.0, 5.0, 50.0, 500.0)

COMMON = {
    "occupied_step": 1,
    "utilisation": 1,
    "prefill_share": 1,
    "occupied_slots": 1,
    "crowding": 1,
    "prefill_wait": 1,
    "slot_wait": 1,
    "slot_wait_chance": 1,
    "memory_filled": 1,
    "preemption_risk": 1,
    "kv_contexts": -1,
    "kv_slots": -1,
    "prefill_over_step": 0,
    "prefill_variation": 0,
    "stall_over_step": 0,
    "stall_over_life": 0,
    "chunk_over_step": 0,
    "decode_steps": 0,
    "decode_variation": 0,
    "budget_prompts": 0,
    "slots": 0,
    "budget_slots": 0,
    "kv_read_share": 0,
    "decode_over_step": 0,
    "cached": 0,
    "finest_window": 0,
    "burst_size": 1,
    "burst_at_step": 0,
    "burst_at_prefill": 0,
    "burst_at_life": 0,
    "burst_at_5_lives": 0,
    "burst_at_50_lives": 0,
    "burst_at_500_lives": 0,
}
"""Columns of both latencies, with the sign in which latency follows them; 0: either way."""
TTFT = {"analytic": 1, "exceedance": 1, "long_prompt": 1, "own_prefill": 1, **COMMON}
TPOT = {"analytic": 1, "exceedance": 1, "short_answer": -1, **COMMON}


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Columns of `TTFT` and `TPOT`, and the latencies of a lone request at full clock, in seconds, shape (N,)."""

    ttft: FloatArray
    tpot: FloatArray
    lone_ttft_seconds: FloatArray
    lone_tpot_seconds: FloatArray

    @staticmethod
    def joined(parts: "Sequence[Tables]") -> "Tables":
        """All rows of several, in their order."""
        names = [field.name for field in fields(Tables)]
        return Tables(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def tables(
    replica: latency.Replica,
    *,
    met: latency.Spread,
    waiting: latency.Waits,
    preemption_risk: FloatArray,
    full: Coefficients,
    ttft_seconds: FloatArray,
    tpot_seconds: FloatArray,
    ttft_percentile: float,
    tpot_percentile: float,
    quantiles: Quantiles,
    max_num_seqs: FloatArray,
    kv_capacity_tokens: FloatArray,
    prefix_hit_ratio: FloatArray,
) -> Tables:
    """Of candidates with traffic and below capacity. `full` are the step times at full clock."""
    traits = replica.traits
    lone_ttft = full.fixed + full.prefill_mean
    lone_tpot = full.fixed + full.per_decode
    steps = np.maximum(traits.steps_mean, 1e-3)
    life = np.maximum(steps, 1.0) * lone_tpot
    burst_size, burst_shape = _bursts(
        replica, np.stack([lone_tpot, 10.0 * full.prefill_mean, *(life * n for n in _LIVES)], axis=1)
    )
    contexts = kv_capacity_tokens / traits.context_mean
    chunk = np.minimum(replica.budget, traits.computed_mean)
    reach = 0.5 * (
        chunk + traits.prompt_squared / traits.prompt_mean
    )  # mean history of a chunk, by its share of chunks
    common = {
        "occupied_step": _log((replica.times.fixed + replica.times.per_decode * met.mean) / lone_tpot),
        "utilisation": np.minimum(replica.utilisation, 3.0),
        "prefill_share": replica.load.prefill_share,
        "occupied_slots": np.minimum(met.mean / replica.limit.slots, 3.0),
        "crowding": np.maximum((met.mean - replica.limit.slots) / np.sqrt(met.variance + 1.0), -10.0),
        "prefill_wait": _log(waiting.prefill_chance * waiting.prefill_seconds / lone_ttft),
        "slot_wait": _log(waiting.slot_chance * waiting.slot_seconds / lone_ttft),
        "slot_wait_chance": _log(waiting.slot_chance),
        "memory_filled": np.minimum(met.mean / contexts, 3.0),
        "preemption_risk": preemption_risk,
        "kv_contexts": _log(np.minimum(contexts, _MOST_KV_CONTEXTS)),
        "kv_slots": _log(np.minimum(contexts / max_num_seqs, _MOST_KV_SLOTS)),
        "prefill_over_step": _log(full.prefill_mean / full.fixed),
        "prefill_variation": _log(full.prefill_variance / np.square(full.prefill_mean) + 1e-3),
        "stall_over_step": _log(full.prefill_squared / full.prefill_mean / lone_tpot),
        "stall_over_life": _log(full.prefill_mean / life),
        "chunk_over_step": _log(chunk * (full.per_token + full.per_product * reach) / lone_tpot),
        "decode_steps": _log(steps),
        "decode_variation": _log(traits.steps_variance / np.square(steps) + 1e-3),
        "budget_prompts": _log(replica.budget / traits.computed_mean),
        "slots": _log(max_num_seqs),
        "budget_slots": _log(replica.budget / max_num_seqs),
        "kv_read_share": full.kv_read_share,
        "decode_over_step": _log(full.per_decode / full.fixed),
        "cached": prefix_hit_ratio,
        "finest_window": _log(replica.bursts.finest_seconds / lone_ttft),
        "burst_size": _log(1.0 + burst_size),
        "burst_at_step": burst_shape[:, 0],
        "burst_at_prefill": burst_shape[:, 1],
        "burst_at_life": burst_shape[:, 2],
        "burst_at_5_lives": burst_shape[:, 3],
        "burst_at_50_lives": burst_shape[:, 4],
        "burst_at_500_lives": burst_shape[:, 5],
    }
    shared = [common[name] for name in COMMON]
    own = full.per_token * traits.computed_mean * quantiles.long_prompt
    shape = replica.rate.shape
    return Tables(
        ttft=np.column_stack([
            _log(ttft_seconds / lone_ttft),
            np.full(shape, _exceedance(ttft_percentile)),
            _log(quantiles.long_prompt),
            _log((own + full.fixed) / lone_ttft),
            *shared,
        ]),
        tpot=np.column_stack([
            _log(tpot_seconds / lone_tpot),
            np.full(shape, _exceedance(tpot_percentile)),
            _log(quantiles.short_answer),
            *shared,
        ]),
        lone_ttft_seconds=lone_ttft,
        lone_tpot_seconds=lone_tpot,
    )  # fmt: skip


def _bursts(replica: latency.Replica, windows_seconds: FloatArray) -> tuple[FloatArray, FloatArray]:
    """What lies beyond Poisson: the most at any window, (N,), and at each window as a share of that, (N, K).

    Splitting a stream over more replicas makes the first smaller and leaves the shares as they are.
    """
    beyond = replica.bursts.at(windows_seconds) - 1.0
    most = np.abs(beyond).argmax(axis=1)
    size = beyond[np.arange(len(beyond)), most]
    some = np.abs(size) > _NO_BURST
    return size, np.where(some[:, None], beyond / np.where(some, size, 1.0)[:, None], 1.0)


def _exceedance(percentile: float) -> float:
    return float(-np.log1p(-percentile / 100.0))


def _log(values: FloatArray) -> FloatArray:
    return np.asarray(np.log(np.maximum(values, _SMALL)))
