"""One HTTP server for the metrics of all simulated pods and nodes.

Paths: `/pods/<namespace>/<pod>/metrics`, `/nodes/<node>/metrics`, and target lists in Prometheus' http_sd form at
`/sd/vllm` and `/sd/dcgm`, whose `__metrics_path__` label lets a real Prometheus scrape every simulated pod through one
address. `/metrics` tells of the twin itself. The server has its own thread and event loop.
"""

import asyncio
import threading
from collections.abc import Sequence
from typing import Protocol

from aiohttp import web

from wattkeeper.domain.errors import WattkeeperError

TEXT_TYPE = "text/plain; version=0.0.4"
START_TIMEOUT_SECONDS = 10.0


class MetricsView(Protocol):
    """What the exporter shows; called from the exporter's thread."""

    def pod_keys(self) -> Sequence[tuple[str, str]]:
        """(namespace, pod) of every pod whose engine listens."""

    def node_names(self) -> Sequence[str]:
        """Every node with GPUs."""

    def pod_text(self, namespace: str, pod: str) -> str | None:
        """Metrics of one pod; None where no engine listens under that name."""

    def node_text(self, node: str) -> str | None:
        """GPU metrics of one node; None where there is no such node."""

    def own_text(self) -> str:
        """Metrics of the twin itself."""


class Exporter:
    """Serves a MetricsView until stopped; port 0 takes any free one."""

    def __init__(
        self, view: MetricsView, *, host: str = "127.0.0.1", port: int = 0, advertise: str | None = None
    ) -> None:
        self._view = view
        self._host, self._port = host, port
        self._advertise = advertise
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="twin-exporter", daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on, once started."""
        return self._port

    @property
    def url(self) -> str:
        """Base address for clients on this machine."""
        return f"http://{self._host}:{self._port}"

    def start(self) -> None:
        """Listen; raises WattkeeperError where the address cannot be had."""
        self._thread.start()
        if not self._started.wait(START_TIMEOUT_SECONDS):
            raise WattkeeperError(f"the metrics exporter did not start within {START_TIMEOUT_SECONDS:.0f} s")
        if self._error is not None:
            raise WattkeeperError(
                f"the metrics exporter cannot listen on {self._host}:{self._port}: {self._error}; choose another port"
            ) from self._error

    def stop(self) -> None:
        """Close the port and end the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=START_TIMEOUT_SECONDS)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        runner = web.AppRunner(self._app(), access_log=None)
        try:
            try:
                self._loop.run_until_complete(self._listen(runner))
            except OSError as error:
                self._error = error
                return
            finally:
                self._started.set()
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(runner.cleanup())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def _listen(self, runner: web.AppRunner) -> None:
        await runner.setup()
        site = web.TCPSite(runner, self._host, self._port)
        await site.start()
        self._port = runner.addresses[0][1]

    def _app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/pods/{namespace}/{pod}/metrics", self._pod)
        app.router.add_get("/nodes/{node}/metrics", self._node)
        app.router.add_get("/sd/vllm", self._sd_vllm)
        app.router.add_get("/sd/dcgm", self._sd_dcgm)
        app.router.add_get("/metrics", self._own)
        return app

    async def _pod(self, request: web.Request) -> web.Response:
        text = self._view.pod_text(request.match_info["namespace"], request.match_info["pod"])
        if text is None:
            raise web.HTTPNotFound(text="no engine listens for this pod\n")
        return web.Response(text=text, headers={"Content-Type": TEXT_TYPE})

    async def _node(self, request: web.Request) -> web.Response:
        text = self._view.node_text(request.match_info["node"])
        if text is None:
            raise web.HTTPNotFound(text="no such node\n")
        return web.Response(text=text, headers={"Content-Type": TEXT_TYPE})

    async def _own(self, _request: web.Request) -> web.Response:
        return web.Response(text=self._view.own_text(), headers={"Content-Type": TEXT_TYPE})

    def _target(self, request: web.Request) -> str:
        return self._advertise or request.host

    async def _sd_vllm(self, request: web.Request) -> web.Response:
        target = self._target(request)
        return web.json_response(
            [
                {
                    "targets": [target],
                    "labels": {
                        "__metrics_path__": f"/pods/{namespace}/{pod}/metrics",
                        "namespace": namespace,
                        "pod": pod,
                    },
                }
                for namespace, pod in self._view.pod_keys()
            ]
        )

    async def _sd_dcgm(self, request: web.Request) -> web.Response:
        # In a cluster these two labels name the exporter's own pod, and the GPU's pod arrives as exported_pod.
        target = self._target(request)
        return web.json_response(
            [
                {
                    "targets": [target],
                    "labels": {
                        "__metrics_path__": f"/nodes/{node}/metrics",
                        "namespace": "gpu-monitoring",
                        "pod": f"dcgm-exporter-{node}",
                        "node": node,
                    },
                }
                for node in self._view.node_names()
            ]
        )
