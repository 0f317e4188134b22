"""What the operator did, seen from outside: changes in the objects that it may write."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from kubernetes import client

from wattkeeper.actuators import engine_args
from wattkeeper.api.base import GROUP, VERSION
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.twin.kube import Json, Mirror

KINDS = ("replicas", "arguments", "cap")
_FLAGS = ("max_num_batched_tokens", "max_num_seqs", "kv_cache_memory_bytes", "gpu_memory_utilization", "kv_cache_dtype")


@dataclass(frozen=True, kw_only=True)
class Action:
    """One change of a lever, at a simulated time of day."""

    time_seconds: float
    kind: str
    change: str
    reason: str


class Watch:
    """Follows one Deployment, the NodePowerCaps and the InferenceService; `look` notes what changed since the last."""

    def __init__(self, api: client.ApiClient, *, namespace: str, deployment: str, service: str) -> None:
        objects = client.CustomObjectsApi(api)

        def custom(plural: str) -> Callable[..., object]:
            return lambda **options: objects.list_cluster_custom_object(GROUP, VERSION, plural, **options)

        self._deployments = Mirror("deployments", client.AppsV1Api(api).list_deployment_for_all_namespaces)
        self._caps = Mirror("nodepowercaps", custom("nodepowercaps"))
        self._services = Mirror("inferenceservices", custom("inferenceservices"))
        self._deployment, self._service = (namespace, deployment), (namespace, service)
        self._owner = f"{namespace}/{service}"
        self._state: dict[str, object] = {}
        self.actions: list[Action] = []

    @property
    def mirrors(self) -> tuple[Mirror, ...]:
        """What must be started first."""
        return (self._deployments, self._caps, self._services)

    def status(self) -> Json:
        """Status of the InferenceService; empty before the operator wrote one."""
        found: Json = self._services.objects().get(self._service, {}).get("status") or {}
        return found

    def look(self, time_seconds: float) -> None:
        """Note every lever whose value differs from the last look; the first look only learns the values."""
        now: dict[str, tuple[object, str]] = {}
        deployment = self._deployments.objects().get(self._deployment)
        if deployment is not None:
            replicas = int(deployment["spec"].get("replicas", 1))
            now["replicas"] = (replicas, str(replicas))
            engine = engine_args.read_engine(deployment["spec"]["template"]["spec"], None)
            now["arguments"] = (engine, "")
        cap = self._common_cap()
        now["cap"] = (cap, _cap_text(cap))
        for kind, (value, text) in now.items():
            before = self._state.get(kind, value)
            if before != value:
                change = (
                    _engine_change(before, value)
                    if isinstance(before, EngineSettings) and isinstance(value, EngineSettings)
                    else f"{before if kind == 'replicas' else _cap_text(before)} → {text}"
                )
                reason = str((self.status().get("plan") or {}).get("reason", ""))
                self.actions.append(Action(time_seconds=time_seconds, kind=kind, change=change, reason=reason))
            self._state[kind] = value

    def counts(self) -> dict[str, int]:
        """Actions by kind; kinds that never happened count 0."""
        found = Counter(action.kind for action in self.actions)
        return {kind: found[kind] for kind in KINDS}

    def _common_cap(self) -> tuple[float | None, float | None]:
        """Watts and MHz that most of the service's GPUs are asked to keep; (None, None) where none is."""
        entries = Counter(
            (entry.get("watts"), entry.get("clockMHz"))
            for item in self._caps.objects().values()
            for entry in item.get("spec", {}).get("caps") or []
            if entry.get("owner") == self._owner
        )
        return entries.most_common(1)[0][0] if entries else (None, None)


def _cap_text(cap: object) -> str:
    watts, clock = cap if isinstance(cap, tuple) else (None, None)
    parts = [f"{watts:g} W" if watts else "", f"{clock:g} MHz" if clock else ""]
    return " ".join(part for part in parts if part) or "none"


def _engine_change(before: EngineSettings, after: EngineSettings) -> str:
    return ", ".join(
        f"--{flag.replace('_', '-')} {getattr(before, flag)} → {getattr(after, flag)}"
        for flag in _FLAGS
        if getattr(before, flag) != getattr(after, flag)
    )
