"""An API server that takes connections and never answers: the holder notices in time to leave."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from kubernetes import client

from wattkeeper.controller.lease import Leadership


@pytest.fixture
def silent_api():
    with socket.create_server(("127.0.0.1", 0)) as server:
        access = client.Configuration(host=f"http://127.0.0.1:{server.getsockname()[1]}")
        access.retries = False
        with client.ApiClient(access) as api:
            yield api


def test_holder_leaves_before_its_lease_would_run_out(silent_api):
    lost = threading.Event()
    leadership = Leadership(api=silent_api, namespace="x", lease_seconds=5, renew_deadline_seconds=2, retry_seconds=1)
    began = time.monotonic()
    leadership.keep(on_lost=lost.set)
    assert lost.wait(timeout=8)
    assert time.monotonic() - began < leadership.lease_seconds
