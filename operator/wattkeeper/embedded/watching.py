"""Watch streams: what changed since a version, as one JSON line per event, until the client goes or time is up."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from wattkeeper.embedded import errors, tables
from wattkeeper.embedded.errors import ApiError
from wattkeeper.embedded.negotiation import Form
from wattkeeper.embedded.registry import Registry
from wattkeeper.embedded.resources import Resource, StorageKey
from wattkeeper.embedded.selectors import Predicate
from wattkeeper.embedded.store import Change
from wattkeeper.embedded.values import Json, metadata

BOOKMARK_SECONDS = 60.0
_END = {"k8s.io/initial-events-end": "true"}


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What is watched. `since` None: first all present objects as ADDED (ended by a bookmark if `initial_end`)."""

    resource: Resource
    namespace: str | None
    accept: Predicate | None
    since: int | None
    form: Form
    timeout_seconds: float
    bookmarks: bool = False
    initial_end: bool = False


class Wakers:
    """Wakes the streams of a kind in the server's event loop when the store changes, from whatever thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: dict[StorageKey, set[asyncio.Event]] = {}
        self.closing = False

    def notify(self, key: StorageKey) -> None:
        """Take word of a change; callable from any thread, also after the loop has closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wake, key)

    def _wake(self, key: StorageKey) -> None:
        for event in self._events.get(key, ()):
            event.set()

    def close(self) -> None:
        """End all streams."""
        self.closing = True
        for key in list(self._events):
            self._wake(key)

    @contextlib.contextmanager
    def waiting(self, key: StorageKey) -> Iterator[asyncio.Event]:
        """Lend an event that is set on each change of a kind."""
        event = asyncio.Event()
        waiters = self._events.setdefault(key, set())
        waiters.add(event)
        try:
            yield event
        finally:
            waiters.discard(event)


class _Writer:
    """Turns changes into lines in the form that the client asked for."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._headless = False

    def line(self, kind: str, obj: Json) -> bytes:
        watch = self._watch
        if watch.form.kind == "Table":
            version = metadata(obj).get("resourceVersion", "")
            shown = tables.table(
                watch.resource, [obj], version=version, include=watch.form.include, headless=self._headless
            )
            self._headless = True
        elif watch.form.kind:
            shown = tables.partial(obj)
        else:
            shown = watch.resource.shown(obj)
        return json.dumps({"type": kind, "object": shown}, separators=(",", ":")).encode() + b"\n"

    def bookmark(self, version: int, annotations: Json | None = None) -> bytes:
        watch = self._watch
        meta: Json = {"resourceVersion": str(version)}
        if annotations:
            meta["annotations"] = annotations
        obj: Json = {"kind": watch.resource.kind, "apiVersion": watch.resource.api_version, "metadata": meta}
        if watch.form.kind == "Table":
            obj = {**tables.table(watch.resource, [], version=str(version), include="None"), "metadata": meta}
        return json.dumps({"type": "BOOKMARK", "object": obj}, separators=(",", ":")).encode() + b"\n"


def seen(change: Change, namespace: str | None, accept: Predicate | None) -> str | None:
    """Return the event type that a watcher with a selector sees of a change, or None."""
    if namespace is not None and metadata(change.obj).get("namespace") != namespace:
        return None
    if accept is None:
        return change.type
    fits = accept(change.obj)
    fitted = change.before is not None and accept(change.before)
    if change.type == "DELETED":
        return "DELETED" if fitted else None
    if fits:
        return "MODIFIED" if fitted else "ADDED"
    return "DELETED" if fitted else None


async def stream(registry: Registry, wakers: Wakers, watch: Watch) -> AsyncIterator[bytes]:
    """Yield chunks of whole lines; ends after the timeout, or with an ERROR line (410) where history is lost."""
    writer = _Writer(watch)
    key, namespace = watch.resource.storage, watch.namespace if watch.resource.namespaced else None
    deadline = time.monotonic() + watch.timeout_seconds
    with wakers.waiting(key) as woken:
        version = watch.since or 0
        if watch.since is None:
            with registry.store.lock:
                present, version = registry.store.objects(key, namespace), registry.store.version
            first = [writer.line("ADDED", obj) for obj in present if watch.accept is None or watch.accept(obj)]
            if watch.initial_end:
                first.append(writer.bookmark(version, _END))
            yield b"".join(first)
        while True:
            closing = wakers.closing
            woken.clear()
            try:
                with registry.store.lock:
                    changes, latest = registry.store.since(key, version), registry.store.version
            except ApiError as error:
                yield json.dumps({"type": "ERROR", "object": error.status()}).encode() + b"\n"
                return
            lines = []
            for change in changes:
                kind = seen(change, namespace, watch.accept)
                if kind is not None:
                    lines.append(writer.line(kind, change.obj))
            version = max(version, latest)
            if lines:
                yield b"".join(lines)
            left = deadline - time.monotonic()
            if closing or left <= 0:
                return
            try:
                await asyncio.wait_for(woken.wait(), min(left, BOOKMARK_SECONDS))
            except TimeoutError:
                if watch.bookmarks:
                    yield writer.bookmark(version)


def parse_version(text: str | None) -> int | None:
    """Read a query's resourceVersion: None where absent or 0; raises ApiError 400 on anything but digits."""
    if text in (None, "", "0"):
        return None
    if not str(text).isdigit():
        raise errors.bad_request(f"Invalid value: {text}: resourceVersion is no number")
    return int(str(text))
