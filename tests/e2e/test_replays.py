"""The replay stage on a real API server: no capacity goes before a replay has shown that the rest is enough.

`wattkeeper explain` and `kubectl describe` tell the numbers of the check, and what binds the plan.
"""

from __future__ import annotations

import collections.abc
import json
import re
import subprocess
import sys

import pytest

from e2e.stack import ROOT, Pace, Stack, deployment, service

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]


@pytest.fixture
def stack(make_stack: collections.abc.Callable[..., Stack]) -> Stack:
    return make_stack(pace=Pace(speed_up=20.0))


def explain(stack: Stack, namespace: str, *arguments: str) -> str:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "wattkeeper",
            "explain",
            f"{namespace}/chat",
            f"--kubeconfig={stack.cluster.kubeconfig}",
            *arguments,
        ],
        env={"PYTHONPATH": str(ROOT / "operator")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def sample(page: str, name: str, **labels: str) -> float:
    """The sum of a metric's series with these labels."""
    found = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", page, re.MULTILINE)
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(float(value) for text, value in found if all(each in text for each in wanted))


def replay_workers() -> set[int]:
    """Processes of this machine that replay."""
    listed = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True).stdout
    return {int(line.split()[0]) for line in listed.splitlines() if "wattkeeper.controller.replay_worker" in line}


def test_a_replay_decides_and_explain_shows_its_numbers(
    stack: Stack, unique: str, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace = stack.create_namespace(f"replay-{unique}")
    stack.add_gpu_nodes(f"replay-0-{unique}", labels={"e2e": unique})
    stack.apply(
        deployment(namespace, replicas=4, node_selector={"e2e": unique}, ready_delay_seconds=2.0),
        service(namespace, levers={"replicas": {"min": 1, "max": 4}, "powerCap": {"min": "350W", "max": "700W"}}),
    )
    stack.wait_ready(namespace, "chat")
    stack.start_twin(f"{namespace}/chat", arguments=["--rate=12"])
    stack.start_prometheus()
    stack.start_operator(arguments=["--replay-workers=1", "--dispersion=1"])

    def check() -> dict:
        return stack.status(namespace).get("plan", {}).get("check") or {}

    def settled() -> bool:
        proven = check().get("replay", {}).get("standing") == "Meets"
        return proven and stack.actions(namespace)["scale"] > 0 and stack.replicas(namespace) < 4

    stack.wait(settled, "fewer replicas on the word of a replay", timeout_seconds=150)
    page = stack.own_metrics()
    assert sample(page, "wattkeeper_planner_decisions_total", namespace=namespace, reason="AwaitingReplay") > 0
    assert sample(page, "wattkeeper_replay_runs_total", outcome="Done") > 0
    assert sample(page, "wattkeeper_replay_available") == 1
    stack.wait_condition(namespace, "SLOChecked", "True")

    def replayed() -> dict:
        facts = json.loads(explain(stack, namespace, "--output=json"))
        return facts if facts["plan"]["check"]["replay"].get("requests") else {}

    facts = stack.wait(replayed, "numbers of a replay")
    assert facts["plan"]["check"]["replay"]["requests"] > 4000
    assert facts["plan"]["check"]["replay"]["attainment"] > 0.9
    assert facts["plan"]["binding"]

    def words() -> str:
        told = explain(stack, namespace)
        return told if "replayed (at most" in told else ""

    text = stack.wait(words, "the same in words")
    with capsys.disabled():
        sys.stdout.write(f"\n\n{text}\n")
    assert re.search(r"with \d+% margin", text)
    assert re.search(r"binding: +[A-Z][A-Za-z]+", text)
    assert "10 % more rate" in text and "of capacity" in text
    described = stack.cluster.kubectl("describe", "wis", "chat", f"--namespace={namespace}")
    assert re.search(r"Standing: +\w+", described) and re.search(r"Upper: +\d", described)

    workers = replay_workers()
    assert workers
    assert stack.terminate() == 0
    assert not replay_workers() & workers, "workers end with the operator"
