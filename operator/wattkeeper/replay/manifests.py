"""The manifests of a replayed service: made from plain facts, or a user's own; and what they say of the service."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
import yaml

from wattkeeper.actuators import engine_args
from wattkeeper.api import convert
from wattkeeper.api.base import GROUP, VERSION
from wattkeeper.api.inference_service import InferenceServiceSpec
from wattkeeper.controller import overrides
from wattkeeper.controller.kube import Object
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.errors import PatchRefusedError
from wattkeeper.domain.plan import LatencyTarget, Slo
from wattkeeper.physics import profiles
from wattkeeper.replay.stage import ReplayError, Stage

NAME, CONTAINER = "service", "vllm"
_GPU_RESOURCE = "nvidia.com/gpu"
_ARGUMENTS = {
    "max_num_seqs": "--max-num-seqs",
    "max_num_batched_tokens": "--max-num-batched-tokens",
    "max_model_len": "--max-model-len",
    "gpu_memory_utilization": "--gpu-memory-utilization",
    "kv_cache_memory_bytes": "--kv-cache-memory-bytes",
    "kv_cache_dtype": "--kv-cache-dtype",
    "block_size": "--block-size",
    "tensor_parallel_size": "--tensor-parallel-size",
    "pipeline_parallel_size": "--pipeline-parallel-size",
}


@dataclass(frozen=True, kw_only=True)
class Levers:
    """What the operator may move, beside the replicas."""

    replicas: bool = True
    power_cap: bool = False
    clock: bool = False
    token_budgets: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Manifests:
    """What the operator is given, as in a cluster."""

    service: Object
    workload: Object


def made(stage: Stage, levers: Levers) -> Manifests:
    """Manifests of a service that allows these levers, over the whole range of the card."""
    return Manifests(service=_service(stage, levers), workload=_workload(stage))


def fitted(given: Manifests, stage: Stage) -> Manifests:
    """A user's manifests for a replay: enforced, from the stage's replicas up to what its GPUs hold."""
    service, workload = copy.deepcopy(given.service), copy.deepcopy(given.workload)
    for body in (service, workload):
        body["metadata"] = {**body["metadata"], "namespace": stage.namespace}
    workload["spec"]["replicas"] = stage.replicas
    service["spec"]["mode"] = "Enforce"
    service["spec"].pop("paused", None)
    replicas = service["spec"].setdefault("levers", {}).get("replicas")
    if replicas is not None:
        replicas["max"] = min(int(replicas["max"]), stage.max_replicas)
        replicas["min"] = min(int(replicas.get("min", 1)), replicas["max"])
        replicas.pop("control", None)
    return Manifests(service=service, workload=workload)


def read(service: Path, workload: Path) -> Manifests:
    """A user's InferenceService and the Deployment that it names. Raises ReplayError: not such files."""
    found = Manifests(service=_read(service, "InferenceService"), workload=_read(workload, "Deployment"))
    named, name = found.service["spec"]["targetRef"]["name"], found.workload["metadata"]["name"]
    if named != name:
        raise ReplayError(f"{service} keeps the Deployment {named}, but {workload} is {name}")
    return found


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What manifests say of a service."""

    model: str
    accelerator: str
    engine: EngineSettings
    slo: Slo
    namespace: str
    replicas: int
    min_replicas: int
    max_replicas: int | None
    """None: replicas are no lever."""


def facts(given: Manifests) -> Facts:
    """Raises ReplayError where a manifest leaves out what only a cluster could tell, or vLLM's command is not found."""
    spec = _spec(given.service)
    pod = given.workload["spec"]["template"]["spec"]
    if spec.accelerator.type is None:
        raise ReplayError(
            "the InferenceService names no accelerator, and there are no nodes to read it from: give --accelerator"
        )
    try:
        reading = engine_args.inspect_engine(pod, spec.target_ref.container)
    except PatchRefusedError as error:
        raise ReplayError(f"the Deployment: {error}") from error
    lever = spec.levers.replicas
    return Facts(
        model=spec.model,
        accelerator=spec.accelerator.type,
        engine=reading.settings,
        slo=convert.slo(spec.slo),
        namespace=given.service["metadata"].get("namespace", "default"),
        replicas=int(given.workload["spec"].get("replicas", 1)),
        min_replicas=1 if lever is None else lever.min,
        max_replicas=None if lever is None else lever.max,
    )


def believed_profile(stage: Stage, *, time: float, power: float) -> Object:
    """A ModelProfile that makes the operator believe other step times and watts than its own by these factors."""
    own = profiles.serving_profile(
        model=stage.model,
        accelerator=stage.accelerator,
        gpus_per_replica=stage.gpus_per_replica,
        engine=stage.engine,
    )
    step, watts = own.iteration, own.energy
    decode = None if step.dn_seconds_per_decode is None else 1e3 * time * step.dn_seconds_per_decode
    iteration: dict[str, float] = {
        "d0Ms": 1e3 * time * step.d0_seconds,
        "dtMsPerToken": 1e3 * time * step.dt_seconds_per_token,
        "dkvMsPerKiloToken": 1e6 * time * step.dkv_seconds_per_kv_token,
        "daMsPerMegaTokenSquared": 1e9 * time * step.da_seconds_per_token_squared,
        **({} if decode is None else {"dnMsPerDecode": decode}),
    }
    joules = time * power
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "ModelProfile",
        "metadata": {"name": "believed", "namespace": stage.namespace},
        "spec": {
            "model": stage.model,
            "accelerator": overrides.canonical(stage.accelerator),
            "gpusPerReplica": stage.gpus_per_replica,
            "iteration": iteration,
            "power": {
                "staticWatts": power * watts.static_watts,
                "idleWatts": power * watts.idle_watts,
                "stepJoules": joules * watts.e0_joules,
                "joulesPerPrefillToken": joules * watts.et_joules_per_prefill_token,
                "joulesPerDecodeStep": joules * watts.en_joules_per_decode,
                "joulesPerMegaKvToken": 1e6 * joules * watts.ekv_joules_per_kv_token,
            },
            "provenance": "Estimated",
            "relativeError": own.relative_error,
        },
    }


def _service(stage: Stage, levers: Levers) -> Object:
    card = profiles.serving_profile(
        model=stage.model, accelerator=stage.accelerator, gpus_per_replica=stage.gpus_per_replica, engine=stage.engine
    ).gpu
    allowed: dict[str, Any] = {}
    if levers.replicas:
        allowed["replicas"] = {"min": stage.min_replicas, "max": stage.max_replicas}
    if levers.power_cap:
        allowed["powerCap"] = {"min": f"{card.min_cap_watts:.0f}W", "max": f"{card.tdp_watts:.0f}W", "step": "25W"}
    if levers.clock:
        low, high = max(card.min_clock_mhz, 0.4 * card.max_clock_mhz), card.max_clock_mhz
        allowed["clockLock"] = {"min": f"{low:.0f}MHz", "max": f"{high:.0f}MHz"}
    if levers.token_budgets:
        allowed["engine"] = {"maxNumBatchedTokens": list(levers.token_budgets)}
    slo: dict[str, Any] = {"minAttainment": stage.slo.min_attainment}
    for name, goal in (("ttft", stage.slo.ttft), ("tpot", stage.slo.tpot)):
        if goal is not None:
            slo[name] = _goal(goal)
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "InferenceService",
        "metadata": {"name": NAME, "namespace": stage.namespace},
        "spec": {
            "model": stage.model,
            "targetRef": {"name": NAME, "container": CONTAINER},
            "accelerator": {"type": stage.accelerator, "perReplica": stage.gpus_per_replica},
            "slo": slo,
            "mode": "Enforce",
            "levers": allowed,
        },
    }


def _goal(goal: LatencyTarget) -> dict[str, Any]:
    return {"percentile": goal.percentile, "target": f"{round(1000 * goal.seconds)}ms"}


def _workload(stage: Stage) -> Object:
    engine = stage.engine
    given = {name: getattr(engine, name) for name in _ARGUMENTS}
    plain = EngineSettings()
    arguments = [f"--model={stage.model}"]
    arguments += [f"{_ARGUMENTS[name]}={value}" for name, value in given.items() if value != getattr(plain, name)]
    if engine.enable_prefix_caching is not None:
        arguments.append("--enable-prefix-caching" if engine.enable_prefix_caching else "--no-enable-prefix-caching")
    life = stage.lifecycle
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": stage.namespace},
        "spec": {
            "replicas": stage.replicas,
            "selector": {"matchLabels": {"app": NAME}},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {
                    "maxSurge": f"{100 * life.max_surge:.0f}%",
                    "maxUnavailable": f"{100 * life.max_unavailable:.0f}%",
                },
            },
            "template": {
                "metadata": {"labels": {"app": NAME}},
                "spec": {
                    "terminationGracePeriodSeconds": round(life.grace_seconds),
                    "containers": [
                        {
                            "name": CONTAINER,
                            "image": "vllm/vllm-openai:v0.15.1",
                            "args": arguments,
                            "resources": {"limits": {_GPU_RESOURCE: str(stage.gpus_per_replica)}},
                        }
                    ],
                },
            },
        },
    }


def _read(path: Path, kind: str) -> Object:
    try:
        bodies = [body for body in yaml.safe_load_all(path.read_text(encoding="utf-8")) if isinstance(body, dict)]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ReplayError(f"{path}: cannot be read as YAML: {error}") from error
    found = [body for body in bodies if body.get("kind") == kind]
    if len(found) != 1:
        raise ReplayError(f"{path}: holds {len(found)} objects of kind {kind}, one is needed")
    if kind == "InferenceService":
        _spec(found[0], path)
    elif not {"metadata", "spec"} <= found[0].keys() or "template" not in found[0]["spec"]:
        raise ReplayError(f"{path}: the {kind} has no spec.template")
    return dict(found[0])


def _spec(body: Object, path: Path | None = None) -> InferenceServiceSpec:
    try:
        return InferenceServiceSpec.model_validate(body.get("spec") or {})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = "the InferenceService" if path is None else str(path)
        raise ReplayError(f"{where}: spec.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
