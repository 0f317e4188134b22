"""The embedded API server: a registry behind HTTP, in a thread with its own event loop.

    with EmbeddedApi() as api:
        api.write_kubeconfig(path)   # kubectl --kubeconfig path get nodes

It listens on loopback, knows no users and no RBAC, and forgets everything when it stops.
"""

import asyncio
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml
from aiohttp import web

from wattkeeper.embedded.registry import Registry
from wattkeeper.embedded.values import Json
from wattkeeper.embedded.watching import Wakers
from wattkeeper.embedded.web import Face


@dataclass(frozen=True, kw_only=True)
class Tls:
    """PEM files of the server's certificate and key; the certificate must name 127.0.0.1 for clients that check."""

    certificate: Path
    key: Path


class EmbeddedApi:
    """An in-memory Kubernetes API on 127.0.0.1; `port` 0 takes a free one, `history` bounds watches per kind."""

    def __init__(self, port: int = 0, tls: Tls | None = None, *, host: str = "127.0.0.1", history: int = 2_000) -> None:
        self.registry = Registry(history=history)
        self._host, self._port, self._tls = host, port, tls
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._failure: BaseException | None = None

    @property
    def url(self) -> str:
        """Base URL; the port is known once started."""
        return f"{'https' if self._tls else 'http'}://{self._host}:{self._port}"

    def kubeconfig(self) -> Json:
        """Return a kubeconfig as a map."""
        cluster: Json = {"server": self.url}
        if self._tls:
            cluster["certificate-authority"] = str(self._tls.certificate)
        name = "wattkeeper-embedded"
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": name, "user": {"token": "embedded"}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": "default"}}],
        }

    def write_kubeconfig(self, path: Path) -> Path:
        """Write the kubeconfig to a file and return its path."""
        path.write_text(yaml.safe_dump(self.kubeconfig(), sort_keys=False))
        return path

    def start(self) -> Self:
        """Serve from a thread of its own; returns when requests are taken; raises OSError where the port is taken."""
        if self._thread is not None:
            raise RuntimeError("the embedded API is already started; make another one")
        self._thread = threading.Thread(target=self._run, name="embedded-api", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def stop(self) -> None:
        """End all watches, close all connections, and wait for the thread."""
        if self._thread is None or self._loop is None or self._stop is None:
            return
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failure = error
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        wakers = Wakers(self._loop)
        self.registry.store.listen(wakers.notify)
        runner = web.AppRunner(Face(self.registry, wakers).application(), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        context = None
        if self._tls:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self._tls.certificate, self._tls.key)
        try:
            site = web.TCPSite(runner, self._host, self._port, ssl_context=context)
            await site.start()
            self._port = runner.addresses[0][1]
            self._ready.set()
            await self._stop.wait()
        finally:
            wakers.close()
            await runner.cleanup()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
