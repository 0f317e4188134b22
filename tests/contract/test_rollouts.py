"""Deployments on GPU nodes: the stand-ins of the embedded API beside the real controllers, scheduler and kwok."""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import secrets
from typing import Any

import pytest
from kubernetes import client, config

from tests.contract.conftest import Api, deployment, eventually
from wattkeeper.embedded.server import EmbeddedApi
from wattkeeper.embedded.workloads import Workloads

GPU = "NVIDIA-H100-80GB-HBM3"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fleet:
    """An API with one node of four GPUs, and a namespace on it."""

    api: Api
    namespace: str
    pool: str

    @property
    def deployments(self) -> str:
        return f"/apis/apps/v1/namespaces/{self.namespace}/deployments"

    def create(self, name: str, replicas: int, **spec: Any) -> None:
        body = deployment(name, replicas=replicas)
        body["spec"] |= spec
        body["spec"]["template"]["spec"]["nodeSelector"] = {"pool": self.pool}
        self.api.request("POST", self.deployments, body)

    def get(self, name: str) -> dict[str, Any]:
        return self.api.request("GET", f"{self.deployments}/{name}")

    def pods(self) -> list[dict[str, Any]]:
        return self.api.request("GET", f"/api/v1/namespaces/{self.namespace}/pods")["items"]

    def sets(self) -> list[dict[str, Any]]:
        return self.api.request("GET", f"/apis/apps/v1/namespaces/{self.namespace}/replicasets")["items"]

    def settled(self, name: str) -> bool:
        found = self.get(name)
        status, wanted = found.get("status", {}), found["spec"]["replicas"]
        counts = [status.get(key, 0) for key in ("replicas", "readyReplicas", "updatedReplicas", "availableReplicas")]
        fresh = status.get("observedGeneration") == found["metadata"]["generation"]
        return fresh and counts == [wanted] * 4 and len(self.pods()) == wanted

    def retemplate(self, name: str, *arguments: str) -> None:
        body = {"spec": {"template": {"spec": {"containers": [{"name": "vllm", "args": list(arguments)}]}}}}
        self.api.request(
            "PATCH", f"{self.deployments}/{name}", body, content_type="application/strategic-merge-patch+json"
        )


@pytest.fixture(scope="module", params=["embedded", pytest.param("real", marks=pytest.mark.cluster)])
def pool(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> collections.abc.Iterator[tuple[Api, str]]:
    name = f"pool-{secrets.token_hex(3)}"
    with contextlib.ExitStack() as stack:
        if request.param == "embedded":
            server = stack.enter_context(EmbeddedApi())
            running = stack.enter_context(Workloads(server.registry, startup_seconds=lambda _pod: 0.1))
            running.add_gpu_node(name, gpu_product=GPU, count=4, labels={"pool": name})
            kubeconfig = server.write_kubeconfig(tmp_path_factory.mktemp("fleet") / "kubeconfig")
        else:
            cluster = request.getfixturevalue("control_plane")
            cluster.add_gpu_node(name, gpu_product=GPU, count=4, labels={"pool": name})
            kubeconfig = cluster.kubeconfig
        connection = stack.enter_context(config.new_client_from_config(config_file=str(kubeconfig)))
        yield Api(name=request.param, kubeconfig=kubeconfig, client=connection), name


@pytest.fixture
def fleet(pool: tuple[Api, str]) -> collections.abc.Iterator[Fleet]:
    api, name = pool
    core = client.CoreV1Api(api.client)
    namespace = f"fleet-{secrets.token_hex(4)}"
    core.create_namespace({"metadata": {"name": namespace}})
    found = Fleet(api=api, namespace=namespace, pool=name)
    yield found
    core.delete_namespace(namespace)
    eventually(lambda: not found.pods(), seconds=30)


def condition(obj: dict[str, Any], kind: str) -> dict[str, Any]:
    return next((item for item in obj.get("status", {}).get("conditions", []) if item["type"] == kind), {})


def test_replicas_come_up_with_the_usual_labels_and_status(fleet: Fleet) -> None:
    fleet.create("chat", 2)
    eventually(lambda: fleet.settled("chat"))
    found, (replica_set,) = fleet.get("chat"), fleet.sets()
    assert found["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "1"
    assert "unavailableReplicas" not in found["status"]
    assert condition(found, "Available")["reason"] == "MinimumReplicasAvailable"
    assert condition(found, "Progressing")["reason"] == "NewReplicaSetAvailable"
    key = replica_set["metadata"]["labels"]["pod-template-hash"]
    assert replica_set["metadata"]["name"] == f"chat-{key}"
    assert replica_set["spec"]["selector"]["matchLabels"] == {"app": "chat", "pod-template-hash": key}
    for pod in fleet.pods():
        owner = pod["metadata"]["ownerReferences"][0]
        assert (owner["kind"], owner["name"], owner["controller"]) == ("ReplicaSet", f"chat-{key}", True)
        assert pod["metadata"]["labels"] == {"app": "chat", "pod-template-hash": key}
        assert (pod["spec"]["nodeName"], pod["status"]["phase"]) == (fleet.pool, "Running")
        assert pod["status"]["podIP"]
        assert pod["status"]["containerStatuses"][0]["ready"] is True
        assert condition(pod, "PodScheduled")["status"] == condition(pod, "Ready")["status"] == "True"


def test_more_replicas_than_gpus_stay_pending(fleet: Fleet) -> None:
    fleet.create("chat", 5)
    eventually(lambda: fleet.get("chat").get("status", {}).get("readyReplicas") == 4)
    found = eventually(
        lambda: [pod for pod in fleet.pods() if condition(pod, "PodScheduled").get("reason") == "Unschedulable"]
    )
    assert [pod["status"]["phase"] for pod in found] == ["Pending"]
    status = eventually(lambda: fleet.get("chat")["status"])
    assert (status["replicas"], status["unavailableReplicas"]) == (5, 1)
    assert condition({"status": status}, "Available")["status"] == "True"
    fleet.api.merge(f"{fleet.deployments}/chat", {"spec": {"replicas": 4}})
    eventually(lambda: fleet.settled("chat"))
    assert all(pod["spec"].get("nodeName") for pod in fleet.pods())


def test_roll_out_and_roll_back(fleet: Fleet) -> None:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    fleet.create("chat", 2, strategy=strategy)
    eventually(lambda: fleet.settled("chat"))
    fleet.retemplate("chat", "--new")
    eventually(lambda: fleet.settled("chat"), seconds=40)
    assert {tuple(pod["spec"]["containers"][0]["args"]) for pod in fleet.pods()} == {("--new",)}
    assert sorted(item["spec"]["replicas"] for item in fleet.sets()) == [0, 2]
    assert fleet.get("chat")["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "2"
    fleet.retemplate("chat", "--model", "m")
    eventually(lambda: fleet.settled("chat"), seconds=40)
    assert len(fleet.sets()) == 2
    assert fleet.get("chat")["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "3"


def test_roll_out_without_room_is_told_after_the_deadline(fleet: Fleet) -> None:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    fleet.create("chat", 4, strategy=strategy, progressDeadlineSeconds=3)
    eventually(lambda: fleet.settled("chat"))
    fleet.retemplate("chat", "--new")
    found = eventually(
        lambda: next(
            (
                item
                for item in [fleet.get("chat")]
                if condition(item, "Progressing").get("reason") == "ProgressDeadlineExceeded"
            ),
            None,
        ),
        seconds=30,
    )
    assert condition(found, "Progressing")["status"] == "False"
    assert (found["status"]["readyReplicas"], found["status"]["updatedReplicas"]) == (4, 1)


def test_deletion_takes_pods_along(fleet: Fleet) -> None:
    fleet.create("chat", 2)
    eventually(lambda: fleet.settled("chat"))
    fleet.api.request("DELETE", f"{fleet.deployments}/chat")
    eventually(lambda: not fleet.pods() and not fleet.sets(), seconds=120)
