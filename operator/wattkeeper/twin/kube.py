"""The little that the twin needs of a Kubernetes API: objects of a kind kept up to date by list and watch.

Objects are plain maps as on the wire. A `Mirror` has its own thread; when the watch ends or fails it lists again, after
a pause that grows with repeated failures.
"""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config

from wattkeeper.domain.errors import WattkeeperError

Json = dict[str, Any]
LOGGER = logging.getLogger(__name__)
WATCH_SECONDS = 300
READ_TIMEOUT_SECONDS = 310
CONNECT_TIMEOUT_SECONDS = 10
LONGEST_PAUSE_SECONDS = 10.0

ListCall = Callable[..., Any]


def connect(kubeconfig: Path | None) -> client.ApiClient:
    """A client from a kubeconfig file, or from the pod's service account where there is none."""
    try:
        if kubeconfig is not None:
            api: client.ApiClient = config.new_client_from_config(config_file=str(kubeconfig))
            return api
        settings = client.Configuration()
        config.load_incluster_config(client_configuration=settings)
        return client.ApiClient(settings)
    except config.ConfigException as error:
        raise WattkeeperError(f"no Kubernetes API to talk to: {error}; pass a kubeconfig file") from error


class Mirror:
    """All objects of one kind by (namespace, name). `call` is a list method of the client that can also watch."""

    def __init__(self, name: str, call: ListCall) -> None:
        self._name, self._call = name, call
        self._objects: dict[tuple[str, str], Json] = {}
        self._version = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._synced = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"twin-watch-{name}", daemon=True)

    def start(self) -> None:
        """Begin to list and watch."""
        self._thread.start()

    def stop(self) -> None:
        """End at the next event or time-out; the thread is a daemon and may outlive the call."""
        self._stop.set()

    def wait_synced(self, seconds: float) -> bool:
        """Whether the first list arrived within the time."""
        return self._synced.wait(seconds)

    @property
    def version(self) -> int:
        """Grows with every change."""
        return self._version

    def objects(self) -> dict[tuple[str, str], Json]:
        """All objects now; do not change them."""
        with self._lock:
            return dict(self._objects)

    def _run(self) -> None:
        pause = 0.1
        while not self._stop.is_set():
            try:
                self._list_and_watch()
                pause = 0.1
            except (client.ApiException, urllib3.exceptions.HTTPError, json.JSONDecodeError, OSError) as error:
                if self._stop.is_set():
                    return
                LOGGER.warning("watch of %s failed, listing again in %.1f s: %s", self._name, pause, error)
                self._stop.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _list_and_watch(self) -> None:
        answer = self._call(_preload_content=False, _request_timeout=(CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS))
        listed: Json = json.loads(answer.data)
        with self._lock:
            self._objects = {_key(item): item for item in listed["items"]}
            self._version += 1
        self._synced.set()
        response = self._call(
            watch=True,
            resource_version=listed["metadata"]["resourceVersion"],
            timeout_seconds=WATCH_SECONDS,
            _preload_content=False,
            _request_timeout=(CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS),
        )
        try:
            for line in _lines(response):
                if self._stop.is_set():
                    return
                event: Json = json.loads(line)
                if event["type"] == "ERROR":
                    return
                self._take(event["type"], event["object"])
        finally:
            response.close()

    def _take(self, kind: str, item: Json) -> None:
        with self._lock:
            if kind == "DELETED":
                self._objects.pop(_key(item), None)
            elif kind in ("ADDED", "MODIFIED"):
                self._objects[_key(item)] = item
            self._version += 1


def _key(item: Json) -> tuple[str, str]:
    metadata = item["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _lines(response: Any) -> Iterator[bytes]:
    buffer = b""
    for chunk in response.stream(amt=None, decode_content=False):
        buffer += chunk
        *lines, buffer = buffer.split(b"\n")
        yield from (line for line in lines if line.strip())
