"""kubectl as people use it: apply, get, describe, patch, scale, delete."""

import json

import pytest
import yaml

from tests.contract.conftest import Api, deployment, widget


@pytest.fixture
def here(namespace: str) -> str:
    return f"--namespace={namespace}"


def test_apply_creates_then_configures(api: Api, here: str) -> None:
    body = widget("a")
    assert api.kubectl("apply", here, "-f", "-", stdin=yaml.safe_dump(body)).split()[-1] == "created"
    assert api.kubectl("apply", here, "-f", "-", stdin=yaml.safe_dump(body)).split()[-1] == "unchanged"
    body["spec"]["replicas"] = 3
    assert api.kubectl("apply", here, "-f", "-", stdin=yaml.safe_dump(body)).split()[-1] == "configured"
    assert api.kubectl("get", here, "widgets", "a", "-o", "jsonpath={.spec.replicas}") == "3"


def test_apply_of_a_deployment_removes_what_was_left_out(api: Api, here: str) -> None:
    body = deployment("chat")
    container = body["spec"]["template"]["spec"]["containers"][0]
    container["env"] = [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]
    api.kubectl("apply", here, "-f", "-", stdin=yaml.safe_dump(body))
    container["env"] = [{"name": "B", "value": "2"}]
    api.kubectl("apply", here, "-f", "-", stdin=yaml.safe_dump(body))
    found = json.loads(api.kubectl("get", here, "deploy", "chat", "-o", "json"))
    assert found["spec"]["template"]["spec"]["containers"][0]["env"] == [{"name": "B", "value": "2"}]


def test_apply_on_the_server(api: Api, here: str) -> None:
    body = yaml.safe_dump(widget("a", replicas=2))
    assert "serverside-applied" in api.kubectl("apply", here, "--server-side", "-f", "-", stdin=body)
    other = yaml.safe_dump(widget("a", replicas=4))
    said = api.kubectl("apply", here, "--server-side", "--field-manager=other", "-f", "-", stdin=other, check=False)
    assert "conflict" in said
    assert ".spec.replicas" in said


def test_unknown_fields_are_refused(api: Api, here: str) -> None:
    body = yaml.safe_dump(widget("a", tpyo=1))
    said = api.kubectl("apply", here, "-f", "-", stdin=body, check=False)
    assert 'unknown field "spec.tpyo"' in said


def test_unknown_kinds_are_told_apart_from_errors(api: Api, here: str) -> None:
    body = yaml.safe_dump({"apiVersion": "unheard.of/v1", "kind": "Thing", "metadata": {"name": "a"}})
    said = api.kubectl("apply", here, "-f", "-", stdin=body, check=False)
    assert 'no matches for kind "Thing" in version "unheard.of/v1"' in said


def test_printer_columns(api: Api, here: str, widgets: str) -> None:
    api.request("POST", widgets, widget("a"))
    api.merge(f"{widgets}/a/status", {"status": {"conditions": [{"type": "Ready", "status": "True"}]}})
    header, row = api.kubectl("get", here, "widgets").splitlines()
    assert header.split() == ["NAME", "MODE", "REPLICAS", "READY", "AGE"]
    assert row.split()[:4] == ["a", "Observe", "1", "True"]
    assert "MODEL" in api.kubectl("get", here, "widx", "-o", "wide")


def test_built_in_columns(api: Api, here: str, namespace: str) -> None:
    api.kubectl("apply", here, "-f", "-", stdin=yaml.safe_dump(deployment("chat")))
    header, row = api.kubectl("get", here, "deployments").splitlines()
    assert header.split() == ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]
    assert row.split()[:4] == ["chat", "0/0", "0", "0"]
    header, row = api.kubectl("get", "namespace", namespace).splitlines()
    assert (header.split(), row.split()[:2]) == (["NAME", "STATUS", "AGE"], [namespace, "Active"])
    assert api.kubectl("get", here, "deploy", "-o", "name") == "deployment.apps/chat\n"


def test_describe(api: Api, here: str, widgets: str) -> None:
    api.request("POST", widgets, widget("a"))
    said = api.kubectl("describe", here, "widget", "a")
    assert "Mode:" in said
    api.kubectl("apply", here, "-f", "-", stdin=yaml.safe_dump(deployment("chat")))
    said = api.kubectl("describe", here, "deployment", "chat")
    assert "example.com/vllm:v1" in said
    assert "--model" in said


def test_patch_scale_label_and_delete(api: Api, here: str, widgets: str) -> None:
    api.request("POST", widgets, widget("a"))
    api.kubectl("patch", here, "widget", "a", "--type=merge", "-p", '{"spec":{"mode":"Enforce"}}')
    api.kubectl("scale", here, "widget", "a", "--replicas=4")
    api.kubectl("label", here, "widget", "a", "tier=x")
    found = json.loads(api.kubectl("get", here, "widgets", "-l", "tier=x", "-o", "json"))["items"][0]
    assert (found["spec"]["mode"], found["spec"]["replicas"]) == ("Enforce", 4)
    assert "deleted" in api.kubectl("delete", here, "widget", "a")
    assert "not found" in api.kubectl("get", here, "widget", "a", check=False)


def test_wait_and_explain(api: Api, here: str, widgets: str) -> None:
    api.request("POST", widgets, widget("a"))
    api.merge(f"{widgets}/a/status", {"status": {"conditions": [{"type": "Ready", "status": "True"}]}})
    assert "condition met" in api.kubectl("wait", here, "--for=condition=Ready", "widget/a", "--timeout=10s")
    assert "replicas" in api.kubectl("explain", "widget.spec")


def test_create_small_things(api: Api, here: str, namespace: str) -> None:
    api.kubectl("create", here, "configmap", "c", "--from-literal=k=v", "--from-literal=empty=")
    assert json.loads(api.kubectl("get", here, "configmap", "c", "-o", "json"))["data"] == {"k": "v", "empty": ""}
    api.kubectl("create", here, "secret", "generic", "s", "--from-literal=k=v")
    assert api.kubectl("get", here, "secret", "s", "-o", "jsonpath={.data.k}") == "dg=="
    api.kubectl("create", here, "serviceaccount", "someone")
    assert "someone" in api.kubectl("get", here, "serviceaccounts")
    inner = f"{namespace}-made"
    assert "created" in api.kubectl("create", "namespace", inner)
    api.kubectl("delete", "namespace", inner)


def test_cordon(api: Api, namespace: str) -> None:
    node = f"node-{namespace}"
    api.request("POST", "/api/v1/nodes", {"metadata": {"name": node}})
    try:
        api.kubectl("cordon", node)
        assert api.request("GET", f"/api/v1/nodes/{node}")["spec"]["unschedulable"] is True
        assert "SchedulingDisabled" in api.kubectl("get", "node", node)
    finally:
        api.kubectl("delete", "node", node)
