"""From an InferenceService to everything that its decision rests on: target, container, pods, accelerator, profile.

Reads the cluster cache only. What cannot be resolved becomes a `Problem`: the condition that will say so.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import pydantic

from wattkeeper.actuators import engine_args, ownership, rollout
from wattkeeper.api import convert
from wattkeeper.api.conditions import ConditionType
from wattkeeper.api.inference_service import InferenceServiceSpec, TargetKind
from wattkeeper.api.service_status import InferenceServiceStatus
from wattkeeper.controller import cache as cluster
from wattkeeper.controller import overrides, workload
from wattkeeper.controller.foreign import foreign_arguments, scaling_conflict
from wattkeeper.controller.gpu_nodes import accelerator_of, nodes_of, product_of
from wattkeeper.controller.kube import Object
from wattkeeper.controller.service import Problem, Service, ServiceKey
from wattkeeper.controller.tick_facts import EngineReadings, ForeignWrites, TickFacts
from wattkeeper.domain.errors import PatchRefusedError, UnknownAcceleratorError, UnknownModelError
from wattkeeper.physics import profiles

_log = logging.getLogger(__name__)


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
    readings: EngineReadings = field(default_factory=EngineReadings)
    writes: ForeignWrites = field(default_factory=ForeignWrites)
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
        shared = TickFacts(
            cache=self.cache,
            readings=self.readings,
            writes=self.writes,
            conflict_hold_seconds=self.conflict_hold_seconds,
            argument_hold_seconds=self.argument_hold_seconds,
            now_seconds=now_seconds,
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


def _resolve(bare: Service, *, shared: TickFacts, rival: Object | None) -> Service:
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


def _resolve_target(service: Service, target: Object, *, shared: TickFacts) -> Service:
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
        conflict=scaling_conflict(service, target, owned, shared),
        gpus_per_replica=gpus,
        accelerator=service.spec.accelerator.type or accelerator_of(pod_spec, pods, shared.cache),
    )
    if refusal is None:
        service = _with(service, engine_refusal=foreign_arguments(service, target, shared))
    return _resolve_profile(service, shared)


def _resolve_profile(service: Service, shared: TickFacts) -> Service:
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
    product = next((product_of(node) for node in nodes_of(service.pods, shared.cache)), None)
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
