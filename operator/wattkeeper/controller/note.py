"""The note that a roll-out of engine arguments leaves on its target: what changed, how it stands, how to go back.

An annotation, so that a restarted operator knows what is under way. It goes in the same patch as the arguments.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wattkeeper.controller.kube import Object
from wattkeeper.domain.engine import EngineChange

ANNOTATION = "wattkeeper.io/rollout"
FIELDS = ("command", "args", "env")
"""Parts of a container that a change of arguments may touch."""


@dataclass(frozen=True, kw_only=True)
class Note:
    """What a roll-out changed. Times are RFC 3339."""

    container: str
    before: dict[str, Any]
    """The container's FIELDS as they were; an absent one is missing here too."""
    after: str
    """Fingerprint of the FIELDS as the roll-out left them: tells an edit by somebody else."""
    change: EngineChange
    started_at: str
    slo_was_met: bool
    ready_at: str | None = None
    """When all pods ran the new arguments."""
    failed: str | None = None
    """Why it was taken back; stays until the object's status remembers it."""

    def dump(self) -> str:
        """As the annotation holds it."""
        return json.dumps(
            {
                "container": self.container,
                "before": self.before,
                "after": self.after,
                "change": self.change.as_dict(),
                "startedAt": self.started_at,
                "sloWasMet": self.slo_was_met,
                **({} if self.ready_at is None else {"readyAt": self.ready_at}),
                **({} if self.failed is None else {"failed": self.failed}),
            },
            separators=(",", ":"),
        )


def read_note(target: Object | None) -> Note | None:
    """The note on a target; None where there is none or somebody garbled it."""
    text = ((target or {}).get("metadata", {}).get("annotations") or {}).get(ANNOTATION)
    if not text:
        return None
    try:
        data = json.loads(text)
        return Note(
            container=str(data["container"]),
            before=dict(data["before"]),
            after=str(data["after"]),
            change=EngineChange(**data["change"]),
            started_at=str(data["startedAt"]),
            slo_was_met=bool(data["sloWasMet"]),
            ready_at=data.get("readyAt"),
            failed=data.get("failed"),
        )
    except (ValueError, KeyError, TypeError):
        return None


def fields_of(pod_spec: Object, container: str) -> dict[str, Any] | None:
    """The container's FIELDS; an absent one is left out. None where there is no such container."""
    found = next((item for item in pod_spec["containers"] if item["name"] == container), None)
    return None if found is None else {name: found[name] for name in FIELDS if name in found}


def fingerprint(fields: Mapping[str, Any]) -> str:
    """A short name of the FIELDS' content."""
    return hashlib.sha256(json.dumps(dict(fields), sort_keys=True).encode()).hexdigest()[:16]


def container_patch(target: Object, container: str, after: Mapping[str, Any], annotation: str | None) -> list[Object]:
    """JSON patch that sets a container's FIELDS to `after` and the note to `annotation`, if nobody wrote in between."""
    containers = target["spec"]["template"]["spec"]["containers"]
    index = next(place for place, item in enumerate(containers) if item["name"] == container)
    operations = []
    for name in FIELDS:
        path = f"/spec/template/spec/containers/{index}/{name}"
        old, new = containers[index].get(name), after.get(name)
        if old == new:
            continue
        if new is None:
            operations.append({"op": "remove", "path": path})
        else:
            operations.append({"op": "add" if old is None else "replace", "path": path, "value": new})
    return [_unchanged(target), *operations, *_annotate(target, annotation)]


def note_patch(target: Object, annotation: str | None) -> list[Object]:
    """JSON patch that sets the note alone, or removes it; no pod restarts."""
    return [_unchanged(target), *_annotate(target, annotation)]


def _unchanged(target: Object) -> Object:
    return {"op": "test", "path": "/metadata/resourceVersion", "value": target["metadata"]["resourceVersion"]}


def _annotate(target: Object, annotation: str | None) -> list[Object]:
    annotations = target["metadata"].get("annotations")
    path = "/metadata/annotations/" + ANNOTATION.replace("~", "~0").replace("/", "~1")
    if annotation is None:
        return [{"op": "remove", "path": path}] if annotations and ANNOTATION in annotations else []
    if annotations is None:
        return [{"op": "add", "path": "/metadata/annotations", "value": {ANNOTATION: annotation}}]
    return [{"op": "add", "path": path, "value": annotation}]
