"""What a Deployment's or StatefulSet's status tells of its roll-outs."""

from wattkeeper.controller.kube import Object


def rolling_out(target: Object) -> bool:
    """True while the workload's controller still replaces pods by those of the newest template.

    Added replicas that still start look the same in the counts, so the controllers' own word decides: a Deployment's
    reason `NewReplicaSetAvailable` and a StatefulSet's equal revisions stand until the template changes.
    """
    state, wanted = target.get("status") or {}, target["spec"].get("replicas", 1)
    if state.get("observedGeneration", 0) < target["metadata"].get("generation", 0):
        return True
    if not wanted:
        return False
    if "updateRevision" in state:
        return bool(state.get("currentRevision", state["updateRevision"]) != state["updateRevision"])
    updated, progress = state.get("updatedReplicas", 0), _progressing(target)
    if state.get("replicas", 0) > updated:
        return True
    if progress is not None:
        return bool(progress.get("reason") != "NewReplicaSetAvailable")
    return bool(updated < wanted or state.get("readyReplicas", 0) < wanted)


def stuck(target: Object) -> str | None:
    """What the workload's controller says of a roll-out that it gave up; None where it did not."""
    state, progress = target.get("status") or {}, _progressing(target)
    current = state.get("observedGeneration", 0) >= target["metadata"].get("generation", 0)
    if progress is None or progress["status"] != "False" or not current:
        return None
    return str(progress.get("message") or progress.get("reason") or "no progress within progressDeadlineSeconds")


def _progressing(target: Object) -> Object | None:
    conditions = (target.get("status") or {}).get("conditions") or []
    return next((item for item in conditions if item["type"] == "Progressing"), None)
