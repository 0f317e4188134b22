"""What the simulated pods and nodes serve over HTTP."""

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.twin.test_replica import small_hardware
from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.twin import counters
from wattkeeper.twin.exporter import Exporter
from wattkeeper.twin.exposition import GpuSample, VllmProfile, dcgm_text, vllm_text
from wattkeeper.twin.replica import Replica
from wattkeeper.twin.request import Request


def busy_replica():
    replica = Replica(small_hardware(blocks=200, batched=256), now=0.0)
    replica.submit(Request(i * 0.05, 120, 30, 64) for i in range(50))
    replica.run(1.5)
    return replica


def samples(text):
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_current_names_labels_and_buckets():
    replica = busy_replica()
    found = samples(vllm_text(replica, model_name="acme/model"))
    for name in (
        "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
        "vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:num_preemptions_total",
        "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total",
    ):  # fmt: skip
        ((labels, _),) = found[name]
        assert labels == {"engine": "0", "model_name": "acme/model"}
    reasons = {labels["finished_reason"]: value for labels, value in found["vllm:request_success_total"]}
    assert reasons["stop"] == len(replica.finished)
    assert set(reasons) == {"stop", "length", "abort", "error", "repetition"}
    buckets = found["vllm:time_to_first_token_seconds_bucket"]
    assert [labels["le"] for labels, _ in buckets] == [*map(str, counters.TTFT_BOUNDS), "+Inf"]
    values = [value for _, value in buckets]
    assert values == sorted(values)
    assert values[-1] == found["vllm:time_to_first_token_seconds_count"][0][1] == replica.counters.ttft_seconds.count
    ((info, one),) = found["vllm:cache_config_info"]
    assert one == 1.0
    assert "model_name" not in info
    assert info["num_gpu_blocks"] == "200"
    assert found["vllm:prefix_cache_hits_total"][0][1] / found["vllm:prefix_cache_queries_total"][0][1] == 64 / 120


def test_legacy_names_replace_the_current_ones():
    found = samples(vllm_text(busy_replica(), model_name="m", profile=VllmProfile.LEGACY))
    assert "vllm:gpu_cache_usage_perc" in found
    assert "vllm:gpu_prefix_cache_hits_total" in found
    assert "vllm:time_per_output_token_seconds_bucket" in found
    for gone in ("vllm:kv_cache_usage_perc", "vllm:inter_token_latency_seconds_bucket", "vllm:prefix_cache_hits_total"):
        assert gone not in found


def test_length_buckets_are_the_one_two_five_series():
    assert counters.length_bounds(120) == (1, 2, 5, 10, 20, 50, 100)


def gpu(index=0, pod="chat-0"):
    return GpuSample(
        index=index, uuid=f"GPU-{index}", node="node-a", model_name="NVIDIA H100 80GB HBM3", power_watts=512.34567,
        energy_joules=12.3456, sm_clock_mhz=1650.0, utilisation=0.5, limit_watts=700.0, namespace="ml", pod=pod,
        container="vllm",
    )  # fmt: skip


def test_dcgm_labels_and_units():
    found = samples(dcgm_text([gpu(), gpu(1, pod=None)]))
    (used, watts), (free, _) = found["DCGM_FI_DEV_POWER_USAGE"]
    assert watts == 512.346
    assert used["pod"] == "chat-0"
    assert used["namespace"] == "ml"
    assert used["Hostname"] == "node-a"
    assert used["UUID"] == "GPU-0"
    assert "pod" not in free
    # The exporter's counter has no _total; this parser adds it.
    assert found["DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION_total"][0][1] == 12346
    assert found["DCGM_FI_DEV_POWER_MGMT_LIMIT"][0][1] == 700


class View:
    def __init__(self):
        self.replica = busy_replica()

    def pod_keys(self):
        return [("ml", "chat-0")]

    def node_names(self):
        return ["node-a"]

    def pod_text(self, namespace, pod):
        return vllm_text(self.replica, model_name="m") if (namespace, pod) == ("ml", "chat-0") else None

    def node_text(self, node):
        return dcgm_text([gpu()]) if node == "node-a" else None

    def own_text(self):
        return "wattkeeper_twin_lag_seconds 0.0\n"


def test_exporter_serves_pods_nodes_and_target_lists():
    exporter = Exporter(View())
    exporter.start()
    try:
        with httpx.Client(base_url=exporter.url) as client:
            (target,) = client.get("/sd/vllm").json()
            assert target["targets"] == [f"127.0.0.1:{exporter.port}"]
            assert target["labels"]["pod"] == "chat-0"
            answer = client.get(target["labels"]["__metrics_path__"])
            assert answer.headers["content-type"].startswith("text/plain")
            assert "vllm:num_requests_running" in answer.text
            (node,) = client.get("/sd/dcgm").json()
            assert "DCGM_FI_DEV_POWER_USAGE" in client.get(node["labels"]["__metrics_path__"]).text
            assert client.get("/pods/ml/other/metrics").status_code == 404
            assert client.get("/nodes/other/metrics").status_code == 404
            assert "lag" in client.get("/metrics").text
        with pytest.raises(WattkeeperError, match="another port"):
            Exporter(View(), port=exporter.port).start()
    finally:
        exporter.stop()
