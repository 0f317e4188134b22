"""Deletion: finalizers, owners and dependents, namespaces, grace of pods."""

from kubernetes import client

from tests.contract.conftest import API_VERSION, Api, absent, eventually, refused, widget


def owned(name: str, owner: dict) -> dict:
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
    }
    return {"metadata": {"name": name, "ownerReferences": [reference]}}


def test_finalizers_hold_a_deleted_object(api: Api, widgets: str) -> None:
    body = widget("a")
    body["metadata"]["finalizers"] = ["tests.wattkeeper.io/hold"]
    api.request("POST", widgets, body)
    answer = api.request("DELETE", f"{widgets}/a")
    assert answer["kind"] == "Widget"
    held = api.request("GET", f"{widgets}/a")
    assert held["metadata"]["deletionTimestamp"]
    assert held["metadata"]["generation"] == 2
    again = api.request("DELETE", f"{widgets}/a")
    assert again["metadata"]["deletionTimestamp"] == held["metadata"]["deletionTimestamp"]
    with refused(422, "Invalid", "no new finalizers can be added"):
        finalizers = ["tests.wattkeeper.io/hold", "tests.wattkeeper.io/more"]
        api.merge(f"{widgets}/a", {"metadata": {"finalizers": finalizers}})
    last = api.merge(f"{widgets}/a", {"metadata": {"finalizers": None}})
    assert last["metadata"]["name"] == "a"
    assert absent(lambda: api.request("GET", f"{widgets}/a"))


def test_dependents_go_with_their_owner(api: Api, namespace: str, widgets: str) -> None:
    core = client.CoreV1Api(api.client)
    owner = api.request("POST", widgets, widget("owner"))
    core.create_namespaced_config_map(namespace, owned("child", owner))
    api.request("DELETE", f"{widgets}/owner")
    eventually(lambda: absent(lambda: core.read_namespaced_config_map("child", namespace)), seconds=40)


def test_dependents_can_be_orphaned(api: Api, namespace: str, widgets: str) -> None:
    core = client.CoreV1Api(api.client)
    owner = api.request("POST", widgets, widget("owner"))
    core.create_namespaced_config_map(namespace, owned("child", owner))
    api.request("DELETE", f"{widgets}/owner", {"propagationPolicy": "Orphan"})
    eventually(lambda: absent(lambda: api.request("GET", f"{widgets}/owner")), seconds=40)
    child = core.read_namespaced_config_map("child", namespace)
    assert child.metadata.owner_references is None


def test_foreground_deletion_waits_for_dependents(api: Api, widgets: str) -> None:
    owner = api.request("POST", widgets, widget("owner"))
    child = widget("child")
    child["metadata"] |= owned("child", owner)["metadata"]
    child["metadata"]["ownerReferences"][0]["blockOwnerDeletion"] = True
    child["metadata"]["finalizers"] = ["tests.wattkeeper.io/hold"]
    api.request("POST", widgets, child)
    api.request("DELETE", f"{widgets}/owner", {"propagationPolicy": "Foreground"})
    eventually(lambda: api.request("GET", f"{widgets}/child")["metadata"].get("deletionTimestamp"), seconds=40)
    assert api.request("GET", f"{widgets}/owner")["metadata"]["finalizers"] == ["foregroundDeletion"]
    api.merge(f"{widgets}/child", {"metadata": {"finalizers": None}})
    eventually(lambda: absent(lambda: api.request("GET", f"{widgets}/owner")), seconds=40)


def test_namespace_takes_its_contents_along(api: Api, namespace: str) -> None:
    core = client.CoreV1Api(api.client)
    inner = f"{namespace}-inner"
    core.create_namespace({"metadata": {"name": inner}})
    assert core.read_namespace(inner).status.phase == "Active"
    core.create_namespaced_config_map(inner, {"metadata": {"name": "a"}})
    body = widget("a")
    body["metadata"]["finalizers"] = ["tests.wattkeeper.io/hold"]
    path = f"/apis/{API_VERSION}/namespaces/{inner}/widgets"
    api.request("POST", path, body)
    core.delete_namespace(inner)
    eventually(lambda: absent(lambda: core.read_namespaced_config_map("a", inner)), seconds=40)
    assert core.read_namespace(inner).status.phase == "Terminating"
    with refused(403, "Forbidden", "because it is being terminated"):
        core.create_namespaced_config_map(inner, {"metadata": {"name": "late"}})
    api.merge(f"{path}/a", {"metadata": {"finalizers": None}})
    eventually(lambda: absent(lambda: core.read_namespace(inner)), seconds=40)


def test_collection_is_deleted_by_selector(api: Api, widgets: str) -> None:
    for name, tier in (("a", "x"), ("b", "x"), ("c", "y")):
        body = widget(name)
        body["metadata"]["labels"] = {"tier": tier}
        api.request("POST", widgets, body)
    api.request("DELETE", widgets, query={"labelSelector": "tier=x"})
    assert [item["metadata"]["name"] for item in api.request("GET", widgets)["items"]] == ["c"]


def test_running_pod_is_given_its_grace(api: Api, namespace: str) -> None:
    core = client.CoreV1Api(api.client)
    eventually(
        lambda: api.name == "embedded" or not absent(lambda: core.read_namespaced_service_account("default", namespace))
    )
    spec = {"containers": [{"name": "c", "image": "i"}], "nodeName": "node-y", "terminationGracePeriodSeconds": 45}
    core.create_namespaced_pod(namespace, {"metadata": {"name": "p"}, "spec": spec})
    core.delete_namespaced_pod("p", namespace)
    held = core.read_namespaced_pod("p", namespace)
    assert held.metadata.deletion_grace_period_seconds == 45
    core.delete_namespaced_pod("p", namespace, grace_period_seconds=0)
    assert absent(lambda: core.read_namespaced_pod("p", namespace))
