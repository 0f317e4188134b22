"""What measured watts taught: kept in the ModelProfile of the pair, shared, reread; never of another energy model."""

from __future__ import annotations

import math

import pytest

from tests.controller.world import deployment, reading, service
from wattkeeper.controller.kube import KubeForbiddenError

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
NAME = "llama-h100"


def profile(**status):
    return {
        "apiVersion": "wattkeeper.io/v1alpha1",
        "kind": "ModelProfile",
        "metadata": {"name": NAME},
        "spec": {"model": MODEL, "accelerator": "h100-sxm"},
        **status,
    }


def kept(world):
    return world.kube.get(world.path("modelprofiles", NAME)).get("status", {}).get("calibrations", [])


def in_service(world, name="chat"):
    return world.status(name).get("memory", {}).get("calibration")


def play(world, ticks=6, *, watts=420.0):
    """Watts that never stand still, so that no reading waits."""
    for index in range(ticks):
        world.source.pods = {
            (world.namespace, pod): reading(
                world.namespace, pod, now=world.now(), watts=watts * (1.0 + 0.002 * (-1) ** index), rate=4.0
            )
            for pod in world.pod_names()
        }
        world.tick(every=15.0)


@pytest.fixture
def busy(world):
    world.fleet(replicas=2, rate=4.0)
    world.create(service(world.namespace, mode="Recommend"))
    return world


def factors(readings):
    return [math.exp(item["errorLog"]) for item in readings]


def test_without_a_profile_the_service_remembers_over_a_restart(busy):
    play(busy)
    held = in_service(busy)
    assert held["energyModel"].startswith("energy-")
    assert len(held["readings"]) == 1
    assert held["readings"][0]["weight"] > 1.0
    busy.restart()
    busy.measure(rate=0.0, watts=None)
    busy.tick()
    found = busy.operator.loop.calibrations._own[busy.namespace, "chat"].readings
    assert found.bins[0].error_log == pytest.approx(held["readings"][0]["errorLog"])
    assert "power calibrated at batch" in busy.condition("ModelTrusted")["message"]


def test_a_profile_of_the_pair_keeps_it_and_serves_the_next_deployment(busy):
    busy.create(profile())
    play(busy)
    held = kept(busy)
    assert len(held) == 1
    assert held[0]["kvCacheDtype"] == "auto"
    assert in_service(busy) is None
    assert f"(ModelProfile {NAME})" in busy.condition("ModelTrusted")["message"]

    busy.deploy(deployment(busy.namespace, "other", replicas=1, pool=busy.node))
    busy.create(service(busy.namespace, "other", target="other", mode="Recommend"))
    busy.tick(every=15.0)
    assert "power calibrated at batch" in busy.condition("ModelTrusted", "other")["message"]
    busy.restart()
    busy.tick(every=15.0)
    assert "power calibrated at batch" in busy.condition("ModelTrusted", "other")["message"]


def test_a_profile_that_comes_later_takes_over_what_the_service_learnt(busy):
    play(busy)
    held = in_service(busy)
    busy.create(profile())
    busy.tick(2, every=15.0)
    assert factors(kept(busy)[0]["readings"]) == pytest.approx(factors(held["readings"]), abs=0.02)
    assert in_service(busy) is None


def test_a_spec_that_is_edited_meanwhile_loses_nothing(busy):
    busy.create(profile())
    play(busy)
    busy.patch("modelprofiles", NAME, {"spec": {"relativeError": 0.07}}, manager="kubectl")
    play(busy, 3, watts=500.0)
    assert busy.kube.get(busy.path("modelprofiles", NAME))["spec"]["relativeError"] == 0.07
    assert kept(busy)[0]["readings"][0]["weight"] > 1.0


def test_who_deletes_the_status_has_it_learnt_afresh(busy):
    busy.create(profile())
    play(busy)
    busy.kube.patch(busy.path("modelprofiles", NAME, sub="status"), {"status": None})
    busy.tick(every=15.0)
    (book,) = busy.operator.loop.calibrations._shared[busy.namespace, NAME].books.values()
    assert sum(each.weight for each in book.readings.bins) <= 1.0


def test_readings_of_another_energy_model_are_not_used_and_it_says_so(busy):
    busy.create(profile())
    old = {
        "energyModel": "energy-v0-00000000",
        "kvCacheDtype": "auto",
        "readings": [{"batch": 8.0, "errorLog": 0.4, "weight": 5.0, "time": "2026-01-01T00:00:00Z"}],
    }
    busy.kube.patch(busy.path("modelprofiles", NAME, sub="status"), {"status": {"calibrations": [old]}})
    busy.measure(rate=0.0, watts=None)
    busy.tick()
    assert "readings taken with energy-v0-00000000 are not used" in busy.condition("ModelTrusted")["message"]
    play(busy)
    assert kept(busy)[0]["energyModel"] != "energy-v0-00000000"


def test_without_the_right_to_write_profiles_the_services_remember(busy, monkeypatch):
    busy.create(profile())
    patch = busy.operator.kube.patch

    def refusing(path, *arguments, **options):
        if "modelprofiles" in path:
            raise KubeForbiddenError("no")
        return patch(path, *arguments, **options)

    monkeypatch.setattr(busy.operator.kube, "patch", refusing)
    play(busy)
    assert kept(busy) == []
    assert in_service(busy)["readings"]


def test_a_broken_sensor_is_told_and_counts_nothing(busy):
    play(busy)
    play(busy, 3, watts=0.0)
    assert busy.said("ModelTrusted") == ("False", "PowerSensorZero")
    assert busy.said("Ready") == ("False", "PowerSensorZero")
    assert ("Warning", "PowerSensorZero") in busy.events()
    play(busy, 5)
    assert busy.said("ModelTrusted")[0] == "True"
