"""The operator as a process: it says what is wrong at the start, and ends when it is told to."""

import contextlib
import datetime as dt
import json
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
def operator(*arguments: str, modules: str = "") -> Iterator[subprocess.Popen[str]]:
    """`modules`: a folder whose Python modules come before all others."""
    process = subprocess.Popen(
        [sys.executable, "-m", "wattkeeper", "run", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, [modules]), str(ROOT / "operator")])},
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


def page(url: str) -> dict[str, object]:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return json.load(response)
    except OSError:
        return {}


def wait_for_page(process: subprocess.Popen[str], port: int, word: str) -> None:
    deadline = time.monotonic() + 60
    while word not in page(f"http://127.0.0.1:{port}/readyz"):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_sigterm_ends_it_and_hands_the_lease_back(kubeconfig):
    port = free_port()
    with operator(f"--kubeconfig={kubeconfig}", f"--http-port={port}", "--tick=1", "--log-format=text") as process:
        wait_for_page(process, port, "limitSeconds")
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


def test_without_libgomp_it_runs_and_says_once_what_is_missing(kubeconfig, tmp_path):
    (tmp_path / "lightgbm.py").write_text('raise OSError("libgomp.so.1: cannot open shared object file")\n')
    port = free_port()
    arguments = (f"--kubeconfig={kubeconfig}", f"--http-port={port}", "--tick=0.2", "--log-format=text")
    with operator(*arguments, modules=str(tmp_path)) as process:
        wait_for_page(process, port, "limitSeconds")
        time.sleep(1.0)
        process.send_signal(signal.SIGTERM)
        text, _ = process.communicate(timeout=30)
    assert process.returncode == 0, text
    assert "Traceback" not in text
    told = [line for line in text.splitlines() if "libgomp" in line]
    assert len(told) == 1
    assert "physics alone foresees power" in told[0] and "libgomp1" in told[0]


def test_sigterm_ends_a_standby_that_waits_for_the_lease(kubeconfig):
    now = dt.datetime.now(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    held = {"holderIdentity": "another", "leaseDurationSeconds": 600, "acquireTime": now, "renewTime": now}
    leases = client.CoordinationV1Api(kube.load_client(str(kubeconfig)))
    leases.create_namespaced_lease("wattkeeper-system", {"metadata": {"name": "wattkeeper"}, "spec": held})
    port = free_port()
    with operator(f"--kubeconfig={kubeconfig}", f"--http-port={port}", "--log-format=text") as process:
        wait_for_page(process, port, "standingBy")
        process.send_signal(signal.SIGTERM)
        text, _ = process.communicate(timeout=30)
        assert process.returncode == 0, text
        assert "Traceback" not in text
    lease = leases.read_namespaced_lease("wattkeeper", "wattkeeper-system")
    assert lease.spec.holder_identity == "another"


@pytest.mark.parametrize("after_seconds", [0.0, 0.4, 1.0])
def test_sigterm_ends_it_also_while_it_starts(kubeconfig, after_seconds):
    port = free_port()
    with operator(f"--kubeconfig={kubeconfig}", f"--http-port={port}", "--log-format=text") as process:
        deadline = time.monotonic() + 60
        while not page(f"http://127.0.0.1:{port}/healthz"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(after_seconds)
        process.send_signal(signal.SIGTERM)
        text, _ = process.communicate(timeout=30)
    assert process.returncode == 0, text
    assert "Traceback" not in text


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


def one_line(*arguments: str) -> str:
    with operator(*arguments, "--log-format=text", "--no-lease") as process:
        text, _ = process.communicate(timeout=60)
    assert process.returncode == 1, text
    assert "Traceback" not in text
    return text


def test_an_energy_model_that_is_not_there_is_told_in_one_line(kubeconfig, tmp_path):
    missing = tmp_path / "none.tar"
    text = one_line(f"--kubeconfig={kubeconfig}", f"--http-port={free_port()}", f"--energy-model={missing}")
    assert str(missing) in text


def test_definitions_that_are_not_installed_are_told_in_one_line(tmp_path):
    with EmbeddedApi() as api:
        path = api.write_kubeconfig(tmp_path / "kubeconfig")
        text = one_line(f"--kubeconfig={path}", f"--http-port={free_port()}")
    assert "kubectl apply -f crds/" in text


def test_no_way_to_a_cluster_is_told_in_one_line(tmp_path):
    assert "--kubeconfig" in one_line(f"--kubeconfig={tmp_path / 'none'}")
