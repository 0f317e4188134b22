"""The live twin against a Kubernetes API: it follows pods, arguments, nodes and power caps."""

import datetime as dt
import time
from pathlib import Path

import pytest
import yaml
from kubernetes import client

from wattkeeper.domain.workload import LengthDistribution
from wattkeeper.embedded.server import EmbeddedApi
from wattkeeper.traces import generate
from wattkeeper.traces.trace import RateSeries
from wattkeeper.twin.agent import expired
from wattkeeper.twin.kube import connect
from wattkeeper.twin.ledger import SloTargets
from wattkeeper.twin.live import LiveService, LiveTwin
from wattkeeper.twin.request import Request

CRDS = Path(__file__).parents[2] / "crds"
LENGTHS = LengthDistribution.lognormal(mean=100, coefficient_of_variation=0.8)
GROUP = ("wattkeeper.io", "v1alpha1", "nodepowercaps")


@pytest.fixture
def api(tmp_path):
    with EmbeddedApi() as server:
        connection = connect(server.write_kubeconfig(tmp_path / "kubeconfig"))
        extensions = client.ApiextensionsV1Api(connection)
        for path in CRDS.glob("*.yaml"):
            extensions.create_custom_resource_definition(yaml.safe_load(path.read_text()))
        core = client.CoreV1Api(connection)
        core.create_namespace({"metadata": {"name": "ml"}})
        core.create_node(
            {
                "metadata": {"name": "node-a", "labels": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}},
                "status": {
                    "allocatable": {"nvidia.com/gpu": "4"},
                    "addresses": [{"type": "InternalIP", "address": "10.1.0.1"}],
                },
            }
        )
        yield connection


def service(rate=4.0):
    series = RateSeries(times_seconds=(0.0, 3600.0), requests_per_second=(rate, rate))
    return LiveService(
        namespace="ml",
        name="chat",
        selector={"app": "chat"},
        model="meta-llama/Llama-3.1-8B-Instruct",
        trace=generate.generate(series, prompt=LENGTHS, output=LENGTHS, seed=1),
        slo=SloTargets(ttft_seconds=0.5, tpot_seconds=0.05),
    )


def make_pod(api, name, *arguments, ready=True, node="node-a", ip="10.0.0.5"):
    core = client.CoreV1Api(api)
    core.create_namespaced_pod(
        "ml",
        {
            "metadata": {"name": name, "labels": {"app": "chat"}},
            "spec": {
                "nodeName": node,
                "terminationGracePeriodSeconds": 20,
                "containers": [
                    {
                        "name": "vllm",
                        "image": "vllm/vllm-openai:v0.15.1",
                        "args": ["--model=meta-llama/Llama-3.1-8B-Instruct", "--max-model-len=8192", *arguments],
                        "resources": {"limits": {"nvidia.com/gpu": "1"}},
                    }
                ],
            },
        },
    )
    if ready:
        set_ready(api, name, ip)


def set_ready(api, name, ip="10.0.0.5"):
    status = {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]}
    client.CoreV1Api(api).patch_namespaced_pod_status(name, "ml", {"status": status})


def wait_for(condition, seconds=8.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def twin(api):
    running = LiveTwin(api, [service()], speed=50.0, tick_seconds=0.02)
    running.start()
    yield running
    running.stop()


KEY = ("ml", "chat-1")


def member(twin, key=KEY):
    return twin.fleet.services["ml/chat"].members.get(key)


def test_pods_start_serve_and_drain_as_the_api_says(api, twin):
    make_pod(api, "chat-1", "--max-num-seqs=64", "--max-num-batched-tokens", "1024", ready=False)
    wait_for(lambda: member(twin))
    assert twin.pod_keys() == []
    assert (member(twin).hardware.max_num_seqs, member(twin).hardware.max_num_batched_tokens) == (64, 1024)
    set_ready(api, "chat-1")
    wait_for(lambda: twin.pod_keys() == [KEY])
    assert twin.traffic_seconds() == 0.0
    twin.start_traffic()
    wait_for(lambda: twin.fleet.services["ml/chat"].ledger.finished > 50)
    text = twin.pod_text(*KEY)
    assert 'model_name="meta-llama/Llama-3.1-8B-Instruct"' in text
    assert 'pod="chat-1"' in twin.node_text("node-a")
    client.CoreV1Api(api).delete_namespaced_pod("chat-1", "ml", grace_period_seconds=0)
    wait_for(lambda: member(twin) is None)
    assert 'pod="chat-1"' not in twin.node_text("node-a")
    ledger = twin.fleet.services["ml/chat"].ledger
    assert ledger.lost_by_reason["pod_ended"] == ledger.lost_by_reason["grace_over"] == 0
    assert f'outcome="arrived"}} {ledger.arrived}' in twin.own_text()


def test_settings_that_do_not_start_are_told(api, twin):
    make_pod(api, "chat-1", "--max-num-seqs=4096", "--max-num-batched-tokens=2048")
    wait_for(lambda: twin.failed_pods)
    assert "max_num_batched_tokens" in twin.failed_pods[KEY]
    assert twin.pod_keys() == []


def test_a_pod_waits_for_gpus_that_another_one_drains_on(api, twin):
    for index in range(4):
        make_pod(api, f"chat-{index}")
    wait_for(lambda: len(twin.pod_keys()) == 4)
    twin.start_traffic()
    with twin.lock:
        member(twin).replica.submit([Request(twin.fleet.now, 100, 4000)])
    client.CoreV1Api(api).delete_namespaced_pod("chat-1", "ml", grace_period_seconds=0)
    make_pod(api, "chat-9")
    wait_for(lambda: twin.ready_count("ml/chat") == 4 and ("ml", "chat-9") in twin.pod_keys())
    assert not twin.failed_pods


def caps_of(api):
    return client.CustomObjectsApi(api).get_cluster_custom_object(*GROUP, "node-a")


def ask(api, uuid, watts, seconds, clock=None):
    until = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
    entry = {"uuid": uuid, "watts": watts, "owner": "ml/chat", "expiresAt": until.isoformat()}
    if clock:
        entry["clockMHz"] = clock
    client.CustomObjectsApi(api).patch_cluster_custom_object(
        *GROUP, "node-a", {"spec": {"caps": [entry]}}, _content_type="application/merge-patch+json"
    )


def test_power_caps_are_obeyed_reported_and_expire(api, twin):
    make_pod(api, "chat-1")
    wait_for(lambda: member(twin) and member(twin).replica)
    wait_for(lambda: any(d["pods"] for d in _devices(api)))
    gpu = member(twin).gpus[0]
    ask(api, gpu.uuid, 150.0, 1.5, clock=1200)
    wait_for(lambda: gpu.requested_watts == 150.0)
    wait_for(lambda: _device(api, gpu.uuid).get("requested") == 150.0)
    device = _device(api, gpu.uuid)
    assert (device["clamped"], device["enforced"], device["max"]) == (200.0, 200.0, 700.0)
    assert device["pods"] == ["ml/chat-1"]
    assert member(twin).replica.cap_watts == 200.0
    wait_for(lambda: gpu.requested_watts is None)
    assert member(twin).replica.cap_watts == 700.0


def _devices(api):
    try:
        return caps_of(api).get("status", {}).get("devices") or []
    except client.ApiException:
        return []


def _device(api, uuid):
    return next((device for device in _devices(api) if device["uuid"] == uuid), {})


def test_times_that_cannot_be_read_have_expired():
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    assert expired("", now)
    assert expired("soon", now)
    assert expired("2026-01-01T00:00:00", now)
    assert expired("2025-12-31T23:59:59Z", now)
    assert not expired("2026-01-01T00:00:01Z", now)
