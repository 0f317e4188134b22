from pathlib import Path

import pytest
from typer.testing import CliRunner

from wattkeeper.api import schema
from wattkeeper.cli import main, reference
from wattkeeper.controller.metrics import OperatorMetrics

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", sorted(reference.pages()))
def test_committed_pages_are_what_the_code_says(name):
    assert (DOCS / name).read_text(encoding="utf-8") == reference.pages()[name], "run `make docs`"


def test_the_command_writes_all_pages(tmp_path):
    result = CliRunner().invoke(main.app, ["reference", "--output", str(tmp_path / "new")])
    assert result.exit_code == 0
    assert {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "new").iterdir()} == reference.pages()


def leaves(node, path):
    for name, child in node.get("properties", {}).items():
        yield f"{path}.{name}", child
        yield from leaves(child, f"{path}.{name}")
        yield from leaves(child.get("items", {}), f"{path}.{name}[]")


@pytest.mark.parametrize("resource", schema.RESOURCES, ids=lambda resource: resource.kind)
def test_every_field_and_every_rule_is_on_the_page(resource):
    page = reference.pages()["crds.md"]
    section = page.split(f"## {resource.kind}\n", 1)[1].split("\n## ", 1)[0]
    top = schema.open_api_schema(resource)["properties"]
    for part in ("spec", "status"):
        for path, node in leaves(top.get(part, {}), part):
            assert f"`{path}`" in section
            for rule in node.get("x-kubernetes-validations", ()) if node["type"] == "object" else ():
                assert rule["message"] in section


def test_quantities_are_named_by_what_they_stand_for():
    page = reference.pages()["crds.md"]
    assert "| `spec.metrics.maxAge` | duration | `1m` |" in page
    assert "| **`spec.levers.powerCap.min`** | power |" in page
    assert "| `spec.levers.engine.kvCacheMemory` | list of memory, at most 16 |" in page
    assert "| `spec.levers.powerCap` | object |" in page


def test_every_metric_that_the_operator_serves_is_on_the_page():
    page = reference.pages()["operator-metrics.md"]
    for family in OperatorMetrics().registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        assert f"| `{name}` | {family.type} |" in page
