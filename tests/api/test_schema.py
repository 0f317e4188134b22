from pathlib import Path

import pytest
import yaml

from wattkeeper.api import schema

CRDS = Path(__file__).parents[2] / "crds"


@pytest.mark.parametrize("name", sorted(schema.crd_files()))
def test_committed_crds_are_what_the_types_say(name):
    assert (CRDS / name).read_text() == schema.crd_files()[name], "run `make crds`"


def test_no_crd_is_left_over():
    assert {path.name for path in CRDS.glob("*.yaml")} == set(schema.crd_files())


def nodes(node, path=""):
    if isinstance(node, dict):
        if "type" in node and not isinstance(node["type"], dict):
            yield path, node
        for key, child in node.items():
            yield from nodes(child, f"{path}.{key}")


@pytest.mark.parametrize("resource", schema.RESOURCES, ids=lambda resource: resource.kind)
def test_every_field_is_described_for_kubectl_explain(resource):
    top = schema.open_api_schema(resource)
    bare = [
        path
        for path, node in nodes(top["properties"], "")
        if "description" not in node and not path.endswith((".items", ".metadata", ".additionalProperties"))
    ]
    assert bare == []


@pytest.mark.parametrize("resource", schema.RESOURCES, ids=lambda resource: resource.kind)
def test_schema_is_structural(resource):
    text = yaml.safe_dump(schema.open_api_schema(resource))
    for forbidden in ("$ref", "anyOf:", "title:", "prefixItems", "const:"):
        assert forbidden not in text


def test_users_defaults_are_in_the_form_users_type():
    spec = schema.open_api_schema(schema.RESOURCES[0])["properties"]["spec"]["properties"]
    assert spec["metrics"]["properties"]["maxAge"]["default"] == "1m"
    assert spec["levers"]["properties"]["powerCap"]["properties"]["step"]["default"] == "25W"
    assert spec["mode"]["default"] == "Recommend"


def test_status_has_no_defaults():
    status = schema.open_api_schema(schema.RESOURCES[0])["properties"]["status"]
    assert [path for path, node in nodes(status) if "default" in node] == []
