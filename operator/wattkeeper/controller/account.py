"""Learning and accounting: what the models expected of what is in place, beside what was measured.

Two predictions per service and tick, made for the whole fleet in one call: of the settings in place (teaches the
on-line correction of the energy model and the latency margin) and of the counterfactual (for the savings account).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wattkeeper.api.inference_service import Mode
from wattkeeper.controller.resolve import Service
from wattkeeper.controller.state import ServiceState
from wattkeeper.domain.observation import MetricsState, ServiceObservation
from wattkeeper.domain.plan import Target
from wattkeeper.energy.model import EnergyModel, EnergyQuery
from wattkeeper.physics import kv, limits
from wattkeeper.queueing import sla
from wattkeeper.queueing.types import Candidates, SlaPrediction, SlaQuery

_MARGIN_RISE_SECONDS = 60.0
"""Decision time in which the margin follows a larger residual: about the window of a measured percentile."""
_MARGIN_HALF_LIFE_SECONDS = 3600.0
"""Decision time in which an unused margin halves: much longer than a swing between two plans, so that a setting that
missed its target is not tried again at once."""
_MARGIN_MAX = 0.5
_GAP_LIMIT_SECONDS = 900.0
"""A longer gap in measurements (decision time) is left out of the account instead of being bridged."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """One service's entry of a tick."""

    service: Service
    state: ServiceState
    observation: ServiceObservation
    current: Target


def counterfactual_name(service: Service) -> str:
    """What savings are stated against."""
    lever = service.levers.replicas
    count = lever.maximum if lever is not None else service.desired_replicas
    return f"static: {count} replicas at full power, predicted for the measured traffic"


def keep_accounts(accounts: Sequence[Account], *, energy: EnergyModel, now: float) -> None:
    """Update corrections, margins and savings of all services with fresh measurements."""
    usable = [entry for entry in accounts if _countable(entry)]
    if not usable:
        return
    queries = [_query(entry) for entry in usable]
    predictions = sla.predict_fleet(queries)
    watts_of_all = energy.watts(
        [
            EnergyQuery(profile=query.profile, workload=query.workload, candidates=query.candidates, sla=prediction)
            for query, prediction in zip(queries, predictions, strict=True)
        ]
    )
    for entry, prediction, watts in zip(usable, predictions, watts_of_all, strict=True):
        _learn(entry, expected_watts=float(watts.watts[0]), sla_prediction=prediction, now=now)
        _save(
            entry, low=float(watts.low_watts[1]), middle=float(watts.watts[1]), high=float(watts.high_watts[1]), now=now
        )


def _countable(entry: Account) -> bool:
    return (
        entry.service.profile is not None
        and entry.observation.state is MetricsState.FRESH
        and entry.observation.workload is not None
        and entry.observation.power_watts is not None
        and entry.service.ready_replicas > 0
        and entry.observation.pods_reporting == entry.service.ready_replicas
    )


def _query(entry: Account) -> SlaQuery:
    service, observation = entry.service, entry.observation
    profile, workload = service.profile, observation.workload
    if profile is None or workload is None:
        raise ValueError("only countable entries are asked about")
    lever = service.levers.replicas
    static = max(lever.maximum if lever is not None else service.desired_replicas, service.ready_replicas)
    engine = entry.current.engine
    pair = np.ones(2)
    candidates = Candidates(
        replicas=np.array([float(service.ready_replicas), float(static)]),
        power_cap_watts=np.array([entry.current.power_cap_watts or np.nan, np.nan]),
        clock_ratio=np.array([(entry.current.clock_mhz or profile.gpu.max_clock_mhz) / profile.gpu.max_clock_mhz, 1.0]),
        max_num_seqs=pair * limits.max_num_seqs(engine, profile.gpu),
        max_num_batched_tokens=pair * limits.max_num_batched_tokens(engine, profile.gpu),
        kv_capacity_tokens=pair * kv.capacity_tokens(profile, engine, observation.kv_cache),
    )
    ttft, tpot = service.slo.ttft, service.slo.tpot
    return SlaQuery(
        profile=profile,
        workload=workload,
        candidates=candidates,
        ttft_percentile=ttft.percentile if ttft else 95.0,
        tpot_percentile=tpot.percentile if tpot else 95.0,
    )


def _learn(entry: Account, *, expected_watts: float, sla_prediction: SlaPrediction, now: float) -> None:
    state, observation = entry.state, entry.observation
    if entry.service.rolling_out or observation.power_watts is None:
        return
    state.correction = state.correction.update(predicted_watts=expected_watts, measured_watts=observation.power_watts)
    if observation.unused_pods:
        return  # the model is of replicas that share the load: what these miss is the router's, not its error
    worst = 0.0
    for measured, predicted in (
        (observation.ttft_at_least_seconds, float(sla_prediction.ttft_upper_seconds[0])),
        (observation.tpot_at_least_seconds, float(sla_prediction.tpot_upper_seconds[0])),
    ):
        if measured is not None and np.isfinite(predicted) and predicted > 0:
            worst = max(worst, measured / predicted - 1.0)
    elapsed = max(0.0, now - state.accounted_until) if state.accounted_until is not None else 0.0
    rested = state.latency_margin * 0.5 ** (elapsed / _MARGIN_HALF_LIFE_SECONDS)
    aim = min(worst, _MARGIN_MAX)
    share = 1.0 - math.exp(-elapsed / _MARGIN_RISE_SECONDS)
    state.latency_margin = rested + share * max(0.0, aim - rested)


def _save(entry: Account, *, low: float, middle: float, high: float, now: float) -> None:
    state, power = entry.state, entry.observation.power_watts
    last, state.accounted_until = state.accounted_until, now
    if entry.service.spec.mode is not Mode.ENFORCE or entry.service.spec.paused:
        return  # what nobody acts on saves nothing
    if last is None or power is None or not 0 < now - last <= _GAP_LIMIT_SECONDS:
        return
    seconds, factor = now - last, state.correction.factor
    state.savings.measured_joules += power * seconds
    state.savings.counterfactual_joules += middle * factor * seconds
    state.savings.counterfactual_low_joules += low * factor * seconds
    state.savings.counterfactual_high_joules += high * factor * seconds
