"""Other writers of what the operator writes: replica counts and engine arguments."""

from collections.abc import Sequence

from wattkeeper.actuators import ownership, scale
from wattkeeper.api.conditions import ConditionType
from wattkeeper.controller import note
from wattkeeper.controller.clock import from_rfc3339, to_rfc3339
from wattkeeper.controller.kube import FIELD_MANAGER, Object
from wattkeeper.controller.service import Problem, Service
from wattkeeper.controller.tick_facts import TickFacts
from wattkeeper.domain import plan


def scaling_conflict(service: Service, target: Object, owned: ownership.Ownership, shared: TickFacts) -> Problem | None:
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


def foreign_arguments(service: Service, target: Object, shared: TickFacts) -> Problem | None:
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
    target: Object, path: Sequence[str], *, last_write: float | None, hold_seconds: float, shared: TickFacts
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
