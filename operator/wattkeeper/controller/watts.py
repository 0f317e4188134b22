"""What a service's measured watts say of its sensor and of the energy model, tick by tick."""

import numpy as np

from wattkeeper.controller.service import Service
from wattkeeper.controller.state import ServiceState
from wattkeeper.domain.observation import ServiceObservation
from wattkeeper.domain.plan import Target
from wattkeeper.energy.calibration import Calibration, Reading
from wattkeeper.energy.learnt import LARGEST_ERROR_LOG
from wattkeeper.energy.model import WattsPrediction
from wattkeeper.energy.sensor import KNOWN_SPREAD_LOG, SensorTick
from wattkeeper.queueing.types import SlaPrediction


def has_sensor(observation: ServiceObservation, state: ServiceState) -> bool:
    """True where watts are or were measured; without an exporter there is nothing to judge."""
    return bool(observation.gpus) or not state.sensor.blank


def tick(
    *,
    service: Service,
    observation: ServiceObservation,
    current: Target,
    plain: WattsPrediction,
    calibration: Calibration | None,
    sla: SlaPrediction,
) -> SensorTick:
    """One tick as the sensor's state machine takes it. Row 0 of the predictions is what is in place.

    `plain` is the prediction without `calibration`. Raises ValueError where the service has no profile.
    """
    profile = service.profile
    if profile is None:
        raise ValueError("without a profile nothing is predicted")
    expected = float(plain.watts[0])
    batch, busy = float(sla.batch[0]), float(sla.busy[0])
    known = np.isfinite(batch)
    learnt = None
    if calibration is not None and known:
        factors, spreads = calibration.factor_and_spread(np.array([max(batch, 1.0)]))
        learnt = float(np.log(factors[0])) if spreads[0] < KNOWN_SPREAD_LOG else None
    limits = [gpu.power_limit_watts for gpu in observation.gpus if gpu.power_limit_watts]
    measured = observation.power_watts
    reading = None
    if measured is not None and measured > 0.0 and np.isfinite(measured) and expected > 0.0 and known and busy > 0.0:
        error = float(np.clip(np.log(measured / expected), -LARGEST_ERROR_LOG, LARGEST_ERROR_LOG))
        # A replica that mostly idles says little of its batch.
        reading = Reading(batch=max(batch, 1.0), error_log=error, weight=min(busy, 1.0))
    return SensorTick(
        watts_by_gpu=tuple(gpu.power_watts for gpu in observation.gpus),
        expected_gpus=service.ready_replicas * service.gpus_per_replica,
        limit_watts=max([profile.gpu.tdp_watts, *limits]),
        cap_watts=min([current.power_cap_watts or profile.gpu.tdp_watts, *limits]),
        idle_watts=profile.energy.idle_watts,
        serving=bool(observation.output_tokens_per_second) and bool(observation.running),
        running=observation.running or 0.0,
        predicted_watts=expected,
        known_error_log=learnt,
        # A refit of the step time moves what is predicted, and nothing that is measured.
        setting=(
            service.ready_replicas,
            current.power_cap_watts,
            current.clock_mhz,
            current.engine,
            profile.iteration,
        ),
        reading=reading,
    )


def learn(state: ServiceState, seen: SensorTick) -> tuple[Reading, ...]:
    """Update sensor and trust of a service; what may be learnt of it now."""
    state.sensor = state.sensor.step(seen)
    if state.sensor.calm and seen.reading is not None:
        measured = float(np.exp(seen.reading.error_log))
        state.correction = state.correction.update(predicted_watts=1.0, measured_watts=measured)
    return state.sensor.learn
