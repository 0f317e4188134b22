"""Roll-outs of engine arguments: begun with a note on the target, judged on every tick, taken back once if they fail.

The note is an annotation of the target, so a restarted operator knows what is under way and what to go back to.
"""

import enum
import json
from dataclasses import dataclass
from typing import Any

from wattkeeper.controller.clock import Clock, from_rfc3339
from wattkeeper.controller.kube import Object
from wattkeeper.controller.resolve import Service
from wattkeeper.controller.settings import OperatorSettings
from wattkeeper.controller.status import missed_targets
from wattkeeper.domain.engine import EngineChange
from wattkeeper.domain.observation import ServiceObservation

ANNOTATION = "wattkeeper.io/rollout"
FIELDS = ("command", "args", "env")
"""Parts of a container that a change of arguments may touch."""


@dataclass(frozen=True, kw_only=True)
class Note:
    """What a roll-out changed."""

    container: str
    before: dict[str, Any]
    """The container's FIELDS as they were; an absent one is missing here too."""
    change: EngineChange
    started_at: str
    slo_was_met: bool

    def dump(self) -> str:
        """As the annotation holds it."""
        return json.dumps(
            {
                "container": self.container,
                "before": self.before,
                "change": self.change.as_dict(),
                "startedAt": self.started_at,
                "sloWasMet": self.slo_was_met,
            },
            separators=(",", ":"),
        )


def read_note(target: Object) -> Note | None:
    """The note on a target; None where there is none or somebody garbled it."""
    text = (target["metadata"].get("annotations") or {}).get(ANNOTATION)
    if not text:
        return None
    try:
        data = json.loads(text)
        return Note(
            container=data["container"],
            before=dict(data["before"]),
            change=EngineChange(**data["change"]),
            started_at=data["startedAt"],
            slo_was_met=bool(data["sloWasMet"]),
        )
    except (ValueError, KeyError, TypeError):
        return None


class Verdict(enum.Enum):
    """How a roll-out stands."""

    RUNNING = "Running"
    WATCHING = "Watching"
    """All pods run the new arguments; the SLO is being watched."""
    COMPLETE = "Complete"
    FAILED = "Failed"


def judge(
    note: Note, service: Service, observation: ServiceObservation | None, *, clock: Clock, settings: OperatorSettings
) -> tuple[Verdict, str]:
    """How the roll-out of `note` stands, and why where it failed."""
    started = from_rfc3339(note.started_at)
    elapsed = clock.now() - clock.decision_time(started) if started is not None else settings.rollout_deadline_seconds
    what = ", ".join(f"{name}={value}" for name, value in note.change.as_dict().items())
    if service.rolling_out:
        if _deadline_exceeded(service.target) or elapsed > settings.rollout_deadline_seconds:
            return Verdict.FAILED, f"{what}: pods did not become ready within {elapsed / 60:.0f} min"
        return Verdict.RUNNING, ""
    watched = elapsed <= settings.rollout_deadline_seconds + settings.rollout_watch_seconds
    if note.slo_was_met and watched and missed_targets(service.slo, observation):
        return Verdict.FAILED, f"{what}: the SLO was met before and is missed since"
    if elapsed < settings.rollout_watch_seconds:
        return Verdict.WATCHING, ""
    return Verdict.COMPLETE, ""


def _deadline_exceeded(target: Object | None) -> bool:
    conditions = ((target or {}).get("status") or {}).get("conditions") or []
    return any(item["type"] == "Progressing" and item["status"] == "False" for item in conditions)


def container_patch(target: Object, container: str, after: dict[str, Any], annotation: str | None) -> list[Object]:
    """JSON patch that sets a container's FIELDS to `after` and the note to `annotation`, if nobody wrote in between."""
    containers = target["spec"]["template"]["spec"]["containers"]
    index = next(place for place, item in enumerate(containers) if item["name"] == container)
    operations: list[Object] = [
        {"op": "test", "path": "/metadata/resourceVersion", "value": target["metadata"]["resourceVersion"]}
    ]
    for name in FIELDS:
        path = f"/spec/template/spec/containers/{index}/{name}"
        old, new = containers[index].get(name), after.get(name)
        if old == new:
            continue
        if new is None:
            operations.append({"op": "remove", "path": path})
        else:
            operations.append({"op": "add" if old is None else "replace", "path": path, "value": new})
    return [*operations, *_annotate(target, annotation)]


def _annotate(target: Object, annotation: str | None) -> list[Object]:
    annotations = target["metadata"].get("annotations")
    path = "/metadata/annotations/" + ANNOTATION.replace("~", "~0").replace("/", "~1")
    if annotation is None:
        return [{"op": "remove", "path": path}] if annotations and ANNOTATION in annotations else []
    if annotations is None:
        return [{"op": "add", "path": "/metadata/annotations", "value": {ANNOTATION: annotation}}]
    return [{"op": "add", "path": path, "value": annotation}]


def forget_patch(target: Object) -> list[Object]:
    """JSON patch that removes the note."""
    version = target["metadata"]["resourceVersion"]
    return [{"op": "test", "path": "/metadata/resourceVersion", "value": version}, *_annotate(target, None)]
