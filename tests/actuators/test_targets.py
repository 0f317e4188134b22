import copy

import pytest

from tests.actuators import shapes
from wattkeeper.actuators.ownership import owner_check
from wattkeeper.actuators.targets import patch_target, read_target
from wattkeeper.domain.engine import EngineChange
from wattkeeper.domain.errors import PatchRefusedError

SEQS = EngineChange(max_num_seqs=96)


def apply(body, operations):
    """A small JSON Patch (test, add, replace) to prove that the operations give the new object."""
    body = copy.deepcopy(body)
    for operation in operations:
        *path, last = operation["path"].strip("/").split("/")
        node = body
        for part in path:
            node = node[int(part)] if isinstance(node, list) else node[part]
        last = int(last) if isinstance(node, list) else last
        if operation["op"] == "test":
            assert node[last] == operation["value"]
        elif operation["op"] == "add" and isinstance(node, list):
            node.insert(last, operation["value"])
        else:
            assert operation["op"] == "add" or last in node
            node[last] = operation["value"]
    return body


def deployment(container):
    return {"kind": "Deployment", "metadata": {"name": "chat"}, "spec": {"template": {"spec": shapes.pod(container)}}}


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_operations_make_the_new_object(shape):
    body = deployment(shapes.SHAPES[shape](["--max-num-seqs", "7"]))
    before = copy.deepcopy(body)
    patch = patch_target(body, container=None, change=SEQS)
    assert body == before
    assert patch.changed and apply(body, patch.operations) == patch.body
    assert read_target(patch.body).max_num_seqs == 96
    again = patch_target(patch.body, container=None, change=SEQS)
    assert not again.changed and again.operations == () and again.body == patch.body


def test_leader_worker_set():
    leader = {"spec": shapes.pod(shapes.lws_leader([]))}
    ray_worker = {"spec": shapes.pod({"name": "vllm", "command": ["sh", "-c", "ray start --block"]})}
    body = {
        "kind": "LeaderWorkerSet",
        "spec": {"leaderWorkerTemplate": {"leaderTemplate": leader, "workerTemplate": ray_worker, "size": 2}},
    }
    patch = patch_target(body, container=None, change=SEQS)
    assert apply(body, patch.operations) == patch.body
    assert patch.body["spec"]["leaderWorkerTemplate"]["workerTemplate"] == ray_worker
    serving = {"spec": shapes.pod(shapes.llmd_serve([]))}
    body["spec"]["leaderWorkerTemplate"] = {"workerTemplate": serving, "leaderTemplate": serving}
    patch = patch_target(body, container=None, change=SEQS)
    assert len({operation["path"] for operation in patch.operations if operation["op"] == "replace"}) == 2
    assert read_target(patch.body).max_num_seqs == 96


@pytest.mark.parametrize(
    "spec",
    [
        {"model": {"uri": "hf://m"}},
        {"template": {"containers": [{"name": "main", "env": [{"name": "HOME", "value": "/"}]}]}},
        {"template": {"containers": [{"name": "main", "args": ["--max-num-seqs=4", "--seed=1"]}]}},
        {"template": {"containers": [{"name": "proxy"}], "nodeSelector": {"a": "b"}}},
    ],
)
def test_llm_inference_service(spec):
    body = {"kind": "LLMInferenceService", "spec": spec}
    patch = patch_target(body, container=None, change=SEQS)
    assert apply(body, patch.operations) == patch.body
    main = next(one for one in patch.body["spec"]["template"]["containers"] if one["name"] == "main")
    assert "command" not in main
    assert {"name": "VLLM_ADDITIONAL_ARGS", "value": "--max-num-seqs=96"} in main["env"]
    assert read_target(patch.body).max_num_seqs == 96
    assert not patch_target(patch.body, container=None, change=SEQS).changed


def test_vllm_runtime():
    body = {
        "kind": "VLLMRuntime",
        "spec": {
            "model": {"modelURL": "m", "maxNumSeqs": 32},
            "vllmConfig": {"gpuMemoryUtilization": "0.8", "extraArgs": ["--seed", "1", "--max_num_seqs", "16"]},
            "deploymentConfig": {"image": {"registry": "docker.io", "name": "vllm/vllm-openai:v0.11.0"}},
        },
    }
    assert read_target(body).max_num_seqs == 16
    assert read_target(body).enable_prefix_caching is False
    change = EngineChange(max_num_seqs=96, max_num_batched_tokens=4096, gpu_memory_utilization=0.8)
    patch = patch_target(body, container=None, change=change)
    assert apply(body, patch.operations) == patch.body
    assert patch.body["spec"]["model"]["maxNumSeqs"] == 96
    assert patch.body["spec"]["vllmConfig"] == {
        "gpuMemoryUtilization": "0.8",
        "extraArgs": ["--seed", "1", "--max-num-batched-tokens=4096"],
    }
    assert patch.settings.max_num_seqs == 96
    assert any("next roll-out" in warning for warning in patch.warnings)
    assert not patch_target(patch.body, container=None, change=change).changed
    del body["spec"]["vllmConfig"]["extraArgs"]
    patch = patch_target(body, container=None, change=EngineChange(kv_cache_memory_bytes=2**34))
    assert apply(body, patch.operations) == patch.body


def test_unsupported_kind():
    with pytest.raises(PatchRefusedError, match="RayService") as caught:
        read_target({"kind": "RayService", "spec": {}})
    assert caught.value.reason == "UnsupportedKind"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("LLMInferenceService", "VLLM_ADDITIONAL_ARGS"),
        ("VLLMRuntime", "spec.model.maxNumSeqs"),
        ("LeaderWorkerSet", "leaderTemplate"),
        ("Foo", "recommended values"),
    ],
)
def test_owned_by_a_controller(kind, words):
    target = deployment(shapes.image_default([]))
    target["metadata"]["ownerReferences"] = [
        {"kind": "Noise", "name": "n"},
        {"kind": kind, "name": "chat", "controller": True},
    ]
    ownership = owner_check(target, SEQS)
    assert not ownership.allowed and ownership.reason == "OwnedByController"
    assert ownership.owner == f"{kind}/chat" and words in ownership.message
    if kind == "VLLMRuntime":
        assert "spec.deploymentConfig.replicas" in owner_check(target).message


@pytest.mark.parametrize(
    ("metadata", "tool"),
    [
        ({"annotations": {"argocd.argoproj.io/tracking-id": "x"}}, "Argo CD"),
        ({"labels": {"kustomize.toolkit.fluxcd.io/name": "x"}}, "Flux"),
        (
            {"labels": {"app.kubernetes.io/managed-by": "Helm"}, "annotations": {"meta.helm.sh/release-name": "x"}},
            "Helm",
        ),
    ],
)
def test_deployment_tools_only_warn(metadata, tool):
    ownership = owner_check({"kind": "Deployment", "metadata": {"name": "x", **metadata}})
    assert ownership.allowed and ownership.reason == "Free"
    assert len(ownership.warnings) == 1 and tool in ownership.warnings[0]
    assert owner_check({"kind": "Deployment", "metadata": {"name": "x"}}).warnings == ()
