"""The cluster fixture itself: real scheduling, roll-outs, the scale subresource and RBAC, and nothing left behind."""

from __future__ import annotations

import http.server
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest

from e2e import cluster
from e2e.cluster import kwok, processes, prometheus

pytestmark = pytest.mark.cluster
GPU = "NVIDIA-H100-80GB-HBM3"
ROOT = pathlib.Path(__file__).parents[2]


def deployment(name: str, *, replicas: int, gpus: int, arguments: tuple[str, ...] = ()) -> dict[str, Any]:
    container = {
        "name": "vllm",
        "image": "vllm/vllm-openai:latest",
        "args": list(arguments),
        "resources": {"limits": {"nvidia.com/gpu": str(gpus)}},
    }
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


@pytest.fixture(scope="module")
def gpu_node(control_plane: cluster.Cluster) -> str:
    control_plane.add_gpu_node("smoke-gpu", gpu_product=GPU, count=8, labels={"smoke": "true"})
    return "smoke-gpu"


def wait_replicas(control_plane: cluster.Cluster, namespace: str, name: str, *, ready: int) -> dict[str, Any]:
    def probe() -> dict[str, Any] | None:
        found = control_plane.get("deployment", name, f"--namespace={namespace}")
        return found if found["status"].get("readyReplicas", 0) == ready else None

    return cluster.wait_until(probe, timeout_seconds=30, what=f"{ready} ready replicas of {name}")


def test_deployment_on_gpu_nodes_rolls_out_and_scales(
    control_plane: cluster.Cluster, namespace: str, gpu_node: str
) -> None:
    chat = deployment("chat", replicas=2, gpus=2)
    chat["spec"]["template"]["spec"]["nodeSelector"] = {"smoke": "true"}
    control_plane.apply(chat, namespace=namespace)
    control_plane.kubectl("rollout", "status", "deployment/chat", f"--namespace={namespace}", "--timeout=30s")
    pods = control_plane.get("pods", f"--namespace={namespace}")["items"]
    assert {pod["spec"]["nodeName"] for pod in pods} == {gpu_node}
    assert all(pod["status"]["podIP"] for pod in pods)

    # The real scale subresource; the scheduler counts GPUs, so the fifth replica of two finds none left of eight.
    patch = '{"spec": {"replicas": 5}}'
    control_plane.kubectl(
        "patch",
        "deployment/chat",
        "--subresource=scale",
        "--type=merge",
        f"--patch={patch}",
        f"--namespace={namespace}",
    )
    wait_replicas(control_plane, namespace, "chat", ready=4)


def test_service_account_has_its_rights_and_no_others(control_plane: cluster.Cluster, namespace: str) -> None:
    where = f"--namespace={namespace}"
    control_plane.kubectl("create", "serviceaccount", "reader", where)
    control_plane.kubectl("create", "role", "reader", "--verb=list", "--resource=pods", where)
    control_plane.kubectl(
        "create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={namespace}:reader", where
    )
    as_reader = control_plane.service_account_kubeconfig("reader", namespace=namespace)
    assert control_plane.get("pods", where, kubeconfig=as_reader)["items"] == []
    with pytest.raises(cluster.CommandError, match="Forbidden"):
        control_plane.get("secrets", where, kubeconfig=as_reader)


def test_unknown_token_is_refused(control_plane: cluster.Cluster) -> None:
    stranger = control_plane.kubeconfig_for(token="wrong", name="stranger")
    with pytest.raises(cluster.CommandError, match=r"(?i)unauthorized|logged in"):
        control_plane.get("pods", kubeconfig=stranger)


def test_start_up_time_and_crashes_of_simulated_pods() -> None:
    behaviour = kwok.PodBehaviour(ready_delay_seconds=600, crash_arguments=("--max-num-seqs=0",))
    with cluster.ControlPlane(pods=behaviour, pod_cidr="127.64.0.1/16") as own:
        own.add_gpu_node("gpu", gpu_product=GPU, count=8)
        fast = deployment("fast", replicas=1, gpus=1)
        fast["spec"]["template"]["metadata"]["annotations"] = {kwok.READY_DELAY_ANNOTATION: "200ms"}
        bad = deployment("bad", replicas=1, gpus=1, arguments=("--max-num-seqs=0",))
        own.apply(fast, deployment("slow", replicas=1, gpus=1), bad)
        wait_replicas(own, "default", "fast", ready=1)

        def crashed() -> bool:
            pod = own.get("pods", "--selector=app=bad")["items"][0]
            states = pod["status"].get("containerStatuses", [])
            return any(state["state"]["waiting"]["reason"] == "CrashLoopBackOff" for state in states)

        cluster.wait_until(crashed, timeout_seconds=15, what="a crash loop")
        assert own.get("deployment", "slow")["status"].get("readyReplicas", 0) == 0
        pod = own.get("pods", "--selector=app=fast")["items"][0]
        assert pod["status"]["podIP"].startswith("127.64.")

        own.set_pods(kwok.PodBehaviour())
        wait_replicas(own, "default", "slow", ready=1)


def test_nothing_is_left_after_stop_or_an_error() -> None:
    pids: list[int] = []

    def run_and_fail() -> None:
        with cluster.ControlPlane(with_kwok=False) as own:
            pids.extend(own.pids.values())
            folders.append(own.directory)
            raise ZeroDivisionError

    folders: list[pathlib.Path] = []
    with pytest.raises(ZeroDivisionError):
        run_and_fail()
    assert len(pids) == 4
    assert not any(processes.is_running(pid) for pid in pids)
    assert not folders[0].exists()


def test_nothing_is_left_when_the_owner_is_killed(tmp_path: pathlib.Path) -> None:
    program = textwrap.dedent("""
        import pathlib, sys, time
        from e2e.cluster import processes
        group = processes.Processes(directory=pathlib.Path(sys.argv[1]))
        group.start("sleeper", "sleep", "300")
        print(group.pids["sleeper"], flush=True)
        time.sleep(300)
    """)
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert owner.stdout is not None
    sleeper = int(owner.stdout.readline())
    assert processes.is_running(sleeper)
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    processes.wait_gone([sleeper], timeout_seconds=5)


def test_program_that_ends_is_reported_with_its_log(tmp_path: pathlib.Path) -> None:
    group = processes.Processes(directory=tmp_path)
    group.start("shell", "sh", "-c", "echo out of coffee; exit 3")
    try:
        with pytest.raises(cluster.ProcessExitedError, match=r"shell ended with code 3(.|\n)*out of coffee"):
            cluster.wait_until(lambda: group.check(), timeout_seconds=5, what="the end")
    finally:
        group.stop()


class _Metrics(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(b"coffee_cups 3\n")

    def log_message(self, *_arguments: object) -> None:
        """Quiet."""


def test_prometheus_scrapes_and_answers() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Metrics) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        target = prometheus.static_targets("kitchen", f"127.0.0.1:{server.server_port}", labels={"floor": "2"})
        with cluster.Prometheus([target]) as running:
            assert running.wait_for('coffee_cups{floor="2"}') == 3
            assert running.value("tea_cups") is None
            with pytest.raises(prometheus.QueryError, match="parse error"):
                running.query("coffee_cups{")
        server.shutdown()


def test_helm_talks_to_the_cluster(control_plane: cluster.Cluster) -> None:
    assert control_plane.helm("list", "--output=json").strip() == "[]"
