"""The planner's question about a live service, put together again from what its status tells.

Not all that the operator knew is in the status: lengths have their means alone, forecasts and timers are left out. So
the search that follows shows what the models say of the service, and the plan in the status stays the decision.
"""

from wattkeeper.api import convert, service_status
from wattkeeper.api import inference_service as api
from wattkeeper.controller import caution, reachable
from wattkeeper.controller.full_power import FullPower
from wattkeeper.domain.engine import EngineChange
from wattkeeper.domain.observation import MetricsState, ServiceObservation
from wattkeeper.domain.plan import Target
from wattkeeper.energy.calibration import Calibration
from wattkeeper.energy.model import EnergyModel
from wattkeeper.physics.profile import ServingProfile
from wattkeeper.planner.types import PlanRequest


def request(
    key: str,
    spec: api.InferenceServiceSpec,
    status: service_status.InferenceServiceStatus,
    profile: ServingProfile,
    *,
    calibration: Calibration | None = None,
    full_power: FullPower | None = None,
    energy: EnergyModel | None = None,
) -> PlanRequest:
    """The question at the rate that the plan was made for, else at the measured one.

    With `energy` the profile gets the caution about limits that the readings ask for, and those that were kept of
    times at `full_power`, as in the loop.
    Raises WattkeeperError: nothing was measured yet, or the service is idle.
    """
    workload = reachable.workload_of(status)
    rate = status.plan.planned_qps or workload.requests_per_second
    replicas = status.applied.replicas or status.applied.ready_replicas or 1
    enforced = spec.mode is api.Mode.ENFORCE
    if energy is not None:
        cap = status.applied.power_cap_watts.requested
        profile = caution.cautious(profile, workload, calibration, read=full_power, cap_watts=cap, model=energy)
    return PlanRequest(
        key=key,
        now_seconds=0.0,
        slo=convert.slo(spec.slo),
        levers=convert.levers(spec),
        profile=profile,
        observation=ServiceObservation(time_seconds=0.0, age_seconds=0.0, state=MetricsState.FRESH, workload=workload),
        planned_rate=rate,
        planned_rate_stabilised=rate,
        current=Target(
            replicas=replicas,
            power_cap_watts=status.applied.power_cap_watts.requested,
            # Status has no lock in place: where plans are carried out it is the plan's.
            clock_mhz=status.plan.clock_mhz if enforced else None,
            engine=reachable.engine_of(status),
        ),
        ready_replicas=status.applied.ready_replicas or replicas,
        startup_seconds=0.0,
        rollout_allowed=True,
        calibration=calibration,
    )


def planned(status: service_status.InferenceServiceStatus) -> Target | None:
    """What was decided last; None where nothing was."""
    plan = status.plan
    if plan.replicas is None:
        return None
    change = EngineChange(**plan.engine.model_dump(exclude_none=True))
    return Target(
        replicas=plan.replicas,
        power_cap_watts=plan.power_cap_watts,
        clock_mhz=plan.clock_mhz,
        engine=reachable.engine_of(status).with_change(change),
    )
