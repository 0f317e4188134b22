"""`wattkeeper explain --energy`, `--factors` and `--pareto` on a file of a live service."""

from __future__ import annotations

import csv
import json

import pytest
import yaml
from typer.testing import CliRunner

from tests.controller.test_calibrations import NAME, play, profile
from tests.controller.world import service
from wattkeeper.cli.main import app
from wattkeeper.energy import factor_schema


def run(*arguments):
    return CliRunner().invoke(app, ["explain", *map(str, arguments)])


@pytest.fixture
def saved(world, tmp_path):
    """A service with six replicas, of which the plan needs fewer; and a way to change what was saved."""
    world.fleet(replicas=6, rate=8.0)
    world.create(profile())
    world.create(
        service(
            world.namespace,
            mode="Recommend",
            levers={"replicas": {"min": 1, "max": 8}, "powerCap": {"min": "300W", "max": "700W"}},
        )
    )
    play(world)
    items = [
        {**world.kube.get(world.path("inferenceservices", "chat")), "kind": "InferenceService"},
        {**world.kube.get(world.path("modelprofiles", NAME)), "kind": "ModelProfile"},
    ]

    def write(change=lambda items: None):
        change(items)
        path = tmp_path / "objects.yaml"
        path.write_text(yaml.safe_dump({"kind": "List", "items": items}))
        return path

    write.name = f"{world.namespace}/chat"
    return write


def test_shares_lead_from_what_is_in_place_to_the_plan(saved):
    found = json.loads(run(saved.name, "--status", saved(), "--energy", "--output", "json").output)["energy"]
    total = sum(sum(part.values()) for part in found["dimensions"].values()) + found["liveReadings"]
    assert found["watts"] == pytest.approx(found["inPlaceWatts"] * 2.718281828459045**total, rel=1e-6)
    assert found["watts"] < found["inPlaceWatts"]
    assert found["dimensions"]["System"]["physics"] < 0, "a lower power limit"
    text = run(saved.name, "--status", saved(), "--energy").output
    for dimension in ("KvCache", "Scheduling", "System", "Workload"):
        assert dimension in text
    assert "power_limit -" in text


def test_the_plan_is_compared_with_the_static_fleet_of_the_savings_account(saved):
    found = json.loads(run(saved.name, "--status", saved(), "--energy", "--output", "json").output)["energy"]
    static = found["static"]
    assert static["replicas"] == 8, "the most that the lever allows, as savings are stated"
    total = sum(sum(part.values()) for part in static["dimensions"].values()) + static["liveReadings"]
    assert found["watts"] == pytest.approx(static["watts"] * 2.718281828459045**total, rel=1e-6)
    assert found["watts"] / static["watts"] == pytest.approx(found["joulesPerToken"] / static["joulesPerToken"])
    for name, part in static["dimensions"].items():
        mine = [cause for cause in static["causes"] if cause["dimension"] == name]
        assert sum(part.values()) == pytest.approx(sum(each["physics"] + each["learned"] for each in mine), abs=1e-9)
    text = run(saved.name, "--status", saved(), "--energy").output
    assert "of 8 replicas at full power (-" in text
    assert "replicas -25.0%" in text


def test_a_plan_that_is_the_static_fleet_saves_nothing(saved):
    def change(items):
        items[0]["spec"]["levers"]["replicas"]["max"] = 6
        items[0]["status"]["plan"] |= {"replicas": 6, "powerCapWatts": None}

    text = run(saved.name, "--status", saved(change), "--energy").output
    assert "the plan is what is in place: nothing moves the watts" in text
    assert "the plan is the static fleet: nothing is saved" in text


def test_every_factor_is_listed_with_a_value_or_a_reason(saved):
    answer = run(saved.name, "--status", saved(), "--factors", "--output", "json")
    listed = json.loads(answer.output)["factors"]["list"]
    assert [each["name"] for each in listed] == [each.name for each in factor_schema.everything()]
    assert all(each["value"] is not None or each["note"] for each in listed)
    found = {each["name"]: each for each in listed}
    assert found["requests_per_second"]["value"] == 24.0
    assert found["batch"]["trained"]["low"] == pytest.approx(8.0)
    assert found["realised_batch"]["knownBeforeActing"] is False
    text = run(saved.name, "--status", saved(), "--factors").output
    for each in listed:
        assert each["name"] in text
    assert "priority: each request carries its own" in text


def test_what_widens_the_interval_is_named_in_every_explanation(saved):
    def change(items):
        batch = {"name": "batch", "unit": "sequences", "value": 1.2, "low": 8.0, "high": 1024.0}
        fill = {"name": "kv_fill", "unit": "1", "low": 0.0, "high": 1.0}
        items[0]["status"]["factors"]["untrained"] = [batch, fill]

    text = run(saved.name, "--status", saved(change)).output
    assert "saw nothing like batch 1.2 sequences (trained on 8 to 1024); kv_fill which is not known" in text
    told = json.loads(run(saved.name, "--status", saved(), "--output", "json").output)
    assert [each["name"] for each in told["untrained"]] == ["batch", "kv_fill"]


def test_what_widens_the_interval_of_the_plan_is_named_with_its_watts(saved):
    def change(items):
        items[0]["status"]["profile"]["modelProfile"] = None
        items[0]["spec"]["model"] = "Qwen/Qwen3-14B"
        items[0]["status"]["profile"]["accelerator"] = "nvidia-a100-sxm"

    told = json.loads(run(saved.name, "--status", saved(change), "--energy", "--output", "json").output)["energy"]
    assert {"gpu_power_limit", "gpu_bandwidth"} <= {each["name"] for each in told["untrained"]}
    text = run(saved.name, "--status", saved(), "--energy").output
    assert "    less certain: the energy model saw nothing like" in text


def test_a_status_without_factors_is_refused(saved):
    answer = run(saved.name, "--status", saved(lambda items: items[0]["status"].pop("factors")), "--factors")
    assert answer.exit_code == 1
    assert "the status tells no factors yet" in answer.output


def test_a_pair_that_was_never_measured_says_what_the_model_does_not_know(world):
    world.fleet(replicas=2, rate=0.1)
    world.create(service(world.namespace, mode="Observe", model="Qwen/Qwen3-14B", accelerator={"type": "a100-sxm"}))
    world.tick()
    named = {each["name"] for each in world.status()["factors"]["untrained"]}
    assert {"gpu_power_limit", "gpu_bandwidth", "batch"} <= named


def test_the_front_has_the_plan_and_what_is_in_place(saved, tmp_path):
    path = tmp_path / "front.json"
    answer = run(saved.name, "--status", saved(), "--pareto", path)
    assert answer.exit_code == 0, answer.output
    options = json.loads(path.read_text())["options"]
    assert [option["replicas"] for option in options if option["in_place"]] == [6]
    planned = [option for option in options if option["planned"]]
    assert len(planned) == 1 and planned[0]["feasible"]
    assert all(bool(option["why_not"]) != option["feasible"] for option in options)
    best = [option for option in options if option["best"]]
    for option in options:
        if option["feasible"] and not option["best"]:
            assert any(
                other["watts"] <= option["watts"] and other["ttft_seconds"] <= option["ttft_seconds"] for other in best
            )
    in_place = next(option for option in options if option["in_place"])
    assert planned[0]["watts"] < in_place["watts"]


def test_the_front_as_table_and_picture(saved, tmp_path):
    for name in ("front.csv", "front.png"):
        answer = run(saved.name, "--status", saved(), "--pareto", tmp_path / name)
        assert answer.exit_code == 0, answer.output
        assert "options" in answer.output
    with (tmp_path / "front.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 20 and float(rows[0]["watts"]) <= float(rows[-1]["watts"])
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda items: items[0]["status"].update(observed={}), "no traffic was measured yet"),
        (lambda items: items[0]["status"]["profile"].update(accelerator=""), "names no accelerator"),
    ],
)
def test_what_cannot_be_explained_is_said(saved, change, said):
    answer = run(saved.name, "--status", saved(change), "--energy")
    assert answer.exit_code == 1
    assert said in answer.output


def test_an_unknown_ending_is_refused(saved, tmp_path):
    answer = run(saved.name, "--status", saved(), "--pareto", tmp_path / "front.pdf")
    assert answer.exit_code == 1
    assert ".png, .csv, .json" in answer.output
