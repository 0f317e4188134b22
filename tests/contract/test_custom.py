"""Custom resources: defaults, pruning, validation by schema; definitions that come, change and go."""

import pytest
from kubernetes import client

from tests.contract.conftest import GROUP, Api, absent, eventually, refused, wait_served, widget, widget_crd


def test_defaults_reach_into_maps(api: Api, widgets: str) -> None:
    spec = api.request("POST", widgets, widget("a"))["spec"]
    assert spec == {"model": "m", "replicas": 1, "mode": "Observe", "levers": {"enabled": True}}


def test_null_takes_the_default(api: Api, widgets: str) -> None:
    assert api.request("POST", widgets, widget("a", replicas=None))["spec"]["replicas"] == 1


def test_unknown_fields_are_pruned_or_refused(api: Api, widgets: str) -> None:
    body = widget("a", unknown=1, levers={"alsoUnknown": {"x": 1}}, extra={"kept": {"deep": 1}})
    with refused(400, "BadRequest", "strict decoding error", 'unknown field "spec.unknown"'):
        api.request("POST", widgets, body, query={"fieldValidation": "Strict"})
    spec = api.request("POST", widgets, body)["spec"]
    assert "unknown" not in spec
    assert spec["levers"] == {"enabled": True}
    assert spec["extra"] == {"kept": {"deep": 1}}


@pytest.mark.parametrize(
    ("spec", "field", "text"),
    [
        ({"replicas": -1}, "spec.replicas", "should be greater than or equal to 0"),
        ({"replicas": 11}, "spec.replicas", "should be less than or equal to 10"),
        ({"replicas": "two"}, "spec.replicas", 'must be of type integer: "string"'),
        ({"mode": "Dream"}, "spec.mode", 'Unsupported value: "Dream": supported values: "Observe", "Enforce"'),
        ({"model": ""}, "spec.model", "should be at least 1 chars long"),
        ({"model": "1x"}, "spec.model", "should match '^[a-z].*$'"),
        ({"levers": {"enabled": "yes"}}, "spec.levers.enabled", 'must be of type boolean: "string"'),
        ({"levers": {"sizes": [1, "x"]}}, "spec.levers.sizes[1]", "must be of type integer"),
        ({"ports": [{"number": 1}]}, "spec.ports[0].name", "Required value"),
        ({"ports": [{"name": "a"}, {"name": "a"}]}, "spec.ports[1]", "Duplicate value"),
    ],
)
def test_schema_is_enforced(api: Api, widgets: str, spec: dict, field: str, text: str) -> None:
    with refused(422, "Invalid", field, text, f'Widget.{GROUP} "a" is invalid'):
        api.request("POST", widgets, widget("a", **spec))


def test_required_field(api: Api, widgets: str) -> None:
    body = {**widget("a"), "spec": {}}
    with refused(422, "Invalid", "spec.model: Required value"):
        api.request("POST", widgets, body)


def test_several_errors_are_told_at_once(api: Api, widgets: str) -> None:
    with refused(422, "Invalid", "spec.replicas", "spec.mode"):
        api.request("POST", widgets, widget("a", replicas=99, mode="Dream"))


def test_definition_comes_changes_and_goes(api: Api, namespace: str) -> None:
    definitions = client.ApiextensionsV1Api(api.client)
    name = f"gadgets.{GROUP}"
    definitions.create_custom_resource_definition(widget_crd("gadgets", "Gadget"))
    wait_served(api, "gadgets")
    made = eventually(lambda: definitions.read_custom_resource_definition(name))
    conditions = {item.type: item.status for item in made.status.conditions}
    assert conditions["Established"] == conditions["NamesAccepted"] == "True"
    assert made.status.accepted_names.kind == "Gadget"
    path = f"/apis/{GROUP}/v1/namespaces/{namespace}/gadgets"
    api.request("POST", path, {**widget("g"), "kind": "Gadget"})

    newer = widget_crd("gadgets", "Gadget")
    schema = newer["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"]["properties"]["fresh"] = {"type": "string", "default": "new"}
    definitions.patch_custom_resource_definition(name, {"spec": newer["spec"]})
    eventually(lambda: api.request("GET", f"{path}/g")["spec"].get("fresh") == "new")

    definitions.delete_custom_resource_definition(name)
    eventually(lambda: absent(lambda: definitions.read_custom_resource_definition(name)))
    eventually(lambda: absent(lambda: api.request("GET", path)))


def test_definition_must_fit_its_name(api: Api) -> None:
    bad = widget_crd("gizmos", "Gizmo")
    bad["metadata"]["name"] = f"other.{GROUP}"
    with refused(422, "Invalid", "metadata.name", "must be spec.names.plural"):
        client.ApiextensionsV1Api(api.client).create_custom_resource_definition(bad)
