"""Small HTTP servers for tests: metrics pages by path, and a Prometheus that answers as told."""

import json
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self


class Server:
    """Serves `answer(path, headers) -> (status, body)` on loopback while its block runs."""

    def __init__(
        self,
        answer: Callable[[str, dict[str, str]], tuple[int, str]],
        *,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet: Nagle would cost 40 ms each

            def do_GET(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                outer.requests.append((self.path, headers))
                status, body = answer(self.path, headers)
                payload = body.encode()
                try:
                    self.send_response(status)
                    kind = "application/json" if body[:1] in ("{", "[") else "text/plain; version=0.0.4"
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(payload)))
                    self.end_headers()
                    self.wfile.write(payload)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def log_message(self, *args: object) -> None:
                pass

        self.requests: list[tuple[str, dict[str, str]]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # clients that give up are part of the tests
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def vector(*elements: tuple[dict[str, str], float | str], at: float | None = None, warnings: list[str] | None = None):
    """An instant vector as Prometheus would answer."""
    at = time.time() if at is None else at
    result = [{"metric": labels, "value": [at, str(value)]} for labels, value in elements]
    body = {"status": "success", "data": {"resultType": "vector", "result": result}}
    if warnings:
        body["warnings"] = warnings
    return 200, json.dumps(body)


def query_of(path: str) -> str:
    return urllib.parse.parse_qs(urllib.parse.urlsplit(path).query)["query"][0]
