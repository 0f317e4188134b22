"""`wattkeeper twin` as a process beside an API."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import yaml
from kubernetes import client

from wattkeeper.embedded.server import EmbeddedApi
from wattkeeper.embedded.workloads import Workloads
from wattkeeper.twin.kube import connect

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "wattkeeper.cli.main", "twin", "--model=Qwen/Qwen3-8B", "--port=0"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "operator"), "COLUMNS": "200"}


def deployment():
    labels = {"app": "chat"}
    container = {
        "name": "vllm",
        "image": "vllm/vllm-openai:v0.15.1",
        "args": ["--model=Qwen/Qwen3-8B", "--max-model-len=8192"],
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
    }
    return {
        "metadata": {"name": "chat"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


def test_metrics_of_a_running_deployment(tmp_path):
    with EmbeddedApi() as server, Workloads(server.registry) as workloads:
        path = server.write_kubeconfig(tmp_path / "kubeconfig")
        api = connect(path)
        for crd in (ROOT / "crds").glob("*.yaml"):
            client.ApiextensionsV1Api(api).create_custom_resource_definition(yaml.safe_load(crd.read_text()))
        workloads.add_gpu_node("node-a", gpu_product="NVIDIA-H100-80GB-HBM3", count=4)
        client.AppsV1Api(api).create_namespaced_deployment("default", deployment())
        process = subprocess.Popen(
            [*COMMAND, f"--kubeconfig={path}", "--deployment=default/chat", "--rate=20", "--speed=20"],
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        try:
            url = re.search(r"http://\S+\d", process.stderr.readline())[0]
            end = time.monotonic() + 20
            finished = 0.0
            while time.monotonic() < end and finished < 100:
                own = httpx.get(f"{url}/metrics").text
                finished = float(re.search(r'outcome="finished"} (\d+)', own)[1])
                time.sleep(0.1)
            assert finished >= 100
            targets = httpx.get(f"{url}/sd/vllm").json()
            assert len(targets) == 2
            page = httpx.get(url + targets[0]["labels"]["__metrics_path__"]).text
            assert 'vllm:request_success_total{engine="0",finished_reason="stop",model_name="Qwen/Qwen3-8B"}' in page
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.stderr.close()
            process.wait()


def test_what_is_missing_is_said(tmp_path):
    with EmbeddedApi() as server:
        path = server.write_kubeconfig(tmp_path / "kubeconfig")
        found = subprocess.run(
            [*COMMAND, f"--kubeconfig={path}", "--deployment=default/none"],
            capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=False,
        )  # fmt: skip
    assert found.returncode == 1
    assert "Deployment default/none cannot be read: Not Found" in found.stderr
