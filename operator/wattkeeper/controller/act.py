"""Carries a plan out: scale, arguments, power caps.

Looks at the live object again before it writes, and writes only if nobody else did in between.
"""

import logging
import threading
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from wattkeeper.actuators import engine_args, power
from wattkeeper.api.base import GROUP, VERSION
from wattkeeper.api.conditions import ConditionType
from wattkeeper.controller import note as notes
from wattkeeper.controller.caps import Node, PowerView
from wattkeeper.controller.clock import to_rfc3339
from wattkeeper.controller.kube import (
    JSON_PATCH,
    Kube,
    KubeConflictError,
    KubeError,
    KubeForbiddenError,
    KubeNotFoundError,
    Object,
    node_power_cap_path,
    workload_path,
)
from wattkeeper.controller.service import Problem, Service, ServiceKey
from wattkeeper.controller.writers import Writers
from wattkeeper.domain.engine import EngineChange
from wattkeeper.domain.errors import PatchRefusedError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one action."""

    done: bool
    problem: Problem | None = None


@dataclass(frozen=True, kw_only=True)
class CapWish:
    """Power wanted for a service; both None: release its GPUs."""

    service: Service
    watts: float | None
    clock_mhz: float | None


@dataclass(kw_only=True)
class CapsOutcome:
    """What became of all wishes of a tick."""

    moved: set[ServiceKey] = field(default_factory=set)
    """Services whose limits were written anew, not only renewed."""
    problems: dict[ServiceKey, Problem] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _NodeChange:
    """A write of one NodePowerCap."""

    node: Node
    wishes: tuple[CapWish, ...]
    entries: list[dict[str, Any]]
    moved: set[ServiceKey]
    """Services whose values change; the others are renewed."""


@dataclass(kw_only=True)
class Actor:
    """Writes to the cluster on behalf of services.

    Deleted services are locked out, so that a tick which began before a deletion cannot set their caps again.
    """

    kube: Kube
    cap_ttl_seconds: float
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _gone: set[tuple[ServiceKey, str]] = field(default_factory=set)

    def scale(self, service: Service, replicas: int) -> Outcome:
        """Write the replica count through the scale subresource."""
        kind = service.spec.target_ref.kind.value
        path = workload_path(kind, service.namespace, service.spec.target_ref.name, "scale")
        try:
            live = self.kube.get(path)
            if live["spec"].get("replicas", 0) != service.desired_replicas:
                return _retry_later(f"replicas changed to {live['spec'].get('replicas')} while deciding")
            self.kube.patch(
                path, {"spec": {"replicas": replicas}}, resource_version=live["metadata"]["resourceVersion"]
            )
        except KubeConflictError:
            return _retry_later("the target changed while deciding")
        except KubeError as error:
            return _failed(ConditionType.CONFLICT, "ScaleFailed", error)
        return Outcome(done=True)

    def change_engine(self, service: Service, change: EngineChange, *, now: float, slo_was_met: bool) -> Outcome:
        """Patch the arguments in the target's pod template and leave a note to go back by. `now` is wall time."""
        if service.target is None or service.container is None:
            raise ValueError("only resolved services are changed")
        try:
            live = self._live_target(service)
            if notes.read_note(live) is not None:
                return _retry_later("a roll-out is under way already")
            pod_spec = live["spec"]["template"]["spec"]
            patched = propose(service, pod_spec, change)
        except PatchRefusedError as error:
            return Outcome(
                done=False, problem=Problem(condition=ConditionType.ROLLOUT, reason=error.reason, message=str(error))
            )
        except KubeError as error:
            return _failed(ConditionType.ROLLOUT, "PatchFailed", error)
        if not patched.changed:
            return Outcome(done=False)
        after = notes.fields_of(patched.pod_spec, service.container) or {}
        note = notes.Note(
            container=service.container,
            before=notes.fields_of(pod_spec, service.container) or {},
            after=notes.fingerprint(after),
            change=change,
            started_at=to_rfc3339(now),
            slo_was_met=slo_was_met,
        )
        operations = notes.container_patch(live, service.container, after, note.dump())
        return self._patch_target(service, operations, "PatchFailed")

    def roll_back(self, service: Service, note: notes.Note, why: str) -> Outcome:
        """Put the arguments back that were there before a roll-out; the note says why until status remembers it."""
        try:
            live = self._live_target(service)
        except KubeError as error:
            return _failed(ConditionType.ROLLOUT, "RollBackFailed", error)
        fields = notes.fields_of(live["spec"]["template"]["spec"], note.container)
        if fields is None or notes.fingerprint(fields) != note.after:
            return _retry_later("somebody else changed the arguments meanwhile")
        annotation = replace(note, failed=why).dump()
        operations = notes.container_patch(live, note.container, note.before, annotation)
        return self._patch_target(service, operations, "RollBackFailed")

    def write_note(self, service: Service, note: notes.Note | None) -> Outcome:
        """Keep the note of a roll-out up to date, or remove it; no pod restarts."""
        try:
            live = self._live_target(service)
        except KubeError as error:
            return _failed(ConditionType.ROLLOUT, "NoteNotWritten", error)
        operations = notes.note_patch(live, None if note is None else note.dump())
        if len(operations) == 1:
            return Outcome(done=True)
        return self._patch_target(service, operations, "NoteNotWritten")

    def _live_target(self, service: Service) -> Object:
        return self.kube.get(
            workload_path(service.spec.target_ref.kind.value, service.namespace, service.spec.target_ref.name)
        )

    def _patch_target(self, service: Service, operations: list[Object], reason: str) -> Outcome:
        path = workload_path(service.spec.target_ref.kind.value, service.namespace, service.spec.target_ref.name)
        try:
            self.kube.patch(path, operations, content_type=JSON_PATCH)
        except KubeConflictError:
            return _retry_later("the target changed while deciding")
        except KubeError as error:
            return _failed(ConditionType.ROLLOUT, reason, error)
        return Outcome(done=True)

    def set_caps(self, wishes: Sequence[CapWish], view: PowerView, writers: Writers) -> CapsOutcome:
        """Bring the NodePowerCaps to what is wished: at most one write per node, none where nothing changes."""
        outcome = CapsOutcome()
        by_node: dict[str, list[CapWish]] = defaultdict(list)
        for wish in wishes:
            owned = view.nodes_with_entries(wish.service.owner)
            wanted = wish.service.nodes if wish.watts is not None or wish.clock_mhz is not None else frozenset()
            for name in owned | wanted:
                by_node[name].append(wish)
        with self._lock:
            changes = []
            for name, group in by_node.items():
                node = view.nodes.get(name)
                live = [wish for wish in group if (wish.service.key, wish.service.uid) not in self._gone]
                change = self._change(node, live, view.now_seconds, outcome) if node is not None else None
                if change is not None:
                    changes.append(change)
            writers.each(changes, lambda change: self._write_caps(change, outcome))
        return outcome

    def _change(
        self, node: Node, wishes: Sequence[CapWish], now_seconds: float, outcome: CapsOutcome
    ) -> _NodeChange | None:
        """What to write on a node; None where nothing changes and no entry has to be renewed.

        Nodes renew at different ages, so that those of a fleet do not come at once; and a node that is written is
        renewed as a whole, so that its services do not come one by one.
        """
        draw = zlib.crc32(node.name.encode()) % 1024 / 1024
        change = self._decide(node, wishes, now_seconds, outcome, renew_below=self.cap_ttl_seconds * (0.5 + draw / 4))
        if change is None:
            return None
        return self._decide(node, wishes, now_seconds, outcome, renew_below=self.cap_ttl_seconds)

    def _decide(
        self, node: Node, wishes: Sequence[CapWish], now_seconds: float, outcome: CapsOutcome, *, renew_below: float
    ) -> _NodeChange | None:
        entries = [entry.model_dump(by_alias=True, exclude_none=True) for entry in node.entries]
        # Only which GPUs there are: the agent clamps to the cards' bounds and says so in clamped.
        devices = [{"uuid": device.uuid} for device in node.devices]
        changed, moved = False, set()
        for wish in wishes:
            before = _values(entries, wish.service.owner)
            decision = power.decide_caps(
                {"caps": entries},
                gpus=[device.uuid for device in node.devices_of(wish.service.namespace, wish.service.pod_names)],
                watts=wish.watts,
                clock_mhz=wish.clock_mhz,
                owner=wish.service.owner,
                now_seconds=now_seconds,
                ttl_seconds=self.cap_ttl_seconds,
                renew_below_seconds=renew_below,
                devices=devices,
            )
            if decision.conflicts:
                outcome.problems[wish.service.key] = Problem(
                    condition=ConditionType.CONFLICT,
                    reason=decision.conflicts[0].reason,
                    message=f"node {node.name}: {'; '.join(item.message for item in decision.conflicts)}",
                )
            if decision.caps is not None:
                entries, changed = decision.caps, True
                if _values(entries, wish.service.owner) != before:
                    moved.add(wish.service.key)
        return _NodeChange(node=node, wishes=tuple(wishes), entries=entries, moved=moved) if changed else None

    def _write_caps(self, change: _NodeChange, outcome: CapsOutcome) -> None:
        path, version = node_power_cap_path(change.node.name), change.node.resource_version
        try:
            self.kube.patch(path, {"spec": {"caps": change.entries}}, resource_version=version)
        except KubeConflictError:
            return
        except KubeError as error:
            for wish in change.wishes:
                outcome.problems[wish.service.key] = Problem(
                    condition=ConditionType.POWER_ENFORCED, reason="CapNotWritten", message=str(error)
                )
            return
        outcome.moved.update(change.moved)

    def ensure_nodes(self, names: Sequence[str], view: PowerView) -> None:
        """Create the NodePowerCap of nodes that have none, empty, for their agents to report in."""
        for name in names:
            if name in view.nodes or not view.served:
                continue
            body: dict[str, Any] = {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": "NodePowerCap",
                "metadata": {"name": name},
                "spec": {"caps": []},
            }
            try:
                self.kube.create(node_power_cap_path(), body)
            except KubeConflictError:
                continue
            except KubeError as error:
                _log.warning("the NodePowerCap of node %s cannot be created: %s", name, error)

    def release(self, key: ServiceKey, uid: str) -> None:
        """Remove every cap of a deleted service, and lock the service out. Raises KubeError where a node refuses."""
        owner = f"{key[0]}/{key[1]}"
        with self._lock:
            self._gone.add((key, uid))
            try:
                found = self.kube.get(node_power_cap_path()).get("items") or []
            except (KubeNotFoundError, KubeForbiddenError) as error:
                _log.warning("caps of %s cannot be looked at; they run out by themselves: %s", owner, error)
                return
            for body in found:
                kept = power.release(body.get("spec"), owner=owner)
                if kept is not None:
                    self.kube.patch(
                        node_power_cap_path(body["metadata"]["name"]),
                        {"spec": {"caps": kept}},
                        resource_version=body["metadata"]["resourceVersion"],
                    )


def propose(service: Service, pod_spec: Object, change: EngineChange) -> engine_args.EnginePatch:
    """The pod spec with other engine arguments. Raises PatchRefusedError with the reason where it cannot be done."""
    return engine_args.patch_engine(
        pod_spec,
        container=service.container,
        change=change,
        kv_cache_dtypes=service.levers.engine.kv_cache_dtype,
        kv_bytes_per_token=service.profile.kv_bytes_per_token if service.profile is not None else None,
    )


def _values(entries: Sequence[Object], owner: str) -> dict[str, tuple[Any, Any]]:
    return {entry["uuid"]: (entry.get("watts"), entry.get("clockMHz")) for entry in entries if entry["owner"] == owner}


def _retry_later(why: str) -> Outcome:
    _log.info("nothing written: %s; deciding again on the next tick", why)
    return Outcome(done=False)


def _failed(condition: ConditionType, reason: str, error: KubeError) -> Outcome:
    return Outcome(done=False, problem=Problem(condition=condition, reason=reason, message=str(error)))
