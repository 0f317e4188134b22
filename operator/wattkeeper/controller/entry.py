"""One service on its way through a pass of the fleet loop."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from wattkeeper.api.inference_service import Mode
from wattkeeper.api.service_status import InferenceServiceStatus
from wattkeeper.controller import caps
from wattkeeper.controller.account import Standing
from wattkeeper.controller.service import Problem, Service
from wattkeeper.controller.state import ServiceState
from wattkeeper.domain.observation import PodReading, ServiceObservation
from wattkeeper.domain.plan import Plan, Target


@dataclass(kw_only=True)
class Entry:
    """What is known and decided of it so far."""

    service: Service
    state: ServiceState
    current: Target
    report: caps.CapReport | None
    observation: ServiceObservation | None = None
    readings: Mapping[str, PodReading] = field(default_factory=dict)
    """By pod: what the observation rests on."""
    standing: Standing | None = None
    """None where nothing could be predicted."""
    plan: Plan | None = None
    problems: list[Problem] = field(default_factory=list)
    failed: bool = False
    """True where a step failed in an unexpected way: the later steps leave the service alone, its caps are released."""
    status: InferenceServiceStatus | None = None
    """To be written; None where what is written still holds."""

    @property
    def acting(self) -> bool:
        """True where the plan may be carried out."""
        spec = self.service.spec
        return spec.mode is Mode.ENFORCE and not spec.paused and self.service.target is not None and not self.failed

    def scaling_is_held(self, decided: Plan) -> bool:
        """True where a change of replicas is decided and waits: for another actor, or for a roll-out.

        A roll-out has pods out of service already: one disruptive action at a time.
        """
        service, have = self.service, self.current.replicas
        if not self.acting or decided.target.replicas == have:
            return False
        return service.conflict is not None or (decided.target.replicas < have and service.rolling_out)
