"""Kubernetes events about a service: few, and not repeated."""

import hashlib
import logging
import threading
from dataclasses import dataclass, field

from wattkeeper.api.base import GROUP, VERSION
from wattkeeper.controller.clock import to_rfc3339
from wattkeeper.controller.kube import Kube, KubeError, Object, path_of
from wattkeeper.controller.service import Service, ServiceKey

_log = logging.getLogger(__name__)
_REPEAT_SECONDS = 600.0


@dataclass(kw_only=True)
class Recorder:
    """Writes events; the same one of a service is written again only after ten minutes. Safe to use from threads."""

    kube: Kube
    _last: dict[tuple[ServiceKey, str, str], float] = field(default_factory=dict)
    _tidied: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def normal(self, service: Service, reason: str, message: str, *, now: float) -> None:
        """Something worth knowing. `now` is wall time in seconds."""
        self._write(service, "Normal", reason, message, now)

    def warning(self, service: Service, reason: str, message: str, *, now: float) -> None:
        """Something that needs attention. `now` is wall time in seconds."""
        self._write(service, "Warning", reason, message, now)

    def turn(self, service: Service, type_: str, reason: str, message: str, *, now: float) -> None:
        """A condition that turned: not repeated for a reason, whatever the figures in the message are."""
        self._write(service, type_, reason, message, now, repeats=reason)

    def forget(self, key: ServiceKey) -> None:
        """Drop what is kept of a deleted service."""
        with self._lock:
            self._last = {known: time for known, time in self._last.items() if known[0] != key}

    def _write(
        self, service: Service, type_: str, reason: str, message: str, now: float, repeats: str | None = None
    ) -> None:
        if not self._is_new((service.key, reason, repeats or message), now):
            return
        digest = hashlib.sha256(f"{service.uid}{reason}{message}{now}".encode()).hexdigest()[:16]
        stamp = to_rfc3339(now)
        body: Object = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{service.name}.{digest}", "namespace": service.namespace},
            "involvedObject": {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": "InferenceService",
                "namespace": service.namespace,
                "name": service.name,
                "uid": service.uid,
            },
            "type": type_,
            "reason": reason,
            "message": message[:1024],
            "source": {"component": "wattkeeper"},
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
        }
        try:
            self.kube.create(path_of("events", group="", version="v1", namespace=service.namespace), body)
        except KubeError as error:
            _log.warning("an event could not be written: %s", error)

    def _is_new(self, known: tuple[ServiceKey, str, str], now: float) -> bool:
        with self._lock:
            if now - self._last.get(known, float("-inf")) < _REPEAT_SECONDS:
                return False
            if now - self._tidied >= _REPEAT_SECONDS:
                self._last = {key: time for key, time in self._last.items() if now - time < _REPEAT_SECONDS}
                self._tidied = now
            self._last[known] = now
            return True
