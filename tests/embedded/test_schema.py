"""Structural schemas: defaults, pruning and validation as laws (tests/contract compares them with a real server)."""

from typing import Any

from hypothesis import given

from tests.embedded.strategies import MAPS, SCHEMA, SPECS
from wattkeeper.embedded import schema
from wattkeeper.embedded.values import clone

DEFAULTED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "a": {"type": "integer", "default": 1},
        "b": {
            "type": "object",
            "default": {},
            "properties": {"c": {"type": "string", "default": "x"}},
        },
        "d/e": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "integer", "default": 2}}}},
    },
}


@given(MAPS)
def test_defaults_only_add_and_only_once(value: dict[str, Any]) -> None:
    filled = clone(value)
    schema.fill_defaults(filled, DEFAULTED)
    assert set(value) <= set(filled)
    assert filled["a"] == value.get("a", 1)
    again = clone(filled)
    schema.fill_defaults(again, DEFAULTED)
    assert again == filled


@given(MAPS)
def test_pruned_holds_only_what_is_described(value: dict[str, Any]) -> None:
    described = {"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {}}}, "c": {}}}
    pruned = clone(value)
    told = list(schema.prune(pruned, described, top=False))
    assert set(pruned) == set(value) & {"a", "c"}
    assert {path.split(".")[0] for path in told} >= set(value) - {"a", "c"}
    assert list(schema.prune(pruned, described, top=False)) == []


@given(MAPS)
def test_preserved_is_left_alone(value: dict[str, Any]) -> None:
    kept = clone(value)
    assert list(schema.prune(kept, {"type": "object", schema.PRESERVE: True}, top=False)) == []
    assert kept == value


@given(SPECS)
def test_values_of_a_schema_pass_it(spec: dict[str, Any]) -> None:
    assert list(schema.validate({"spec": spec}, SCHEMA)) == []


def causes(value: Any, described: dict[str, Any]) -> list[str]:
    return [f"{cause.field}|{cause.message}" for cause in schema.validate(value, described, "f")]


def test_combinations_and_bounds() -> None:
    either = {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True}
    assert causes(3, either) == causes("25%", either) == []
    assert causes(True, either)
    one = {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}
    assert causes({"a": 1}, one) == []
    assert "one and only one" in causes({"a": 1, "b": 1}, one)[0]
    assert "must not validate" in causes({"a": 1}, {"not": {"required": ["a"]}})[0]
    assert causes(5, {"type": "number", "exclusiveMinimum": True, "minimum": 5})
    assert causes(5, {"type": "number", "multipleOf": 2})
    assert "Too many" in causes([1, 2], {"type": "array", "maxItems": 1})[0]
    assert "Too long" in causes("abc", {"type": "string", "maxLength": 2})[0]
    assert "Duplicate" in causes(["a", "a"], {"type": "array", "x-kubernetes-list-type": "set"})[0]
    assert causes({"a": 1, "b": 2}, {"type": "object", "maxProperties": 1})
    assert causes(None, {"type": "string", "nullable": True}) == []
    assert causes(None, {"type": "string"})
    assert causes(2.0, {"type": "integer"}) == []
    assert causes([], {"allOf": [{"minItems": 1}], "type": "array"})
