"""Deployments and StatefulSets become running pods on GPU nodes."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from wattkeeper.embedded.options import DeleteOptions, WriteOptions
from wattkeeper.embedded.registry import MERGE, Registry
from wattkeeper.embedded.values import dig
from wattkeeper.embedded.workloads import Workloads

OPTIONS = WriteOptions(manager="tests")


def deployment(name: str, replicas: int, *, gpus: int = 1, **spec: Any) -> dict[str, Any]:
    labels = {"app": name}
    container = {
        "name": "vllm",
        "image": "example.com/vllm:v1",
        "args": ["--model", "m"],
        "resources": {"limits": {"nvidia.com/gpu": str(gpus)}},
    }
    return {
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
            **spec,
        },
    }


class Bench:
    def __init__(self) -> None:
        self.registry = Registry()
        self.startup: Callable[[dict[str, Any]], float | None] = lambda _pod: 1.0
        self.shutdown = 0.5
        self.workloads = Workloads(
            self.registry,
            startup_seconds=lambda pod: self.startup(pod),
            shutdown_seconds=lambda _pod: self.shutdown,
            seconds_scale=0.05,
        )
        self.kinds = {
            "deployments": self.registry.resource("apps", "v1", "deployments"),
            "replicasets": self.registry.resource("apps", "v1", "replicasets"),
            "statefulsets": self.registry.resource("apps", "v1", "statefulsets"),
            "pods": self.registry.resource("", "v1", "pods"),
            "nodes": self.registry.resource("", "v1", "nodes"),
        }

    def create(self, kind: str, body: dict[str, Any]) -> None:
        self.registry.create(self.kinds[kind], "default", body, OPTIONS)

    def patch(self, kind: str, name: str, body: dict[str, Any]) -> None:
        self.registry.patch(self.kinds[kind], "default", name, MERGE, body, OPTIONS)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        return self.registry.get(self.kinds[kind], "default", name)

    def all(self, kind: str) -> list[dict[str, Any]]:
        return self.registry.find(self.kinds[kind])[0]

    def retemplate(self, name: str, *arguments: str, kind: str = "deployments") -> None:
        container = dict(self.get(kind, name)["spec"]["template"]["spec"]["containers"][0], args=list(arguments))
        self.patch(kind, name, {"spec": {"template": {"spec": {"containers": [container]}}}})

    def settled(self, name: str) -> bool:
        found = self.get("deployments", name)
        status, wanted = found.get("status", {}), found["spec"]["replicas"]
        counts = [status.get(key, 0) for key in ("replicas", "readyReplicas", "updatedReplicas", "availableReplicas")]
        fresh = status.get("observedGeneration") == found["metadata"]["generation"]
        return fresh and counts == [wanted] * 4 and len(self.all("pods")) == wanted


def eventually(probe: Callable[[], Any], seconds: float = 10.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (seen := probe()):
        assert time.monotonic() < deadline, f"last seen: {seen!r}"
        time.sleep(0.01)
    return seen


def condition(obj: dict[str, Any], kind: str) -> dict[str, Any]:
    return next((item for item in dig(obj, "status", "conditions", default=[]) if item["type"] == kind), {})


@pytest.fixture
def bench() -> Iterator[Bench]:
    found = Bench()
    with found.workloads:
        found.workloads.add_gpu_node("gpu-0", gpu_product="NVIDIA-H100-80GB-HBM3", count=4)
        yield found


def test_deployment_becomes_ready_pods(bench: Bench) -> None:
    bench.create("deployments", deployment("chat", 3))
    eventually(lambda: bench.settled("chat"))
    pods = bench.all("pods")
    assert {pod["spec"]["nodeName"] for pod in pods} == {"gpu-0"}
    assert len({pod["status"]["podIP"] for pod in pods}) == 3
    assert all(pod["status"]["podIP"].startswith("127.") for pod in pods)
    found = bench.get("deployments", "chat")
    assert condition(found, "Available")["status"] == "True"
    assert condition(found, "Progressing")["reason"] == "NewReplicaSetAvailable"
    assert found["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "1"
    (replica_set,) = bench.all("replicasets")
    key = replica_set["metadata"]["labels"]["pod-template-hash"]
    assert replica_set["metadata"]["name"] == f"chat-{key}"
    assert {pod["metadata"]["labels"]["pod-template-hash"] for pod in pods} == {key}


def test_pod_is_ready_only_after_its_start_up_time(bench: Bench) -> None:
    bench.startup = lambda _pod: 30.0
    begun = time.monotonic()
    bench.create("deployments", deployment("chat", 1))
    pod = eventually(lambda: next((pod for pod in bench.all("pods") if pod["status"].get("podIP")), None))
    assert pod["status"]["phase"] == "Running"
    assert condition(pod, "Ready")["status"] == "False"
    assert bench.get("deployments", "chat").get("status", {}).get("readyReplicas", 0) == 0
    eventually(lambda: bench.settled("chat"))
    assert time.monotonic() - begun >= 30.0 * 0.05


def test_scaling_up_waits_for_free_gpus(bench: Bench) -> None:
    bench.create("deployments", deployment("chat", 1, gpus=2))
    eventually(lambda: bench.settled("chat"))
    bench.patch("deployments", "chat", {"spec": {"replicas": 3}})
    stuck = eventually(
        lambda: next(
            (pod for pod in bench.all("pods") if condition(pod, "PodScheduled").get("reason") == "Unschedulable"), None
        )
    )
    assert "nvidia.com/gpu" in condition(stuck, "PodScheduled")["message"]
    assert bench.get("deployments", "chat")["status"]["updatedReplicas"] == 3
    bench.workloads.add_gpu_node("gpu-1", gpu_product="NVIDIA-H100-80GB-HBM3", count=2)
    eventually(lambda: bench.settled("chat"))
    assert {pod["spec"]["nodeName"] for pod in bench.all("pods")} == {"gpu-0", "gpu-1"}


def test_scaling_down_gives_pods_their_end(bench: Bench) -> None:
    bench.shutdown = 6.0
    bench.create("deployments", deployment("chat", 3))
    eventually(lambda: bench.settled("chat"))
    bench.patch("deployments", "chat", {"spec": {"replicas": 1}})
    eventually(lambda: bench.get("deployments", "chat")["status"].get("replicas") == 1)
    assert sum("deletionTimestamp" in pod["metadata"] for pod in bench.all("pods")) == 2
    eventually(lambda: len(bench.all("pods")) == 1)
    assert condition(bench.get("deployments", "chat"), "Progressing")["reason"] == "NewReplicaSetAvailable"


def test_scale_to_zero_and_back(bench: Bench) -> None:
    bench.create("deployments", deployment("chat", 2))
    eventually(lambda: bench.settled("chat"))
    bench.patch("deployments", "chat", {"spec": {"replicas": 0}})
    eventually(lambda: bench.settled("chat"))
    bench.patch("deployments", "chat", {"spec": {"replicas": 2}})
    eventually(lambda: bench.settled("chat"))


@pytest.mark.parametrize(
    ("surge", "unavailable"), list(itertools.product((0, 1, "50%"), (0, 1, "50%")))[1:], ids=lambda value: str(value)
)
def test_rolling_update_keeps_its_bounds(bench: Bench, surge: int | str, unavailable: int | str) -> None:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}
    bench.workloads.add_gpu_node("gpu-1", gpu_product="NVIDIA-H100-80GB-HBM3", count=4)
    bench.create("deployments", deployment("chat", 4, strategy=strategy))
    eventually(lambda: bench.settled("chat"))
    lows, highs = [], []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            pods = [pod for pod in bench.all("pods") if "deletionTimestamp" not in pod["metadata"]]
            highs.append(len(pods))
            lows.append(sum(condition(pod, "Ready").get("status") == "True" for pod in pods))
            time.sleep(0.002)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        bench.retemplate("chat", "--new")
        eventually(lambda: bench.settled("chat"))
    finally:
        stop.set()
        watcher.join()
    assert all(pod["spec"]["containers"][0]["args"] == ["--new"] for pod in bench.all("pods"))
    assert max(highs) <= 4 + (2 if surge == "50%" else int(surge))
    assert min(lows) >= 4 - (2 if unavailable == "50%" else int(unavailable))
    assert bench.get("deployments", "chat")["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "2"


def test_recreate_ends_all_before_it_starts_new(bench: Bench) -> None:
    bench.create("deployments", deployment("chat", 2, gpus=2, strategy={"type": "Recreate"}))
    eventually(lambda: bench.settled("chat"))
    bench.retemplate("chat", "--new")
    eventually(lambda: bench.settled("chat") and len(bench.all("replicasets")) == 2)
    assert all(pod["spec"]["containers"][0]["args"] == ["--new"] for pod in bench.all("pods"))


def test_roll_back_takes_the_old_set_again(bench: Bench) -> None:
    bench.create("deployments", deployment("chat", 1))
    eventually(lambda: bench.settled("chat"))
    bench.retemplate("chat", "--new")
    eventually(lambda: bench.settled("chat") and len(bench.all("replicasets")) == 2)
    bench.retemplate("chat", "--model", "m")
    eventually(lambda: bench.settled("chat"))
    assert len(bench.all("replicasets")) == 2
    assert bench.get("deployments", "chat")["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "3"


def test_roll_out_that_crashes_is_reported_and_leaves_the_old_pods(bench: Bench) -> None:
    bench.startup = lambda pod: None if pod["spec"]["containers"][0]["args"] == ["--bad"] else 0.1
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    bench.create("deployments", deployment("chat", 2, strategy=strategy, progressDeadlineSeconds=20))
    eventually(lambda: bench.settled("chat"))
    bench.retemplate("chat", "--bad")
    found = eventually(
        lambda: next(
            (
                item
                for item in [bench.get("deployments", "chat")]
                if condition(item, "Progressing").get("reason") == "ProgressDeadlineExceeded"
            ),
            None,
        )
    )
    assert condition(found, "Progressing")["status"] == "False"
    assert found["status"]["readyReplicas"] == 2
    (bad,) = [pod for pod in bench.all("pods") if pod["spec"]["containers"][0]["args"] == ["--bad"]]
    assert bad["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    bench.retemplate("chat", "--model", "m")
    eventually(lambda: bench.settled("chat"))


def test_paused_deployment_scales_and_does_not_roll(bench: Bench) -> None:
    bench.create("deployments", deployment("chat", 1))
    eventually(lambda: bench.settled("chat"))
    bench.patch("deployments", "chat", {"spec": {"paused": True}})
    bench.retemplate("chat", "--new")
    bench.patch("deployments", "chat", {"spec": {"replicas": 2}})
    eventually(lambda: bench.settled("chat"))
    assert len(bench.all("replicasets")) == 1
    bench.patch("deployments", "chat", {"spec": {"paused": None}})
    eventually(lambda: bench.settled("chat") and len(bench.all("replicasets")) == 2)


def test_deleted_deployment_takes_all_along(bench: Bench) -> None:
    bench.create("deployments", deployment("chat", 2))
    eventually(lambda: bench.settled("chat"))
    bench.registry.delete(bench.kinds["deployments"], "default", "chat", DeleteOptions())
    eventually(lambda: not bench.all("pods") and not bench.all("replicasets"))


def test_lost_pod_and_lost_node_are_made_up_for(bench: Bench) -> None:
    bench.workloads.add_gpu_node("gpu-1", gpu_product="NVIDIA-H100-80GB-HBM3", count=4)
    bench.create("deployments", deployment("chat", 2))
    eventually(lambda: bench.settled("chat"))
    lost = bench.all("pods")[0]["metadata"]["name"]
    bench.registry.delete(bench.kinds["pods"], "default", lost, DeleteOptions(grace_seconds=0))
    eventually(lambda: bench.settled("chat"))
    assert lost not in {pod["metadata"]["name"] for pod in bench.all("pods")}
    bench.registry.delete(bench.kinds["nodes"], "", "gpu-0", DeleteOptions())
    eventually(lambda: {pod["spec"]["nodeName"] for pod in bench.all("pods")} == {"gpu-1"} and bench.settled("chat"))


def test_selectors_and_taints_are_respected(bench: Bench) -> None:
    bench.workloads.add_gpu_node("gpu-1", gpu_product="NVIDIA-A100-SXM4-80GB", count=4, labels={"pool": "b"})
    bench.patch("nodes", "gpu-1", {"spec": {"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]}})
    body = deployment("chat", 1)
    pod = body["spec"]["template"]["spec"]
    pod["nodeSelector"] = {"pool": "b"}
    bench.create("deployments", body)
    eventually(lambda: [item for item in bench.all("pods") if condition(item, "PodScheduled").get("status") == "False"])
    tolerations = [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]
    bench.patch("deployments", "chat", {"spec": {"template": {"spec": {"tolerations": tolerations}}}})
    eventually(lambda: bench.settled("chat"))
    assert bench.all("pods")[0]["spec"]["nodeName"] == "gpu-1"


@pytest.mark.parametrize("policy", ["OrderedReady", "Parallel"])
def test_stateful_set_numbers_updates_and_scales(bench: Bench, policy: str) -> None:
    bench.create("statefulsets", deployment("big", 3, podManagementPolicy=policy, serviceName="big"))

    def settled(replicas: int) -> bool:
        found = bench.get("statefulsets", "big")
        status = found.get("status", {})
        names = [pod["metadata"]["name"] for pod in bench.all("pods")]
        counts = [status.get(key, 0) for key in ("replicas", "readyReplicas", "updatedReplicas")]
        fresh = status.get("observedGeneration") == found["metadata"]["generation"]
        return fresh and counts == [replicas] * 3 and names == [f"big-{i}" for i in range(replicas)]

    eventually(lambda: settled(3))
    bench.retemplate("big", "--new", kind="statefulsets")
    eventually(lambda: settled(3))
    assert all(pod["spec"]["containers"][0]["args"] == ["--new"] for pod in bench.all("pods"))
    status = bench.get("statefulsets", "big")["status"]
    assert status["currentRevision"] == status["updateRevision"]
    bench.patch("statefulsets", "big", {"spec": {"replicas": 1}})
    eventually(lambda: settled(1))


def test_scale_must_be_positive() -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        Workloads(Registry(), seconds_scale=0.0)


def test_node_names_are_unique(bench: Bench) -> None:
    with pytest.raises(ValueError, match="choose another name"):
        bench.workloads.add_gpu_node("gpu-0", gpu_product="NVIDIA-H100-80GB-HBM3", count=1)
