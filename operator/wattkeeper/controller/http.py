"""/metrics, /healthz and /readyz of the operator, in a thread of its own.

Both health pages report the age of the last good pass of the loop, not mere liveness: a process that runs but no longer
keeps the fleet is not healthy.
"""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, exposition

_UNREADY_TICKS = 3
_DEAD_TICKS = 10


class HealthServer:
    """Serves on `port` (0: any free one) until `stop`."""

    def __init__(
        self,
        *,
        port: int,
        registry: CollectorRegistry,
        age_seconds: Callable[[], float | None],
        tick_seconds: float,
        started_age_seconds: Callable[[], float],
        address: str = "0.0.0.0",  # noqa: S104 - the kubelet and Prometheus come from outside the pod
    ) -> None:
        """`age_seconds`: since the last good tick, None before the first; `started_age_seconds`: since the start."""

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.split("?", 1)[0]
                if path == "/metrics":
                    self._answer(200, exposition.CONTENT_TYPE_LATEST, exposition.generate_latest(registry))
                elif path in ("/healthz", "/readyz"):
                    limit = (_DEAD_TICKS if path == "/healthz" else _UNREADY_TICKS) * max(tick_seconds, 5.0)
                    age = age_seconds()
                    # A process that has not finished its first pass is alive for as long as a dead one would be.
                    healthy = age <= limit if age is not None else path == "/healthz" and started_age_seconds() <= limit
                    body = {"lastGoodPassAgeSeconds": None if age is None else round(age, 1), "limitSeconds": limit}
                    self._answer(200 if healthy else 503, "application/json", json.dumps(body).encode())
                else:
                    self._answer(404, "text/plain", b"/metrics, /healthz and /readyz are served here\n")

            def _answer(self, code: int, kind: str, body: bytes) -> None:
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
                """Probes are not worth a log line."""

        self._server = ThreadingHTTPServer((address, port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    def start(self) -> None:
        """Serve."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
