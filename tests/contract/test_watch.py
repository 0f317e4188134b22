"""Watches: from a version, with selectors, bookmarks, initial events, time-out, and lost history."""

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.contract.conftest import Api, widget


def watch(api: Api, path: str, *, seconds: int = 1, **query: str) -> list[dict[str, Any]]:
    """Collect what a watch of some seconds says."""
    data = api.raw("GET", path, query={"watch": "true", "timeoutSeconds": str(seconds), **query})
    return [json.loads(line) for line in data.splitlines() if line]


def during(write: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(0.3, write)
    timer.start()
    return timer


def summary(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(event["type"], event["object"]["metadata"]["name"]) for event in events if event["type"] != "BOOKMARK"]


def test_present_objects_then_changes(api: Api, widgets: str) -> None:
    api.request("POST", widgets, widget("a"))

    def write() -> None:
        api.request("POST", widgets, widget("b"))
        api.merge(f"{widgets}/b", {"spec": {"replicas": 2}})
        api.request("DELETE", f"{widgets}/a")

    timer = during(write)
    events = watch(api, widgets)
    timer.join()
    assert summary(events) == [("ADDED", "a"), ("ADDED", "b"), ("MODIFIED", "b"), ("DELETED", "a")]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
    assert versions == sorted(versions)
    assert events[0]["object"]["kind"] == "Widget"


def test_from_the_version_of_a_list(api: Api, widgets: str) -> None:
    api.request("POST", widgets, widget("a"))
    version = api.request("GET", widgets)["metadata"]["resourceVersion"]
    api.request("POST", widgets, widget("b"))
    api.merge(f"{widgets}/a", {"spec": {"replicas": 2}})
    assert summary(watch(api, widgets, resourceVersion=version)) == [("ADDED", "b"), ("MODIFIED", "a")]


def test_selector_makes_changes_come_and_go(api: Api, widgets: str) -> None:
    version = api.request("GET", widgets)["metadata"]["resourceVersion"]
    api.request("POST", widgets, widget("a"))
    for value in ("x", "y", None):
        api.merge(f"{widgets}/a", {"metadata": {"labels": {"tier": value}}})
    api.request("POST", widgets, widget("b"))
    events = watch(api, widgets, resourceVersion=version, labelSelector="tier")
    assert summary(events) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]


def test_one_object_by_name(api: Api, widgets: str) -> None:
    for name in ("a", "b"):
        api.request("POST", widgets, widget(name))
    assert summary(watch(api, widgets, fieldSelector="metadata.name=b")) == [("ADDED", "b")]


def test_initial_events_end_with_a_bookmark(api: Api, widgets: str) -> None:
    api.request("POST", widgets, widget("a"))
    events = watch(
        api,
        widgets,
        sendInitialEvents="true",
        resourceVersionMatch="NotOlderThan",
        allowWatchBookmarks="true",
    )
    assert summary(events) == [("ADDED", "a")]
    bookmark = events[1]
    assert bookmark["type"] == "BOOKMARK"
    assert bookmark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    assert int(bookmark["object"]["metadata"]["resourceVersion"]) >= int(
        events[0]["object"]["metadata"]["resourceVersion"]
    )


def test_lost_history_is_gone(api: Api, widgets: str) -> None:
    api.request("POST", widgets, widget("a"))
    events = watch(api, widgets, resourceVersion="1")
    assert [event["type"] for event in events] == ["ERROR"]
    status = events[0]["object"]
    assert (status["kind"], status["code"], status["reason"]) == ("Status", 410, "Expired")


def test_watch_across_namespaces(api: Api, namespace: str, widgets: str) -> None:
    version = api.request("GET", widgets)["metadata"]["resourceVersion"]
    api.request("POST", widgets, widget("everywhere"))
    events = watch(api, "/apis/contract.wattkeeper.io/v1/widgets", resourceVersion=version)
    assert ("ADDED", "everywhere") in summary(events)


@pytest.mark.parametrize("form", ["Table", "PartialObjectMetadata"])
def test_watch_in_other_forms(api: Api, widgets: str, form: str) -> None:
    api.request("POST", widgets, widget("a"))
    accept = f"application/json;as={form};g=meta.k8s.io;v=v1"
    data = api.raw("GET", widgets, query={"watch": "true", "timeoutSeconds": "1"}, accept=accept)
    events = [json.loads(line) for line in data.splitlines() if line]
    assert [event["object"]["kind"] for event in events] == [form]
