"""Patches engine arguments in a whole API object: its pod spec, or the fields of a custom resource that stand for them.

Workloads: Deployment, StatefulSet, ReplicaSet, DaemonSet, LeaderWorkerSet (leader, and workers that run vLLM too).
Custom resources whose controllers build the pods: KServe's LLMInferenceService (its start script evaluates
VLLM_ADDITIONAL_ARGS) and production-stack's VLLMRuntime (fields of its own, the rest in extraArgs).
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wattkeeper.actuators import arguments, flags, show
from wattkeeper.actuators.engine_args import EnginePatch, inspect_engine, patch_engine
from wattkeeper.domain.engine import EngineChange, EngineSettings
from wattkeeper.domain.errors import PatchRefusedError

_POD_TEMPLATE = ("spec", "template", "spec")
_KSERVE_SCRIPT = 'eval "exec vllm serve /mnt/models ${VLLM_ADDITIONAL_ARGS} $@"'
_KSERVE_COMMAND = ["/bin/bash", "-c", _KSERVE_SCRIPT, "--"]
_RUNTIME_FIELDS = {
    "max_num_seqs": ("model", "maxNumSeqs"),
    "gpu_memory_utilization": ("vllmConfig", "gpuMemoryUtilization"),
}


@dataclass(frozen=True, kw_only=True)
class TargetPatch:
    """A change of engine arguments in one API object."""

    changed: bool
    body: dict[str, Any]
    """The new object; the given one is left as it was."""
    operations: tuple[dict[str, Any], ...] = ()
    """RFC 6902 operations on the object."""
    diff: str = ""
    settings: EngineSettings = field(default_factory=EngineSettings)
    warnings: tuple[str, ...] = ()


def patch_target(
    body: Mapping[str, Any],
    *,
    container: str | None,
    change: EngineChange,
    kv_cache_dtypes: Sequence[str] = (),
    kv_bytes_per_token: float | None = None,
) -> TargetPatch:
    """The object with the wanted engine arguments; the keywords are those of `patch_engine`.

    Raises PatchRefusedError (UnsupportedKind, and all that patch_engine raises).
    """
    kind = str(body.get("kind"))
    if kind == "VLLMRuntime":
        return _patch_runtime(body, change, kv_cache_dtypes)
    if kind == "LLMInferenceService":
        container = container or "main"
    new_body = copy.deepcopy(dict(body))
    operations: list[dict[str, Any]] = []
    patches: list[EnginePatch] = []
    for path in _pod_paths(body):
        try:
            patch = patch_engine(
                _pod_spec(body, path),
                container=container,
                change=change,
                kv_cache_dtypes=kv_cache_dtypes,
                kv_bytes_per_token=kv_bytes_per_token,
            )
        except PatchRefusedError as refused:
            if patches and refused.reason == "UnknownLauncher":
                continue  # workers of a group that only join the leader's Ray cluster
            raise
        patches.append(patch)
        if patch.changed:
            operations += patch.operations("/" + "/".join(path))
            _put(new_body, path, patch.pod_spec)
    warnings = dict.fromkeys(warning for patch in patches for warning in patch.warnings)
    if kind == "LLMInferenceService":
        warnings["it takes effect where the preset's start script evaluates VLLM_ADDITIONAL_ARGS"] = None
    return TargetPatch(
        changed=any(patch.changed for patch in patches),
        body=new_body,
        operations=_kserve_operations(body, new_body) if kind == "LLMInferenceService" else tuple(operations),
        diff="\n".join(patch.diff for patch in patches if patch.diff),
        settings=patches[0].settings,
        warnings=tuple(warnings),
    )


def read_target(body: Mapping[str, Any], container: str | None = None) -> EngineSettings:
    """The engine settings that the object asks for. Raises PatchRefusedError as `patch_target` does."""
    kind = str(body.get("kind"))
    if kind == "VLLMRuntime":
        return inspect_engine(_runtime_pod(body["spec"]), "vllm").settings
    name = container or ("main" if kind == "LLMInferenceService" else None)
    return inspect_engine(_pod_spec(body, _pod_paths(body)[0]), name).settings


def _pod_paths(body: Mapping[str, Any]) -> list[tuple[str, ...]]:
    kind = str(body.get("kind"))
    if kind in ("Deployment", "StatefulSet", "ReplicaSet", "DaemonSet"):
        return [_POD_TEMPLATE]
    if kind == "LLMInferenceService":
        return [("spec", "template")]
    if kind == "LeaderWorkerSet":
        group = body["spec"]["leaderWorkerTemplate"]
        names = [name for name in ("leaderTemplate", "workerTemplate") if group.get(name)]
        return [("spec", "leaderWorkerTemplate", name, "spec") for name in names]
    raise PatchRefusedError(
        "UnsupportedKind", f"engine arguments of a {kind} cannot be read; point targetRef at the workload it makes"
    )


def _pod_spec(body: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """The pod spec at `path`; an LLMInferenceService gets the command that its preset will add."""
    spec: Any = body
    for part in path:
        spec = spec.get(part) or {}
    spec = copy.deepcopy(dict(spec))
    if body.get("kind") == "LLMInferenceService":
        containers = spec.setdefault("containers", [])
        if not any(one.get("name") == "main" for one in containers):
            containers.append({"name": "main"})
        for one in containers:
            if one.get("name") == "main" and "command" not in one:
                one["command"] = list(_KSERVE_COMMAND)
    return dict(spec)


def _put(body: dict[str, Any], path: Sequence[str], pod_spec: dict[str, Any]) -> None:
    for one in pod_spec.get("containers") or ():
        if one.get("command") == _KSERVE_COMMAND:
            del one["command"]
    node = body
    for part in path[:-1]:
        node = node.setdefault(part, {})
    node[path[-1]] = pod_spec


def _kserve_operations(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """The template as a whole: its container may be new, and the assumed command is no field of the object."""
    old, new = before["spec"].get("template"), after["spec"].get("template")
    if old == new:
        return ()
    if old is None:
        return ({"op": "add", "path": "/spec/template", "value": new},)
    return (
        {"op": "test", "path": "/spec/template", "value": old},
        {"op": "replace", "path": "/spec/template", "value": new},
    )


def _runtime_arguments(spec: Mapping[str, Any]) -> list[str]:
    """The arguments that production-stack's operator makes of a VLLMRuntime, as far as they matter here."""
    model, config = spec.get("model") or {}, spec.get("vllmConfig") or {}
    made = [str(model.get("modelURL") or "model")]
    for name, switch in (
        ("enableChunkedPrefill", "enable-chunked-prefill"),
        ("enablePrefixCaching", "enable-prefix-caching"),
    ):
        made.append(f"--{switch}" if config.get(name) else f"--no-{switch}")
    for option, value in (
        ("--max-model-len", model.get("maxModelLen")),
        ("--tensor-parallel-size", config.get("tensorParallelSize")),
        ("--max-num-seqs", model.get("maxNumSeqs")),
        ("--gpu-memory-utilization", config.get("gpuMemoryUtilization")),
    ):
        if value:
            made += [option, str(value)]
    return made


def _runtime_pod(spec: Mapping[str, Any]) -> dict[str, Any]:
    image = (spec.get("deploymentConfig") or {}).get("image") or {}
    extra = [str(one) for one in (spec.get("vllmConfig") or {}).get("extraArgs") or ()]
    container = {
        "name": "vllm",
        "image": str(image.get("name") or ""),
        "command": ["/opt/venv/bin/vllm", "serve"],
        "args": [*_runtime_arguments(spec), *extra],
    }
    return {"containers": [container]}


def _patch_runtime(body: Mapping[str, Any], change: EngineChange, kv_cache_dtypes: Sequence[str]) -> TargetPatch:
    new_body = copy.deepcopy(dict(body))
    spec = new_body["spec"]
    pod = _runtime_pod(spec)
    patch = patch_engine(pod, container="vllm", change=change, kv_cache_dtypes=kv_cache_dtypes)
    if not patch.changed:
        return TargetPatch(changed=False, body=new_body, settings=patch.settings, warnings=patch.warnings)
    version = flags.version_of_image(pod["containers"][0]["image"])
    extra = [str(one) for one in spec["vllmConfig"].get("extraArgs") or ()]
    line = arguments.read(extra, version)
    wanted = change.as_dict()
    gone = {index for one in line.occurrences if one.field in wanted for index in one.tokens}
    kept = [one for index, one in enumerate(extra) if index not in gone]
    new_extra = kept + [
        arguments.canonical(name, value) for name, value in wanted.items() if name not in _RUNTIME_FIELDS
    ]
    operations: list[dict[str, Any]] = []
    for name, (part, slot) in _RUNTIME_FIELDS.items():
        if name in wanted:
            value = wanted[name] if name == "max_num_seqs" else str(wanted[name])
            _set(spec, part, slot, value, operations)
    if new_extra != extra:
        _set(spec, "vllmConfig", "extraArgs", new_extra, operations)
    after = inspect_engine(_runtime_pod(spec), "vllm")
    return TargetPatch(
        changed=True,
        body=new_body,
        operations=tuple(operations),
        diff=show.argv_diff(patch.before, after.argv),
        settings=after.settings,
        warnings=(
            *patch.warnings,
            "production-stack's operator rolls pods only when replicas, model, image, port or resources change: the "
            "new arguments take effect with its next roll-out",
        ),
    )


def _set(spec: dict[str, Any], part: str, slot: str, value: Any, operations: list[dict[str, Any]]) -> None:
    path = f"/spec/{part}/{slot}"
    if spec[part].get(slot) == value:
        return
    if slot in spec[part]:
        operations.append({"op": "test", "path": path, "value": spec[part][slot]})
    operations.append({"op": "replace" if slot in spec[part] else "add", "path": path, "value": value})
    spec[part][slot] = value
