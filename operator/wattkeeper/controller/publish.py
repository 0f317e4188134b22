"""Writes status where it changed, and tells turns of conditions as events."""

import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import pydantic

from wattkeeper.api.conditions import Condition, ConditionType, Status, update
from wattkeeper.api.service_status import InferenceServiceStatus
from wattkeeper.controller.clock import to_rfc3339
from wattkeeper.controller.events import Recorder
from wattkeeper.controller.kube import Kube, KubeConflictError, KubeError, KubeNotFoundError, Object, service_path
from wattkeeper.controller.service import Service
from wattkeeper.controller.state import ServiceState

_log = logging.getLogger(__name__)
_NOTABLE = (
    ConditionType.TARGET_RESOLVED,
    ConditionType.METRICS_AVAILABLE,
    ConditionType.SLO_SATISFIABLE,
    ConditionType.SLO_MET,
    ConditionType.SLO_CHECKED,
    ConditionType.POWER_ENFORCED,
    ConditionType.ROLLOUT,
    ConditionType.CONFLICT,
    ConditionType.MODEL_TRUSTED,
)


@dataclass(frozen=True, kw_only=True)
class Publisher:
    """Puts statuses into the cluster."""

    kube: Kube
    recorder: Recorder
    written: Callable[[], None]
    """Called after every write."""
    refresh_seconds: float
    """Measured values alone are written at most this often (wall time), and at the latest after twice as long.

    When in between differs from write to write, so that those of a fleet do not come at once.
    """

    def due(self, service: Service, state: ServiceState, built: InferenceServiceStatus, *, wall: float) -> bool:
        """True where `built` is worth writing. `wall` is the time now."""
        before = state.written
        if before is None or _steady(built, before) != _steady(before, before):
            return True
        draw = zlib.crc32(f"{service.uid} {state.written_at:.0f}".encode()) % 1024 / 1024
        if wall - state.written_at < self.refresh_seconds * (1.0 + draw):
            return False
        timeless = built.model_copy(
            update={"observed": built.observed.model_copy(update={"time": before.observed.time})}
        )
        return timeless != before

    def publish(self, service: Service, state: ServiceState, built: InferenceServiceStatus, *, wall: float) -> None:
        """Write `built`. `wall` is the time now."""
        before = state.written
        if self._patch(service.namespace, service.name, before, built):
            self._tell(service, before, built, wall)
            state.written, state.written_at = built, wall

    def publish_invalid(self, body: Object, message: str, *, wall: float) -> None:
        """Say what is wrong with a spec; all that status remembers stays."""
        meta = body["metadata"]
        try:
            before = InferenceServiceStatus.model_validate(body.get("status") or {})
        except pydantic.ValidationError:
            before = InferenceServiceStatus()
        generation = meta.get("generation", 0)
        wanted = [
            Condition(type=ConditionType.READY, status=Status.FALSE, reason="InvalidSpec", message=message[:4096])
        ]
        found = list(update(before.conditions, wanted, now=to_rfc3339(wall), generation=generation))
        changes = {"observed_generation": generation, "phase": "Degraded", "conditions": found}
        after = before.model_copy(update=changes)
        if after != before:
            self._patch(meta["namespace"], meta["name"], before, after)

    def _patch(
        self, namespace: str, name: str, before: InferenceServiceStatus | None, after: InferenceServiceStatus
    ) -> bool:
        try:
            self.kube.patch(service_path(namespace, name, "status"), {"status": status_patch(before, after)})
        except (KubeNotFoundError, KubeConflictError):
            return False
        except KubeError as error:
            _log.warning("the status of %s/%s was not written: %s", namespace, name, error)
            return False
        self.written()
        return True

    def _tell(
        self, service: Service, before: InferenceServiceStatus | None, after: InferenceServiceStatus, wall: float
    ) -> None:
        """One event where a condition turned."""
        old = {item.type: item for item in before.conditions} if before is not None else {}
        for item in after.conditions:
            known = old.get(item.type)
            if item.type not in _NOTABLE or (known is not None and known.status == item.status):
                continue
            good = Status.FALSE if item.type == ConditionType.CONFLICT else Status.TRUE
            if item.status == good and known is not None and known.status != Status.UNKNOWN:
                self.recorder.turn(service, "Normal", f"{item.type}Restored", item.message or item.reason, now=wall)
            elif item.status not in (good, Status.UNKNOWN):
                self.recorder.turn(service, "Warning", item.reason, item.message or item.reason, now=wall)


def _steady(status: InferenceServiceStatus, other: InferenceServiceStatus) -> InferenceServiceStatus:
    """`status` with everything that drifts from tick to tick taken from `other`."""
    drifting = ("message", "predicted", "planned_qps", "runner_up", "check")
    plan = {name: getattr(other.plan, name) for name in drifting} if status.plan.reason == other.plan.reason else {}
    return status.model_copy(
        update={
            "observed": other.observed,
            "factors": other.factors,
            "savings": other.savings,
            "profile": other.profile.model_copy(update={"source": status.profile.source}),
            "memory": status.memory.model_copy(
                update={"correction": other.memory.correction, "calibration": other.memory.calibration}
            ),
            "applied": status.applied.model_copy(update={"power_cap_watts": other.applied.power_cap_watts}),
            "plan": status.plan.model_copy(update=plan),
            "conditions": [item.model_copy(update={"message": ""}) for item in status.conditions],
        }
    )


def status_patch(before: InferenceServiceStatus | None, after: InferenceServiceStatus) -> Object:
    """Merge patch from one status to the next: what vanished is null."""
    new: Object = after.model_dump(by_alias=True, mode="json")
    old: Object = before.model_dump(by_alias=True, mode="json") if before is not None else {}
    return _difference(old, new)


def _difference(old: Object, new: Object) -> Object:
    patch: Object = {}
    for name, value in new.items():
        known = old.get(name)
        if isinstance(value, dict) and isinstance(known, dict):
            inner = _difference(known, value)
            if inner:
                patch[name] = inner
        elif value != known:
            patch[name] = _bare(value) if isinstance(value, list | dict) else value
    for name in old.keys() - new.keys():
        patch[name] = None
    return patch


def _bare(value: object) -> object:
    """Without nulls, which mean "remove" in a patch and nothing inside a list."""
    if isinstance(value, dict):
        return {name: _bare(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_bare(item) for item in value]
    return value
