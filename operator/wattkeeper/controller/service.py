"""One InferenceService as the loop works with it, and what could not be resolved of it."""

from dataclasses import dataclass, field

from wattkeeper.api.conditions import ConditionType
from wattkeeper.api.inference_service import InferenceServiceSpec
from wattkeeper.api.service_status import InferenceServiceStatus
from wattkeeper.controller.kube import Object
from wattkeeper.domain import plan
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.physics.profile import ServingProfile

ServiceKey = tuple[str, str]
"""(namespace, name)."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why something could not be resolved."""

    condition: ConditionType
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Service:
    """One InferenceService as the loop works with it. What could not be resolved is None and named in `problems`."""

    namespace: str
    name: str
    uid: str
    generation: int
    spec: InferenceServiceSpec
    status: InferenceServiceStatus
    slo: plan.Slo
    levers: plan.Levers
    target: Object | None = None
    container: str | None = None
    engine: EngineSettings = field(default_factory=EngineSettings)
    scheduling_policy: str | None = None
    """As the arguments set it; None: vLLM's default, or not known from the manifest."""
    desired_replicas: int = 0
    ready_replicas: int = 0
    rolling_out: bool = False
    """True while pods of an older template are being replaced; a mere scale-up is none."""
    stuck: str | None = None
    """What the workload's controller says of a roll-out that it gave up."""
    pods: tuple[Object, ...] = ()
    """Ready pods that are not on their way out."""
    accelerator: str | None = None
    gpus_per_replica: int = 1
    profile: ServingProfile | None = None
    profile_name: str | None = None
    """Name of the ModelProfile of the pair, where there is one."""
    free_gpus: int | None = None
    engine_refusal: Problem | None = None
    """Why engine arguments cannot be patched, where they cannot."""
    conflict: Problem | None = None
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()
    """About the target, for people; they stop nothing."""

    @property
    def key(self) -> ServiceKey:
        """(namespace, name)."""
        return (self.namespace, self.name)

    @property
    def owner(self) -> str:
        """How the service signs its power caps."""
        return f"{self.namespace}/{self.name}"

    @property
    def pod_names(self) -> tuple[str, ...]:
        """Names of the ready pods."""
        return tuple(pod["metadata"]["name"] for pod in self.pods)

    @property
    def nodes(self) -> frozenset[str]:
        """Nodes of the ready pods."""
        return frozenset(pod["spec"]["nodeName"] for pod in self.pods if pod["spec"].get("nodeName"))

    @property
    def replicas_are_ours(self) -> bool:
        """True where the operator, and nobody else, writes the replica count."""
        lever = self.levers.replicas
        return lever is not None and lever.control is plan.ReplicaControl.DIRECT and self.conflict is None
