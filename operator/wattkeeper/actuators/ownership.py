"""Whether a workload may be patched, or belongs to a controller that would put it back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wattkeeper.domain.engine import EngineChange

_KSERVE_LLM = "spec.template.containers[main].env VLLM_ADDITIONAL_ARGS"
_FIELDS: dict[str, dict[str, str]] = {
    "LLMInferenceService": {"replicas": "spec.replicas", "*": _KSERVE_LLM},
    "InferenceService": {"replicas": "spec.predictor.minReplicas", "*": "spec.predictor.model.args"},
    "VLLMRuntime": {
        "replicas": "spec.deploymentConfig.replicas",
        "max_num_seqs": "spec.model.maxNumSeqs",
        "gpu_memory_utilization": "spec.vllmConfig.gpuMemoryUtilization",
        "*": "spec.vllmConfig.extraArgs",
    },
    "LeaderWorkerSet": {
        "replicas": "spec.replicas",
        "*": "the args in spec.leaderWorkerTemplate.leaderTemplate and workerTemplate",
    },
    "RayService": {"*": "spec.serveConfigV2"},
    "RayCluster": {"*": "the args in spec.headGroupSpec.template"},
    "DynamoGraphDeployment": {"*": "spec.services.<name>.extraPodSpec.mainContainer.args"},
    "DynamoComponentDeployment": {"*": "spec.extraPodSpec.mainContainer.args (of its DynamoGraphDeployment)"},
    "Deployment": {"replicas": "spec.replicas", "*": "the args in spec.template"},
}
"""Where each controller takes replicas and engine arguments from ("*": any argument not named)."""

_LABELS = {
    "argocd.argoproj.io/instance": "Argo CD",
    "kustomize.toolkit.fluxcd.io/name": "Flux",
    "helm.toolkit.fluxcd.io/name": "Flux",
}
_ANNOTATIONS = {"argocd.argoproj.io/tracking-id": "Argo CD", "meta.helm.sh/release-name": "Helm"}
_ADVICE = {
    "Argo CD": "add ignoreDifferences for spec.replicas and the container's command, args and env, or self-heal "
    "puts them back",
    "Flux": "leave spec.replicas and the changed arguments out of the manifests, or the next reconciliation puts "
    "them back",
    "Helm": "the next helm upgrade puts the chart's values back",
}


@dataclass(frozen=True, kw_only=True)
class Ownership:
    """Who decides about a workload."""

    allowed: bool
    reason: str
    """Free, or OwnedByController."""
    message: str = ""
    owner: str | None = None
    """Kind/name of the controller."""
    warnings: tuple[str, ...] = ()
    """Deployment tools that may put changes back; they do not forbid a patch."""


def owner_check(target: Mapping[str, Any], change: EngineChange | None = None) -> Ownership:
    """Whether `target` (an API object as a dict) may be patched.

    An owner reference with controller=true means that its controller writes the object again: refused, with the field
    to set there for `change` (None: for replicas and arguments in general).
    """
    metadata = target.get("metadata") or {}
    warnings = _tools(metadata)
    for reference in metadata.get("ownerReferences") or ():
        if not reference.get("controller"):
            continue
        kind, name = str(reference.get("kind")), str(reference.get("name"))
        return Ownership(
            allowed=False,
            reason="OwnedByController",
            message=f"{target.get('kind')} {metadata.get('name')} is written by {kind} {name}, which would undo "
            f"a patch; {_hint(kind, change)}",
            owner=f"{kind}/{name}",
            warnings=warnings,
        )
    return Ownership(allowed=True, reason="Free", warnings=warnings)


def _hint(kind: str, change: EngineChange | None) -> str:
    fields = _FIELDS.get(kind)
    if fields is None:
        return "set the recommended values there"
    if change is None or not change:
        wanted = {"replicas": fields.get("replicas"), "engine arguments": fields["*"]}
    else:
        wanted = {name: fields.get(name, fields["*"]) for name in change.as_dict()}
    return "set " + ", ".join(f"{name} in {place}" for name, place in wanted.items() if place) + " there"


def _tools(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    labels = metadata.get("labels") or {}
    annotations = metadata.get("annotations") or {}
    found = [tool for label, tool in _LABELS.items() if label in labels]
    found += [tool for annotation, tool in _ANNOTATIONS.items() if annotation in annotations]
    if labels.get("app.kubernetes.io/managed-by") == "Helm":
        found.append("Helm")
    return tuple(f"managed by {tool}: {_ADVICE[tool]}" for tool in dict.fromkeys(found))
