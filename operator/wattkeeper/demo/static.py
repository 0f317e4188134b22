"""The counterfactual, played in a process of its own while the live run goes on."""

import concurrent.futures
import multiprocessing
import os

from wattkeeper.demo import outcome
from wattkeeper.demo.outcome import Outcome
from wattkeeper.demo.scenario import Scenario
from wattkeeper.twin import batch

NICENESS = 10
"""The live run has a clock to keep; this one only has to be done in time."""


def start(scenario: Scenario, *, percentile: float) -> "concurrent.futures.Future[Outcome]":
    """Begin to play the static fleet; the result comes as a future."""
    pool = concurrent.futures.ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn"))
    future = pool.submit(play, scenario, percentile)
    pool.shutdown(wait=False)
    return future


def play(scenario: Scenario, percentile: float) -> Outcome:
    """The day with as many replicas as its peak needs, the user's own arguments and no cap."""
    os.nice(NICENESS)
    run = batch.play_static(
        trace=scenario.trace,
        replicas=scenario.replicas,
        model=scenario.model,
        accelerator=scenario.accelerator,
        engine=scenario.engine,
        slo=scenario.slo,
        interval_seconds=outcome.BIN_SECONDS,
    )
    ledger = run.service.ledger
    return Outcome(
        energy_joules=run.energy_joules,
        gpu_seconds=run.service.gpu_seconds,
        attainment=ledger.attainment(),
        lost_by_reason=dict(ledger.lost_by_reason),
        output_tokens=ledger.output_tokens,
        points=tuple(run.timeline.points),
        latencies=outcome.latencies(ledger, percentile=percentile),
        percentile=percentile,
    )
