"""What a change of engine arguments may not do, given the flags of this vLLM and what the user listed."""

from collections.abc import Mapping, Sequence
from typing import Any

from wattkeeper.actuators import arguments, flags
from wattkeeper.domain.errors import PatchRefusedError


def check(
    wanted: Mapping[str, arguments.Value],
    line: arguments.CommandLine,
    version: flags.Version | None,
    container: Mapping[str, Any],
    kv_cache_dtypes: Sequence[str],
) -> list[str]:
    """Raise PatchRefusedError for what this vLLM lacks or the user did not allow; return what the user should know."""
    warnings: list[str] = []
    for name in wanted:
        option = arguments.SETTINGS[name].option
        has = flags.availability(option, version)
        shown = "unknown" if version is None else f"{version[0]}.{version[1]}"
        if has is False:
            raise PatchRefusedError(
                "FlagNotInVersion",
                f"vLLM {shown} has no {option}; it is known from {flags.first_version(option)} on",
            )
        if has is None:
            warnings.append(
                f"{option} is known from vLLM {flags.first_version(option)} on; the image does not tell its version"
            )
        for prefix, names in line.ambiguous:
            if name in names:
                raise PatchRefusedError(
                    "AmbiguousFlag",
                    f"{prefix} in the arguments may mean {option} or another flag of vLLM {shown}; spell it out",
                )
        if any(not occurrence.known for occurrence in line.of(name)):
            raise PatchRefusedError(
                "ValueNotInManifest",
                f"the value of {option} comes from a Secret, a ConfigMap, a field or the script; change it there",
            )
    if "kv_cache_dtype" in wanted and wanted["kv_cache_dtype"] not in kv_cache_dtypes:
        raise PatchRefusedError(
            "KvCacheDtypeNotListed",
            f"kv_cache_dtype {wanted['kv_cache_dtype']} changes what the model answers and is not listed in "
            "spec.levers.engine.kvCacheDtype",
        )
    bad = [str(value) for value in wanted.values() if isinstance(value, str) and not value.replace("_", "").isalnum()]
    if bad:
        raise PatchRefusedError("InvalidValue", f"{bad[0]!r} is no value that vLLM could take")
    environment_names = {str(entry.get("name")) for entry in container.get("env") or ()}
    if "kv_cache_memory_bytes" in wanted and "VLLM_CPU_KVCACHE_SPACE" in environment_names:
        raise PatchRefusedError(
            "OverriddenByEnvironment",
            "VLLM_CPU_KVCACHE_SPACE is set and wins over --kv-cache-memory-bytes; remove it from the container",
        )
    if "gpu_memory_utilization" in wanted and (line.of("kv_cache_memory_bytes") or "kv_cache_memory_bytes" in wanted):
        warnings.append("--gpu-memory-utilization has no effect while --kv-cache-memory-bytes is set")
    if line.of("num_gpu_blocks_override") and {"gpu_memory_utilization", "kv_cache_memory_bytes"} & set(wanted):
        warnings.append("--num-gpu-blocks-override is set: the size of the KV cache does not follow the change")
    return warnings
