"""One operator acts at a time: the Lease is waited for, handed over, and its loss is told."""

import threading
import time

import pytest
import urllib3

from wattkeeper.controller.lease import Leadership


@pytest.fixture
def contender(world):
    made = []

    def make(name: str) -> Leadership:
        leadership = Leadership(
            api=world.api,
            namespace=world.namespace,
            identity=name,
            lease_seconds=3,
            renew_deadline_seconds=2,
            retry_seconds=1,
        )
        made.append(leadership)
        return leadership

    yield make
    for leadership in made:
        leadership._stopped.set()


def holder(world) -> str | None:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{world.namespace}/leases/wattkeeper"
    return world.kube.get(path)["spec"].get("holderIdentity")


def in_thread(leadership: Leadership) -> threading.Event:
    """Set once the Lease is ours."""
    done = threading.Event()

    def acquire() -> None:
        leadership.acquire()
        done.set()

    threading.Thread(target=acquire, daemon=True).start()
    return done


def test_a_second_operator_waits_until_the_first_hands_over(world, contender):
    first, second = contender("first"), contender("second")
    first.acquire()
    assert holder(world) == "first"
    first.keep(on_lost=lambda: pytest.fail("not lost"))
    waiting = in_thread(second)
    assert not waiting.wait(5), "the first one renews"
    first.release()
    assert waiting.wait(8)
    assert holder(world) == "second"
    second.release()
    assert not holder(world)


def test_the_lease_of_a_dead_operator_runs_out(world, contender):
    first, second = contender("first"), contender("second")
    first.acquire()
    assert in_thread(second).wait(15)
    assert holder(world) == "second"


def test_a_lost_lease_is_told_once_and_in_time(world, contender, monkeypatch):
    leadership, lost = contender("first"), threading.Event()
    leadership.acquire()
    leadership.keep(on_lost=lost.set)

    def down(*_arguments, **_named):
        raise urllib3.exceptions.HTTPError("the API server is gone")

    monkeypatch.setattr(leadership._lock._lock, "get", down)
    began = time.monotonic()
    assert lost.wait(10)
    assert time.monotonic() - began < leadership.lease_seconds + 3


def test_a_short_outage_is_ridden_out(world, contender, monkeypatch):
    leadership, lost = contender("first"), threading.Event()
    leadership.acquire()
    real, failures = leadership._lock._lock.get, iter([True])

    def flaky(*arguments, **named):
        if next(failures, False):
            raise urllib3.exceptions.HTTPError("a moment")
        return real(*arguments, **named)

    monkeypatch.setattr(leadership._lock._lock, "get", flaky)
    leadership.keep(on_lost=lost.set)
    assert not lost.wait(5)
    assert holder(world) == "first"
    leadership.release()


def test_a_lease_of_somebody_else_is_not_given_up(world, contender):
    first, second = contender("first"), contender("second")
    first.acquire()
    second.release()
    assert holder(world) == "first"
