"""Without LightGBM capacity is kept, latency bounds are as always, and conditions say what is missing."""

from __future__ import annotations

import json
import sys

import pytest
import yaml
from typer.testing import CliRunner

from tests.controller.test_calibrations import play
from tests.controller.world import service
from wattkeeper.cli.main import app


@pytest.fixture
def missing(monkeypatch):
    """From the call on, every import of LightGBM fails."""
    return lambda: monkeypatch.setitem(sys.modules, "lightgbm", None)


def make(world, **spec):
    world.fleet(replicas=6, rate=8.0)
    world.create(service(world.namespace, **spec))


def saved(world, tmp_path):
    path = tmp_path / "objects.yaml"
    item = {**world.kube.get(world.path("inferenceservices", "chat")), "kind": "InferenceService"}
    path.write_text(yaml.safe_dump({"kind": "List", "items": [item]}))
    return path


def test_capacity_is_kept_and_the_condition_names_what_is_missing(world, missing):
    make(world, mode="Recommend")
    play(world)
    trusting = world.status()["plan"]
    assert world.said("ModelTrusted")[0] == "True"
    missing()
    world.restart()
    play(world)
    assert world.said("ModelTrusted") == ("False", "NoLightGBM")
    message = world.condition("ModelTrusted")["message"]
    assert "physics alone" in message and "LightGBM cannot be loaded" in message and "install Wattkeeper" in message
    careful = world.status()["plan"]
    assert careful["replicas"] >= trusting["replicas"]
    assert careful["check"]["margin"] > trusting["check"]["margin"]
    assert careful["check"]["ttft"]["predicted"]
    events = [event for event in world.events() if "LightGBM" in str(event)]
    assert len(events) <= 1


def test_readings_are_learnt_on_top_of_physics(world, missing):
    missing()
    world.restart()
    make(world)
    play(world, ticks=12)
    kept = world.status()["memory"]["calibration"]
    assert kept["energyModel"] == "physics" and kept["readings"]
    assert world.status()["plan"]["reason"] and world.replicas() >= 1


def test_explanations_and_advice_say_that_physics_alone_answers(world, missing, tmp_path):
    make(world, mode="Recommend")
    play(world)
    missing()
    objects, name = saved(world, tmp_path), f"{world.namespace}/chat"
    for command in (["explain", name, "--energy", "--status"], ["calibrate", name, "--status"]):
        answer = CliRunner().invoke(app, [*command, str(objects)])
        assert answer.exit_code == 0, answer.output
        assert "physics alone, with wide intervals: energy model energy-v2.json.gz is not used" in answer.output
        told = CliRunner().invoke(app, [*command, str(objects), "--output=json"])
        facts = json.loads(told.output)
        assert "LightGBM cannot be loaded" in facts["energyProblem"]


@pytest.mark.parametrize(
    "command", [["train", "--output=x.json"], ["train-latency", "--output=x.json.gz"], ["evaluate", "energy"]]
)
def test_what_fits_trees_ends_at_once(missing, command, tmp_path, monkeypatch):
    missing()
    monkeypatch.chdir(tmp_path)
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 1
    assert "LightGBM cannot be loaded" in answer.output
    assert "Traceback" not in answer.output and not list(tmp_path.iterdir())
