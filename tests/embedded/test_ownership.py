"""Field sets and server-side apply: laws over random objects."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.embedded.strategies import SCHEMA, SPECS
from wattkeeper.embedded import fieldset, ownership
from wattkeeper.embedded.errors import ApiError
from wattkeeper.embedded.ownership import Writer
from wattkeeper.embedded.values import clone

TIME = "2026-01-01T00:00:00Z"


def writer(name: str, operation: str = "Apply") -> Writer:
    return Writer(manager=name, operation=operation, api_version="v1")


def apply(live: dict[str, Any], spec: dict[str, Any], name: str, *, force: bool = False) -> dict[str, Any]:
    done = ownership.apply(live=live, config={"spec": spec}, schema=SCHEMA, writer=writer(name), force=force, time=TIME)
    return {**done.obj, "metadata": {**live.get("metadata", {}), "managedFields": ownership.write(done.entries)}}


def owned(obj: dict[str, Any], name: str) -> fieldset.FieldSet:
    entries = ownership.read(obj["metadata"]["managedFields"])
    return next((entry.fields for entry in entries if entry.writer.manager == name), fieldset.EMPTY)


@given(SPECS)
def test_field_sets_survive_their_encoding(spec: dict[str, Any]) -> None:
    fields = fieldset.of({"spec": spec}, SCHEMA)
    assert fieldset.decode(fieldset.encode(fields)) == fields


@given(SPECS, SPECS)
def test_comparison_accounts_for_every_leaf(old: dict[str, Any], new: dict[str, Any]) -> None:
    before, after = fieldset.of({"spec": old}, SCHEMA), fieldset.of({"spec": new}, SCHEMA)
    found = fieldset.compare({"spec": old}, {"spec": new}, SCHEMA)
    assert (before - found.removed) | found.added == after
    assert found.changed <= before & after
    same = fieldset.compare({"spec": old}, {"spec": clone(old)}, SCHEMA)
    assert same.added == same.changed == same.removed == fieldset.EMPTY


@given(SPECS, SPECS)
def test_one_manager_gets_what_it_applied_last(first: dict[str, Any], second: dict[str, Any]) -> None:
    obj = apply(apply({}, first, "one"), second, "one")
    assert fieldset.of({"spec": second}, SCHEMA) == owned(obj, "one")
    # An emptied map or list may stay behind where its parts were given up; all other leaves are exactly the new ones.
    left = fieldset.of(obj, SCHEMA) - owned(obj, "one")
    assert all(_at(obj, path) in ({}, []) for path in left)
    assert apply(obj, second, "one") == obj


def _at(obj: Any, path: fieldset.Path) -> Any:
    for element in path:
        if element[0] != "f":
            return None
        obj = obj.get(element[2:]) if isinstance(obj, dict) else None
    return obj


@given(SPECS, SPECS)
def test_two_managers_agree_or_conflict(one: dict[str, Any], two: dict[str, Any]) -> None:
    live = apply({}, one, "one")
    try:
        obj = apply(live, two, "two")
    except ApiError as error:
        assert error.code == 409
        obj = apply(live, two, "two", force=True)
        assert owned(obj, "one") < owned(live, "one")
    else:
        # Who applied an empty map or list has nothing more to own once another fills it.
        assert {path for path in owned(live, "one") if _at(live, path) not in ({}, [])} <= owned(obj, "one")
    assert owned(obj, "two") == fieldset.of({"spec": two}, SCHEMA)
    assert live == apply({}, one, "one")


@given(SPECS, SPECS)
def test_update_takes_over_what_it_changes(one: dict[str, Any], two: dict[str, Any]) -> None:
    live = apply({}, one, "one")
    new = {**clone(live), "spec": two}
    managed = ownership.after_update(old=live, new=new, schema=SCHEMA, writer=writer("two", "Update"), time=TIME)
    obj = {**new, "metadata": {"managedFields": managed}}
    found = fieldset.compare(live, new, SCHEMA)
    assert owned(obj, "two") == found.added | found.changed
    assert owned(obj, "one") == owned(live, "one") - found.changed - found.removed
    every = frozenset().union(*(entry.fields for entry in ownership.read(managed)))
    assert every == fieldset.of(new, SCHEMA)


@given(st.lists(st.tuples(st.sampled_from(["one", "two", "three"]), SPECS), max_size=5))
def test_all_leaves_have_an_owner_after_forced_applies(steps: list[tuple[str, dict[str, Any]]]) -> None:
    obj: dict[str, Any] = {}
    for name, spec in steps:
        obj = apply(obj, spec, name, force=True)
        for path in fieldset.of(obj, SCHEMA):
            holders = [n for n in ("one", "two", "three") if path in owned(obj, n)]
            assert holders or path[-1][0] == "k" or _is_key_or_empty(obj, path)


def _is_key_or_empty(obj: dict[str, Any], path: fieldset.Path) -> bool:
    if len(path) > 1 and path[-2][0] == "k":
        return path[-1] == "f:name"
    return path[-1][0] == "f" and _at(obj, path) in ({}, [])


def test_conflict_names_owner_and_field() -> None:
    live = apply({}, {"replicas": 1, "ports": [{"name": "p", "number": 1}]}, "one")
    with pytest.raises(ApiError) as caught:
        apply(live, {"replicas": 2, "ports": [{"name": "p", "number": 2}]}, "two")
    error = caught.value
    assert error.message == (
        'Apply failed with 2 conflicts: conflict with "one": .spec.ports[name="p"].number, .spec.replicas'
    )
    assert [cause["reason"] for cause in (error.details or {})["causes"]] == ["FieldManagerConflict"] * 2
