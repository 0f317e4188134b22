"""The examples say what the API types understand."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import yaml

from wattkeeper.api import inference_service

EXAMPLES = sorted((pathlib.Path(__file__).parents[2] / "manifests" / "examples").glob("*.yaml"))


def documents(path: pathlib.Path, kind: str) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all(path.read_text()) if found["kind"] == kind]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_understood(path: pathlib.Path) -> None:
    services = documents(path, "InferenceService")
    assert len(services) == 1
    service = inference_service.InferenceService.model_validate(services[0])
    for deployment in documents(path, "Deployment"):
        assert service.spec.target_ref.name == deployment["metadata"]["name"]
        containers = [one["name"] for one in deployment["spec"]["template"]["spec"]["containers"]]
        assert service.spec.target_ref.container in containers
    for scaled in documents(path, "ScaledObject"):
        assert service.spec.levers.replicas is not None
        assert service.spec.levers.replicas.control is inference_service.ControlMode.EXTERNAL
        assert scaled["spec"]["scaleTargetRef"]["name"] == service.spec.target_ref.name
        query = scaled["spec"]["triggers"][0]["metadata"]["query"]
        assert f'service="{services[0]["metadata"]["name"]}"' in query


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_names_an_accelerator_and_a_model_of_the_catalogue(path: pathlib.Path) -> None:
    catalogue = pytest.importorskip("wattkeeper.physics.catalogue")
    service = inference_service.InferenceService.model_validate(documents(path, "InferenceService")[0])
    catalogue.model(service.spec.model)
    if service.spec.accelerator.type is not None:
        gpu = catalogue.gpu(service.spec.accelerator.type)
        cap = service.spec.levers.power_cap
        assert cap is None or gpu.min_cap_watts <= cap.min <= cap.max <= gpu.tdp_watts


def test_the_examples_show_every_mode_and_source() -> None:
    specs = [
        inference_service.InferenceService.model_validate(documents(path, "InferenceService")[0]).spec
        for path in EXAMPLES
    ]
    assert {spec.mode for spec in specs} == set(inference_service.Mode)
    assert inference_service.MetricsSourceKind.SCRAPE in {spec.metrics.source for spec in specs}
