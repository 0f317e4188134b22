"""Every manifest shape in which vLLM is started, around a given list of engine arguments."""

import json
import shlex
from collections.abc import Callable, Sequence
from typing import Any

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
Container = dict[str, Any]


def _base(**fields: Any) -> Container:
    return {
        "name": "vllm",
        "image": "vllm/vllm-openai:v0.11.0",
        "resources": {"limits": {"nvidia.com/gpu": "2"}},
        **fields,
    }


def _lines(flags: Sequence[str]) -> str:
    return "".join(f" \\\n  {shlex.quote(flag)}" for flag in flags)


def _words(flags: Sequence[str]) -> str:
    return "".join(f" {shlex.quote(flag)}" for flag in flags)


def image_default(flags: Sequence[str]) -> Container:
    return _base(args=["--model", MODEL, *flags])


def command_and_args(flags: Sequence[str]) -> Container:
    return _base(command=["/opt/venv/bin/vllm", "serve"], args=[MODEL, *flags])


def all_in_command(flags: Sequence[str]) -> Container:
    return _base(command=["vllm", "serve", MODEL, "--host", "0.0.0.0", *flags])  # noqa: S104


def shell_in_args(flags: Sequence[str]) -> Container:
    return _base(command=["/bin/sh", "-c"], args=[f"vllm serve {MODEL} --trust-remote-code{_words(flags)}"])


def shell_in_command(flags: Sequence[str]) -> Container:
    return _base(command=["sh", "-c", f"exec vllm serve {MODEL}{_words(flags)}"])


def bash_script(flags: Sequence[str]) -> Container:
    script = f"""set -euo pipefail
# vllm serve in a comment does not count
export HF_HOME="/models"  # "unbalanced
if [ -n "$(ls /models 2>/dev/null)" ]; then echo "vllm serve starts"; fi
cat <<'END' > /tmp/template
it's a 'template' with vllm serve inside
END
exec vllm serve {MODEL} \\
  --port 8000{_lines(flags)}
"""
    return _base(command=["/bin/bash", "-c"], args=[script])


def api_server(flags: Sequence[str]) -> Container:
    return _base(command=["python3", "-m", "vllm.entrypoints.openai.api_server"], args=["--model", MODEL, *flags])


def install_first(flags: Sequence[str]) -> Container:
    script = f"pip install 'vllm[runai]' && vllm serve {MODEL}{_words(flags)} --port=8000 2>&1 | tee /tmp/log"
    return _base(command=["/bin/bash", "-lc"], args=[script])


def llmd_serve(flags: Sequence[str]) -> Container:
    return _base(
        image="ghcr.io/llm-d/llm-d-cuda:v0.4.0", command=["vllm", "serve"], args=[MODEL, "--port", "8200", *flags]
    )


def lws_leader(flags: Sequence[str]) -> Container:
    script = (
        "bash /vllm-workspace/multi-node-serving.sh leader --ray_cluster_size=$(LWS_GROUP_SIZE); "
        f"vllm serve {MODEL} --port 8080 --pipeline_parallel_size $(LWS_GROUP_SIZE){_words(flags)}"
    )
    return _base(command=["sh", "-c", script])


def production_stack(flags: Sequence[str]) -> Container:
    command = ["/opt/venv/bin/vllm", "serve", MODEL, "--host", "0.0.0.0", "--max_loras", "4", *flags]  # noqa: S104
    return _base(image="lmcache/vllm-openai:v0.3.9", command=command)


def hands_on(flags: Sequence[str]) -> Container:
    return _base(command=["/bin/bash", "-c", 'exec vllm serve "$@"', "--"], args=[MODEL, *flags])


def wrapped(flags: Sequence[str]) -> Container:
    return _base(command=["tini", "--", "numactl", "-N0", "vllm", "serve"], args=[MODEL, *flags])


def kserve_environment(flags: Sequence[str]) -> Container:
    return _base(
        name="main",
        command=["/bin/bash", "-c", KSERVE_SCRIPT, "--"],
        env=[{"name": "HOME", "value": "/home"}, {"name": "VLLM_ADDITIONAL_ARGS", "value": shlex.join(flags)}],
    )


def kserve_args(flags: Sequence[str]) -> Container:
    quoted = [shlex.quote(flag) for flag in flags]
    return _base(name="main", command=["/bin/bash", "-c", KSERVE_SCRIPT, "--"], args=quoted)


KSERVE_SCRIPT = """if [ "$KSERVE_INFER_ROCE" = "true" ]; then
  export NCCL_IB_HCA=$(ls /sys/class/infiniband | awk '{print $1}' | paste -sd, -)
fi
FLAGS=""
if vllm --version | grep -q '0[.]1[89]'; then FLAGS="--shutdown-timeout 45"; fi
eval "exec vllm serve /mnt/models --served-model-name "chat" \\
  --port 8000 ${FLAGS} ${VLLM_ADDITIONAL_ARGS} $@"
"""

SHAPES: dict[str, Callable[[Sequence[str]], Container]] = {
    shape.__name__: shape
    for shape in (
        image_default,
        command_and_args,
        all_in_command,
        shell_in_args,
        shell_in_command,
        bash_script,
        api_server,
        install_first,
        llmd_serve,
        lws_leader,
        production_stack,
        hands_on,
        wrapped,
        kserve_environment,
        kserve_args,
    )
}

NESTED = json.dumps({"mode": 3, "cudagraph_capture_sizes": [1, 2, 4], "x": "a b"})
OTHERS: tuple[str, ...] = (
    "--compilation-config",
    NESTED,
    "--served-model-name",
    "chat",
    "chat-alias",
    "--long-prefill-token-threshold=0",
    "--hf-overrides.rope.max-num-seqs",
    "7",
)
"""Flags that a change of the others must never touch; the last one only looks like one of ours."""


def pod(container: Container) -> dict[str, Any]:
    return {"containers": [container], "terminationGracePeriodSeconds": 60}
