"""Chart and kustomize base on a real API server: admitted, rolled out, with exactly the rights they give."""

from __future__ import annotations

import collections.abc
import json
import pathlib

import pytest
import yaml

from e2e import cluster

pytestmark = pytest.mark.cluster
ROOT = pathlib.Path(__file__).parents[2]
SYSTEM = "wattkeeper-system"
EXAMPLES = sorted((ROOT / "manifests" / "examples").glob("*.yaml"))


@pytest.fixture(scope="module")
def own_cluster() -> collections.abc.Iterator[cluster.ControlPlane]:
    """A cluster of its own, because CRDs and ClusterRoles are shared by everything in a cluster."""
    with cluster.ControlPlane() as running:
        running.add_gpu_node("gpu-0", gpu_product="NVIDIA-H100-80GB-HBM3", count=8)
        yield running


@pytest.fixture(scope="module")
def base(own_cluster: cluster.ControlPlane) -> cluster.ControlPlane:
    own_cluster.kubectl("apply", "--kustomize", str(ROOT / "manifests" / "base"))
    own_cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    return own_cluster


def test_helm_installs_and_keeps_the_crds_when_it_goes(own_cluster: cluster.ControlPlane) -> None:
    where = [f"--namespace={SYSTEM}"]
    chart = str(ROOT / "charts" / "wattkeeper")
    own_cluster.helm("install", "wattkeeper", chart, *where, "--create-namespace", "--wait", "--timeout=60s")
    own_cluster.helm("upgrade", "wattkeeper", chart, *where, "--set=replicas=2", "--wait", "--timeout=60s")
    assert own_cluster.get("deployment", "wattkeeper", *where)["status"]["readyReplicas"] == 2
    own_cluster.helm("uninstall", "wattkeeper", *where, "--wait")
    crds = own_cluster.get("crd")["items"]
    assert {found["spec"]["group"] for found in crds} == {"wattkeeper.io"}
    assert own_cluster.get("deployments", *where)["items"] == []


def test_the_pod_is_admitted_under_the_restricted_profile(base: cluster.ControlPlane) -> None:
    where = f"--namespace={SYSTEM}"
    namespace = base.get("namespace", SYSTEM)
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    base.kubectl("rollout", "status", "deployment/wattkeeper", where, "--timeout=30s")


MAY = [
    ("patch", "inferenceservices.wattkeeper.io", "llm"),
    ("patch", "inferenceservices.wattkeeper.io/status", "llm"),
    ("patch", "deployments.apps", "llm"),
    ("patch", "statefulsets.apps/scale", "llm"),
    ("watch", "pods", "llm"),
    ("list", "scaledobjects.keda.sh", "llm"),
    ("create", "events", "llm"),
    ("watch", "nodes", ""),
    ("create", "nodepowercaps.wattkeeper.io", ""),
    ("create", "leases.coordination.k8s.io", SYSTEM),
    ("update", "leases.coordination.k8s.io/wattkeeper", SYSTEM),
]
MAY_NOT = [
    ("get", "secrets", "llm"),
    ("list", "configmaps", "llm"),
    ("delete", "pods", "llm"),
    ("create", "pods", "llm"),
    ("delete", "deployments.apps", "llm"),
    ("create", "deployments.apps", "llm"),
    ("delete", "inferenceservices.wattkeeper.io", "llm"),
    ("patch", "nodes", ""),
    ("patch", "nodepowercaps.wattkeeper.io/status", ""),
    ("patch", "horizontalpodautoscalers.autoscaling", "llm"),
    ("update", "leases.coordination.k8s.io/other", SYSTEM),
    ("create", "leases.coordination.k8s.io", "llm"),
    ("patch", "customresourcedefinitions.apiextensions.k8s.io", ""),
]


def can_i(running: cluster.Cluster, kubeconfig: pathlib.Path, verb: str, what: str, namespace: str) -> bool:
    """Ask the API server; `what` is resource.group/part, where part is a subresource or, for Leases, a name."""
    kind, _, part = what.partition("/")
    resource, _, group = kind.partition(".")
    attributes = {"verb": verb, "resource": resource, "group": group, "namespace": namespace}
    attributes["name" if resource == "leases" else "subresource"] = part
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    answer = running.kubectl("create", "--filename=-", "--output=json", stdin=json.dumps(review), kubeconfig=kubeconfig)
    return bool(json.loads(answer)["status"]["allowed"])


def test_the_service_account_may_do_its_work_and_nothing_else(base: cluster.ControlPlane) -> None:
    operator = base.service_account_kubeconfig("wattkeeper", namespace=SYSTEM)
    assert [line for line in MAY if not can_i(base, operator, *line)] == []
    assert [line for line in MAY_NOT if can_i(base, operator, *line)] == []


def test_namespaced_variant_binds_in_one_namespace_only(base: cluster.ControlPlane) -> None:
    base.kubectl("create", "namespace", "llm")
    base.kubectl("delete", "clusterrolebinding", "wattkeeper-fleet")
    base.kubectl("apply", "--kustomize", str(ROOT / "manifests" / "namespaced"))
    operator = base.service_account_kubeconfig("wattkeeper", namespace=SYSTEM)
    assert can_i(base, operator, "patch", "deployments.apps", "llm")
    assert not can_i(base, operator, "patch", "deployments.apps", "default")
    assert not can_i(base, operator, "list", "inferenceservices.wattkeeper.io", "default")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_accepted_by_the_api_server(path: pathlib.Path, base: cluster.ControlPlane) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        if document["kind"] != "ScaledObject":  # KEDA is not installed here
            text = yaml.safe_dump(document)
            base.kubectl("create", "--dry-run=server", "--validate=strict", "--filename=-", stdin=text)
