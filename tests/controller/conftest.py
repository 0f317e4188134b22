"""API servers with workload controllers, embedded and real, and worlds on them."""

from __future__ import annotations

import collections.abc
import contextlib
import time

import pytest
from kubernetes import client, config

from tests.controller.world import Cluster, World
from wattkeeper.api import schema
from wattkeeper.embedded.server import EmbeddedApi
from wattkeeper.embedded.workloads import Workloads


@pytest.fixture(scope="session", params=["embedded", pytest.param("real", marks=pytest.mark.cluster)])
def cluster(request, tmp_path_factory) -> collections.abc.Iterator[Cluster]:
    """A cluster with our CRDs whose pods come up by themselves: the embedded one, and a real one."""
    with contextlib.ExitStack() as stack:
        if request.param == "embedded":
            server = stack.enter_context(EmbeddedApi())
            running = stack.enter_context(Workloads(server.registry, startup_seconds=lambda _pod: 0.05))
            kubeconfig = server.write_kubeconfig(tmp_path_factory.mktemp("embedded") / "kubeconfig")
            add_gpu_node = running.add_gpu_node
        else:
            plane = request.getfixturevalue("control_plane")
            kubeconfig, add_gpu_node = plane.kubeconfig, plane.add_gpu_node
        connection = stack.enter_context(config.new_client_from_config(config_file=str(kubeconfig)))
        install(connection)
        yield Cluster(name=request.param, api=connection, kubeconfig=str(kubeconfig), add_gpu_node=add_gpu_node)


def install(connection: client.ApiClient) -> None:
    """Create our CRDs and wait until they are served."""
    definitions = client.ApiextensionsV1Api(connection)
    custom = client.CustomObjectsApi(connection)
    for resource in schema.RESOURCES:
        try:
            definitions.create_custom_resource_definition(schema.custom_resource_definition(resource))
        except client.ApiException as error:
            if error.status != 409:
                raise
    for resource in schema.RESOURCES:
        deadline = time.monotonic() + 20
        while True:
            try:
                custom.list_cluster_custom_object("wattkeeper.io", "v1alpha1", resource.plural)
                break
            except client.ApiException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


@pytest.fixture
def make_world(cluster) -> collections.abc.Iterator[collections.abc.Callable[..., World]]:
    """Builds worlds in namespaces of their own, and takes them down."""
    made: list[World] = []

    def make(*, start: bool = True, **options) -> World:
        world = World(cluster=cluster, **options)
        made.append(world)
        if start:
            world.start()
        return world

    yield make
    for world in made:
        world.stop()
        world.remove()


@pytest.fixture
def world(make_world) -> World:
    return make_world()
