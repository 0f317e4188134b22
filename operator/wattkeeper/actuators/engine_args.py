"""Reads and changes vLLM's engine arguments in a pod spec, whatever shape its command has.

A change removes every spelling of the flag that stands on its own and adds one `--flag=value` at the end, where vLLM's
"last one wins" makes it count; every other byte stays. The result is read back before it is handed out: a patch that
would not give exactly the asked settings is refused. Which shapes are handled and which are refused, and why, is the
table of docs/engine-arguments.md.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wattkeeper.actuators import arguments, engine_checks, flags, launch, show, validate
from wattkeeper.actuators.edits import apply
from wattkeeper.domain.engine import EngineChange, EngineSettings
from wattkeeper.domain.errors import PatchRefusedError

GPU_RESOURCES = ("nvidia.com/gpu", "amd.com/gpu", "gpu.intel.com/xe", "gpu.intel.com/i915")
_USUAL_NAMES = ("vllm", "main", "kserve-container", "vllm-container")
_IN_PATCH = ("command", "args", "env")


@dataclass(frozen=True, kw_only=True)
class EngineReading:
    """What the manifest says about the engine."""

    container: str
    settings: EngineSettings
    argv: tuple[str, ...]
    """The arguments vLLM gets; text that only the running pod knows is shown as `…`."""
    refusal: PatchRefusedError | None
    """Why the arguments could not be changed as they stand; None: they can."""
    scheduling_policy: str | None = None
    """As set; None: vLLM's default, or not known from the manifest."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EnginePatch:
    """A change of engine arguments, ready to apply or to show."""

    changed: bool
    """False where the manifest already asks for every wanted value: nothing is rolled."""
    pod_spec: dict[str, Any]
    """The new pod spec; the given one is left as it was."""
    json_patch: tuple[dict[str, Any], ...] = ()
    """RFC 6902 operations relative to the pod spec, each field guarded by a `test` of what was read."""
    strategic_merge: dict[str, Any] = field(default_factory=dict)
    """The changed fields of the one container, as a strategic merge patch of the pod spec."""
    diff: str = ""
    """Unified diff of vLLM's arguments, one option per line."""
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    settings: EngineSettings = field(default_factory=EngineSettings)
    """Engine settings with the patch in place."""
    warnings: tuple[str, ...] = ()

    def operations(self, prefix: str = "/spec/template/spec") -> list[dict[str, Any]]:
        """The JSON patch for the object that holds the pod spec at `prefix`."""
        return [{**operation, "path": prefix + operation["path"]} for operation in self.json_patch]


def find_container(pod_spec: Mapping[str, Any], name: str | None) -> int:
    """The position of the engine's container: the named one, else the only one that can be it.

    Raises PatchRefusedError (ContainerNotFound, ContainerAmbiguous).
    """
    containers = list(pod_spec.get("containers") or ())
    names = [str(container.get("name")) for container in containers]
    if name is not None:
        if name not in names:
            raise PatchRefusedError(
                "ContainerNotFound", f"the pod has no container {name!r}; it has {', '.join(names) or 'none'}"
            )
        return names.index(name)
    if len(containers) == 1:
        return 0
    likely = (
        [index for index, container in enumerate(containers) if launch.is_engine(container)]
        or [index for index, container in enumerate(containers) if gpus(container)]
        or [index for index, one in enumerate(names) if one in _USUAL_NAMES]
    )
    if len(likely) == 1:
        return likely[0]
    raise PatchRefusedError(
        "ContainerAmbiguous",
        f"it is not clear which of the containers {', '.join(names) or '(none)'} runs vLLM; name it in "
        "spec.targetRef.container",
    )


def gpus(container: Mapping[str, Any]) -> int:
    """Accelerators the container asks for; 0 where it asks for none."""
    resources = container.get("resources") or {}
    asked = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    return sum(int(asked[name]) for name in GPU_RESOURCES if str(asked.get(name, "")).isdigit())


def read_engine(pod_spec: Mapping[str, Any], container: str | None = None) -> EngineSettings:
    """The engine settings that a pod spec asks for; None in a field: vLLM's default, or not known from the manifest.

    Raises PatchRefusedError where the engine's command cannot be found.
    """
    return inspect_engine(pod_spec, container).settings


def inspect_engine(pod_spec: Mapping[str, Any], container: str | None = None) -> EngineReading:
    """The settings, the command line, and whether it could be changed.

    Raises PatchRefusedError where the engine's command cannot be found.
    """
    found = pod_spec["containers"][find_container(pod_spec, container)]
    start = launch.find(found)
    version = flags.version_of_image(found.get("image"))
    line = arguments.read(start.texts, version)
    settings, warnings = _settings(line, version, gpus_asked=gpus(found))
    if line.config_file:
        warnings.append("--config names a file with more settings that the manifest does not show; flags win over it")
    return EngineReading(
        container=str(found.get("name")),
        settings=settings,
        argv=show.shown(start.texts),
        refusal=PatchRefusedError(*start.refusal) if start.refusal else None,
        scheduling_policy=_policy(line),
        warnings=(*start.warnings, *warnings),
    )


def patch_engine(
    pod_spec: Mapping[str, Any],
    *,
    container: str | None,
    change: EngineChange,
    kv_cache_dtypes: Sequence[str] = (),
    kv_bytes_per_token: float | None = None,
) -> EnginePatch:
    """The pod spec with the wanted engine arguments.

    `kv_cache_dtypes` are the cache types the user listed (and the one in place, for a roll-back): a change of
    kv_cache_dtype to any other is refused, because it changes what the model answers. `kv_bytes_per_token` (bytes per
    GPU) lets the check of vLLM's start-up rules cover the KV cache size.

    Raises PatchRefusedError with a CamelCase reason; nothing is changed then.
    """
    position = find_container(pod_spec, container)
    found = pod_spec["containers"][position]
    start = launch.find(found)
    version = flags.version_of_image(found.get("image"))
    line = arguments.read(start.texts, version)
    now, notes = _settings(line, version, gpus_asked=gpus(found))
    wanted = _different(line, change)
    if not wanted:
        return EnginePatch(
            changed=False,
            pod_spec=copy.deepcopy(dict(pod_spec)),
            before=show.shown(start.texts),
            after=show.shown(start.texts),
            settings=now,
            warnings=start.warnings,
        )
    if start.refusal is not None:
        raise PatchRefusedError(*start.refusal)
    warnings = [*start.warnings, *notes, *engine_checks.check(wanted, line, version, found, kv_cache_dtypes)]
    if any(occurrence.missing for occurrence in line.occurrences):
        raise PatchRefusedError("MalformedArguments", "a flag that needs a value has none; vLLM would not start")
    drop = [
        site
        for occurrence in line.occurrences
        if occurrence.field in wanted
        for site in _removable(start, occurrence, warnings)
    ]
    added = [arguments.canonical(name, value) for name, value in wanted.items()]
    new_container = apply(found, drop=drop, append=start.append, arguments=added)
    after = _verify(new_container, wanted, version, kept=_kept(start.texts, line, wanted))
    settings, _ = _settings(arguments.read(after, version), version, gpus_asked=gpus(found))
    _check_startup(now, settings, kv_bytes_per_token)
    new_spec = copy.deepcopy(dict(pod_spec))
    new_spec["containers"][position] = new_container
    before_shown, after_shown = show.shown(start.texts), show.shown(after)
    return EnginePatch(
        changed=True,
        pod_spec=new_spec,
        json_patch=_operations(found, new_container, position),
        strategic_merge=_merge(found, new_container),
        diff=show.argv_diff(before_shown, after_shown),
        before=before_shown,
        after=after_shown,
        settings=settings,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _settings(
    line: arguments.CommandLine, version: flags.Version | None, *, gpus_asked: int
) -> tuple[EngineSettings, list[str]]:
    """Settings from the last occurrence of each flag, with a sentence for each that cannot be told."""
    values: dict[str, Any] = {}
    warnings: list[str] = []
    for name, setting in arguments.SETTINGS.items():
        last = line.of(name)[-1:]
        if not last:
            continue
        try:
            value = None if last[0].missing else last[0].value()
        except ValueError:
            warnings.append(f"{setting.option} has the value {last[0].text!r}, which vLLM refuses")
            continue
        if not last[0].known:
            warnings.append(f"the value of {setting.option} is not in the manifest")
        if value is not None:
            values[name] = value
    if line.of("tensor_parallel_size") and "tensor_parallel_size" not in values and gpus_asked:
        values["tensor_parallel_size"] = gpus_asked
        warnings.append(f"tensor parallelism is taken to be the {gpus_asked} GPUs that the container asks for")
    for name, names in line.ambiguous:
        warnings.append(f"{name} may mean more than one flag of this vLLM; {', '.join(names)} may be set by it")
    for name in ("num_gpu_blocks_override", "scheduling_policy"):
        values.pop(name, None)
    return EngineSettings(**values, vllm_version=version), warnings


def _policy(line: arguments.CommandLine) -> str | None:
    last = line.of("scheduling_policy")[-1:]
    return last[0].text if last and last[0].known else None


def _different(line: arguments.CommandLine, change: EngineChange) -> dict[str, arguments.Value]:
    """The wanted values that the command line does not already give."""
    wanted: dict[str, arguments.Value] = {}
    for name, value in change.as_dict().items():
        last = line.of(name)[-1:]
        try:
            current = last[0].value() if last and not last[0].missing else None
        except ValueError:
            current = None
        if current is None or current != value:
            wanted[name] = value
    return wanted


def _removable(start: launch.Launch, occurrence: arguments.Occurrence, warnings: list[str]) -> list[Any]:
    """The places to cut for one occurrence; none where it stands inside a variable (the added flag wins over it)."""
    sites = [start.tokens[index].site for index in occurrence.tokens]
    if all(site is not None for site in sites):
        return sites
    option = arguments.SETTINGS[occurrence.field].option
    if sites[0] is None:
        warnings.append(f"{option} is also set inside a variable or a template; the added flag comes later and wins")
        return []
    raise PatchRefusedError(
        "ValueNotInManifest", f"the value of {option} is part of a variable that holds more than it; spell it out"
    )


def _kept(texts: Sequence[str], line: arguments.CommandLine, wanted: Mapping[str, arguments.Value]) -> tuple[str, ...]:
    gone = {index for occurrence in line.occurrences if occurrence.field in wanted for index in occurrence.tokens}
    return tuple(text for index, text in enumerate(texts) if index not in gone)


def _verify(
    container: Mapping[str, Any],
    wanted: Mapping[str, arguments.Value],
    version: flags.Version | None,
    *,
    kept: tuple[str, ...],
) -> tuple[str, ...]:
    """Read the changed container again: every wanted value in effect, every other argument as it was."""
    after = launch.find(container).texts
    line = arguments.read(after, version)
    missing = _different(line, EngineChange(**wanted))  # type: ignore[arg-type]
    if missing or _kept(after, line, wanted) != kept:
        names = ", ".join(arguments.SETTINGS[name].option for name in missing) or "the other arguments"
        raise PatchRefusedError(
            "NotEffective",
            f"the change would not come out as wanted ({names}): they are set again where they cannot be edited",
        )
    return after


def _check_startup(now: EngineSettings, after: EngineSettings, kv_bytes_per_token: float | None) -> None:
    old = validate.check_startup(now, kv_bytes_per_token=kv_bytes_per_token)
    new = [line for line in validate.check_startup(after, kv_bytes_per_token=kv_bytes_per_token) if line not in old]
    if new:
        raise PatchRefusedError("WouldNotStart", "vLLM would not start: " + "; ".join(new))


def _operations(before: Mapping[str, Any], after: Mapping[str, Any], position: int) -> tuple[dict[str, Any], ...]:
    operations: list[dict[str, Any]] = [
        {"op": "test", "path": f"/containers/{position}/name", "value": before.get("name")}
    ]
    for name in _IN_PATCH:
        path = f"/containers/{position}/{name}"
        if before.get(name) == after.get(name):
            continue
        if name in before:
            operations.append({"op": "test", "path": path, "value": before[name]})
            operations.append({"op": "replace", "path": path, "value": after[name]})
        else:
            operations.append({"op": "add", "path": path, "value": after[name]})
    return tuple(operations)


def _merge(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {"name": after.get("name")}
    for name in _IN_PATCH:
        if before.get(name) == after.get(name):
            continue
        if name == "env":
            old = list(before.get("env") or ())
            changed["env"] = [entry for entry in after["env"] if entry not in old]
        else:
            changed[name] = after[name]
    return {"containers": [changed]}
