"""One suite against two API servers: the embedded one and (marker `cluster`) a real kube-apiserver."""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import json
import pathlib
import secrets
import subprocess
import time
from typing import Any, TypeVar

import pytest
import yaml
from kubernetes import client, config

from e2e.cluster import tools
from wattkeeper.embedded.server import EmbeddedApi

T = TypeVar("T")
GROUP = "contract.wattkeeper.io"
API_VERSION = f"{GROUP}/v1"


def widget_crd(plural: str = "widgets", kind: str = "Widget", **version: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "type": "object",
        "required": ["model"],
        "properties": {
            "model": {"type": "string", "minLength": 1, "pattern": "^[a-z].*$"},
            "replicas": {"type": "integer", "minimum": 0, "maximum": 10, "default": 1},
            "mode": {"type": "string", "enum": ["Observe", "Enforce"], "default": "Observe"},
            "levers": {
                "type": "object",
                "default": {},
                "properties": {
                    "enabled": {"type": "boolean", "default": True},
                    "sizes": {"type": "array", "items": {"type": "integer"}},
                },
            },
            "ports": {
                "type": "array",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": {"type": "string"}, "number": {"type": "integer"}},
                },
            },
            "extra": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        },
    }
    status = {
        "type": "object",
        "properties": {
            "replicas": {"type": "integer"},
            "phase": {"type": "string"},
            "selector": {"type": "string"},
            "conditions": {
                "type": "array",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": {
                    "type": "object",
                    "required": ["type", "status"],
                    "properties": {"type": {"type": "string"}, "status": {"type": "string"}},
                },
            },
        },
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {"plural": plural, "kind": kind, "shortNames": [f"{plural[:3]}x"]},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": [
                        {"name": "Mode", "type": "string", "jsonPath": ".spec.mode"},
                        {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"},
                        {
                            "name": "Ready",
                            "type": "string",
                            "jsonPath": '.status.conditions[?(@.type=="Ready")].status',
                        },
                        {"name": "Model", "type": "string", "jsonPath": ".spec.model", "priority": 1},
                        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
                    ],
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": status}}},
                    **version,
                }
            ],
        },
    }


def widget(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": "Widget", "metadata": {"name": name}, "spec": {"model": "m", **spec}}


def deployment(name: str, *, replicas: int | None = 0) -> dict[str, Any]:
    labels = {"app": name}
    container = {
        "name": "vllm",
        "image": "example.com/vllm:v1",
        "args": ["--model", "m"],
        "ports": [{"containerPort": 8000}],
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
    }
    spec: dict[str, Any] = {
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
    }
    if replicas is not None:
        spec["replicas"] = replicas
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Api:
    """One API server under test."""

    name: str
    kubeconfig: pathlib.Path
    client: client.ApiClient

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        accept: str = "application/json",
        query: dict[str, str] | None = None,
    ) -> Any:
        """Send one plain request; raises ApiException."""
        text = self.raw(method, path, body, content_type=content_type, accept=accept, query=query)
        return json.loads(text)

    def raw(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        accept: str = "application/json",
        query: dict[str, str] | None = None,
    ) -> bytes:
        """Send one plain request and return the whole answer; raises ApiException."""
        serialized = self.client.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Content-Type": content_type, "Accept": accept},
            body=body,
            auth_settings=["BearerToken"],
        )
        response = self.client.call_api(*serialized, _request_timeout=60)
        data = response.read()
        if not 200 <= response.status < 300:
            raise client.ApiException(http_resp=response, body=data.decode(), data=None)
        return data

    def apply(self, path: str, body: Any, *, manager: str, force: bool = False) -> Any:
        """Apply on the server's side."""
        query = {"fieldManager": manager, **({"force": "true"} if force else {})}
        return self.request("PATCH", path, body, content_type="application/apply-patch+yaml", query=query)

    def merge(self, path: str, body: Any, *, manager: str = "tests") -> Any:
        """Send a JSON merge patch."""
        query = {"fieldManager": manager}
        return self.request("PATCH", path, body, content_type="application/merge-patch+json", query=query)

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Run kubectl; skips the test where it was not built. Returns both outputs where `check` is off."""
        try:
            program = tools.find("kubectl", allow_path=True)
        except tools.ToolsMissingError as error:
            pytest.skip(str(error))
        result = subprocess.run(
            [program, f"--kubeconfig={self.kubeconfig}", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if check:
            assert result.returncode == 0, f"kubectl {' '.join(arguments)}: {result.stderr}{result.stdout}"
            return result.stdout
        return result.stdout + result.stderr


def eventually(probe: collections.abc.Callable[[], T], *, seconds: float = 15.0) -> T:
    """Call probe until it returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while not (seen := probe()):
        assert time.monotonic() < deadline, f"not within {seconds} s; last seen: {seen!r}"
        time.sleep(0.05)
    return seen


@contextlib.contextmanager
def refused(code: int, reason: str, *texts: str) -> collections.abc.Iterator[None]:
    """Expect an API error with this code and reason, and these parts of its message."""
    with pytest.raises(client.ApiException) as caught:
        yield
    body = yaml.safe_load(caught.value.body)
    assert (caught.value.status, body["reason"]) == (code, reason), body
    assert body["kind"] == "Status"
    assert body["status"] == "Failure"
    for text in texts:
        assert text in body["message"]


def absent(call: collections.abc.Callable[[], Any]) -> bool:
    """Tell whether a read answers 404."""
    try:
        call()
    except client.ApiException as error:
        assert error.status == 404
        return True
    return False


@pytest.fixture(scope="session", params=["embedded", pytest.param("real", marks=pytest.mark.cluster)])
def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> collections.abc.Iterator[Api]:
    with contextlib.ExitStack() as stack:
        if request.param == "embedded":
            server = stack.enter_context(EmbeddedApi())
            kubeconfig = server.write_kubeconfig(tmp_path_factory.mktemp("embedded") / "kubeconfig")
        else:
            kubeconfig = request.getfixturevalue("control_plane").kubeconfig
        connection = stack.enter_context(config.new_client_from_config(config_file=str(kubeconfig)))
        served = Api(name=request.param, kubeconfig=kubeconfig, client=connection)
        definitions = client.ApiextensionsV1Api(connection)
        definitions.create_custom_resource_definition(widget_crd())
        try:
            wait_served(served, "widgets")
            yield served
        finally:
            definitions.delete_custom_resource_definition(f"widgets.{GROUP}")


def wait_served(api: Api, plural: str) -> None:
    path = f"/apis/{GROUP}/v1/{plural}"
    eventually(lambda: not absent(lambda: api.request("GET", path)))


@pytest.fixture
def namespace(api: Api) -> collections.abc.Iterator[str]:
    core = client.CoreV1Api(api.client)
    name = f"contract-{secrets.token_hex(4)}"
    core.create_namespace({"metadata": {"name": name}})
    yield name
    core.delete_namespace(name)


@pytest.fixture
def widgets(namespace: str) -> str:
    """Path of the widgets of the test's namespace."""
    return f"/apis/{GROUP}/v1/namespaces/{namespace}/widgets"


@pytest.fixture
def deployments(namespace: str) -> str:
    """Path of the Deployments of the test's namespace."""
    return f"/apis/apps/v1/namespaces/{namespace}/deployments"
