"""What is refused, with which word, and that nothing is changed then."""

import copy

import pytest

from tests.actuators import shapes
from wattkeeper.actuators.engine_args import find_container, inspect_engine, patch_engine, read_engine
from wattkeeper.domain.engine import EngineChange
from wattkeeper.domain.errors import PatchRefusedError

SEQS = EngineChange(max_num_seqs=96)


def refused(container, change=SEQS, **options):
    pod = shapes.pod(container)
    before = copy.deepcopy(pod)
    with pytest.raises(PatchRefusedError) as caught:
        patch_engine(pod, container=None, change=change, **options)
    assert pod == before
    assert caught.value.reason.isidentifier() and caught.value.reason[0].isupper()
    assert len(str(caught.value)) > 20
    return caught.value.reason


def script(text, **fields):
    return {"name": "vllm", "image": "vllm/vllm-openai:v0.11.0", "command": ["sh", "-c", text], **fields}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("vllm serve $(cat /model)", "CommandSubstitution"),
        ("vllm serve M --seed `date +%s`", "CommandSubstitution"),
        ('vllm serve M --x "${A:-$(date)}"', "CommandSubstitution"),
        ("vllm serve M --config <(cat x)", "CommandSubstitution"),
        ("vllm serve M <<EOF\nx\nEOF\n", "HereDocument"),
        ("vllm serve A & vllm serve B; wait", "SeveralEngines"),
        ("if x; then vllm serve A; else vllm serve B; fi", "SeveralEngines"),
        ("vllm serve M --seed '1", "UnreadableScript"),
        ('vllm serve M --seed "1', "UnreadableScript"),
        ("vllm serve M $(ls", "UnreadableScript"),
        ("cat <<EOF\nvllm serve M", "UnreadableScript"),
        ("vllm serve M >", "UnreadableScript"),
        ("ray job submit -- vllm serve M", "UnknownLauncher"),
        ("bash -c 'vllm serve M'", "UnknownLauncher"),
        ("./start.sh", "UnknownLauncher"),
        ('eval "$CMD"', "UnknownLauncher"),
        ('eval "vllm serve M"', "EvalNotEditable"),
        ('eval "exec vllm serve M $@"', "NoPlaceForArguments"),
        ("vllm serve M --max-num-seqs $SEQS", "ValueNotInManifest"),
        ("SEQS=9; vllm serve M --max-num-seqs=$SEQS", "ValueNotInManifest"),
        ("vllm serve M --max-num-seqs ${SEQS:-9}", "ValueNotInManifest"),
        ("vllm serve M --max-num-seqs $((2*32))", "ValueNotInManifest"),
        ("vllm serve M --max-num-seqs", "MalformedArguments"),
        ("vllm serve M --max-num-seqs --seed 1", "MalformedArguments"),
        ("vllm serve M --max-num 5", "AmbiguousFlag"),
    ],
)
def test_scripts(text, reason):
    assert refused(script(text)) == reason


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"command": ["/app/start.sh"], "args": ["--max-num-seqs", "5"]}, "UnknownLauncher"),
        ({"command": ["bash", "start.sh"]}, "UnknownLauncher"),
        ({"command": ["python3", "serve.py"]}, "UnknownLauncher"),
        ({"args": ["python3", "serve.py"]}, "UnknownLauncher"),
        ({"command": ["torchrun", "vllm", "serve", "M"]}, "UnknownLauncher"),
        ({"args": ["--max-num-seqs", "$(SEQS)"], "envFrom": [{"configMapRef": {"name": "x"}}]}, "ValueNotInManifest"),
    ],
)
def test_lists(fields, reason):
    assert refused({"name": "vllm", "image": "vllm/vllm-openai:v0.11.0", **fields}) == reason


def test_value_from_a_secret():
    env = [{"name": "SEQS", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]
    assert refused(shapes.command_and_args(["--max-num-seqs=$(SEQS)"]) | {"env": env}) == "ValueNotInManifest"
    assert refused(script("vllm serve M --max-num-seqs $SEQS", env=env)) == "ValueNotInManifest"
    other = patch_engine(
        shapes.pod(shapes.command_and_args(["--max-num-seqs=$(SEQS)"]) | {"env": env}),
        container=None,
        change=EngineChange(max_num_batched_tokens=4096),
    )
    assert "--max-num-seqs=$(SEQS)" in other.pod_spec["containers"][0]["args"]


def test_literal_environment_is_resolved_and_left_alone():
    env = [{"name": "BASE", "value": "6"}, {"name": "SEQS", "value": "$(BASE)4"}, {"name": "MORE", "value": "--seed 1"}]
    container = shapes.command_and_args(["--max-num-seqs=$(SEQS)", "--tag", "$$(SEQS) $(NOT_THERE)"]) | {"env": env}
    reading = inspect_engine(shapes.pod(container), None)
    assert reading.settings.max_num_seqs == 64
    assert reading.argv[-1] == "$(SEQS) $(NOT_THERE)"
    patch = patch_engine(shapes.pod(container), container=None, change=SEQS)
    after = patch.pod_spec["containers"][0]
    assert after["env"] == env
    assert after["args"][1:] == ["--tag", "$$(SEQS) $(NOT_THERE)", "--max-num-seqs=96"]


def test_a_flag_inside_a_variable_is_overridden():
    env = [{"name": "MORE", "value": "--seed 1 --max-num-seqs 8"}]
    pod = shapes.pod(script("exec vllm serve M $MORE --port 80", env=env))
    assert read_engine(pod, None).max_num_seqs == 8
    patch = patch_engine(pod, container=None, change=SEQS)
    assert patch.pod_spec["containers"][0]["command"][2] == "exec vllm serve M $MORE --port 80 --max-num-seqs=96"
    assert any("comes later and wins" in warning for warning in patch.warnings)


def test_a_value_inside_a_longer_variable_is_refused():
    env = [{"name": "MORE", "value": "8 --seed 1"}]
    assert refused(script("exec vllm serve M --max-num-seqs $MORE", env=env)) == "ValueNotInManifest"


def test_kserve_flag_after_the_variable_is_refused():
    text = 'eval "exec vllm serve M ${VLLM_ADDITIONAL_ARGS} --max-num-seqs 8"'
    container = {"name": "main", "command": ["bash", "-c", text, "--"]}
    assert refused(container) == "NotEffective"


def test_kserve_variable_from_a_config_map_goes_through_args():
    env = [{"name": "VLLM_ADDITIONAL_ARGS", "valueFrom": {"configMapKeyRef": {"name": "x", "key": "y"}}}]
    container = shapes.kserve_args([]) | {"env": env}
    patch = patch_engine(shapes.pod(container), container=None, change=SEQS)
    assert patch.pod_spec["containers"][0]["args"] == ["--max-num-seqs=96"]
    assert patch.pod_spec["containers"][0]["env"] == env


def test_version_of_the_image_decides_about_flags():
    memory = EngineChange(kv_cache_memory_bytes=2**33)
    container = shapes.command_and_args([])
    container["image"] = "vllm/vllm-openai:v0.9.2"
    assert refused(container, memory) == "FlagNotInVersion"
    container["image"] = "vllm/vllm-openai:v0.11.0"
    assert not patch_engine(shapes.pod(container), container=None, change=memory).warnings
    container["image"] = "vllm/vllm-openai:latest"
    patch = patch_engine(shapes.pod(container), container=None, change=memory)
    assert any("0.10.2" in warning for warning in patch.warnings)


def test_prefix_is_ambiguous_only_where_the_version_has_both():
    container = shapes.command_and_args(["--max-num-s", "8"])
    container["image"] = "vllm/vllm-openai:v0.11.0"
    assert read_engine(shapes.pod(container), None).max_num_seqs == 8
    container["image"] = "vllm/vllm-openai:v0.33.0"
    assert read_engine(shapes.pod(container), None).max_num_seqs is None
    assert refused(container) == "AmbiguousFlag"


def test_cache_type_only_when_listed():
    change = EngineChange(kv_cache_dtype="fp8")
    container = shapes.command_and_args([])
    assert refused(container, change) == "KvCacheDtypeNotListed"
    assert refused(container, change, kv_cache_dtypes=["fp8_e5m2"]) == "KvCacheDtypeNotListed"
    patch = patch_engine(shapes.pod(container), container=None, change=change, kv_cache_dtypes=["fp8"])
    assert patch.settings.kv_cache_dtype == "fp8"
    odd = EngineChange(kv_cache_dtype="fp8;reboot")
    assert refused(container, odd, kv_cache_dtypes=["fp8;reboot"]) == "InvalidValue"


def test_start_up_rules_come_first():
    assert refused(shapes.command_and_args(["--max-num-batched-tokens", "64"])) == "WouldNotStart"
    assert refused(shapes.command_and_args([]), EngineChange(gpu_memory_utilization=1.5)) == "WouldNotStart"
    container = shapes.command_and_args(["--max-num-active-seqs=128"])
    container["image"] = "vllm/vllm-openai:v0.33.0"
    assert refused(container) == "WouldNotStart"
    small = EngineChange(kv_cache_memory_bytes=2**20)
    container = shapes.command_and_args(["--max-model-len", "8k"])
    assert refused(container, small, kv_bytes_per_token=131072.0) == "WouldNotStart"


def test_cpu_environment_wins_over_the_flag():
    container = shapes.command_and_args([]) | {"env": [{"name": "VLLM_CPU_KVCACHE_SPACE", "value": "4"}]}
    assert refused(container, EngineChange(kv_cache_memory_bytes=2**33)) == "OverriddenByEnvironment"


def test_warnings():
    container = shapes.command_and_args(
        ["--kv-cache-memory-bytes=8G", "--num-gpu-blocks-override=5", "--config", "f.yaml"]
    )
    patch = patch_engine(shapes.pod(container), container=None, change=EngineChange(gpu_memory_utilization=0.8))
    text = " ".join(patch.warnings)
    assert "no effect while --kv-cache-memory-bytes" in text and "--num-gpu-blocks-override" in text
    assert any("--config" in warning for warning in inspect_engine(shapes.pod(container), None).warnings)
    own = {"name": "x", "image": "registry.example/chat:7", "args": ["--model", "M"]}
    patch = patch_engine(shapes.pod(own), container=None, change=SEQS)
    assert any("entry point" in warning for warning in patch.warnings)
    served = {"name": "x", "image": "vllm/vllm-openai:v0.11.0", "args": ["serve", "M"]}
    assert patch_engine(shapes.pod(served), container=None, change=SEQS).warnings == ()


def test_containers():
    engine = shapes.command_and_args([])
    sidecar = {"name": "proxy", "image": "envoy:1", "args": ["-c", "x"]}
    assert find_container({"containers": [sidecar, engine]}, None) == 1
    assert find_container({"containers": [sidecar, engine]}, "proxy") == 0
    with pytest.raises(PatchRefusedError, match="no container 'x'; it has proxy, vllm") as caught:
        find_container({"containers": [sidecar, engine]}, "x")
    assert caught.value.reason == "ContainerNotFound"
    twin = dict(engine, name="second")
    with pytest.raises(PatchRefusedError) as caught:
        find_container({"containers": [engine, twin, sidecar]}, None)
    assert caught.value.reason == "ContainerAmbiguous"
    plain = {"name": "main", "image": "chat:1", "args": ["--model", "M"]}
    assert find_container({"containers": [sidecar, plain]}, None) == 1
    gpu = dict(plain, name="x", resources={"limits": {"amd.com/gpu": "1"}})
    assert find_container({"containers": [sidecar, gpu]}, None) == 1
    with pytest.raises(PatchRefusedError):
        find_container({"containers": []}, None)
