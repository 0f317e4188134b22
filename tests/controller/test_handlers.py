import json

import pytest

from wattkeeper.controller import handlers, kube

KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": "here", "cluster": {"server": "https://127.0.0.1:6443"}}],
    "contexts": [{"name": "here", "context": {"cluster": "here", "user": "operator"}}],
    "current-context": "here",
}


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ({"token": "secret"}, {"scheme": "Bearer", "token": "secret"}),
        ({"username": "ada", "password": "pass"}, {"scheme": "Basic", "token": "YWRhOnBhc3M="}),
        ({}, {"scheme": None, "token": None}),
    ],
)
def test_kopf_logs_in_as_the_client_does(tmp_path, user, expected):
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps({**KUBECONFIG, "users": [{"name": "operator", "user": user}]}))
    found = handlers.connection(kube.load_client(str(path)).configuration)
    assert found.server == "https://127.0.0.1:6443"
    assert {name: getattr(found, name) for name in expected} == expected
