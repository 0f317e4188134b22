"""Patches: JSON merge, JSON patch, strategic merge; status and scale subresources."""

from kubernetes import client

from tests.contract.conftest import Api, deployment, refused, widget

JSON_PATCH = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"


def test_merge_patch_sets_and_deletes(api: Api, widgets: str) -> None:
    api.request("POST", widgets, widget("a", extra={"x": 1, "y": {"z": 2}}, levers={"sizes": [1, 2]}))
    found = api.merge(f"{widgets}/a", {"spec": {"extra": {"x": None, "y": {"w": 3}}, "levers": {"sizes": [3]}}})
    assert found["spec"]["extra"] == {"y": {"z": 2, "w": 3}}
    assert found["spec"]["levers"] == {"enabled": True, "sizes": [3]}


def test_merge_patch_with_an_old_version_conflicts(api: Api, widgets: str) -> None:
    made = api.request("POST", widgets, widget("a"))
    api.merge(f"{widgets}/a", {"spec": {"replicas": 2}})
    version = made["metadata"]["resourceVersion"]
    with refused(409, "Conflict"):
        api.merge(f"{widgets}/a", {"metadata": {"resourceVersion": version}, "spec": {"replicas": 3}})


def test_json_patch(api: Api, widgets: str) -> None:
    api.request("POST", widgets, widget("a", levers={"sizes": [1, 2]}, extra={"a/b": 1}))
    operations = [
        {"op": "test", "path": "/spec/replicas", "value": 1},
        {"op": "replace", "path": "/spec/replicas", "value": 4},
        {"op": "add", "path": "/spec/levers/sizes/-", "value": 3},
        {"op": "add", "path": "/spec/levers/sizes/0", "value": 0},
        {"op": "remove", "path": "/spec/extra/a~1b"},
        {"op": "copy", "from": "/spec/mode", "path": "/spec/extra/copied"},
    ]
    spec = api.request("PATCH", f"{widgets}/a", operations, content_type=JSON_PATCH)["spec"]
    assert (spec["replicas"], spec["levers"]["sizes"], spec["extra"]) == (4, [0, 1, 2, 3], {"copied": "Observe"})


def test_json_patch_whose_test_fails_changes_nothing(api: Api, widgets: str) -> None:
    api.request("POST", widgets, widget("a"))
    operations = [
        {"op": "replace", "path": "/spec/replicas", "value": 4},
        {"op": "test", "path": "/spec/mode", "value": "Enforce"},
    ]
    with refused(422, "Invalid"):
        api.request("PATCH", f"{widgets}/a", operations, content_type=JSON_PATCH)
    assert api.request("GET", f"{widgets}/a")["spec"]["replicas"] == 1


def test_strategic_merge_of_containers(api: Api, deployments: str) -> None:
    api.request("POST", deployments, deployment("chat"))

    def patch(container: dict) -> dict:
        body = {"spec": {"template": {"spec": {"containers": [{"name": "vllm", **container}]}}}}
        found = api.request("PATCH", f"{deployments}/chat", body, content_type=STRATEGIC)
        return found["spec"]["template"]["spec"]["containers"][0]

    found = patch({"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]})
    assert (found["image"], found["args"]) == ("example.com/vllm:v1", ["--model", "m"])
    found = patch({"env": [{"name": "B", "value": "3"}, {"name": "C", "value": "4"}], "args": ["--other"]})
    assert {item["name"]: item["value"] for item in found["env"]} == {"A": "1", "B": "3", "C": "4"}
    assert found["args"] == ["--other"]
    found = patch({"env": [{"name": "A", "$patch": "delete"}], "ports": [{"containerPort": 9000}]})
    assert {item["name"] for item in found["env"]} == {"B", "C"}
    assert {item["containerPort"] for item in found["ports"]} == {8000, 9000}


def test_strategic_merge_is_not_for_custom_objects(api: Api, widgets: str) -> None:
    api.request("POST", widgets, widget("a"))
    with refused(415, "UnsupportedMediaType"):
        api.request("PATCH", f"{widgets}/a", {"spec": {"replicas": 2}}, content_type=STRATEGIC)


def test_status_and_spec_are_written_apart(api: Api, widgets: str) -> None:
    made = api.request("POST", widgets, {**widget("a"), "status": {"phase": "Ignored"}})
    assert "status" not in made
    found = api.merge(f"{widgets}/a/status", {"status": {"phase": "Ready"}, "spec": {"replicas": 9}})
    assert (found["status"]["phase"], found["spec"]["replicas"]) == ("Ready", 1)
    found = api.merge(f"{widgets}/a", {"status": {"phase": "Ignored"}, "spec": {"replicas": 2}})
    assert (found["status"]["phase"], found["spec"]["replicas"]) == ("Ready", 2)
    found["status"] = {"phase": "Put"}
    found["spec"]["replicas"] = 7
    put = api.request("PUT", f"{widgets}/a/status", found)
    assert (put["status"], put["spec"]["replicas"]) == ({"phase": "Put"}, 2)
    assert api.request("GET", f"{widgets}/a/status")["status"] == {"phase": "Put"}
    with refused(422, "Invalid", "status.phase"):
        api.merge(f"{widgets}/a/status", {"status": {"phase": 3}})


def test_scale_of_a_deployment(api: Api, namespace: str, deployments: str) -> None:
    api.request("POST", deployments, deployment("chat"))
    apps = client.AppsV1Api(api.client)
    scale = apps.read_namespaced_deployment_scale("chat", namespace)
    assert (scale.spec.replicas or 0, scale.status.selector) == (0, "app=chat")
    # A selector of nobody's pods: the real controller must not start any here.
    changed = apps.patch_namespaced_deployment_scale(
        "chat", namespace, {"spec": {"replicas": 1}}, field_manager="scaler", dry_run="All"
    )
    assert changed.spec.replicas == 1
    apps.patch_namespaced_deployment_scale("chat", namespace, {"spec": {"replicas": 1}}, field_manager="scaler")
    found = api.request("GET", f"{deployments}/chat")
    assert found["spec"]["replicas"] == 1
    entry = next(item for item in found["metadata"]["managedFields"] if item["manager"] == "scaler")
    assert entry["subresource"] == "scale"
    assert entry["fieldsV1"] == {"f:spec": {"f:replicas": {}}}


def test_scale_of_a_custom_object(api: Api, widgets: str) -> None:
    api.request("POST", widgets, widget("a", replicas=2))
    api.merge(f"{widgets}/a/status", {"status": {"replicas": 1, "selector": "app=a"}})
    scale = api.request("GET", f"{widgets}/a/scale")
    assert (scale["kind"], scale["apiVersion"]) == ("Scale", "autoscaling/v1")
    assert (scale["spec"], scale["status"]) == ({"replicas": 2}, {"replicas": 1, "selector": "app=a"})
    scale["spec"]["replicas"] = 5
    assert api.request("PUT", f"{widgets}/a/scale", scale)["spec"]["replicas"] == 5
    assert api.request("GET", f"{widgets}/a")["spec"]["replicas"] == 5
    with refused(409, "Conflict"):
        api.request("PUT", f"{widgets}/a/scale", scale)
    with refused(422, "Invalid"):
        api.merge(f"{widgets}/a/scale", {"spec": {"replicas": 99}})
