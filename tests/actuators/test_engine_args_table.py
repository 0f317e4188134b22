"""Shapes of manifests times spellings of flags: what is read, what is written, what survives."""

import pytest

from tests.actuators import shapes
from wattkeeper.actuators.engine_args import inspect_engine, patch_engine, read_engine
from wattkeeper.domain.engine import EngineChange

CHANGE = EngineChange(max_num_seqs=96, max_num_batched_tokens=4096, gpu_memory_utilization=0.85)

SPELLINGS = {
    "absent": ([], {}),
    "space": (["--max-num-seqs", "256"], {"max_num_seqs": 256}),
    "equals": (["--max-num-seqs=256"], {"max_num_seqs": 256}),
    "underscore": (["--max_num_seqs=256"], {"max_num_seqs": 256}),
    "underscore-space": (["--gpu_memory_utilization", "0.5"], {"gpu_memory_utilization": 0.5}),
    "mixed": (["--max-num_seqs", "256"], {"max_num_seqs": 256}),
    "prefix": (["--gpu-memory-util", "0.5"], {"gpu_memory_utilization": 0.5}),
    "prefix-equals": (["--max-num-seq=256"], {"max_num_seqs": 256}),
    "prefix-underscore": (["--kv_cache_memory=2G"], {"kv_cache_memory_bytes": 2**31}),
    "repeated": (["--max-num-seqs", "64", "--max-num-seqs=256"], {"max_num_seqs": 256}),
    "decimal": (["--max-num-batched-tokens", "8k"], {"max_num_batched_tokens": 8000}),
    "binary": (["--max-num-batched-tokens=8K"], {"max_num_batched_tokens": 8192}),
    "fraction": (["--max-num-batched-tokens=1.5k"], {"max_num_batched_tokens": 1500}),
    "gigabytes": (["--kv-cache-memory-bytes", "2g"], {"kv_cache_memory_bytes": 2_000_000_000}),
    "short": (["-tp", "2"], {"tensor_parallel_size": 2}),
    "short-equals": (["-tp=2"], {"tensor_parallel_size": 2}),
    "short-prefix": (["-t", "2"], {"tensor_parallel_size": 2}),
    "twin": (["--enable-prefix-caching", "--no-enable-prefix-caching"], {"enable_prefix_caching": False}),
    "twin-back": (["--no_enable_chunked_prefill", "--enable-chunked-prefill"], {"enable_chunked_prefill": True}),
    "switch-with-word": (["--enable-prefix-caching", "false"], {"enable_prefix_caching": True}),
    "length": (["--max-model-len", "32k"], {"max_model_len": 32000}),
    "length-auto": (["--max-model-len=auto"], {}),
    "length-negative": (["--max-model-len", "-1", "--max-num-seqs=256"], {"max_num_seqs": 256}),
    "level": (["-O3", "--max-num-seqs", "256"], {"max_num_seqs": 256}),
    "several": (
        ["--block-size", "32", "--kv-cache-dtype=fp8", "-pp", "2", "-dp=4"],
        {"block_size": 32, "kv_cache_dtype": "fp8", "pipeline_parallel_size": 2, "data_parallel_size": 4},
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_every_shape_and_spelling(shape, spelling):
    flags, expected = SPELLINGS[spelling]
    pod = shapes.pod(shapes.SHAPES[shape]([*flags, *shapes.OTHERS]))
    settings = read_engine(pod, None)
    for field, value in expected.items():
        if not (shape == "lws_leader" and field == "pipeline_parallel_size"):
            assert getattr(settings, field) == value, field
    patch = patch_engine(pod, container=None, change=CHANGE)
    assert patch.changed
    after = read_engine(patch.pod_spec, None)
    assert after == patch.settings
    assert (after.max_num_seqs, after.max_num_batched_tokens, after.gpu_memory_utilization) == (96, 4096, 0.85)
    untouched = {**settings.__dict__, **CHANGE.as_dict()}
    assert after.__dict__ == untouched
    added = ["--max-num-seqs=96", "--max-num-batched-tokens=4096", "--gpu-memory-utilization=0.85"]
    assert [word for word in patch.after if word in added] == added
    assert [word for word in patch.after if word in shapes.OTHERS] == [
        word for word in patch.before if word in shapes.OTHERS
    ]
    again = patch_engine(patch.pod_spec, container=None, change=CHANGE)
    assert not again.changed
    assert again.pod_spec == patch.pod_spec
    assert again.diff == "" and again.json_patch == ()


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_only_the_spelling_of_the_flag_goes(shape):
    """Removing what was added gives the manifest without the flag, byte for byte."""
    without = shapes.pod(shapes.SHAPES[shape](shapes.OTHERS))
    flagged = shapes.pod(shapes.SHAPES[shape](["--max_num_seqs", "256", *shapes.OTHERS]))
    change = EngineChange(max_num_seqs=96)
    assert patch_engine(flagged, container=None, change=change).pod_spec == (
        patch_engine(without, container=None, change=change).pod_spec
    )


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_the_same_value_in_another_spelling_rolls_nothing(shape):
    pod = shapes.pod(shapes.SHAPES[shape](["--max_num_seq", "96", "--max-num-batched-tokens", "4k"]))
    patch = patch_engine(pod, container=None, change=EngineChange(max_num_seqs=96, max_num_batched_tokens=4000))
    assert not patch.changed
    assert patch.pod_spec == pod


def test_device_memory_utilization_is_an_alias_in_new_releases():
    container = shapes.command_and_args(["--device-memory-utilization=0.5", "--device_memory_utilization", "0.6"])
    container["image"] = "vllm/vllm-openai:v0.33.0"
    pod = shapes.pod(container)
    assert read_engine(pod, None).gpu_memory_utilization == 0.6
    patch = patch_engine(pod, container="vllm", change=EngineChange(gpu_memory_utilization=0.9))
    assert patch.pod_spec["containers"][0]["args"] == [shapes.MODEL, "--gpu-memory-utilization=0.9"]


def test_arguments_go_before_a_double_dash():
    pod = shapes.pod(shapes.command_and_args(["--max-num-seqs", "4", "--", "--max-num-seqs", "8"]))
    assert read_engine(pod, None).max_num_seqs == 4
    patch = patch_engine(pod, container=None, change=EngineChange(max_num_seqs=16))
    assert patch.pod_spec["containers"][0]["args"] == [shapes.MODEL, "--max-num-seqs=16", "--", "--max-num-seqs", "8"]


def test_shell_edit_keeps_layout_comments_and_the_rest_of_the_line():
    script = (
        "echo 'max-num-seqs 9' # --max-num-seqs 9\n"
        "vllm serve M --max-num-seqs 64 \\\n    --seed 1 # tuned\n"
        "echo done --max-num-seqs 5\n"
    )
    pod = shapes.pod({"name": "x", "command": ["sh", "-c", script]})
    patch = patch_engine(pod, container=None, change=EngineChange(max_num_seqs=128))
    assert patch.pod_spec["containers"][0]["command"][2] == (
        "echo 'max-num-seqs 9' # --max-num-seqs 9\n"
        "vllm serve M \\\n    --seed 1 \\\n    --max-num-seqs=128 # tuned\n"
        "echo done --max-num-seqs 5\n"
    )
    assert any("exec" in warning for warning in patch.warnings)


def test_kserve_arguments_go_into_the_variable_and_leave_args():
    container = shapes.kserve_args(["--max-num-seqs", "8", "--seed=1"])
    patch = patch_engine(shapes.pod(container), container="main", change=EngineChange(max_num_seqs=16))
    after = patch.pod_spec["containers"][0]
    assert after["command"] == container["command"]
    assert after["args"] == ["--seed=1"]
    assert after["env"] == [{"name": "VLLM_ADDITIONAL_ARGS", "value": "--max-num-seqs=16"}]
    assert patch.strategic_merge == {"containers": [{"name": "main", "args": ["--seed=1"], "env": after["env"]}]}


def test_kserve_variable_keeps_its_other_words():
    value = '--max-num-seqs 8 --kv-transfer-config \'{"a": "b c"}\'  --seed 1\n'
    container = shapes.kserve_args([])
    container["env"] = [{"name": "VLLM_ADDITIONAL_ARGS", "value": value}]
    patch = patch_engine(shapes.pod(container), container=None, change=EngineChange(max_num_seqs=16))
    assert patch.pod_spec["containers"][0]["env"][0]["value"] == (
        '--kv-transfer-config \'{"a": "b c"}\'  --seed 1 --max-num-seqs=16\n'
    )


def test_diff_and_json_patch():
    pod = shapes.pod(shapes.command_and_args(["--max-num-seqs", "8", "--api-key", "hidden", "--seed", "1"]))
    patch = patch_engine(pod, container=None, change=EngineChange(max_num_seqs=16))
    assert "hidden" not in patch.diff and "hidden" not in " ".join(patch.after)
    assert "---max-num-seqs 8\n" in patch.diff
    assert "+--max-num-seqs=16" in patch.diff
    assert [operation["op"] for operation in patch.operations()] == ["test", "test", "replace"]
    assert patch.operations()[2]["path"] == "/spec/template/spec/containers/0/args"
    assert patch.strategic_merge["containers"][0].keys() == {"name", "args"}


def test_inspection_tells_refusals_and_what_is_not_known():
    container = shapes.shell_in_args([])
    container["args"] = ["vllm serve M --max-num-seqs $(nproc) -tp $GPUS"]
    reading = inspect_engine(shapes.pod(container), None)
    assert reading.settings.max_num_seqs is None
    assert reading.settings.tensor_parallel_size == 2
    assert reading.refusal is not None and reading.refusal.reason == "CommandSubstitution"
    assert reading.argv == ("M", "--max-num-seqs", "…", "-tp", "…")
    assert any("--max-num-seqs is not in the manifest" in warning for warning in reading.warnings)
