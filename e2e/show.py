"""What kubectl shows of Wattkeeper, captured from a running cluster: `python -m e2e.show` writes docs/what-you-see.md.

One fleet is kept (mode Enforce), one is only measured (Observe) and one names a Deployment that does not exist.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import shlex
import time

from e2e import stack as stacks
from e2e.cluster import control_plane

PAGE = stacks.ROOT / "docs" / "what-you-see.md"
WATCHED_SECONDS = 75
COMMANDS = (
    ("All fleets at a glance", "kubectl get wis -A"),
    ("With watts, SLO and the reason of the plan", "kubectl get wis -A -o wide"),
    ("One fleet in full", "kubectl -n llm describe wis chat"),
    ("What is wrong with a fleet", "kubectl -n llm get wis lost -o jsonpath='{.status.conditions[0].message}'"),
    ("Power limits, node by node", "kubectl get npc"),
    ("One node's GPUs", "kubectl describe npc gpu-0"),
    ("What a field means", "kubectl explain wis.spec.slo"),
    ("What was done", "kubectl -n llm get events --field-selector involvedObject.kind=InferenceService"),
)
HEAD = """# What you see

Printed by a real cluster (Kubernetes {version}) with simulated GPUs; `python -m e2e.show`, after `make tools`,
writes this page anew. The fleet `chat` is kept (mode Enforce), `search` is only measured (Observe), and `lost` names a
Deployment that does not exist. Simulated time runs {speed:g} times as fast as the ages shown.
"""


def capture() -> str:
    """The page."""
    pace = stacks.Pace(speed_up=20.0)
    with control_plane.ControlPlane() as cluster, stacks.Stack(cluster, pace=pace) as stack:
        stack.install()
        stack.add_gpu_nodes("gpu-0", "gpu-1")
        stack.create_namespace("llm")
        levers = {
            "replicas": {"min": 1, "max": 6},
            "powerCap": {"min": "300W", "max": "700W", "step": "50W"},
            "engine": {"maxNumBatchedTokens": [1024, 2048, 8192]},
        }
        stack.apply(
            stacks.deployment("llm", "chat", replicas=6),
            stacks.deployment("llm", "search", replicas=3),
            stacks.service("llm", "chat", target="chat", levers=levers),
            stacks.service("llm", "search", target="search", mode="Observe", levers={}),
            stacks.service("llm", "lost", target="no-such-deployment", mode="Recommend", levers={}),
        )
        for name in ("chat", "search"):
            stack.wait_ready("llm", name)
        stack.start_twin("llm/chat", "llm/search", arguments=["--rate=20"])
        stack.start_prometheus()
        stack.start_operator()
        time.sleep(WATCHED_SECONDS)
        version = cluster.kubectl("version", "--output=yaml").split("serverVersion:")[1]
        parts = [HEAD.format(version=re.findall(r"gitVersion: (\S+)", version)[0], speed=pace.speed_up)]
        for title, command in COMMANDS:
            printed = cluster.kubectl(*shlex.split(command)[1:]).strip("\n")
            printed = "\n".join(line.rstrip() for line in printed.splitlines())
            parts.append(f"## {title}\n\n```console\n$ {command}\n{printed}\n```\n")
    return "\n".join(parts)


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m e2e.show", description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, default=PAGE, help="where to write the page")
    options = parser.parse_args()
    options.output.write_text(capture(), encoding="utf-8")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
