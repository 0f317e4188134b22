"""An operator made with Kopf lives through create, update and delete."""

import asyncio
import logging
import threading
from typing import Any

import kopf
import pytest
from kopf import OperatorRegistry

from tests.contract.conftest import GROUP, Api, absent, eventually, widget


def operator(seen: list[tuple[str, Any]], here: str) -> OperatorRegistry:
    registry = OperatorRegistry()

    def ours(namespace: str | None, **_: Any) -> bool:
        return namespace == here

    @kopf.on.login(registry=registry)
    def login(**arguments: Any) -> Any:
        return kopf.login_with_kubeconfig(**arguments)

    @kopf.on.startup(registry=registry)
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.level = logging.INFO

    @kopf.on.create(GROUP, "v1", "widgets", when=ours, registry=registry)
    def created(name: str, patch: kopf.Patch, body: kopf.Body, **_: Any) -> None:
        seen.append(("create", name))
        patch.status["phase"] = "Made"
        kopf.event(body, type="Normal", reason="Made", message="by the operator")

    @kopf.on.field(GROUP, "v1", "widgets", field="spec.replicas", when=ours, registry=registry)
    def scaled(new: Any, **_: Any) -> None:
        seen.append(("replicas", new))

    @kopf.on.delete(GROUP, "v1", "widgets", when=ours, registry=registry)
    def deleted(name: str, **_: Any) -> None:
        seen.append(("delete", name))

    return registry


@pytest.mark.parametrize("clusterwide", [True, False])
def test_handlers_run(
    api: Api, namespace: str, widgets: str, clusterwide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig))
    seen: list[tuple[str, Any]] = []
    stop, ready = threading.Event(), threading.Event()
    where: dict[str, Any] = {"clusterwide": True} if clusterwide else {"namespaces": [namespace]}
    running = kopf.operator(
        registry=operator(seen, namespace), standalone=True, stop_flag=stop, ready_flag=ready, **where
    )
    thread = threading.Thread(target=lambda: asyncio.run(running))
    thread.start()
    try:
        assert ready.wait(20)
        api.request("POST", widgets, widget("a"))
        eventually(lambda: api.request("GET", f"{widgets}/a").get("status", {}).get("phase") == "Made")
        api.merge(f"{widgets}/a", {"spec": {"replicas": 6}})
        eventually(lambda: ("replicas", 6) in seen)
        events = f"/api/v1/namespaces/{namespace}/events"
        eventually(lambda: "Made" in {item["reason"] for item in api.request("GET", events)["items"]})
        api.request("DELETE", f"{widgets}/a")
        eventually(lambda: absent(lambda: api.request("GET", f"{widgets}/a")))
        assert seen.count(("create", "a")) == 1
        assert ("delete", "a") in seen
    finally:
        stop.set()
        thread.join(20)
    assert not thread.is_alive()
