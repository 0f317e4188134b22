"""Properties of the argument patcher, and comparisons with the real argparse and the real shells."""

import argparse
import json
import shlex
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.actuators import shapes
from wattkeeper.actuators import arguments, flags, launch
from wattkeeper.actuators.engine_args import patch_engine, read_engine
from wattkeeper.domain.engine import EngineChange
from wattkeeper.domain.errors import PatchRefusedError

CHANGES = st.builds(
    EngineChange,
    max_num_seqs=st.none() | st.integers(1, 512),
    max_num_batched_tokens=st.none() | st.integers(2048, 65536),
    gpu_memory_utilization=st.none() | st.floats(0.1, 1.0),
    kv_cache_memory_bytes=st.none() | st.integers(2**30, 2**37),
    kv_cache_dtype=st.none() | st.sampled_from(["auto", "fp8", "fp8_e5m2"]),
).filter(bool)

WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=12)
UNRELATED = st.lists(
    st.sampled_from(["--seed", "--port=8000", "--enforce-eager", "-O3", "--host", "chat", "-q", "--max_model_len=4k"])
    | WORDS.filter(lambda word: not word.startswith("-") and "$" not in word and word != "serve")
    | WORDS.map(lambda word: "--served-model-name=" + word.replace("$", "")),
    max_size=6,
)
OURS = st.lists(
    st.sampled_from(
        [
            ["--max-num-seqs", "7"],
            ["--max_num_seqs=7"],
            ["--max-num-seq", "8"],
            ["--max-num-batched-tokens", "8k"],
            ["--gpu-mem=0.5"],
            ["--kv-cache-memory", "9G"],
            ["--kv_cache_dtype", "fp8"],
        ]
    ),
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(shapes.SHAPES)), UNRELATED, OURS, UNRELATED, CHANGES)
def test_patch(shape, first, ours, second, change):
    mine = [word for flag in ours for word in flag]
    pod = shapes.pod(shapes.SHAPES[shape]([*first, *mine, *second]))
    options = {"container": None, "change": change, "kv_cache_dtypes": ["auto", "fp8", "fp8_e5m2"]}
    try:
        patch = patch_engine(pod, **options)
    except PatchRefusedError as refusal:
        assert refusal.reason in ("MalformedArguments", "WouldNotStart"), refusal
        return
    after = read_engine(patch.pod_spec, None)
    for field, value in change.as_dict().items():
        assert getattr(after, field) == value
    assert after == read_engine(pod, None).with_change(change)
    again = patch_engine(patch.pod_spec, **options)
    assert not again.changed and again.pod_spec == patch.pod_spec
    assert untouched(patch.pod_spec, change) == untouched(pod, change)


def untouched(pod, change):
    """The arguments that do not spell a changed setting."""
    words = launch.find(pod["containers"][0]).texts
    line = arguments.read(words, flags.version_of_image(pod["containers"][0]["image"]))
    ours = {at for one in line.occurrences if one.field in change.as_dict() for at in one.tokens}
    return [word for at, word in enumerate(words) if at not in ours]


ALL = EngineChange(
    max_num_seqs=96,
    max_num_batched_tokens=4096,
    gpu_memory_utilization=0.85,
    kv_cache_memory_bytes=2**33,
    kv_cache_dtype="fp8_e5m2",
)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(shapes.SHAPES)), UNRELATED.filter(lambda words: "--seed" not in words), OURS, UNRELATED)
def test_a_changed_manifest_does_not_tell_how_the_flag_was_spelled(shape, first, ours, second):
    mine = [word for flag in ours for word in flag]
    options = {"container": None, "change": ALL, "kv_cache_dtypes": ["fp8_e5m2"]}
    without, flagged = [*first, *second], [*first, *mine, *second]
    try:
        bare = patch_engine(shapes.pod(shapes.SHAPES[shape](without)), **options)
    except PatchRefusedError as refusal:
        assert refusal.reason == "WouldNotStart", refusal
        return
    assert patch_engine(shapes.pod(shapes.SHAPES[shape](flagged)), **options).pod_spec == bare.pod_spec


def vllm_like_parser(version):
    """The options of one vLLM version in a real argparse parser, with vLLM's underscore rule in front."""
    parser = argparse.ArgumentParser(exit_on_error=False, add_help=False)
    seen = set()
    for option in flags.options(version):
        if option.name in seen:
            continue
        seen.add(option.name)
        names = {"dest": option.action}
        if option.kind == "value":
            parser.add_argument(option.name, nargs=None, **names)
        elif option.kind == "bool" and option.name.startswith("--"):
            parser.add_argument(option.name, action=argparse.BooleanOptionalAction, **names)
        else:
            parser.add_argument(option.name, action="store_true", default=None, **names)
    return parser


PARSERS = {version: vllm_like_parser(version) for version in ((0, 8), (0, 11), (0, 20), (0, 33))}


@st.composite
def typed(draw):
    """A command line as people type it: whole names, prefixes, underscores, glued and loose values."""
    version = draw(st.sampled_from(sorted(PARSERS)))
    names = [*sorted({setting.option for setting in arguments.SETTINGS.values()}), "-tp", "-pp", "-dp", "--seed"]
    names += ["--no-enable-prefix-caching", "--device-memory-utilization", "--port"]
    words = []
    for _ in range(draw(st.integers(0, 5))):
        name = draw(st.sampled_from(names))
        name = name[: draw(st.integers(min(len(name), 2 if name[1] != "-" else 5), len(name)))]
        if draw(st.booleans()):
            name = "--" + name[2:].replace("-", "_") if name.startswith("--") else name
        value = draw(st.sampled_from(["1", "8k", "-1", "-0.5", "fp8", "a b", "{}"]))
        words += draw(st.sampled_from([[name, value], [f"{name}={value}"], [name]]))
    return version, words


@settings(max_examples=400, deadline=None)
@given(typed())
def test_reads_as_argparse_does(case):
    version, words = case
    prepared = [
        flags.normalise(word.partition("=")[0]) + word[len(word.partition("=")[0]) :] if word.startswith("--") else word
        for word in words
    ]
    line = arguments.read(words, version)
    try:
        parsed, _ = PARSERS[version].parse_known_args(prepared)
    except (argparse.ArgumentError, SystemExit):
        return  # vLLM would not start
    assert not line.ambiguous
    for field, setting in arguments.SETTINGS.items():
        expected = getattr(parsed, setting.option, None)
        last = line.of(field)[-1:]
        if expected is None:
            assert not last, (field, last)
        elif isinstance(expected, bool):
            assert last[0].text is None and last[0].negated is not expected
        else:
            assert last[0].text == expected


SHELL_SHAPES = (
    "shell_in_args",
    "shell_in_command",
    "bash_script",
    "hands_on",
    "kserve_environment",
    "kserve_args",
)
STUB = """#!/usr/bin/env python3
import json, os, sys
if sys.argv[1:2] == ["serve"]:
    json.dump(sys.argv[2:], open(os.environ["ARGV_OUT"], "w"))
"""


@pytest.fixture(scope="module")
def run_container(tmp_path_factory):
    """Runs a container's command with a stub `vllm` that records its arguments."""
    folder = tmp_path_factory.mktemp("stub")
    stub = folder / "vllm"
    stub.write_text(STUB)
    stub.chmod(0o755)

    def run(container):
        out = folder / "argv.json"
        out.unlink(missing_ok=True)
        environment = {entry["name"]: entry["value"] for entry in container.get("env", [])}
        environment |= {"PATH": f"{folder}:/usr/bin:/bin", "ARGV_OUT": str(out)}
        argv = [*container.get("command", []), *container.get("args", [])]
        subprocess.run(argv, env=environment, check=False, capture_output=True, timeout=30, cwd=folder)
        return json.loads(out.read_text())

    return run


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("shape", SHELL_SHAPES)
@pytest.mark.parametrize(
    "words",
    [
        ["--max-num-seqs", "7", "--seed", "1"],
        ["--compilation-config", '{"a": [1, "x y"], "b": "it\'s"}', "--max_num_seqs=7"],
        ["--tag=#no comment", "--max-num-seqs", "7", "a&b", "c|d;e", "\\", "*", "~"],
        ["", "--max-num-seqs=7", "tab\there", 'quote"quote', "back\\slash"],
    ],
)
def test_reads_what_the_shell_passes(run_container, shape, words):
    container = shapes.SHAPES[shape](words)
    container.setdefault("env", [])
    assert known(launch.find(container).texts) == run_container(container)
    patch = patch_engine(shapes.pod(container), container=None, change=EngineChange(max_num_seqs=9))
    after = run_container(patch.pod_spec["containers"][0])
    assert after == known(launch.find(patch.pod_spec["containers"][0]).texts)
    assert "--max-num-seqs=9" in after and not {"--max-num-seqs", "--max-num-seqs=7", "--max_num_seqs=7"} & set(after)


def known(texts):
    """Without the words that only the running script knows (none of them, in these scripts)."""
    return [text for text in texts if arguments.UNKNOWN not in text]


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize(
    "script",
    [
        'A="--seed 1"; B=2\nvllm serve M "$UP" $UP \\\n --x=$UP\'q\'"d $UP" # $UP\n',
        "cat <<-EOF >/dev/null\n\tvllm serve $UP\n\tEOF\nvllm serve M ${UP} 'a'\"b\"c\\ d > /dev/null 2>&1",
        'X=1 exec env Y=2 vllm serve M --a \'$UP\' \\$UP "\\$UP" "\\a"',
        "for i in 1; do case $i in 1) vllm serve M --i 1;; esac; done",
        "{ vllm serve M a#b 'c'#d; } | cat",
        "(vllm serve M --one --two=2) && true || false",
    ],
)
def test_scripts_are_read_as_the_shell_runs_them(run_container, shell, script):
    container = {"name": "x", "command": [shell, "-c", script], "env": [{"name": "UP", "value": "two words"}]}
    assert list(launch.find(container).texts) == run_container(container)


@settings(max_examples=40, deadline=None)
@given(st.lists(WORDS, max_size=4), st.sampled_from([" ", "  ", " \\\n\t"]))
def test_quoted_words_come_back(words, space):
    script = f"vllm serve M{space}" + space.join(shlex.quote(word) for word in words)
    script = script.replace("$$", "$$$$").replace("$(", "$$(")
    container = {"name": "x", "command": ["sh", "-c", script]}
    assert list(launch.find(container).texts) == ["M", *words]
