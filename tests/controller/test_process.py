"""The operator as a process: it says what is wrong at the start, and ends when it is told to."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest
import yaml
from kubernetes import client

from wattkeeper.api import schema
from wattkeeper.controller import kube
from wattkeeper.embedded.server import EmbeddedApi

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def kubeconfig(tmp_path) -> Iterator[pathlib.Path]:
    path = tmp_path / "kubeconfig"
    with EmbeddedApi() as api:
        api.write_kubeconfig(path)
        access = kube.load_client(str(path))
        for text in schema.crd_files().values():
            client.ApiextensionsV1Api(access).create_custom_resource_definition(yaml.safe_load(text))
        client.CoreV1Api(access).create_namespace({"metadata": {"name": "wattkeeper-system"}})
        yield path


@contextlib.contextmanager
def operator(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "wattkeeper", "run", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "operator")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


def test_sigterm_ends_it_and_hands_the_lease_back(kubeconfig):
    port = free_port()
    with operator(f"--kubeconfig={kubeconfig}", f"--http-port={port}", "--tick=1", "--log-format=text") as process:
        deadline = time.monotonic() + 60
        while not answers(f"http://127.0.0.1:{port}/readyz"):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        text, _ = process.communicate(timeout=30)
        assert process.returncode == 0, text
        assert time.monotonic() - began < 15
        assert "Traceback" not in text
    lease = client.CoordinationV1Api(kube.load_client(str(kubeconfig))).read_namespaced_lease(
        "wattkeeper", "wattkeeper-system"
    )
    assert not lease.spec.holder_identity


def test_a_taken_port_is_told_in_one_line(kubeconfig):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with operator(f"--kubeconfig={kubeconfig}", f"--http-port={port}", "--log-format=text") as process:
            text, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"port {port}" in text
    assert "Traceback" not in text
