"""pytest options and fixtures that give tests a cluster.

Tests that need one carry the marker `cluster`. They skip, with the reason, where the programs of `make tools` are
missing; with WATTKEEPER_REQUIRE_CLUSTER=1 (CI) they fail instead.
"""

from __future__ import annotations

import collections.abc
import os
import secrets

import pytest

from e2e import cluster
from e2e.cluster import tools

REQUIRE = "WATTKEEPER_REQUIRE_CLUSTER"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Choose the cluster by option."""
    group = parser.getgroup("cluster", "the cluster that end-to-end tests use")
    group.addoption(
        "--cluster-backend",
        choices=("local", "kind", "kubeconfig"),
        default="local",
        help="local: a control plane from the programs of `make tools`; kind: a new kind cluster; "
        "kubeconfig: an existing cluster, with --allow-context",
    )
    group.addoption(
        "--allow-context",
        metavar="CONTEXT",
        help="the context that tests may create and delete things in (only with --cluster-backend=kubeconfig)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a cluster that was not named on purpose."""
    existing = config.getoption("--cluster-backend") == "kubeconfig"
    if existing != bool(config.getoption("--allow-context")):
        raise pytest.UsageError("--cluster-backend=kubeconfig and --allow-context=CONTEXT go together")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip (or fail) cluster tests where there is nothing to run them on."""
    if item.get_closest_marker("cluster") is None:
        return
    local = item.config.getoption("--cluster-backend") == "local"
    if absent := tools.missing() if local else tools.missing(("kubectl", "prometheus")):
        reason = f"not built: {', '.join(absent)}; run `make tools`"
        if os.environ.get(REQUIRE) == "1":
            pytest.fail(f"{REQUIRE}=1 and {reason}", pytrace=False)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def control_plane(request: pytest.FixtureRequest) -> collections.abc.Iterator[cluster.Cluster]:
    """One running cluster for the whole session, as --cluster-backend says. Tests keep to a namespace of their own."""
    backend = request.config.getoption("--cluster-backend")
    if backend == "local":
        running: cluster.ControlPlane | cluster.KindCluster | cluster.ExistingCluster = cluster.ControlPlane()
    elif backend == "kind":
        running = cluster.KindCluster()
    else:
        running = cluster.ExistingCluster(context=request.config.getoption("--allow-context"))
    with running:
        yield running


@pytest.fixture
def namespace(control_plane: cluster.Cluster) -> collections.abc.Iterator[str]:
    """A fresh namespace, deleted after the test."""
    name = f"test-{secrets.token_hex(4)}"
    control_plane.kubectl("create", "namespace", name)
    yield name
    control_plane.kubectl("delete", "namespace", name, "--wait=false")
