"""What the owners of a fleet know of it before they choose a policy: demand of past days, and what a load test shows."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from wattkeeper.domain.plan import RangeLever, Slo
from wattkeeper.replay.stage import ReplayError, Stage
from wattkeeper.rivals.settings import ServerModel, Setting
from wattkeeper.traces.trace import Trace
from wattkeeper.twin import batch, hardware
from wattkeeper.twin.ledger import SloTargets

DEMAND_WINDOW_SECONDS = 600.0
_TEST_SECONDS = 600.0
_LEAST_REQUESTS = 500
_LONGEST_TEST_SECONDS = 3600.0
_FIRST_RATE = 1.0
_STEPS = 12
_CAP_STEP_WATTS, _CLOCK_STEP_MHZ = 25.0, 105.0
_PRECISION = 0.02


def targets(slo: Slo) -> SloTargets:
    """What every request is judged by."""
    return SloTargets(
        ttft_seconds=None if slo.ttft is None else slo.ttft.seconds,
        tpot_seconds=None if slo.tpot is None else slo.tpot.seconds,
    )


def demand(trace: Trace) -> tuple[float, ...]:
    """Requests per second in windows of ten minutes; a shorter rest at the end is left out."""
    count = max(1, int(trace.span_seconds // DEMAND_WINDOW_SECONDS))
    length = min(DEMAND_WINDOW_SECONDS, trace.span_seconds)
    found, _ = np.histogram(trace.times_seconds, np.arange(count + 1) * length)
    return tuple((found / length).tolist())


def load_test(stage: Stage, trace: Trace, *, seed: int = 0) -> float:
    """Requests per second that one replica serves with the SLO's attainment: Poisson arrivals, the trace's requests.

    As people find it with a benchmark client. Raises ReplayError where not even slow traffic meets the SLO.
    """

    def served(rate: float) -> bool:
        seconds = min(max(_TEST_SECONDS, _LEAST_REQUESTS / rate), _LONGEST_TEST_SECONDS)
        test = _poisson(trace, rate=rate, seconds=seconds, seed=seed)
        run = batch.play_static(
            trace=test,
            replicas=1,
            model=stage.model,
            accelerator=stage.accelerator,
            engine=stage.engine,
            slo=targets(stage.slo),
        )
        share = run.service.ledger.attainment().share
        return share is not None and share >= stage.slo.min_attainment

    low = _first_served(served)
    high = 2.0 * low
    while served(high):
        low, high = high, 2.0 * high
    while high / low > 1.0 + _PRECISION:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if served(middle) else (low, middle)
    return low


def _first_served(served: Callable[[float], bool]) -> float:
    rate = _FIRST_RATE
    for _ in range(_STEPS):
        if served(rate):
            return rate
        rate /= 2.0
    raise ReplayError(
        "one replica misses the SLO even with almost no traffic: the targets are below what this model on this "
        "accelerator can do, give it larger ones, or fewer long prompts"
    )


def _poisson(trace: Trace, *, rate: float, seconds: float, seed: int) -> Trace:
    rng = np.random.default_rng((seed, 53))
    times = np.sort(rng.uniform(0.0, seconds, max(1, int(rng.poisson(rate * seconds)))))
    index = rng.integers(len(trace), size=len(times))
    plain = Trace(
        times_seconds=trace.times_seconds,
        prompt_tokens=trace.prompt_tokens,
        output_tokens=trace.output_tokens,
        cached_tokens=trace.cached_tokens,
        span_seconds=trace.span_seconds,
    )
    return replace(plain.pick(times, index, seconds), repairs=())


def setting(
    stage: Stage, *, demand_rps: tuple[float, ...], replica_rps: float, replicas: int | None = None
) -> Setting:
    """What the rivals are built from. `replicas`: those of the peak where their owner says it, else by the load test."""
    engine = hardware.replica_hardware(model=stage.model, accelerator=stage.accelerator, engine=stage.engine)
    d0, decode, kv, _, _ = engine.levels[-1].seconds
    card = engine.card
    peak = max(demand_rps)
    return Setting(
        min_replicas=stage.min_replicas,
        max_replicas=stage.max_replicas,
        slo=stage.slo,
        demand_rps=demand_rps,
        replica_rps=replica_rps if replicas is None else peak / replicas,
        server=ServerModel(
            alpha_seconds=d0,
            beta_seconds_per_token=decode,
            gamma_seconds_per_kv_token=kv,
            max_num_seqs=engine.max_num_seqs,
        ),
        power_cap=RangeLever(minimum=card.minimum_cap_watts, maximum=card.tdp_watts, step=_CAP_STEP_WATTS),
        clock=RangeLever(minimum=card.minimum_clock_mhz, maximum=card.maximum_clock_mhz, step=_CLOCK_STEP_MHZ),
    )
