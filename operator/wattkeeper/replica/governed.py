"""A replica whose card holds a power cap: the clock follows the work, window by window.

A card under a cap averages its power over tens of milliseconds and moves its clock. Here the composition of a window of
48 empty iterations (about 0.4 s) sets the clock at which that work would have drawn at most the cap, and the next
window runs at the least of the last three such clocks: a burst meets the clock of what came before it for one window,
and its end is felt for three. Where even the smallest clock draws more, all times stretch until it fits
(`physics.power.held_step_seconds`).
"""

import math

import numpy as np

from wattkeeper.domain.workload import FloatArray
from wattkeeper.physics import power, step
from wattkeeper.physics.profile import ServingProfile
from wattkeeper.replica.stepper import Replica
from wattkeeper.replica.types import Activity, BoolArray, Outcome, ReplicaConfig, Requests

_WINDOW_STEPS = 48
_MEMORY = 3
_CLOCKS = 48


class Governor:
    """Clock of one card under a cap, from what its iterations do; the largest one is the lock."""

    def __init__(self, profile: ServingProfile, *, power_cap_watts: float | None, clock_ratio: float) -> None:
        gpu = profile.gpu
        lowest = min(gpu.min_clock_mhz / gpu.max_clock_mhz, clock_ratio)
        # The last one is full clock, which the caution of a profile asks about; the lock is the one before.
        clocks = np.append(np.linspace(lowest, clock_ratio, _CLOCKS), 1.0)
        self._profile = profile
        self._cap = float(power.effective_cap_watts(profile, math.nan if power_cap_watts is None else power_cap_watts))
        none = _joules(profile, clocks)
        columns = [
            clocks,
            power.floor_watts(profile, clocks),
            *step.at_clock(profile.iteration, clocks),
            none,
            _joules(profile, clocks, prefill_tokens=1.0) - none,
            _joules(profile, clocks, decode_sequences=1.0) - none,
            _joules(profile, clocks, kv_tokens=1.0) - none,
        ]
        # Plain numbers: a window looks at two or three clocks, for which numpy would take ten times as long.
        *self._rows, self._full = [tuple(row) for row in np.column_stack(columns).tolist()]
        self._at = _CLOCKS - 1

    def clock(self, *, prefill: float, decodes: float, kv_tokens: float, products: float) -> tuple[float, float]:
        """(clock ratio, stretch of all times) of iterations with this mean composition."""

        def work(row: tuple[float, ...]) -> tuple[float, float, float]:
            _, floor, d0, dt, dn, dkv, da, fixed, per_prefill, per_decode, per_kv = row
            seconds = d0 + dt * prefill + dn * decodes + dkv * kv_tokens + da * products
            joules = fixed + per_prefill * prefill + per_decode * decodes + per_kv * kv_tokens
            return floor, joules, seconds

        def full_watts() -> float:
            floor, joules, seconds = work(self._full)
            return floor + joules / seconds

        factor = float(power.caution_factor(self._profile, full_watts))

        def draw(at: int) -> tuple[float, float, float]:
            floor, joules, seconds = work(self._rows[at])
            return floor + factor * joules / seconds, floor * seconds + factor * joules, seconds

        at, top = self._at, len(self._rows) - 1
        while at < top and draw(at + 1)[0] <= self._cap:
            at += 1
        while at > 0 and draw(at)[0] > self._cap:
            at -= 1
        self._at = at
        watts, joules, seconds = draw(at)
        if watts <= self._cap:
            return self._rows[at][0], 1.0
        held = power.held_step_seconds(self._profile, power_cap_watts=self._cap, joules=joules, step_seconds=seconds)
        return self._rows[at][0], max(1.0, float(held) / seconds)


def _joules(profile: ServingProfile, clocks: FloatArray, **work: float) -> FloatArray:
    """Dynamic joules of a step with this work alone, at each clock."""
    terms = {"prefill_tokens": 0.0, "decode_sequences": 0.0, "kv_tokens": 0.0, **work}
    return power.dynamic_joules(profile, clock_ratio=clocks, **terms)


def window_seconds(config: ReplicaConfig) -> float:
    """Time between two looks at the clock."""
    return _WINDOW_STEPS * config.iteration.d0_seconds


def simulate(
    config: ReplicaConfig, requests: Requests, *, profile: ServingProfile, power_cap_watts: float | None
) -> tuple[Outcome, float]:
    """Serve all requests under a cap (None: the card's default limit); the outcome, and the mean clock while iterating.

    `config.clock_ratio` is the lock. Raises ValueError where the requests or the configuration are no valid ones.
    """
    governor = Governor(profile, power_cap_watts=power_cap_watts, clock_ratio=config.clock_ratio)
    replica = Replica(config)
    outputs, accepted = replica.load(requests)
    window = window_seconds(config)
    ratio, stretch = config.clock_ratio, 1.0
    recent = [(ratio, stretch)]
    before, weighted, busy = replica.activity, 0.0, 0.0
    while replica.outstanding:
        least = min(recent, key=lambda found: (found[0], -found[1]))
        if least != (ratio, stretch):
            ratio, stretch = least
            replica.set_clock(ratio, stretch=stretch)
        replica.advance(replica.now + window * stretch)
        now = replica.activity
        if now.steps == before.steps:  # idle: go on at the next arrival
            _skip_idle(replica, requests, accepted)
        else:
            recent = [*recent[1 - _MEMORY :], _composition_clock(governor, before, now)]
            weighted += ratio * (now.busy_seconds - before.busy_seconds)
            busy += now.busy_seconds - before.busy_seconds
        before = now
    outcome = replica.outcome(requests.arrival_seconds, outputs, accepted)
    return outcome, weighted / busy if busy > 0.0 else config.clock_ratio


def _composition_clock(governor: Governor, before: Activity, now: Activity) -> tuple[float, float]:
    steps = now.steps - before.steps
    return governor.clock(
        prefill=(now.prefill_tokens - before.prefill_tokens) / steps,
        decodes=(now.decode_tokens - before.decode_tokens) / steps,
        kv_tokens=(now.kv_read_tokens - before.kv_read_tokens) / steps,
        products=(now.attention_products - before.attention_products) / steps,
    )


def _skip_idle(replica: Replica, requests: Requests, accepted: BoolArray) -> None:
    """Advance an idle replica to its next arrival."""
    arrivals = requests.arrival_seconds[accepted]
    at = int(np.searchsorted(arrivals, replica.now))
    if at < len(arrivals):
        replica.advance(float(arrivals[at]))
