"""Patches: the examples of their standards, and laws that hold for all values."""

from typing import Any

import jsonpatch
import pytest
from hypothesis import given

from tests.embedded.strategies import MAPS, VALUES
from wattkeeper.embedded import builtin_schemas, merging
from wattkeeper.embedded.errors import ApiError
from wattkeeper.embedded.values import clone


@pytest.mark.parametrize(
    ("target", "patch", "expected"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_json_merge_follows_the_rfc(target: Any, patch: Any, expected: Any) -> None:
    assert merging.json_merge(target, patch) == expected


def difference(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    patch = {key: None for key in old if key not in new}
    return patch | {key: difference(old.get(key), value) for key, value in new.items() if old.get(key) != value}


@given(MAPS, MAPS)
def test_json_merge_reaches_any_state(old: dict[str, Any], new: dict[str, Any]) -> None:
    before = clone(old)
    patch = difference(old, new)
    merged = merging.json_merge(old, patch)
    # A map that is added empty cannot be told from none by a merge into a scalar; all else must fit.
    assert merged == new
    assert merging.json_merge(merged, patch) == merged
    assert old == before


@given(MAPS, MAPS)
def test_json_patch_agrees_with_another_implementation(old: dict[str, Any], new: dict[str, Any]) -> None:
    before = clone(old)
    assert merging.json_patch(old, jsonpatch.make_patch(old, new).patch) == new
    assert old == before


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "remove", "path": "/missing"},
        {"op": "replace", "path": "/missing", "value": 1},
        {"op": "test", "path": "/a", "value": 2},
        {"op": "add", "path": "/list/9", "value": 1},
        {"op": "add", "path": "/list/x", "value": 1},
        {"op": "add", "path": "/a/b", "value": 1},
        {"op": "move", "path": "/b", "from": "/missing"},
        {"op": "frob", "path": "/a"},
        {"op": "remove", "path": "a"},
    ],
)
def test_json_patch_that_does_not_fit_is_refused(operation: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        merging.json_patch({"a": 1, "list": [1]}, [operation])
    assert caught.value.code in (400, 422)


@given(VALUES)
def test_json_patch_of_no_list_is_refused(body: Any) -> None:
    if isinstance(body, list) and all(isinstance(item, dict) for item in body):
        return
    with pytest.raises(ApiError):
        merging.json_patch({}, body)


TEMPLATE = {"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "j"}]}}}}


def strategic(target: dict[str, Any], pod: dict[str, Any]) -> dict[str, Any]:
    patch = {"spec": {"template": {"spec": pod}}}
    return merging.strategic(target, patch, builtin_schemas.DEPLOYMENT)["spec"]["template"]["spec"]


def test_strategic_merge_goes_by_name() -> None:
    found = strategic(TEMPLATE, {"containers": [{"name": "b", "image": "k"}, {"name": "c", "image": "l"}]})
    assert found["containers"] == [
        {"name": "a", "image": "i"},
        {"name": "b", "image": "k"},
        {"name": "c", "image": "l"},
    ]


def test_strategic_directives() -> None:
    assert strategic(TEMPLATE, {"containers": [{"name": "a", "$patch": "delete"}]})["containers"] == [
        {"name": "b", "image": "j"}
    ]
    replaced = strategic(TEMPLATE, {"containers": [{"$patch": "replace"}, {"name": "z", "image": "i"}]})
    assert replaced["containers"] == [{"name": "z", "image": "i"}]
    ordered = strategic(TEMPLATE, {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]})
    assert [item["name"] for item in ordered["containers"]] == ["b", "a"]
    both = strategic(
        TEMPLATE,
        {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "a", "image": "x"}]},
    )
    assert [(item["name"], item["image"]) for item in both["containers"]] == [("b", "j"), ("a", "x")]
    kept = merging.strategic(
        {"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}},
        {"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}},
        builtin_schemas.DEPLOYMENT,
    )
    assert kept["spec"]["strategy"] == {"type": "Recreate"}
    finalizers = merging.strategic(
        {"metadata": {"finalizers": ["a", "b"]}},
        {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]}},
        builtin_schemas.POD,
    )
    assert finalizers["metadata"]["finalizers"] == ["b", "c"]


def test_strategic_merge_needs_the_key() -> None:
    with pytest.raises(ApiError, match="lacks its merge key name"):
        strategic(TEMPLATE, {"containers": [{"image": "x"}]})
