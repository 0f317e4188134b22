"""The server itself: start, stop, TLS, what it does not serve, many writers at once."""

import json
import pathlib
import socket
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from typing import Any

import pytest
import yaml

from wattkeeper.embedded.server import EmbeddedApi, Tls


def call(api: EmbeddedApi, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **{key.replace("_", "-"): value for key, value in headers.items()}}
    request = urllib.request.Request(api.url + path, data=data, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("/apis/apps/v1/namespaces/default/daemonsets", "daemonsets.apps"),
        ("/apis/rbac.authorization.k8s.io/v1/clusterroles", "clusterroles.rbac.authorization.k8s.io"),
        ("/api/v1/namespaces/default/pods/p/log", "pods/log"),
        ("/api/v1/persistentvolumes", "persistentvolumes"),
    ],
)
def test_parts_that_are_left_out_say_so(path: str, what: str) -> None:
    with EmbeddedApi() as api:
        code, status = call(api, "GET", path)
    assert (code, status["reason"]) == (501, "NotImplemented")
    assert what in status["message"]


def test_starts_stops_and_frees_its_port(tmp_path: pathlib.Path) -> None:
    with EmbeddedApi() as api:
        assert call(api, "GET", "/version")[0] == 200
        port = int(api.url.rpartition(":")[2])
        config = yaml.safe_load(api.write_kubeconfig(tmp_path / "kubeconfig").read_text())
        assert config["clusters"][0]["cluster"]["server"] == api.url
        with pytest.raises(OSError, match=r"[Aa]ddress already in use"):
            EmbeddedApi(port=port).start()
        with pytest.raises(RuntimeError, match="already started"):
            api.start()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    with EmbeddedApi(port=port) as again:
        assert again.url.endswith(str(port))


def test_stop_ends_open_watches() -> None:
    with EmbeddedApi() as api:
        got: list[bytes] = []
        first = threading.Event()

        def watch() -> None:
            with urllib.request.urlopen(f"{api.url}/api/v1/namespaces?watch=1", timeout=20) as response:
                for line in response:
                    got.append(line)
                    first.set()

        thread = threading.Thread(target=watch)
        thread.start()
        assert first.wait(10)
        call(api, "POST", "/api/v1/namespaces", {"metadata": {"name": "late"}})
    thread.join(10)
    assert not thread.is_alive()
    assert json.loads(got[-1])["object"]["metadata"]["name"] == "late"


def test_serves_over_tls(tmp_path: pathlib.Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=embedded"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    with EmbeddedApi(tls=Tls(certificate=certificate, key=key)) as api:
        assert api.url.startswith("https://")
        assert api.kubeconfig()["clusters"][0]["cluster"]["certificate-authority"] == str(certificate)
        context = ssl.create_default_context(cafile=str(certificate))
        with urllib.request.urlopen(f"{api.url}/version", context=context) as response:
            assert response.status == 200


def test_concurrent_counters_lose_nothing() -> None:
    """Writers that retry on conflicts, as clients do, all get their increments in."""
    path = "/api/v1/namespaces/default/configmaps"
    with EmbeddedApi() as api:
        call(api, "POST", path, {"metadata": {"name": "c"}, "data": {"n": "0"}})

        def count() -> None:
            for _ in range(10):
                while True:
                    _, obj = call(api, "GET", f"{path}/c")
                    obj["data"]["n"] = str(int(obj["data"]["n"]) + 1)
                    if call(api, "PUT", f"{path}/c", obj)[0] == 200:
                        break

        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert call(api, "GET", f"{path}/c")[1]["data"]["n"] == "40"


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("POST", "/api/v1/namespaces/default/configmaps", [1], 400),
        ("POST", "/api/v1/configmaps", {"metadata": {"name": "a"}}, 405),
        ("PUT", "/api/v1/namespaces", {}, 405),
        ("DELETE", "/version", None, 405),
        ("GET", "/api/v1/configmaps/a", None, 404),
        ("GET", "/api/v1/namespaces/default/nodes", None, 404),
        ("GET", "/api/v1/pods?labelSelector=a==b==c", None, 400),
        ("GET", "/api/v1/pods?watch=1&resourceVersion=x", None, 400),
        ("PATCH", "/api/v1/namespaces/default", {"metadata": {}}, 415),
        ("GET", "/openapi/v3/apis/none/v1", None, 404),
    ],
)
def test_bad_requests_get_a_status(method: str, path: str, body: Any, code: int) -> None:
    with EmbeddedApi() as api:
        found, status = call(api, method, path, body)
    assert (found, status["kind"], status["code"]) == (code, "Status", code)
