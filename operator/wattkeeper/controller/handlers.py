"""Kopf's part: the life cycle of an InferenceService.

Handlers only wake the loop and release power; they decide nothing.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import kopf
from kubernetes import client

from wattkeeper.api.base import GROUP, VERSION
from wattkeeper.controller.act import Actor
from wattkeeper.controller.kube import KubeError

_RESOURCE = (GROUP, VERSION, "inferenceservices")
FINALIZER = "wattkeeper.io/release-power"


def registry(actor: Actor, wake: Callable[[], None], access: client.Configuration) -> kopf.OperatorRegistry:
    """Handlers over `actor`; `wake` makes the loop tick soon; `access` is how Kopf logs in."""
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)
    def login(**_: Any) -> kopf.ConnectionInfo:
        return connection(access)

    @kopf.on.event(*_RESOURCE, registry=handlers)
    def seen(type: str | None, **_: Any) -> None:  # noqa: A002 - the name is Kopf's
        if type != "MODIFIED":  # None: it was there when the watch began
            wake()

    @kopf.on.update(*_RESOURCE, field="spec", registry=handlers)
    async def changed(**_: Any) -> None:
        wake()

    @kopf.on.delete(*_RESOURCE, registry=handlers)
    async def released(namespace: str | None, name: str | None, uid: str | None, **_: Any) -> None:
        """Give the GPUs back their own limits; replicas and arguments stay as they are."""
        try:
            await asyncio.to_thread(actor.release, (namespace or "", name or ""), uid or "")
        except KubeError as error:
            raise kopf.TemporaryError(f"power caps are not released yet: {error}", delay=5) from error

    return handlers


def connection(access: client.Configuration) -> kopf.ConnectionInfo:
    """The official client's access to the cluster, in Kopf's form; a rotated token is read anew."""
    key = access.get_api_key_with_prefix("BearerToken", alias="authorization") or ""
    scheme, _, token = key.rpartition(" ")
    return kopf.ConnectionInfo(
        server=access.host,
        ca_path=access.ssl_ca_cert,
        insecure=not access.verify_ssl,
        scheme=scheme or None,
        token=token or None,
        username=access.username or None,
        password=access.password or None,
        certificate_path=access.cert_file,
        private_key_path=access.key_file,
        priority=1,
    )


def configure(settings: kopf.OperatorSettings) -> None:
    """Kopf's settings, each with its reason."""
    settings.persistence.finalizer = FINALIZER
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix="wattkeeper.io")
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix="wattkeeper.io", key="last-handled")
    settings.watching.server_timeout = 300  # the server ends a watch before a load balancer cuts it silently
    settings.watching.client_timeout = 310  # and the client notices where the server does not
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 30
    settings.posting.enabled = False  # events are written by the loop: few, and not repeated
    # By default all objects are handled at once: a thousand connections when the operator starts. A worker keeps its
    # place for as long as it idles, so that must be short.
    settings.queueing.worker_limit = 50
    settings.queueing.idle_timeout = 0.5
    settings.execution.max_workers = 4  # handlers only wait for single API calls
