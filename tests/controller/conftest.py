from __future__ import annotations

import collections.abc
import secrets
import time

import pytest
from kubernetes import client, config

from tests.controller.world import World
from wattkeeper.api import schema
from wattkeeper.embedded.server import EmbeddedApi


@pytest.fixture(scope="session", params=["embedded", pytest.param("real", marks=pytest.mark.cluster)])
def api_client(request, tmp_path_factory) -> collections.abc.Iterator[client.ApiClient]:
    """A client of an API server with our CRDs: the embedded one, and a real one."""
    if request.param == "embedded":
        with EmbeddedApi() as server:
            yield from _prepared(server.write_kubeconfig(tmp_path_factory.mktemp("embedded") / "kubeconfig"))
    else:
        yield from _prepared(request.getfixturevalue("control_plane").kubeconfig)


def _prepared(kubeconfig) -> collections.abc.Iterator[client.ApiClient]:
    with config.new_client_from_config(config_file=str(kubeconfig)) as connection:
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
        yield connection


@pytest.fixture
def make_world(api_client) -> collections.abc.Iterator[collections.abc.Callable[..., World]]:
    """Builds worlds in namespaces of their own, and takes them down."""
    core = client.CoreV1Api(api_client)
    made: list[World] = []

    def make(*, start: bool = True, **options) -> World:
        name = f"w-{secrets.token_hex(4)}"
        core.create_namespace({"metadata": {"name": name}})
        world = World(api=api_client, namespace=name, **options)
        made.append(world)
        if start:
            world.start()
        return world

    yield make
    custom = client.CustomObjectsApi(api_client)
    for world in made:
        world.stop()
        _gone(custom.delete_cluster_custom_object, "wattkeeper.io", "v1alpha1", "nodepowercaps", world.node)
        _gone(core.delete_node, world.node)
        _gone(core.delete_namespace, world.namespace)


def _gone(delete, *arguments) -> None:
    try:
        delete(*arguments)
    except client.ApiException as error:
        if error.status != 404:
            raise


@pytest.fixture
def world(make_world) -> World:
    return make_world()
