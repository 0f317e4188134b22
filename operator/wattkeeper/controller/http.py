"""/metrics, /healthz and /readyz of the operator, in a thread of its own.

Both health pages report the age of the last good pass of the loop, not mere liveness: a process that runs but no longer
keeps the fleet is not healthy.
"""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, exposition

from wattkeeper.domain.errors import WattkeeperError

_UNREADY_TICKS = 3
_DEAD_TICKS = 10


@dataclass(kw_only=True)
class Health:
    """What the health pages say. Times are wall time in seconds."""

    tick_seconds: float
    clock: Callable[[], float] = time.time
    acting_since: float | None = None
    """When this process took the Lease; None: another one holds it, and waiting is healthy."""
    last_good_pass: float | None = None

    def judge(self, *, ready: bool) -> tuple[bool, dict[str, object]]:
        """Whether the process is alive (or, with `ready`, keeps the fleet), and the page."""
        limit = (_UNREADY_TICKS if ready else _DEAD_TICKS) * max(self.tick_seconds, 5.0)
        if self.acting_since is None:
            return True, {"standingBy": True}
        if self.last_good_pass is None:
            # A process that has not finished its first pass is alive for as long as a stuck one would be.
            return not ready and self.clock() - self.acting_since <= limit, {"lastGoodPassAgeSeconds": None}
        age = max(0.0, self.clock() - self.last_good_pass)
        return age <= limit, {"lastGoodPassAgeSeconds": round(age, 1), "limitSeconds": limit}


class HealthServer:
    """Serves on `port` (0: any free one) until `stop`."""

    def __init__(
        self,
        *,
        port: int,
        registry: CollectorRegistry,
        health: Health,
        address: str = "0.0.0.0",  # noqa: S104 - the kubelet and Prometheus come from outside the pod
    ) -> None:
        """Raises WattkeeperError where the port cannot be had."""

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.split("?", 1)[0]
                if path == "/metrics":
                    self._answer(200, exposition.CONTENT_TYPE_LATEST, exposition.generate_latest(registry))
                elif path in ("/healthz", "/readyz"):
                    good, page = health.judge(ready=path == "/readyz")
                    self._answer(200 if good else 503, "application/json", json.dumps(page).encode())
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

        try:
            self._server = ThreadingHTTPServer((address, port), Handler)
        except OSError as error:
            raise WattkeeperError(f"port {port} for /metrics and the health pages: {error}; choose another") from error
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    def start(self) -> None:
        """Serve."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(timeout=5)
        self._server.server_close()
