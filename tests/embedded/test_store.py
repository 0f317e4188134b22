"""The store: versions, history, and watchers that miss nothing."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattkeeper.embedded.errors import ApiError
from wattkeeper.embedded.selectors import labels
from wattkeeper.embedded.store import Store
from wattkeeper.embedded.watching import seen

KEY = ("", "things")
STEPS = st.lists(st.tuples(st.sampled_from(["put", "remove"]), st.sampled_from("abc"), st.sampled_from(["x", "y"])))


def thing(name: str, tier: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {"tier": tier}}}


def play(store: Store, steps: list[tuple[str, str, str]]) -> None:
    for verb, name, tier in steps:
        current = store.get(KEY, "", name)
        if verb == "put":
            store.put(KEY, thing(name, tier))
        elif current is not None:
            store.remove(KEY, current)


@given(STEPS, STEPS, st.sampled_from([None, "tier=x", "tier!=x"]))
def test_list_and_changes_add_up(
    before: list[tuple[str, str, str]], after: list[tuple[str, str, str]], selector: str | None
) -> None:
    store = Store()
    play(store, before)
    accept = labels(selector) if selector else None

    def listed() -> dict[str, dict[str, Any]]:
        return {obj["metadata"]["name"]: obj for obj in store.objects(KEY) if accept is None or accept(obj)}

    state, version = listed(), store.version
    play(store, after)
    for change in store.since(KEY, version):
        kind, name = seen(change, None, accept), change.obj["metadata"]["name"]
        assert kind != "ADDED" or name not in state
        assert kind not in ("MODIFIED", "DELETED") or name in state
        if kind == "DELETED":
            del state[name]
        elif kind is not None:
            state[name] = change.obj
        assert change.version > version
        version = change.version
    assert state == listed()


def test_history_is_bounded_and_says_so() -> None:
    store = Store(history=10)
    for index in range(100):
        store.put(KEY, thing("a", str(index)))
    with pytest.raises(ApiError, match="too old resource version"):
        store.since(KEY, 2)
    recent = store.since(KEY, store.version - 5)
    assert len(recent) == 5
    assert len(store.shelf(KEY).changes) <= 20


def test_stored_objects_are_sorted_and_by_namespace() -> None:
    store = Store()
    for namespace, name in (("n", "b"), ("m", "z"), ("n", "a")):
        store.put(KEY, {"metadata": {"namespace": namespace, "name": name}})
    assert [obj["metadata"]["name"] for obj in store.objects(KEY)] == ["z", "a", "b"]
    assert [obj["metadata"]["name"] for obj in store.objects(KEY, "n")] == ["a", "b"]
