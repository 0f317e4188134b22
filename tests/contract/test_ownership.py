"""Field ownership: managedFields of updates, server-side apply with conflicts, force, and giving up fields."""

from typing import Any

from kubernetes import client

from tests.contract.conftest import Api, deployment, refused, widget


def owners(obj: dict[str, Any]) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {
        (item["manager"], item["operation"], item.get("subresource", "")): item["fieldsV1"]
        for item in obj["metadata"]["managedFields"]
    }


def applied(name: str, **spec: Any) -> dict[str, Any]:
    found = widget(name)
    found["spec"] = spec
    return found


def test_writers_own_what_they_change(api: Api, widgets: str) -> None:
    api.request("POST", widgets, widget("a"), query={"fieldManager": "maker"})
    api.merge(f"{widgets}/a", {"spec": {"replicas": 3}}, manager="scaler")
    found = api.merge(f"{widgets}/a/status", {"status": {"phase": "X"}}, manager="controller")
    fields = owners(found)
    assert fields["scaler", "Update", ""] == {"f:spec": {"f:replicas": {}}}
    assert "f:replicas" not in fields["maker", "Update", ""]["f:spec"]
    assert "f:model" in fields["maker", "Update", ""]["f:spec"]
    status = fields["controller", "Update", "status"]["f:status"]
    assert "f:phase" in status


def test_manager_is_the_user_agent_where_not_named(api: Api, widgets: str) -> None:
    made = api.request("POST", widgets, widget("a"))
    assert [manager for manager, _, _ in owners(made)] == ["OpenAPI-Generator"]


def test_container_arguments_have_owners(api: Api, deployments: str) -> None:
    api.request("POST", deployments, deployment("chat"), query={"fieldManager": "maker"})
    body = {"spec": {"template": {"spec": {"containers": [{"name": "vllm", "args": ["--new"]}]}}}}
    found = api.request(
        "PATCH",
        f"{deployments}/chat",
        body,
        content_type="application/strategic-merge-patch+json",
        query={"fieldManager": "tuner"},
    )
    containers = owners(found)["tuner", "Update", ""]["f:spec"]["f:template"]["f:spec"]["f:containers"]
    assert containers['k:{"name":"vllm"}'] == {"f:args": {}}


def test_apply_creates_and_owns_exactly_what_it_names(api: Api, widgets: str) -> None:
    made = api.apply(f"{widgets}/a", applied("a", model="m", replicas=2), manager="one")
    assert made["spec"]["mode"] == "Observe"
    assert owners(made)["one", "Apply", ""] == {"f:spec": {"f:model": {}, "f:replicas": {}}}


def test_apply_against_another_owner_conflicts_unless_forced(api: Api, widgets: str) -> None:
    api.apply(f"{widgets}/a", applied("a", model="m", replicas=2), manager="one")
    with refused(409, "Conflict", 'conflict with "one"', ".spec.replicas"):
        api.apply(f"{widgets}/a", applied("a", replicas=5), manager="two")
    shared = api.apply(f"{widgets}/a", applied("a", replicas=2), manager="two")
    assert owners(shared)["two", "Apply", ""] == {"f:spec": {"f:replicas": {}}}
    assert "f:replicas" in owners(shared)["one", "Apply", ""]["f:spec"]
    forced = api.apply(f"{widgets}/a", applied("a", replicas=5), manager="two", force=True)
    assert forced["spec"]["replicas"] == 5
    assert owners(forced)["one", "Apply", ""] == {"f:spec": {"f:model": {}}}


def test_apply_conflicts_with_an_update(api: Api, deployments: str) -> None:
    api.request("POST", deployments, deployment("chat"), query={"fieldManager": "maker"})
    config = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "chat"},
        "spec": {"template": {"spec": {"containers": [{"name": "vllm", "args": ["--mine"]}]}}},
    }
    with refused(409, "Conflict", 'conflict with "maker"', '.spec.template.spec.containers[name="vllm"].args'):
        api.apply(f"{deployments}/chat", config, manager="tuner")
    found = api.apply(f"{deployments}/chat", config, manager="tuner", force=True)
    container = found["spec"]["template"]["spec"]["containers"][0]
    assert (container["args"], container["image"]) == (["--mine"], "example.com/vllm:v1")


def test_field_no_longer_applied_goes_unless_shared(api: Api, widgets: str) -> None:
    ports = [{"name": "a", "number": 1}, {"name": "b", "number": 2}]
    api.apply(f"{widgets}/a", applied("a", model="m", replicas=4, ports=ports), manager="one")
    api.apply(f"{widgets}/a", applied("a", ports=[{"name": "b", "number": 2}]), manager="two")
    found = api.apply(f"{widgets}/a", applied("a", model="m"), manager="one")
    assert found["spec"]["replicas"] == 1
    assert found["spec"]["ports"] == [{"name": "b", "number": 2}]


def test_apply_merges_keyed_lists(api: Api, widgets: str) -> None:
    api.apply(f"{widgets}/a", applied("a", model="m", ports=[{"name": "a", "number": 1}]), manager="one")
    found = api.apply(f"{widgets}/a", applied("a", ports=[{"name": "b", "number": 2}]), manager="two")
    assert found["spec"]["ports"] == [{"name": "a", "number": 1}, {"name": "b", "number": 2}]
    assert owners(found)["two", "Apply", ""] == {
        "f:spec": {"f:ports": {'k:{"name":"b"}': {".": {}, "f:name": {}, "f:number": {}}}}
    }


def test_apply_of_status(api: Api, widgets: str) -> None:
    api.request("POST", widgets, widget("a"))
    config = {
        **{key: value for key, value in widget("a").items() if key != "spec"},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }
    found = api.apply(f"{widgets}/a/status", config, manager="one")
    assert found["status"]["conditions"] == [{"type": "Ready", "status": "True"}]
    assert ("one", "Apply", "status") in owners(found)


def test_apply_again_changes_nothing(api: Api, widgets: str) -> None:
    first = api.apply(f"{widgets}/a", applied("a", model="m"), manager="one")
    second = api.apply(f"{widgets}/a", applied("a", model="m"), manager="one")
    assert second == first


def test_apply_needs_a_manager(api: Api, widgets: str) -> None:
    try:
        api.request("PATCH", f"{widgets}/a", applied("a", model="m"), content_type="application/apply-patch+yaml")
    except client.ApiException as error:
        assert error.status in (400, 422)
        assert "fieldManager" in error.body
    else:
        raise AssertionError("an apply without a field manager was taken")
