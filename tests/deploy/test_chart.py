"""The chart: linted, closed schema, described values, equal to the kustomize base, installable."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import re
import subprocess
from typing import Any

import pytest
import typer
import yaml

from e2e.cluster import prometheus, tools

ROOT = pathlib.Path(__file__).parents[2]
CHART = ROOT / "charts" / "wattkeeper"
needs_tools = pytest.mark.cluster


def helm(*arguments: str, fails: bool = False) -> str:
    result = subprocess.run([tools.find("helm"), *arguments], capture_output=True, text=True, check=False)
    assert (result.returncode != 0) == fails, result.stderr
    return result.stderr if fails else result.stdout


def render(*settings: str) -> list[dict[str, Any]]:
    values = [word for setting in settings for word in ("--set-json", setting)]
    text = helm("template", "wattkeeper", str(CHART), "--namespace=wattkeeper-system", *values)
    return [found for found in yaml.safe_load_all(text) if found]


def kinds(documents: list[dict[str, Any]]) -> list[str]:
    return [found["kind"] for found in documents]


def only(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    found = [one for one in documents if one["kind"] == kind]
    assert len(found) == 1, kinds(documents)
    return found[0]


def kustomize(folder: str) -> list[dict[str, Any]]:
    command = [tools.find("kubectl"), "kustomize", str(ROOT / "manifests" / folder)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return list(yaml.safe_load_all(text))


def test_generated_files_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "charts" / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    wanted = generate.files()
    for path, text in wanted.items():
        assert path.read_text() == text, f"{path.name} differs from its source: run `make crds`"
    present = {*(CHART / "templates" / "crds").iterdir(), *(CHART / "files").iterdir()}
    assert present == set(wanted)


def test_schema_is_closed_and_knows_every_value() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def walk(values: dict[str, Any], node: dict[str, Any], where: str) -> None:
        if "properties" not in node:
            return
        assert node["additionalProperties"] is False, where
        for name, value in values.items():
            assert name in node["properties"], f"{where}.{name} is not in the schema"
            if isinstance(value, dict):
                walk(value, node["properties"][name], f"{where}.{name}")

    walk(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "values")


def test_every_value_is_described() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    undescribed = []
    described_above = -1
    for before, line in zip(["", *lines], lines, strict=False):
        name = re.match(r"^( *)[A-Za-z]+:(.*)$", line)
        if name is None:
            continue
        depth = len(name[1])
        if before.strip().startswith("# --"):
            described_above = depth if not name[2].strip() else -1
        elif name[2].strip() and not (0 <= described_above < depth):
            undescribed.append(line)
    assert undescribed == []


@needs_tools
def test_lint() -> None:
    helm("lint", "--strict", str(CHART))


@needs_tools
@pytest.mark.parametrize(
    "setting",
    [
        "replica=2",
        'image.tags="x"',
        "replicas=0",
        'metrics.prometheus.url="prometheus:9090"',
        'watch.namespaces=["Not_A_Name"]',
    ],
)
def test_wrong_values_are_refused(setting: str) -> None:
    said = helm("template", "x", str(CHART), "--set-json", setting, fails=True)
    assert "don't meet the specifications of the schema" in said or "not allowed" in said or "at '" in said


@needs_tools
def test_rights_are_those_of_the_kustomize_base() -> None:
    def rights(documents: list[dict[str, Any]]) -> dict[tuple[str, str], Any]:
        return {
            (found["kind"], found["metadata"]["name"]): {
                key: found.get(key) for key in ("rules", "roleRef", "subjects")
            }
            | {"namespace": found["metadata"].get("namespace")}
            for found in documents
            if found["apiVersion"].startswith("rbac.") or found["kind"] == "ServiceAccount"
        }

    assert rights(render()) == rights(kustomize("base"))
    namespaced = render('watch.namespaces=["llm"]')
    assert rights(namespaced) == rights(kustomize("namespaced"))
    assert kinds(namespaced).count("ClusterRoleBinding") == 1
    bare = kinds(render('watch.namespaces=["llm"]', "rbac.nodes=false", "rbac.aggregate=false"))
    assert "ClusterRoleBinding" not in bare
    assert not {"Role", "RoleBinding", "ClusterRole"} & set(kinds(render("rbac.create=false")))


@needs_tools
def test_pod_is_that_of_the_kustomize_base() -> None:
    def pod(documents: list[dict[str, Any]]) -> dict[str, Any]:
        spec = dict(only(documents, "Deployment")["spec"]["template"]["spec"])
        container = dict(spec["containers"][0])
        container.pop("imagePullPolicy", None)
        return spec | {"containers": [container]}

    assert pod(render()) == pod(kustomize("base"))
    security = pod(render())["containers"][0]["securityContext"]
    assert security == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@needs_tools
def test_crds_can_be_left_out_or_given_up() -> None:
    crds = [found for found in render() if found["kind"] == "CustomResourceDefinition"]
    sources = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "crds").glob("*.yaml")}
    assert {found["spec"]["names"]["plural"]: found["spec"] for found in crds} == {
        name: source["spec"] for name, source in sources.items()
    }
    assert all(found["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"} for found in crds)
    given_up = [found for found in render("crds.keep=false") if found["kind"] == "CustomResourceDefinition"]
    assert len(given_up) == 3
    assert not any("annotations" in found["metadata"] for found in given_up)
    assert "CustomResourceDefinition" not in kinds(render("crds.enabled=false"))


@needs_tools
def test_options_are_off_until_asked_for() -> None:
    plain = set(kinds(render()))
    assert not plain & {"ServiceMonitor", "PodMonitor", "PrometheusRule", "NetworkPolicy", "PodDisruptionBudget"}
    assert only(render("replicas=2"), "PodDisruptionBudget")["spec"]["minAvailable"] == 1
    assert "PodDisruptionBudget" not in kinds(render("replicas=2", "podDisruptionBudget.enabled=false"))
    monitor = only(render("serviceMonitor.enabled=true", 'serviceMonitor.labels={"release": "p"}'), "ServiceMonitor")
    assert monitor["metadata"]["labels"]["release"] == "p"
    assert only(render("podMonitor.enabled=true"), "PodMonitor")["spec"]["podMetricsEndpoints"][0]["honorLabels"]
    both = ["--set=serviceMonitor.enabled=true", "--set=podMonitor.enabled=true"]
    assert "exclude each other" in helm("template", "x", str(CHART), *both, fails=True)
    policy = only(
        render("networkPolicy.enabled=true", 'networkPolicy.metricsFrom=[{"podSelector": {}}]'), "NetworkPolicy"
    )
    assert policy["spec"]["ingress"][0]["from"] == [{"podSelector": {}}]


@needs_tools
def test_alerts_are_valid_and_speak_of_real_metrics(tmp_path: pathlib.Path) -> None:
    rules = only(render("prometheusRule.enabled=true"), "PrometheusRule")["spec"]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(rules))
    prometheus.check_rules(path)
    metrics = pytest.importorskip("wattkeeper.controller.metrics")
    known = {name for one in metrics.OperatorMetrics().registry.collect() for name in (one.name, f"{one.name}_total")}
    used = set(re.findall(r"wattkeeper_\w+", path.read_text()))
    assert used <= known


@needs_tools
def test_arguments_are_those_of_the_command() -> None:
    run = pytest.importorskip("wattkeeper.cli.run")
    app = typer.Typer()
    run.register(app)
    command = typer.main.get_command(app)
    container = only(render('watch.namespaces=["llm", "chat"]'), "Deployment")["spec"]["template"]["spec"][
        "containers"
    ][0]
    assert container["args"][0] == "run"
    chosen = command.make_context("run", container["args"][1:]).params
    assert chosen["namespace"] == ["llm", "chat"]
    assert chosen["http_port"] == container["ports"][0]["containerPort"]
