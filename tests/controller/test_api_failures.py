"""The API server refuses, is slow or gone: bounded retries, one condition, and the other services go on."""

import contextlib
import json
import time
from types import SimpleNamespace

import pytest
import urllib3
from kubernetes.client.exceptions import ApiException

from tests.controller.world import deployment, service
from wattkeeper.controller import kube
from wattkeeper.planner import plan as planning

BUSY = {"replicas": {"min": 1, "max": 6}}


@contextlib.contextmanager
def failing(world, matches, status: int, *, times: int = 1000, headers: dict[str, str] | None = None):
    """Requests of the operator that match are answered with `status` (0: no answer at all)."""
    real, tried = world.operator.kube._raw, []

    def raw(method, path, body, **options):
        if matches(method, path) and len(tried) < times:
            tried.append((method, path))
            if status == 0:
                raise urllib3.exceptions.HTTPError("connection refused")
            text = json.dumps({"kind": "Status", "message": "made up by the test", "code": status})
            return SimpleNamespace(status=status, headers=headers or {}, read=text.encode)
        return real(method, path, body, **options)

    world.operator.kube._raw = raw
    try:
        yield tried
    finally:
        del world.operator.kube._raw


@pytest.fixture
def two(world):
    """Two services that both want more replicas."""
    world.add_node()
    world.operator.kube.sleep = lambda _seconds: None
    for name in ("chat", "other"):
        world.deploy(deployment(world.namespace, name, replicas=2, pool=world.node))
        world.create(service(world.namespace, name, target=name, levers=BUSY))
    world.report_agent()
    world.measure(rate=4.0, ttft=0.9)
    return world


def scale_of(name):
    return lambda method, path: method == "PATCH" and path.endswith(f"/deployments/{name}/scale")


@pytest.mark.parametrize("status", [403, 409, 429, 500, 503])
def test_a_refused_write_stops_neither_the_others_nor_the_next_try(two, status):
    world = two
    with failing(world, scale_of("chat"), status) as tried:
        world.tick()
    assert len(tried) <= 4, "bounded"
    assert world.replicas("chat") == 2
    assert world.replicas("other") == 3
    found = world.condition("Conflict")
    if status == 409:
        assert found["status"] == "False", "somebody was faster: decided anew on the next tick"
    else:
        assert (found["status"], found["reason"]) == ("True", "ScaleFailed")
        assert str(status) in found["message"]
    if status == 403:
        assert "ClusterRole" in found["message"]
    assert "lastScaleUp" not in world.status()["memory"]
    world.tick()
    assert world.replicas("chat") == 3
    assert world.said("Conflict") == ("False", "NoConflict")


def test_a_throttled_write_is_repeated_after_the_servers_own_time(two):
    world, slept = two, []
    world.operator.kube.sleep = slept.append
    with failing(world, scale_of("chat"), 429, times=2, headers={"Retry-After": "3"}) as tried:
        world.tick()
    assert len(tried) == 2
    assert slept == [3.0, 3.0]
    assert world.replicas("chat") == 3


def test_a_status_that_cannot_be_written_is_written_later(two):
    world = two
    with failing(world, lambda method, path: path.endswith("/chat/status"), 500):
        world.tick()
    assert world.status() == {}
    assert world.status("other")["plan"]["reason"]
    world.tick()
    assert world.status()["plan"]["reason"]


def test_an_api_server_that_is_gone_costs_one_wait_a_pass_and_nothing_is_forgotten(two):
    world, slept = two, []
    world.operator.kube.sleep = slept.append
    with failing(world, lambda _method, _path: True, 0) as tried:
        began = time.monotonic()
        world.operator.measurements.prometheus.collect_once()
        world.operator.loop.tick()
        assert time.monotonic() - began < 3
    assert len(tried) == 4, "one call with its retries; the rest of the pass does not wait again"
    world.operator.kube._unreachable_until = float("-inf")
    world.tick()
    assert world.replicas("chat") == world.replicas("other") == 3


def test_caps_that_cannot_be_written_are_told(two):
    world = two
    world.change(levers={"replicas": None, "powerCap": {"min": "350W", "max": "700W"}})
    world.measure(rate=1.0)
    with failing(world, lambda method, path: method == "PATCH" and "/nodepowercaps/" in path, 500):
        world.tick(2)
    assert world.said("PowerEnforced") == ("False", "CapNotWritten")
    assert world.caps() == []
    world.tick()
    world.report_agent()
    world.tick()
    assert world.said("PowerEnforced") == ("True", "Enforced")


def break_for(world, monkeypatch, where: str, name: str) -> None:
    """One step of the loop fails for one service in a way that nobody foresaw."""
    part = world.operator.loop
    *parts, method = where.split(".")
    for each in parts:
        part = getattr(part, each)
    real = getattr(part, method)

    def step(argument, *rest, **named):
        entries = argument if isinstance(argument, list) else [argument]
        if any(getattr(entry, "service", entry).name == name for entry in entries):
            raise ZeroDivisionError("made up by the test")
        return real(argument, *rest, **named)

    monkeypatch.setattr(part, method, step)


@pytest.mark.parametrize(
    "where",
    ["observer.observe", "_account", "planning.plan", "_act", "planning._request", "planning._rollout_allowed"],
)
def test_what_goes_wrong_with_one_service_is_its_own_affair(two, monkeypatch, where):
    world = two
    break_for(world, monkeypatch, where, "chat")
    world.tick(2)
    ready = world.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", "InternalError")
    assert "log" in ready["message"]
    assert world.replicas("chat") == 2
    assert world.replicas("other") == 3
    assert world.said("TargetResolved", "other") == ("True", "Found")
    monkeypatch.undo()
    world.tick()
    assert world.said("Ready")[0] == "True"
    assert world.replicas("chat") == 3


@pytest.mark.parametrize("where", ["_enter", "_write_status"])
def test_a_service_that_cannot_even_be_described_stops_no_other(two, monkeypatch, where):
    world = two
    break_for(world, monkeypatch, where, "chat")
    world.tick(2)
    assert world.replicas("other") == 3
    assert world.said("Ready", "other")[0] == "True"


def test_a_target_that_nobody_can_read_is_its_own_affair(two, monkeypatch):
    world = two
    real = world.operator.loop.resolver.readings.read

    def read(target, container):
        if target["metadata"]["name"] == "chat":
            raise KeyError("made up by the test")
        return real(target, container)

    monkeypatch.setattr(world.operator.loop.resolver.readings, "read", read)
    world.tick(2)
    assert world.said("TargetResolved") == ("False", "InternalError")
    assert world.replicas("other") == 3


def test_a_failing_service_has_its_caps_released(world, monkeypatch):
    world.fleet(replicas=2, rate=1.0)
    world.create(service(world.namespace, levers={"powerCap": {"min": "350W", "max": "700W"}}))
    world.tick(2)
    assert world.caps()
    break_for(world, monkeypatch, "planning.plan", "chat")
    world.tick()
    assert world.caps() == []


def test_planning_that_fails_for_all_at_once_is_tried_one_by_one(two, monkeypatch):
    world = two
    real = planning.plan

    def plan(requests, **named):
        if len(requests) > 1:
            raise MemoryError("made up by the test")
        return real(requests, **named)

    monkeypatch.setattr(planning, "plan", plan)
    world.tick()
    assert world.replicas("chat") == world.replicas("other") == 3


def test_the_node_of_the_service_can_vanish(two):
    world = two
    world.tick()
    world.delete("nodepowercaps", world.node)
    world.tick(2)
    assert world.said("TargetResolved") == ("True", "Found")


class Stub:
    """An ApiClient that answers from a list."""

    def __init__(self, *answers) -> None:
        self.answers, self.calls = list(answers), []

    def param_serialize(self, method, path, **_):
        return (method, path)

    def call_api(self, *call, **_):
        self.calls.append(call)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        status, body = answer
        return SimpleNamespace(status=status, headers={}, read=lambda: body)


def refused(status: int, message: str = "no") -> ApiException:
    error = ApiException(status=status, reason=message)
    error.body = json.dumps({"message": message})
    return error


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (403, kube.KubeForbiddenError),
        (404, kube.KubeNotFoundError),
        (409, kube.KubeConflictError),
        (422, kube.KubeInvalidError),
        (400, kube.KubeError),
    ],
)
def test_every_refusal_is_an_error_of_its_own_that_names_the_object(status, kind):
    client = kube.Kube(api=Stub(refused(status, "because")), sleep=lambda _: None)
    with pytest.raises(kind, match=rf"GET /x: {status} because"):
        client.get("/x")
    assert len(client.api.calls) == 1, "not repeated"
    assert client.requests == {("GET", status): 1}


def test_a_failed_test_of_the_version_is_a_conflict():
    message = "the server rejected our request due to an error in our request: testing value /metadata failed"
    client = kube.Kube(api=Stub(refused(422, message)))
    with pytest.raises(kube.KubeConflictError):
        client.patch("/x", [{"op": "test", "path": "/metadata/resourceVersion", "value": "1"}])


def test_an_answer_that_is_no_json_says_what_to_look_for():
    with pytest.raises(kube.KubeError, match="proxy"):
        kube.Kube(api=Stub((200, b"<html>"))).get("/x")


def test_a_server_that_is_down_is_left_alone_for_a_moment():
    now, slept = [0.0], []
    down = [urllib3.exceptions.HTTPError("refused") for _ in range(4)]
    client = kube.Kube(api=Stub(*down, (200, b'{"a": 1}')), sleep=slept.append, monotonic=lambda: now[0])
    with pytest.raises(kube.KubeError, match="cannot be reached"):
        client.get("/x")
    assert slept == [0.2, 0.4, 0.8]
    with pytest.raises(kube.KubeError, match="not tried"):
        client.get("/y")
    assert len(client.api.calls) == 4
    now[0] = 6.0
    assert client.get("/y") == {"a": 1}
