"""The demo's parts, and a short run with a scripted stand-in for the operator."""

import datetime as dt
import io
import json
import threading
import time

import pytest
from kubernetes import client
from rich.console import Console

from wattkeeper.demo import run, scenario
from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.twin.kube import connect


class Scripted:
    """Does what the operator may do, at fixed wall times, and reports a status."""

    def __init__(self, kubeconfig, steps):
        self.api = connect(kubeconfig)
        self.steps = steps
        self.error = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self):
        objects = client.CustomObjectsApi(self.api)
        status = {"plan": {"reason": "LeastEnergy"}, "conditions": [condition()]}
        objects.patch_namespaced_custom_object_status(
            "wattkeeper.io", "v1alpha1", "llm", "inferenceservices", "chat", {"status": status},
            _content_type="application/merge-patch+json",
        )  # fmt: skip
        self.thread.start()

    def _run(self):
        try:
            for wait, step in self.steps:
                time.sleep(wait)
                step(self.api)
        except Exception as error:
            self.error = error

    def check(self):
        if self.error:
            raise AssertionError("scripted operator") from self.error

    def stop(self):
        self.thread.join(5)
        return 0


def condition():
    return {"type": "Ready", "status": "True", "reason": "Scripted", "message": "x"}


def scale(replicas):
    def step(api):
        client.AppsV1Api(api).patch_namespaced_deployment_scale("chat", "llm", {"spec": {"replicas": replicas}})

    return step


def change_budget(api):
    apps = client.AppsV1Api(api)
    arguments = apps.read_namespaced_deployment("chat", "llm").spec.template.spec.containers[0].args
    changed = [each.replace("batched-tokens=8192", "batched-tokens=1024") for each in arguments]
    body = {"spec": {"template": {"spec": {"containers": [{"name": "vllm", "args": changed}]}}}}
    apps.patch_namespaced_deployment("chat", "llm", body)


def cap(watts):
    def step(api):
        objects = client.CustomObjectsApi(api)
        kind = ("wattkeeper.io", "v1alpha1", "nodepowercaps")
        until = (dt.datetime.now(dt.UTC) + dt.timedelta(minutes=5)).isoformat()
        for item in objects.list_cluster_custom_object(*kind)["items"]:
            caps = [
                {"uuid": device["uuid"], "watts": watts, "owner": "llm/chat", "expiresAt": until}
                for device in item["status"]["devices"]
                if device["pods"]
            ]
            objects.patch_cluster_custom_object(
                *kind, item["metadata"]["name"], {"spec": {"caps": caps}}, _content_type="application/merge-patch+json"
            )

    return step


@pytest.fixture(scope="module")
def played():
    trace = scenario.shipped_day(traffic="code", seed=1, hours=1.0)
    return scenario.build(trace=trace, title="Short", source="test")


def test_a_day_with_all_three_levers(played, tmp_path):
    steps = [(1.0, cap(450)), (1.0, change_budget), (1.5, scale(1)), (0.5, cap(400))]
    text = io.StringIO()
    report = run.play(
        played,
        run.DemoSettings(speed=600.0, output=tmp_path),
        Console(file=text, width=200),
        make_operator=lambda kubeconfig, _url, _settings: Scripted(kubeconfig, steps),
    )
    assert played.replicas > 1
    assert report.counts == {"replicas": 1, "arguments": 1, "cap": 2}
    changes = {action.kind: action.change for action in report.actions}
    assert changes["arguments"] == "--max-num-batched-tokens 8192 → 1024"
    assert changes["replicas"] == f"{played.replicas} → 1"
    assert changes["cap"] == "450 W → 400 W"
    assert {action.reason for action in report.actions} == {"LeastEnergy"}
    for result in (report.live, report.static):
        counts = result.attainment
        assert counts.arrived == len(played.trace)
        assert counts.arrived == counts.finished + counts.lost + counts.unfinished
        assert counts.unfinished == 0
        assert result.points
        by_points = sum(p.power_watts for p in result.points) / len(result.points) * played.trace.span_seconds
        assert result.energy_joules == pytest.approx(by_points, rel=0.15)
    assert report.live.attainment.lost == 0
    assert 0 < report.saved_percent_parked < report.saved_percent < 90
    assert "saved" in report.lines()[0]
    page = (tmp_path / "index.html").read_text()
    assert "8192 → 1024" in page
    for name in ("day", "rate", "replicas", "levers", "power", "latency"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["actions"] == report.counts
    assert "replicas" in text.getvalue()


def test_an_operator_that_ends_is_told_with_its_last_words(played, tmp_path):
    from wattkeeper.demo.process import OperatorProcess

    operator = OperatorProcess(arguments=["--no-such-flag"], log=tmp_path / "log")
    operator.start()
    with pytest.raises(WattkeeperError, match="ended with code"):
        for _ in range(200):
            operator.check()
            time.sleep(0.1)
    assert operator.stop()


def test_static_fleet_is_the_smallest_that_holds(played):
    smaller = scenario.static_size(
        played.trace, model=played.model, accelerator=played.accelerator, engine=played.engine, slo=played.slo,
        min_attainment=0.5, guess=1,
    )  # fmt: skip
    assert 1 <= smaller <= played.replicas
    assert played.object("Deployment")["spec"]["replicas"] == played.replicas
    gpus = [each for each in played.objects if each["kind"] == "Node"]
    assert len(gpus) * 4 > played.replicas


def test_recorded_traffic(tmp_path):
    path = tmp_path / "rates.csv"
    path.write_text("t_s,rate_rps\n0,2\n1800,4\n")
    trace = scenario.recorded(str(path), seed=1, hours=0.5, rate_scale=2.0)
    assert len(trace) == pytest.approx(6 * 1800, rel=0.1)
    with pytest.raises(WattkeeperError, match="choose one of code, conversation"):
        scenario.shipped_day(traffic="x", seed=1, hours=1)
