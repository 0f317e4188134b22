"""From an InferenceService to everything that its decision rests on: target, container, pods, accelerator, profile.

Reads the cluster cache only. What cannot be resolved becomes a `Problem`: the condition that will say so.
"""

import functools
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pydantic

from wattkeeper.actuators import engine_args, ownership, rollout, scale
from wattkeeper.api import convert
from wattkeeper.api.conditions import ConditionType
from wattkeeper.api.inference_service import InferenceServiceSpec, TargetKind
from wattkeeper.api.model_profile import ModelProfileSpec
from wattkeeper.api.service_status import InferenceServiceStatus
from wattkeeper.controller import cache as cluster
from wattkeeper.controller import note, overrides, workload
from wattkeeper.controller.clock import from_rfc3339, to_rfc3339
from wattkeeper.controller.kube import FIELD_MANAGER, Object
from wattkeeper.domain import plan
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.errors import PatchRefusedError, UnknownAcceleratorError, UnknownModelError
from wattkeeper.physics import profiles
from wattkeeper.physics.profile import ServingProfile

_log = logging.getLogger(__name__)

ServiceKey = tuple[str, str]
"""(namespace, name)."""

_GPU_LABELS = ("nvidia.com/gpu.product", "amd.com/gpu.product-name")


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


class InvalidServiceError(Exception):
    """The object does not fit its own schema (an API server without our CRD, or a newer one)."""


@dataclass(kw_only=True)
class Resolver:
    """Resolves all services against the cache; keeps parsed specs and profiles by object version."""

    cache: cluster.ClusterCache
    conflict_hold_seconds: float
    """Wall time for which somebody else's replica count is respected."""
    argument_hold_seconds: float
    """The same for engine arguments."""
    readings: "EngineReadings" = field(default_factory=lambda: EngineReadings())
    writes: "ForeignWrites" = field(default_factory=lambda: ForeignWrites())
    _parsed: dict[ServiceKey, tuple[str, InferenceServiceSpec, InferenceServiceStatus]] = field(default_factory=dict)

    def parse(self, body: Object) -> tuple[InferenceServiceSpec, InferenceServiceStatus]:
        """Spec and status of an object. Raises InvalidServiceError with the field that is wrong."""
        meta = body["metadata"]
        key, version = (meta["namespace"], meta["name"]), meta["resourceVersion"]
        known = self._parsed.get(key)
        if known is not None and known[0] == version:
            return known[1], known[2]
        try:
            spec = InferenceServiceSpec.model_validate(body.get("spec", {}))
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            raise InvalidServiceError(f"spec.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        try:
            status = InferenceServiceStatus.model_validate(body.get("status") or {})
        except pydantic.ValidationError:
            status = InferenceServiceStatus()
        self._parsed[key] = (version, spec, status)
        return spec, status

    def forget(self, key: ServiceKey) -> None:
        """Drop what is kept of a deleted service."""
        self._parsed.pop(key, None)

    def resolve_all(
        self, bodies: Iterable[Object], *, now_seconds: float
    ) -> tuple[list[Service], dict[ServiceKey, str]]:
        """All services, and those that could not even be read with what is wrong with them.

        `now_seconds`: wall time.
        """
        services: list[Service] = []
        invalid: dict[ServiceKey, str] = {}
        shared = _Shared(
            self.cache, self.readings, self.writes, self.conflict_hold_seconds, self.argument_hold_seconds, now_seconds
        )
        parsed = []
        for body in bodies:
            key = (body["metadata"]["namespace"], body["metadata"]["name"])
            try:
                parsed.append((body, *self.parse(body)))
            except InvalidServiceError as error:
                invalid[key] = str(error)
        claims = Counter(
            (body["metadata"]["namespace"], spec.target_ref.kind, spec.target_ref.name) for body, spec, _ in parsed
        )
        first: dict[tuple[str, str, str], Object] = {}
        for body, spec, _ in sorted(parsed, key=lambda item: _age_order(item[0])):
            first.setdefault((body["metadata"]["namespace"], spec.target_ref.kind, spec.target_ref.name), body)
        for body, spec, status in parsed:
            claim = (body["metadata"]["namespace"], spec.target_ref.kind, spec.target_ref.name)
            rival = first[claim] if claims[claim] > 1 and first[claim] is not body else None
            bare = _bare(body, spec, status)
            try:
                services.append(_resolve(bare, shared=shared, rival=rival))
            except Exception:
                _log.exception("resolving %s failed", bare.owner)
                services.append(_with(bare, _UNEXPECTED))
        self.readings.keep_only(service.target["metadata"]["uid"] for service in services if service.target)
        return services, invalid


_UNEXPECTED = Problem(
    condition=ConditionType.TARGET_RESOLVED,
    reason="InternalError",
    message="the target could not be read in an unexpected way; the operator's log has the trace",
)


def _age_order(body: Object) -> tuple[str, str]:
    return (body["metadata"].get("creationTimestamp") or "", body["metadata"]["name"])


class EngineReadings:
    """Engine arguments of targets, read again only where the target's spec changed."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str | None], tuple[int, engine_args.EngineReading | PatchRefusedError]] = {}

    def read(self, target: Object, container: str | None) -> engine_args.EngineReading:
        """The reading of a target's pod template. Raises PatchRefusedError where there is no engine to be found."""
        key, generation = (target["metadata"]["uid"], container), target["metadata"].get("generation", 0)
        known = self._known.get(key)
        if known is None or known[0] != generation:
            found: engine_args.EngineReading | PatchRefusedError
            try:
                found = engine_args.inspect_engine(target["spec"]["template"]["spec"], container)
            except PatchRefusedError as error:
                found = error
            self._known[key] = known = (generation, found)
        if isinstance(known[1], PatchRefusedError):
            raise known[1]
        return known[1]

    def keep_only(self, uids: Iterable[str]) -> None:
        """Forget the targets that are kept no more."""
        alive = set(uids)
        self._known = {key: value for key, value in self._known.items() if key[0] in alive}


class ForeignWrites:
    """When somebody else's value was first seen: the API server puts no time on writes of the scale."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, tuple[str, ...]], tuple[str, object, float]] = {}

    def since(self, target: Object, path: Sequence[str], *, by: str, now_seconds: float) -> float:
        """Wall time at which what this writer made of the field was first seen."""
        meta = target["metadata"]
        value = target["spec"].get("replicas") if path == scale.REPLICAS else meta.get("generation")
        known = self._seen.get((meta["uid"], tuple(path)))
        if known is None or known[:2] != (by, value):
            self._seen[meta["uid"], tuple(path)] = known = (by, value, now_seconds)
        return known[2]


class _Shared:
    """What all services of one tick share, computed when first asked for."""

    def __init__(
        self,
        cache: cluster.ClusterCache,
        readings: EngineReadings,
        writes: "ForeignWrites",
        conflict_hold_seconds: float,
        argument_hold_seconds: float,
        now_seconds: float,
    ) -> None:
        self.cache = cache
        self.readings = readings
        self.writes = writes
        self.conflict_hold_seconds = conflict_hold_seconds
        self.argument_hold_seconds = argument_hold_seconds
        self.now_seconds = now_seconds

    @functools.cached_property
    def autoscalers(self) -> list[Object]:
        return self.cache.objects(cluster.AUTOSCALERS)

    @functools.cached_property
    def scaled_objects(self) -> list[Object]:
        return self.cache.objects(cluster.SCALED_OBJECTS)

    @functools.cached_property
    def overrides(self) -> dict[tuple[str, str, str, int], tuple[str, profiles.ProfileOverrides]]:
        """Name and content of the ModelProfile by namespace, model, accelerator and GPUs per replica."""
        found = {}
        for body in self.cache.objects(cluster.PROFILES):
            try:
                spec = ModelProfileSpec.model_validate(body.get("spec", {}))
            except pydantic.ValidationError:
                continue
            meta = body["metadata"]
            key = (meta["namespace"], spec.model, overrides.canonical(spec.accelerator), spec.gpus_per_replica)
            found[key] = (meta["name"], overrides.of_profile(meta["name"], spec))
        return found

    @functools.cached_property
    def free_gpus_by_product(self) -> Mapping[str, int] | None:
        """Unallocated GPUs per product label; None where the whole cluster cannot be seen."""
        if not self.cache.watches(cluster.NODES) or self.cache.namespaces:
            return None
        used: Counter[str] = Counter()
        for pod in self.cache.objects(cluster.PODS):
            if pod["spec"].get("nodeName") and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
                used[pod["spec"]["nodeName"]] += sum(map(engine_args.gpus, pod["spec"].get("containers") or []))
        free: Counter[str] = Counter()
        for node in self.cache.objects(cluster.NODES):
            product = _node_product(node)
            if product is not None and not (node.get("spec") or {}).get("unschedulable"):
                free[product] += max(0, _allocatable_gpus(node) - used[node["metadata"]["name"]])
        return free


def _bare(body: Object, spec: InferenceServiceSpec, status: InferenceServiceStatus) -> Service:
    meta = body["metadata"]
    return Service(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        generation=meta.get("generation", 0),
        spec=spec,
        status=status,
        slo=convert.slo(spec.slo),
        levers=convert.levers(spec),
    )


def _resolve(bare: Service, *, shared: _Shared, rival: Object | None) -> Service:
    spec = bare.spec
    if rival is not None:
        return _with(
            bare,
            Problem(
                condition=ConditionType.TARGET_RESOLVED,
                reason="TargetClaimedTwice",
                message=f"{spec.target_ref.kind} {spec.target_ref.name} is already kept by InferenceService "
                f"{rival['metadata']['name']}, which is older: delete one of the two",
            ),
        )
    kind = cluster.DEPLOYMENTS if spec.target_ref.kind is TargetKind.DEPLOYMENT else cluster.STATEFUL_SETS
    target = shared.cache.get(kind, bare.namespace, spec.target_ref.name)
    if target is None:
        return _with(
            bare,
            Problem(
                condition=ConditionType.TARGET_RESOLVED,
                reason="TargetNotFound",
                message=f"there is no {spec.target_ref.kind} {spec.target_ref.name} in namespace {bare.namespace}",
            ),
        )
    return _resolve_target(bare, target, shared=shared)


def _with(service: Service, *problems: Problem, **changes: object) -> Service:
    values = {**service.__dict__, **changes, "problems": (*service.problems, *problems)}
    return Service(**values)


def _resolve_target(service: Service, target: Object, *, shared: _Shared) -> Service:
    spec, state = target["spec"], target.get("status") or {}
    pod_spec = spec["template"]["spec"]
    pods = tuple(pod for pod in shared.cache.pods(service.namespace, spec.get("selector") or {}) if _is_serving(pod))
    service = _with(
        service,
        target=target,
        desired_replicas=spec.get("replicas", 1),
        ready_replicas=state.get("readyReplicas") or 0,
        rolling_out=workload.rolling_out(target),
        stuck=workload.stuck(target),
        pods=pods,
    )
    try:
        reading = shared.readings.read(target, service.spec.target_ref.container)
    except PatchRefusedError as error:
        unnamed = error.reason in ("ContainerNotFound", "ContainerAmbiguous")
        return _with(
            service,
            Problem(
                condition=ConditionType.TARGET_RESOLVED,
                reason=error.reason if unnamed else "EngineNotRecognised",
                message=str(error),
            ),
        )
    refusal: Problem | None = None
    if reading.refusal is not None:
        refusal = Problem(condition=ConditionType.ROLLOUT, reason=reading.refusal.reason, message=str(reading.refusal))
    owned = ownership.owner_check(target)
    if not owned.allowed:
        refusal = Problem(condition=ConditionType.ROLLOUT, reason=owned.reason, message=owned.message)
    engine, container = reading.settings, _container(pod_spec, reading.container)
    gpus = service.spec.accelerator.per_replica or engine_args.gpus(container) or engine.tensor_parallel_size
    service = _with(
        service,
        container=reading.container,
        engine=engine,
        scheduling_policy=reading.scheduling_policy,
        warnings=(*reading.warnings, *owned.warnings),
        engine_refusal=refusal,
        conflict=_conflict(service, target, owned, shared),
        gpus_per_replica=gpus,
        accelerator=service.spec.accelerator.type or _accelerator(pod_spec, pods, shared.cache),
    )
    if refusal is None:
        service = _with(service, engine_refusal=_foreign_arguments(service, target, shared))
    return _resolve_profile(service, shared)


def _conflict(service: Service, target: Object, owned: ownership.Ownership, shared: _Shared) -> Problem | None:
    """Somebody else who writes the replica count, where the count is ours to write."""
    lever = service.levers.replicas
    if lever is None or lever.control is not plan.ReplicaControl.DIRECT:
        return None
    if not owned.allowed:
        return Problem(condition=ConditionType.CONFLICT, reason=owned.reason, message=owned.message)
    found = scale.foreign_scaler(target, shared.autoscalers, shared.scaled_objects) or _foreign_write(
        target,
        scale.REPLICAS,
        last_write=_latest(service.status.memory.last_scale_up, service.status.memory.last_scale_down),
        hold_seconds=shared.conflict_hold_seconds,
        shared=shared,
    )
    return (
        None if found is None else Problem(condition=ConditionType.CONFLICT, reason=found.reason, message=found.message)
    )


def _foreign_arguments(service: Service, target: Object, shared: _Shared) -> Problem | None:
    """Somebody else who changed the container's arguments after we did."""
    last = _latest(service.status.memory.last_rollout)
    if last is None or service.container is None or note.read_note(target) is not None:
        return None
    for name in note.FIELDS:
        found = _foreign_write(
            target,
            scale.container_field(service.container, name),
            last_write=last,
            hold_seconds=shared.argument_hold_seconds,
            shared=shared,
        )
        if found is not None:
            return Problem(condition=ConditionType.CONFLICT, reason=found.reason, message=found.message)
    return None


def _foreign_write(
    target: Object, path: Sequence[str], *, last_write: float | None, hold_seconds: float, shared: _Shared
) -> scale.Conflict | None:
    """A field manager that took a field from us lately.

    Its value is left alone for the hold time, then it is ours again.
    """
    managed = target["metadata"].get("managedFields") or []
    found = scale.foreign_writer(managed, path, ours=FIELD_MANAGER, last_write_seconds=last_write)
    if found is None:
        return None
    changed = scale.field_owners(managed, path)[-1].time_seconds
    if changed is None:
        changed = shared.writes.since(target, path, by=found.by, now_seconds=shared.now_seconds)
    until = changed + hold_seconds
    if shared.now_seconds >= until:
        return None
    where = ".".join(part for part in path if not part.startswith("{"))
    message = f"{found.by} set {where} after us: left alone until {to_rfc3339(until)}"
    return scale.Conflict(reason=found.reason, message=message, by=found.by)


def _latest(*times: str | None) -> float | None:
    return max((time for text in times if (time := from_rfc3339(text)) is not None), default=None)


def _resolve_profile(service: Service, shared: _Shared) -> Service:
    if service.accelerator is None:
        return _with(
            service,
            Problem(
                condition=ConditionType.MODEL_TRUSTED,
                reason="AcceleratorNotKnown",
                message="no GPU label on the pods' nodes tells the accelerator: set spec.accelerator.type",
            ),
        )
    products = shared.free_gpus_by_product
    product = next((_node_product(node) for node in _nodes(service.pods, shared.cache)), None)
    name, measured = shared.overrides.get(
        (service.namespace, service.spec.model, overrides.canonical(service.accelerator), service.gpus_per_replica),
        (None, None),
    )
    try:
        profile = profiles.serving_profile(
            model=service.spec.model,
            accelerator=service.accelerator,
            gpus_per_replica=service.gpus_per_replica,
            engine=service.engine,
            overrides=measured,
        )
    except (UnknownAcceleratorError, UnknownModelError) as error:
        reason = "UnknownAccelerator" if isinstance(error, UnknownAcceleratorError) else "UnknownModel"
        return _with(service, Problem(condition=ConditionType.MODEL_TRUSTED, reason=reason, message=str(error)))
    free = products.get(product, 0) if products is not None and product is not None else None
    return _with(
        service,
        profile=profile,
        profile_name=name,
        free_gpus=free,
        engine_refusal=service.engine_refusal or _stalled(service, free),
    )


def _stalled(service: Service, free_gpus: int | None) -> Problem | None:
    """A roll-out that would wait for ever is not begun."""
    impact = rollout.impact(service.target or {}, gpus_per_replica=service.gpus_per_replica, free_gpus=free_gpus)
    if not impact.stalls:
        return None
    return Problem(condition=ConditionType.ROLLOUT, reason=impact.reason, message=impact.message)


def _is_serving(pod: Object) -> bool:
    if pod["metadata"].get("deletionTimestamp"):
        return False
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def _container(pod_spec: Object, name: str) -> Object:
    found: Object = next(item for item in pod_spec["containers"] if item["name"] == name)
    return found


def _allocatable_gpus(node: Object) -> int:
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    return next((int(allocatable[name]) for name in engine_args.GPU_RESOURCES if name in allocatable), 0)


def _node_product(node: Object) -> str | None:
    labels = node["metadata"].get("labels") or {}
    return next((labels[name] for name in _GPU_LABELS if name in labels), None)


def _nodes(pods: Iterable[Object], cache: cluster.ClusterCache) -> Iterable[Object]:
    for pod in pods:
        node = cache.get(cluster.NODES, None, pod["spec"].get("nodeName") or "")
        if node is not None:
            yield node


def _accelerator(pod_spec: Object, pods: Iterable[Object], cache: cluster.ClusterCache) -> str | None:
    selector = pod_spec.get("nodeSelector") or {}
    for name in _GPU_LABELS:
        if name in selector:
            return str(selector[name])
    return next((product for node in _nodes(pods, cache) if (product := _node_product(node)) is not None), None)
