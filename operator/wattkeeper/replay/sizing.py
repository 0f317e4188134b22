"""What owners know of a fleet before they choose a policy: the demand of past days, and how many replicas carry it."""

import numpy as np

from wattkeeper.domain.plan import RangeLever, Slo
from wattkeeper.replay.stage import ReplayError, Stage
from wattkeeper.rivals.settings import ServerModel, Setting
from wattkeeper.traces.trace import Trace
from wattkeeper.twin import batch, hardware
from wattkeeper.twin.ledger import SloTargets

DEMAND_WINDOW_SECONDS = 600.0
SIZING_SECONDS = 3600.0
LARGEST_FLEET = 256
_CAP_STEP_WATTS, _CLOCK_STEP_MHZ = 25.0, 105.0


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


def static_replicas(stage: Stage, trace: Trace, *, most: int = LARGEST_FLEET) -> int:
    """The fewest replicas that reach the SLO's attainment in the busiest hour, never changed: what is run today.

    Found by simulation, as a load test with recorded traffic finds it. Raises ReplayError where `most` do not.
    """
    peak = trace.busiest(SIZING_SECONDS) if trace.span_seconds > SIZING_SECONDS else trace

    def enough(replicas: int) -> bool:
        run = batch.play_static(
            trace=peak,
            replicas=replicas,
            model=stage.model,
            accelerator=stage.accelerator,
            engine=stage.engine,
            slo=targets(stage.slo),
        )
        share = run.service.ledger.attainment().share
        return share is None or share >= stage.slo.min_attainment

    low, high = 0, 1
    while not enough(high):
        if high >= most:
            raise ReplayError(
                f"even {most} replicas of {stage.model} miss the SLO in the busiest hour: give larger targets, lower "
                "the rate with --scale, or say with --replicas what you run today"
            )
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def setting(stage: Stage, trace: Trace, *, peak_replicas: int) -> Setting:
    """What the rivals are built from: the demand of `trace`, whose busiest window `peak_replicas` just carry."""
    engine = hardware.replica_hardware(model=stage.model, accelerator=stage.accelerator, engine=stage.engine)
    d0, decode, kv, _, _ = engine.levels[-1].seconds
    card, rates = engine.card, demand(trace)
    return Setting(
        min_replicas=stage.min_replicas,
        max_replicas=stage.max_replicas,
        slo=stage.slo,
        demand_rps=rates,
        replica_rps=max(rates) / peak_replicas,
        server=ServerModel(
            alpha_seconds=d0,
            beta_seconds_per_token=decode,
            gamma_seconds_per_kv_token=kv,
            max_num_seqs=engine.max_num_seqs,
        ),
        power_cap=RangeLever(minimum=card.minimum_cap_watts, maximum=card.tdp_watts, step=_CAP_STEP_WATTS),
        clock=RangeLever(minimum=card.minimum_clock_mhz, maximum=card.maximum_clock_mhz, step=_CLOCK_STEP_MHZ),
    )
