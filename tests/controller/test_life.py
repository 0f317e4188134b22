"""Real Kopf beside the loop: deletion gives the power back and lets the object go; changes wake the loop."""

import asyncio
import contextlib
import threading

import kopf
import pytest

from tests.controller.test_api_failures import failing
from tests.controller.world import service, wait
from wattkeeper.controller import handlers

CAP_ONLY = {"powerCap": {"min": "350W", "max": "700W"}}


@contextlib.contextmanager
def kopf_running(world):
    """Kopf as `wattkeeper run` has it; yields the list of wake-ups."""
    woken: list[bool] = []
    stop, ready = threading.Event(), threading.Event()
    settings = kopf.OperatorSettings()
    handlers.configure(settings)
    settings.scanning.disabled = True
    running = kopf.operator(
        registry=handlers.registry(world.operator.actor, lambda: woken.append(True), world.api.configuration),
        settings=settings,
        standalone=True,
        namespaces=[world.namespace],
        stop_flag=stop,
        ready_flag=ready,
        memo=kopf.Memo(),
    )
    thread = threading.Thread(target=lambda: asyncio.run(running))
    thread.start()
    try:
        assert ready.wait(20)
        yield woken
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


def finalizers(world):
    return world.kube.get(world.path("inferenceservices", "chat"))["metadata"].get("finalizers", [])


def gone(world) -> bool:
    return not world.kube.get(world.path("inferenceservices"))["items"]


@pytest.fixture
def capped(world):
    world.fleet(replicas=2, rate=1.0)
    world.create(service(world.namespace, levers=CAP_ONLY))
    world.tick(2)
    assert world.caps()
    return world


def test_deletion_gives_the_power_back_and_leaves_the_rest(capped):
    world = capped
    before = world.target()["spec"]
    with kopf_running(world):
        wait(lambda: handlers.FINALIZER in finalizers(world))
        world.delete("inferenceservices", "chat")
        wait(lambda: gone(world))
    assert world.caps() == []
    assert world.target()["spec"] == before


def test_deletion_works_where_the_target_is_gone_already(capped):
    world = capped
    with kopf_running(world):
        wait(lambda: handlers.FINALIZER in finalizers(world))
        world.delete("deployments", "chat")
        wait(lambda: not world.pod_names(), 40)
        world.delete("inferenceservices", "chat")
        wait(lambda: gone(world))
    assert world.caps() == []


def test_deletion_while_nobody_ran_is_caught_up(capped):
    world = capped
    with kopf_running(world):
        wait(lambda: handlers.FINALIZER in finalizers(world))
    world.delete("inferenceservices", "chat")
    assert finalizers(world) == [handlers.FINALIZER]
    world.tick()
    world.restart()
    with kopf_running(world):
        wait(lambda: gone(world))
    assert world.caps() == []


def test_a_pass_that_began_before_the_deletion_sets_nothing_again(capped):
    world = capped
    uid = world.kube.get(world.path("inferenceservices", "chat"))["metadata"]["uid"]
    world.operator.actor.release((world.namespace, "chat"), uid)
    assert world.caps() == []
    world.report_agent()
    world.tick()
    assert world.caps() == []


@pytest.mark.parametrize("status", [403, 404])
def test_power_caps_that_cannot_be_read_do_not_hold_a_deletion_up(capped, status):
    """A namespaced operator may not read them, and then never wrote any; others run out."""
    world = capped
    with failing(world, lambda method, path: path.endswith("/nodepowercaps"), status), kopf_running(world):
        wait(lambda: handlers.FINALIZER in finalizers(world))
        world.delete("inferenceservices", "chat")
        wait(lambda: gone(world))


def test_a_release_that_fails_is_tried_again(capped):
    world = capped
    world.operator.kube.sleep = lambda _seconds: None
    with (
        failing(world, lambda method, path: method == "PATCH" and "/nodepowercaps/" in path, 409, times=1) as tried,
        kopf_running(world),
    ):
        wait(lambda: handlers.FINALIZER in finalizers(world))
        world.delete("inferenceservices", "chat")
        wait(lambda: gone(world), 30)
    assert len(tried) == 1
    assert world.caps() == []


def test_new_and_changed_services_wake_the_loop_and_status_does_not(world):
    world.fleet(replicas=2, rate=1.0)
    with kopf_running(world) as woken:
        world.create(service(world.namespace, mode="Recommend"))
        wait(lambda: woken)
        wait(lambda: handlers.FINALIZER in finalizers(world))
        world.tick()
        wait(
            lambda: (
                "wattkeeper.io/last-handled" in str(world.kube.get(world.path("inferenceservices", "chat"))["metadata"])
            )
        )
        woken.clear()
        world.measure(rate=3.0)
        world.tick()
        world.settle()
        assert woken == []
        world.change(mode="Observe")
        wait(lambda: woken)
