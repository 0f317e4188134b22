import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattkeeper.actuators import arguments, flags


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("vllm/vllm-openai:v0.11.0", (0, 11)),
        ("docker.io/vllm/vllm-openai:v0.8.5.post1", (0, 8)),
        ("registry.example:5000/mirror/vllm-openai:0.33.0-cu130", (0, 33)),
        ("public.example/deep-learning-containers/vllm:0.11-gpu-py312", (0, 11)),
        ("vllm/vllm-openai:v0.11.0@sha256:" + "a" * 64, (0, 11)),
        ("vllm/vllm-openai:latest", None),
        ("vllm/vllm-openai", None),
        ("vllm/vllm-openai@sha256:" + "a" * 64, None),
        ("nvcr.io/nvidia/vllm:25.09-py3", None),
        ("lmcache/vllm-openai:v0.3.9", None),
        ("ghcr.io/llm-d/llm-d-cuda:v0.4.0", None),
        ("", None),
        (None, None),
    ],
)
def test_version_of_image(image, version):
    assert flags.version_of_image(image) == version


def test_availability():
    assert flags.availability("--kv-cache-memory-bytes", (0, 11)) is True
    assert flags.availability("--kv-cache-memory-bytes", (0, 9)) is False
    assert flags.availability("--kv-cache-memory-bytes", None) is None
    assert flags.availability("--kv-cache-memory-bytes", (0, 99)) is True
    assert flags.availability("--max-num-seqs", None) is True
    assert flags.availability("--max-num-seqs", (0, 5)) is True
    assert flags.availability("--swap-space", (0, 33)) is False
    assert flags.first_version("--max-num-active-seqs") == "0.31.0"


def test_every_option_resolves_to_itself():
    for version in [None, *((0, minor) for minor in range(8, 34))]:
        for option in flags.options(version):
            assert [match.action for match in flags.resolve(option.name, version)] == [option.action]


@pytest.mark.parametrize(
    ("name", "version", "actions"),
    [
        ("--max_num_seqs", None, ["--max-num-seqs"]),
        ("--gpu-mem", (0, 11), ["--gpu-memory-utilization"]),
        ("--max-num-s", (0, 11), ["--max-num-seqs"]),
        ("--max-num-s", (0, 33), ["--max-num-scheduled-tokens", "--max-num-seqs"]),
        ("--no-enable-prefix", (0, 11), ["--enable-prefix-caching"]),
        ("-t", (0, 11), ["--tensor-parallel-size"]),
        ("-tp2", (0, 11), []),
        ("-max-num-seqs", (0, 11), []),
        ("--not-a-flag", None, []),
        ("--a_b.c_d", None, []),
    ],
)
def test_resolve(name, version, actions):
    assert sorted(match.action for match in flags.resolve(name, version)) == actions


@pytest.mark.parametrize(
    ("text", "value"),
    [("8k", 8000), ("8K", 8192), ("2G", 2**31), ("2g", 2 * 10**9), ("25.6k", 25600), (" 7 ", 7), ("1T", 2**40)],
)
def test_human_integer(text, value):
    assert arguments.human_integer(text) == value


@pytest.mark.parametrize("text", ["2Gi", "1.5K", "k", "", "1e3", "8 k"])
def test_human_integer_refuses_what_vllm_refuses(text):
    with pytest.raises(ValueError):
        arguments.human_integer(text)


@given(st.integers(0, 2**45))
def test_plain_integers_come_back(value):
    assert arguments.human_integer(str(value)) == value
