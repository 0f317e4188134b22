"""`wattkeeper calibrate` on a live service and on a file."""

from __future__ import annotations

import json

import pytest
import yaml
from typer.testing import CliRunner

from tests.controller.test_calibrations import NAME, play, profile
from tests.controller.world import service
from wattkeeper.cli.main import app


def run(*arguments):
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)])


@pytest.fixture
def measured(world):
    world.fleet(replicas=2, rate=4.0)
    world.create(profile())
    world.create(service(world.namespace, mode="Recommend", levers={"replicas": {"min": 1, "max": 6}}))
    play(world)
    return world


@pytest.fixture
def saved(measured, tmp_path):
    """What `kubectl get wis,wmp -o yaml` writes, and a way to change it."""
    items = [
        {**measured.kube.get(measured.path("inferenceservices", "chat")), "kind": "InferenceService"},
        {**measured.kube.get(measured.path("modelprofiles", NAME)), "kind": "ModelProfile"},
    ]

    def write(change=lambda items: None):
        change(items)
        path = tmp_path / "objects.yaml"
        path.write_text(yaml.safe_dump({"kind": "List", "items": items}))
        return path

    return write


def test_a_live_service_is_told_what_to_measure_next(measured):
    answer = run(f"{measured.namespace}/chat", "--kubeconfig", measured.cluster.kubeconfig)
    assert answer.exit_code == 0, answer.output
    assert f"readings in ModelProfile {NAME}" in answer.output
    assert "times the model's watts" in answer.output
    assert "measure next:" in answer.output


def test_a_suggested_point_is_away_from_what_is_measured_and_narrows_the_interval(measured, saved):
    found = json.loads(run(f"{measured.namespace}/chat", "--status", saved(), "--output", "json").output)
    next_one = found["suggestions"][0]
    known = found["readings"][0]["batch"]
    assert abs(next_one["batch"] - known) > 0.3 * known
    widths = [found["halfWidth"], *(each["halfWidth"] for each in found["suggestions"])]
    assert widths == sorted(widths, reverse=True)
    assert all(point["batch"] > 0 for point in found["points"])


def test_without_readings_the_interval_is_wide_and_any_point_helps_most(measured, saved):
    def forget(items):
        items[1]["status"] = {}

    some = json.loads(run(f"{measured.namespace}/chat", "--status", saved(), "--output", "json").output)
    none = json.loads(run(f"{measured.namespace}/chat", "--status", saved(forget), "--output", "json").output)
    assert none["readings"] == []
    assert none["halfWidth"] > some["halfWidth"]
    assert none["suggestions"]


def test_readings_of_another_model_are_left_out_with_a_note(measured, saved):
    def age(items):
        items[1]["status"]["calibrations"][0]["energyModel"] = "energy-v0-old"

    answer = run(f"{measured.namespace}/chat", "--status", saved(age))
    assert "readings taken with energy-v0-old are not used" in answer.output
    assert "nothing yet" in answer.output


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda items: items[0]["status"].update(observed={}), "no traffic was measured yet"),
        (lambda items: items[0]["status"]["profile"].update(accelerator=""), "names no accelerator"),
        (lambda items: items[0]["spec"]["slo"].update(tpot={"target": "1ms"}), "no operating point"),
        (lambda items: items.pop(0), "there is no InferenceService"),
    ],
)
def test_what_cannot_be_answered_is_said_with_what_to_do(measured, saved, change, said):
    answer = run(f"{measured.namespace}/chat", "--status", saved(change))
    assert answer.exit_code == 1
    assert said in answer.output


def test_a_file_that_is_none_is_refused(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("just text")
    for status in (path, tmp_path / "missing.yaml"):
        answer = run("a/b", "--status", status)
        assert answer.exit_code == 1
        assert "kubectl get wis,wmp" in answer.output
