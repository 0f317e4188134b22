"""Learning and accounting: what the models expected of what is in place, beside what was measured.

Two predictions per service and tick, made for the whole fleet in one call: of the settings in place (judges the power
sensor, teaches the calibration of the energy model and the latency margin) and of the counterfactual (for the savings
account). Watts count with what was learnt so far; what is learnt is the error without it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from wattkeeper.api.inference_service import Mode
from wattkeeper.controller import counterfactual
from wattkeeper.controller import watts as watts_of
from wattkeeper.controller.calibrations import Calibrations
from wattkeeper.controller.service import Service, ServiceKey
from wattkeeper.controller.state import ServiceState
from wattkeeper.domain.observation import MetricsState, ServiceObservation
from wattkeeper.domain.plan import Target
from wattkeeper.energy.calibration import Calibration
from wattkeeper.energy.model import EnergyModel, EnergyQuery, WattsPrediction
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


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a service stands under its measured traffic: row 0 is what is in place, row 1 the counterfactual."""

    query: EnergyQuery
    """Without what live readings taught."""
    sla: SlaPrediction


def predictions(accounts: Sequence[Account]) -> dict[ServiceKey, Standing]:
    """What is in place and the counterfactual, of all services whose traffic is known; one call for the fleet."""
    known = [entry for entry in accounts if _predictable(entry)]
    queries = [_query(entry) for entry in known]
    return {
        entry.service.key: Standing(
            query=EnergyQuery(profile=query.profile, workload=query.workload, candidates=query.candidates, sla=found),
            sla=found,
        )
        for entry, query, found in zip(known, queries, sla.predict_fleet(queries) if queries else [], strict=True)
    }


def keep_accounts(
    accounts: Sequence[Account],
    standings: Mapping[ServiceKey, Standing],
    *,
    energy: EnergyModel,
    calibrations: Calibrations,
    now: float,
    wall: float,
) -> None:
    """Update sensors, calibrations, margins and savings of all services with fresh measurements.

    `standings` as `predictions` made them; `now` is decision time, `wall` the wall time.
    """
    usable = [entry for entry in accounts if entry.service.key in standings and _countable(entry)]
    if not usable:
        return
    known = [calibrations.calibration(entry.service, wall=wall) for entry in usable]
    standing = [standings[entry.service.key] for entry in usable]
    plain = [each.query for each in standing]
    calibrated = [replace(query, calibration=found) for query, found in zip(plain, known, strict=True)]
    watts = energy.watts([*plain, *calibrated])
    for entry, each, calibration, bare, found in zip(
        usable, standing, known, watts[: len(usable)], watts[len(usable) :], strict=True
    ):
        entry.state.power_learnt = float(found.watts[0] / bare.watts[0])
        if not entry.service.rolling_out:
            _judge(entry, calibrations, calibration, plain=bare, sla_prediction=each.sla, wall=wall)
        if entry.observation.power_watts is not None:
            _learn(entry, sla_prediction=each.sla, now=now)
            _save(entry, found, now=now)


def _predictable(entry: Account) -> bool:
    return (
        entry.service.profile is not None
        and entry.observation.state.usable
        and entry.observation.workload is not None
        and entry.service.ready_replicas > 0
    )


def _countable(entry: Account) -> bool:
    return (
        entry.observation.state is MetricsState.FRESH
        and (entry.observation.power_watts is not None or watts_of.has_sensor(entry.observation, entry.state))
        and entry.observation.pods_reporting == entry.service.ready_replicas
    )


def _query(entry: Account) -> SlaQuery:
    service, observation = entry.service, entry.observation
    profile, workload = service.profile, observation.workload
    if profile is None or workload is None:
        raise ValueError("only predictable entries are asked about")
    current = entry.current
    static = counterfactual.target(service.levers, current, ready_replicas=service.ready_replicas)
    engine = current.engine
    pair = np.ones(2)
    candidates = Candidates(
        replicas=np.array([float(service.ready_replicas), float(static.replicas)]),
        power_cap_watts=np.array([current.power_cap_watts or np.nan, np.nan]),
        clock_ratio=np.array([(current.clock_mhz or profile.gpu.max_clock_mhz) / profile.gpu.max_clock_mhz, 1.0]),
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


def _judge(
    entry: Account,
    calibrations: Calibrations,
    calibration: Calibration | None,
    *,
    plain: WattsPrediction,
    sla_prediction: SlaPrediction,
    wall: float,
) -> None:
    """Look at the power sensor, and learn what it may teach; once per snapshot."""
    state, observation = entry.state, entry.observation
    if observation.time_seconds <= state.power_seen:
        return
    state.power_seen = observation.time_seconds
    seen = watts_of.tick(
        service=entry.service,
        observation=observation,
        current=entry.current,
        plain=plain,
        calibration=calibration,
        sla=sla_prediction,
    )
    calibrations.learn(entry.service, watts_of.learn(state, seen), wall=wall)


def _learn(entry: Account, *, sla_prediction: SlaPrediction, now: float) -> None:
    state, observation = entry.state, entry.observation
    if entry.service.rolling_out:
        return
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


def _save(entry: Account, watts: WattsPrediction, *, now: float) -> None:
    """Add the time since the last tick to the account, unless the sensor is broken. Row 1 is the counterfactual."""
    state, power = entry.state, entry.observation.power_watts
    last, state.accounted_until = state.accounted_until, now
    if entry.service.spec.mode is not Mode.ENFORCE or entry.service.spec.paused:
        return  # what nobody acts on saves nothing
    if last is None or power is None or not 0 < now - last <= _GAP_LIMIT_SECONDS or not state.sensor.trusted:
        return
    seconds = now - last
    state.savings.measured_joules += power * seconds
    state.savings.counterfactual_joules += float(watts.watts[1]) * seconds
    state.savings.counterfactual_low_joules += float(watts.low_watts[1]) * seconds
    state.savings.counterfactual_high_joules += float(watts.high_watts[1]) * seconds
