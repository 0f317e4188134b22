"""What fails in production, made to fail here: each row of the design's table that needs real processes.

The tests share one stack with three fleets and leave it working for the next one; the two that delete come last.
"""

from __future__ import annotations

import collections.abc
import itertools
import os
import re
import secrets
import signal
import time

import pytest

from e2e import cluster
from e2e.cluster import kwok
from e2e.stack import SERVICES, Pace, Stack, deployment, service

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
PACE = Pace(speed_up=20.0, cap_ttl=12.0)
MAX_AGE_SECONDS = 5.0
CRASHING = "--max-num-seqs=192"
_turn = itertools.count(1)


class Fleets(Stack):
    """A stack with the namespaces of its fleets."""

    steady: str
    stuck: str


@pytest.fixture(scope="module")
def stack(control_plane: cluster.Cluster) -> collections.abc.Iterator[Fleets]:
    """Fleets `steady` and `stuck`, the twin, Prometheus and an operator. Pods with the argument CRASHING crash."""
    mark = f"m{secrets.token_hex(3)}"
    with Fleets(control_plane, pace=PACE) as running:
        running.install()
        control_plane.set_pods(kwok.PodBehaviour(crash_arguments=(CRASHING,)))
        running.add_gpu_nodes(f"fail-0-{mark}", f"fail-1-{mark}", labels={"e2e": mark})
        running.steady, running.stuck = (running.create_namespace(f"{name}-{mark}") for name in ("steady", "stuck"))
        own = {"node_selector": {"e2e": mark}, "ready_delay_seconds": 2.0}
        running.apply(
            deployment(running.steady, replicas=4, **own),
            deployment(running.stuck, replicas=4, arguments=["--max-num-seqs=8"], progressDeadlineSeconds=12, **own),
            service(running.steady, levers=levers(replicas=4)),
        )
        for namespace in (running.steady, running.stuck):
            running.wait_ready(namespace, "chat")
        running.start_twin(f"{running.steady}/chat", f"{running.stuck}/chat", arguments=["--rate=6"])
        running.start_prometheus()
        yield running
        control_plane.set_pods(kwok.PodBehaviour())


def levers(*, replicas: int, **more: object) -> dict[str, object]:
    return {
        "replicas": {"min": 1, "max": replicas},
        "powerCap": {"min": "300W", "max": "700W", "step": "50W"},
        **more,
    }


@pytest.fixture
def operator(stack: Fleets) -> str:
    """Name of an acting operator under which the steady fleet has its caps."""
    name = next((each for each in stack.operators() if stack.acts(each)), None)
    if name is None:
        name = f"operator-{next(_turn)}"
        stack.start_operator(name)
    wait_capped(stack)
    stack.wait_condition(stack.steady, "MetricsAvailable", "True")
    return name


def wait_capped(stack: Fleets, *, timeout_seconds: float = 60.0) -> None:
    def capped() -> bool:
        watts = stack.enforced_watts(stack.steady)
        return bool(watts) and max(watts) < 700

    stack.wait(capped, "power limits below 700 W on all GPUs", timeout_seconds=timeout_seconds)


def wait_full_power(stack: Fleets, *, timeout_seconds: float) -> None:
    def full() -> bool:
        watts = stack.enforced_watts(stack.steady)
        return bool(watts) and min(watts) == 700

    stack.wait(full, "full power on all GPUs", timeout_seconds=timeout_seconds)


def owner(stack: Fleets) -> str:
    return f"{stack.steady}/chat"


def test_kubectl_shows_the_fleet_at_a_glance(stack: Fleets, operator: str) -> None:
    def row(*arguments: str) -> dict[str, str]:
        head, line = stack.cluster.kubectl("get", *arguments).splitlines()[:2]
        starts = [match.start() for match in re.finditer(r"\S+", head)]
        cells = [line[a:b].strip() for a, b in itertools.zip_longest(starts, starts[1:])]
        return dict(zip(head.split(), cells, strict=True))

    where = f"--namespace={stack.steady}"
    stack.wait(lambda: row("wis", where)["J/TOK"], "a measured energy per token", timeout_seconds=90)
    stack.wait_condition(stack.steady, "Ready", "True")
    service_row = row("wis", where)
    assert " ".join(service_row) == ("NAME TARGET MODE QPS TTFT TPOT REPLICAS PLAN CAP J/TOK SAVED% READY AGE")
    assert (service_row["TARGET"], service_row["MODE"], service_row["READY"]) == ("chat", "Enforce", "True")
    assert 0 < float(service_row["QPS"]) < 12
    assert service_row["TTFT"].endswith("ms")
    node_row = row("npc", stack.nodes[0])
    assert " ".join(node_row) == "NAME LIMITS HEARTBEAT AGE"
    assert re.fullmatch(r"8 GPUs, none limited|\d of 8 GPUs limited to [\d-]+ W", node_row["LIMITS"])
    described = stack.cluster.kubectl("describe", "wis", "chat", where)
    assert "TTFT p95 is" in described
    assert "Message:" in described
    assert "Latency objective." in stack.cluster.kubectl("explain", "wis.spec.slo")


def test_another_actor_scales_and_is_left_alone(stack: Fleets, operator: str) -> None:
    stack.wait(lambda: stack.replicas(stack.steady) < 4, "the operator's own scale-down")
    where = f"--namespace={stack.steady}"
    stack.cluster.kubectl("scale", "deployment/chat", "--replicas=4", where)
    _, reason, message = stack.wait_condition(stack.steady, "Conflict", "True", timeout_seconds=15)
    assert reason == "FieldOwnedByOther"
    assert "kubectl set spec.replicas after us: left alone until" in message
    time.sleep(5 * PACE.tick)
    assert stack.replicas(stack.steady) == 4
    assert stack.condition(stack.steady, "Ready")[0] == "False"
    since = next(
        item["lastTransitionTime"] for item in stack.status(stack.steady)["conditions"] if item["type"] == "Conflict"
    )
    claimed = [item for item in stack.status(stack.steady)["history"] if item["time"] > since and item["applied"]]
    assert not any("replicas" in item["change"] for item in claimed), "history tells of a change that was held back"


def test_prometheus_dies_and_returns(stack: Fleets, operator: str) -> None:
    before = stack.replicas(stack.steady)
    stack.prometheus.kill()
    died = time.monotonic()
    try:
        _, reason, message = stack.wait_condition(stack.steady, "MetricsAvailable", "False", timeout_seconds=30)
        assert reason in ("MetricsUnreachable", "MetricsStale"), message
        assert message
        wait_full_power(stack, timeout_seconds=MAX_AGE_SECONDS + 15)
        assert time.monotonic() - died >= MAX_AGE_SECONDS - 1, "limits were lifted before the metrics were too old"
        assert stack.caps(owner(stack)) == []
        assert stack.status(stack.steady)["plan"]["reason"] == "MetricsLost"
        time.sleep(5 * PACE.tick)
        assert stack.replicas(stack.steady) >= before
    finally:
        stack.prometheus.restart()
    stack.wait_condition(stack.steady, "MetricsAvailable", "True", timeout_seconds=30)
    wait_capped(stack)


def test_api_server_stands_still_for_ten_seconds(stack: Fleets, operator: str) -> None:
    pid = getattr(stack.cluster, "pids", {}).get("kube-apiserver")
    if pid is None:
        pytest.skip("only the local control plane can be halted")
    halt(pid, seconds=10)
    stack.wait(lambda: stack.acts(operator), "good passes after the outage", timeout_seconds=40)
    stack.wait(lambda: stack.caps(owner(stack)), "caps after the outage", timeout_seconds=30)
    assert stack.acts(operator)


def halt(pid: int, *, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)


def test_one_of_two_operators_acts_and_a_dead_one_leaves_no_cap(stack: Fleets, operator: str) -> None:
    standby, third = (f"operator-{next(_turn)}" for _ in range(2))
    stack.start_operator(standby, wait=False)
    stack.wait(lambda: "waiting for the Lease" in stack.log(standby), "a second operator that waits")
    time.sleep(4 * PACE.tick)
    assert stack.acts(operator)
    assert not stack.acts(standby)

    # A clean stop hands the Lease over before the caps run out.
    assert stack.terminate(operator) == 0
    stack.wait(lambda: stack.acts(standby), "the successor's first pass", timeout_seconds=PACE.cap_ttl)
    assert max(stack.enforced_watts(stack.steady)) < 700
    wait_capped(stack)

    # A killed one cannot: the limits run out by themselves, and everything else stays.
    replicas, arguments = stack.replicas(stack.steady), stack.arguments(stack.steady)
    history = stack.status(stack.steady)["history"]
    since = stack.status(stack.steady)["savings"]["since"]
    stack.kill(standby)
    wait_full_power(stack, timeout_seconds=PACE.cap_ttl + 5)
    assert stack.replicas(stack.steady) == replicas
    assert stack.arguments(stack.steady) == arguments

    # The next one goes on from what the cluster knows.
    stack.start_operator(third)
    wait_capped(stack)
    status = stack.status(stack.steady)
    assert status["savings"]["since"] == since
    assert history[0] in status["history"]


def test_roll_out_that_never_becomes_ready_goes_back_once(stack: Fleets, operator: str) -> None:
    before = stack.arguments(stack.stuck)
    stack.apply(
        service(
            stack.stuck,
            levers=levers(replicas=6, engine={"maxNumSeqs": [8, 192]}, rollout={"minInterval": "1m"}),
        )
    )
    stack.wait(lambda: CRASHING in stack.arguments(stack.stuck), "a roll-out", timeout_seconds=60)
    stack.wait(lambda: stack.arguments(stack.stuck) == before, "the way back", timeout_seconds=60)
    stack.wait(lambda: stack.condition(stack.stuck, "Rollout")[1] == "RolledBack", "Rollout with reason RolledBack")
    status, _, message = stack.condition(stack.stuck, "Rollout")
    assert status == "False"
    assert "max_num_seqs=192" in message
    assert stack.status(stack.stuck)["memory"]["badEngines"] == [{"maxNumSeqs": 192}]
    time.sleep(8)
    assert stack.arguments(stack.stuck) == before, "the bad arguments were tried again"
    stack.wait_ready(stack.stuck, "chat")
    assert ("Warning", "RolledBack") in [event[:2] for event in stack.events(stack.stuck)]


def test_deleted_service_gives_its_limits_back_and_leaves_the_rest(stack: Fleets, operator: str) -> None:
    replicas, arguments = stack.replicas(stack.steady), stack.arguments(stack.steady)
    where = f"--namespace={stack.steady}"
    stack.cluster.kubectl("delete", SERVICES, "chat", where, "--timeout=20s")
    wait_full_power(stack, timeout_seconds=5)
    assert stack.caps(owner(stack)) == []
    time.sleep(4 * PACE.tick)
    assert stack.caps(owner(stack)) == []
    assert stack.replicas(stack.steady) == replicas
    assert stack.arguments(stack.steady) == arguments


def test_service_can_be_deleted_when_its_target_is_gone(stack: Fleets, operator_only: str) -> None:
    where = f"--namespace={stack.stuck}"
    if not stack.names(SERVICES, stack.stuck):
        stack.apply(service(stack.stuck, levers=levers(replicas=6)))
    stack.cluster.kubectl("delete", "deployment", "chat", where)
    _, reason, message = stack.wait_condition(stack.stuck, "TargetResolved", "False", timeout_seconds=20)
    assert reason == "TargetNotFound"
    assert "no Deployment chat" in message
    stack.cluster.kubectl("delete", SERVICES, "chat", where, "--timeout=20s")
    assert stack.caps(f"{stack.stuck}/chat") == []


@pytest.fixture
def operator_only(stack: Fleets) -> str:
    """Name of an acting operator."""
    return next(each for each in stack.operators() if stack.acts(each))


def test_missing_crds_and_missing_rights_end_the_operator_with_a_sentence() -> None:
    with cluster.ControlPlane(with_kwok=False) as bare, Stack(bare, pace=PACE) as stack:
        stack.install_rights()
        stack.start_operator("no-crds", wait=False)
        assert stack.wait_exit("no-crds", timeout_seconds=60) == 1
        log = stack.log("no-crds")
        assert "the CustomResourceDefinition inferenceservices.wattkeeper.io is not installed" in log
        assert "kubectl apply -f crds/" in log
        assert "Traceback" not in log

        stack.install()
        bare.kubectl("delete", "clusterrolebinding", "wattkeeper-fleet")
        stack.start_operator("no-rights", wait=False)
        assert stack.wait_exit("no-rights", timeout_seconds=60) == 1
        log = stack.log("no-rights")
        assert "forbidden" in log
        assert "grant the right in the operator's ClusterRole" in log
        assert "Traceback" not in log
