"""Only one operator acts: a coordination Lease is taken before Kopf starts, and losing it ends the process.

The election itself is the official client's. This module makes it ride out short API outages, and hands the Lease back
on a clean stop so that a successor need not wait for it to expire.
"""

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import urllib3
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock

_log = logging.getLogger(__name__)
_REQUEST_SECONDS = 2.5
"""For one request. An attempt makes two: one begun just before the renew deadline still ends before the Lease does."""


@dataclass(frozen=True, kw_only=True)
class _TimedLeases:
    """The calls of the client's lock, each with a time-out: behind a cut connection it would wait for ever."""

    api: client.CoordinationV1Api

    def read_namespaced_lease(self, name: str, namespace: str) -> Any:
        return self.api.read_namespaced_lease(name, namespace, _request_timeout=_REQUEST_SECONDS)

    def create_namespaced_lease(self, namespace: str, body: Any) -> Any:
        return self.api.create_namespaced_lease(namespace, body, _request_timeout=_REQUEST_SECONDS)

    def replace_namespaced_lease(self, name: str, namespace: str, body: Any) -> Any:
        return self.api.replace_namespaced_lease(name, namespace, body, _request_timeout=_REQUEST_SECONDS)


class _PatientLock:
    """A Lease lock whose failures to reach the API server count as "not now" instead of ending the process."""

    def __init__(self, api: client.ApiClient, name: str, namespace: str, identity: str) -> None:
        self.name, self.namespace, self.identity = name, namespace, identity
        self._lock = cast("Any", LeaseLock(name, namespace, identity))
        self._lock.api_instance = _TimedLeases(api=client.CoordinationV1Api(api))

    def get(self, name: str, namespace: str) -> tuple[bool, Any]:
        """Read the Lease: (True, record) or (False, why not)."""
        try:
            found: tuple[bool, Any] = self._lock.get(name, namespace)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            _log.warning("the Lease cannot be read", extra={"error": str(error)})
            return False, SimpleNamespace(body=None, reason=str(error))
        if not found[0] and found[1].status == 403:
            _log.error("RBAC does not allow reading the Lease %s/%s; apply the Role of manifests/base", namespace, name)
        return found

    def create(self, name: str, namespace: str, election_record: Any) -> bool:
        """Create the Lease; False where that failed."""
        return self._patiently(lambda: self._lock.create(name, namespace, election_record))

    def update(self, name: str, namespace: str, updated_record: Any) -> bool:
        """Write the Lease; False where that failed."""
        return self._patiently(lambda: self._lock.update(name, namespace, updated_record))

    def _patiently(self, write: Callable[[], bool]) -> bool:
        try:
            return write()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            _log.warning("the Lease cannot be written", extra={"error": str(error)})
            return False


@dataclass(kw_only=True)
class Leadership:
    """A held or sought Lease."""

    api: client.ApiClient
    namespace: str
    name: str = "wattkeeper"
    lease_seconds: int = 15
    renew_deadline_seconds: int = 10
    retry_seconds: int = 2
    identity: str = field(default_factory=lambda: f"{socket.gethostname()}_{os.getpid()}_{uuid.uuid4().hex[:8]}")
    _stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._lock = _PatientLock(self.api, self.name, self.namespace, self.identity)
        self._election = leaderelection.LeaderElection(
            electionconfig.Config(
                self._lock,
                lease_duration=self.lease_seconds,
                renew_deadline=self.renew_deadline_seconds,
                retry_period=self.retry_seconds,
                onstarted_leading=lambda: None,
                onstopped_leading=lambda: None,
            )
        )

    def acquire(self, stopping: threading.Event | None = None) -> bool:
        """Wait until the Lease is ours; False where `stopping` was set before."""
        _log.info("waiting for the Lease %s/%s as %s", self.namespace, self.name, self.identity)
        waiting = stopping or threading.Event()
        while not waiting.is_set():
            if self._election.try_acquire_or_renew():
                _log.info("the Lease is ours")
                return True
            waiting.wait(self.retry_seconds)
        return False

    def keep(self, on_lost: Callable[[], None]) -> threading.Thread:
        """Renew in a thread of its own; call `on_lost` once when the Lease could not be renewed in time."""

        def renew() -> None:
            deadline = time.monotonic() + self.renew_deadline_seconds
            while not self._stopped.wait(self.retry_seconds):
                if self._election.try_acquire_or_renew():
                    deadline = time.monotonic() + self.renew_deadline_seconds
                elif time.monotonic() > deadline:
                    _log.critical("the Lease was lost: stopping, so that two operators never act at once")
                    on_lost()
                    return

        thread = threading.Thread(target=renew, name="lease", daemon=True)
        thread.start()
        return thread

    def release(self) -> None:
        """Stop renewing and give the Lease up, if it is still ours."""
        self._stopped.set()
        coordination: Any = _TimedLeases(api=client.CoordinationV1Api(self.api))
        try:
            lease = coordination.read_namespaced_lease(self.name, self.namespace)
            if lease.spec is not None and lease.spec.holder_identity == self.identity:
                lease.spec.holder_identity = None
                coordination.replace_namespaced_lease(self.name, self.namespace, lease)
        except (ApiException, urllib3.exceptions.HTTPError, OSError) as error:
            _log.warning("the Lease was not handed back and will expire by itself", extra={"error": str(error)})
