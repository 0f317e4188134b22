"""Objects in memory with one resource version counter and a bounded history for watches.

Stored objects are never changed in place: a write replaces the whole object, so readers may keep what they got.
Callers hold `Store.lock` around read-modify-write; `Store.changed` (a condition on the same lock) wakes waiters.
"""

import bisect
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from wattkeeper.embedded import errors
from wattkeeper.embedded.resources import StorageKey
from wattkeeper.embedded.values import Json, metadata

Name = tuple[str, str]
Listener = Callable[[StorageKey], None]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One write: its resource version, `ADDED`, `MODIFIED` or `DELETED`, the object after and the one before."""

    version: int
    type: str
    obj: Json
    before: Json | None


@dataclass(kw_only=True)
class Shelf:
    """All objects of one kind, and the changes since `oldest`."""

    oldest: int
    objects: dict[Name, Json] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)


class Store:
    """The memory behind the API; `history` bounds the changes kept per kind."""

    def __init__(self, *, history: int = 2_000) -> None:
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.version = 1
        self._history = history
        self._shelves: dict[StorageKey, Shelf] = {}
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Call `listener(kind)` after each write, under the lock; it must return at once."""
        self._listeners.append(listener)

    def shelf(self, key: StorageKey) -> Shelf:
        """Return the shelf of a kind, made on first use."""
        if key not in self._shelves:
            self._shelves[key] = Shelf(oldest=self.version)
        return self._shelves[key]

    def drop(self, key: StorageKey) -> None:
        """Forget a kind and its history (its definition was deleted)."""
        self._shelves.pop(key, None)
        self._tell(key)

    def get(self, key: StorageKey, namespace: str, name: str) -> Json | None:
        """Return the stored object; callers must not change it."""
        return self.shelf(key).objects.get((namespace, name))

    def every(self) -> Iterator[tuple[StorageKey, Json]]:
        """Yield each stored object with its kind, over a copy (safe against writes in between)."""
        for key, shelf in list(self._shelves.items()):
            for obj in list(shelf.objects.values()):
                yield key, obj

    def objects(self, key: StorageKey, namespace: str | None = None) -> list[Json]:
        """Return the objects of a kind, of one namespace or of all, sorted by namespace and name."""
        found = self.shelf(key).objects
        return [found[name] for name in sorted(found) if namespace is None or name[0] == namespace]

    def put(self, key: StorageKey, obj: Json) -> Json:
        """Store an object (owned by the store from now on) under the next resource version, and return it."""
        with self.lock:
            meta = metadata(obj)
            name = (meta.get("namespace") or "", meta["name"])
            shelf = self.shelf(key)
            before = shelf.objects.get(name)
            self.version += 1
            meta["resourceVersion"] = str(self.version)
            shelf.objects[name] = obj
            self._record(key, "ADDED" if before is None else "MODIFIED", obj, before)
            return obj

    def remove(self, key: StorageKey, obj: Json) -> Json:
        """Remove an object; returns its last state with the version of the removal, as watchers see it."""
        with self.lock:
            meta = metadata(obj)
            self.shelf(key).objects.pop((meta.get("namespace") or "", meta["name"]), None)
            self.version += 1
            last = {**obj, "metadata": {**meta, "resourceVersion": str(self.version)}}
            self._record(key, "DELETED", last, obj)
            return last

    def since(self, key: StorageKey, version: int) -> list[Change]:
        """Return the changes after a version; raises ApiError 410 where the history does not reach back so far."""
        with self.lock:
            shelf = self.shelf(key)
            if version < shelf.oldest:
                raise errors.gone(version, shelf.oldest)
            first = bisect.bisect_right(shelf.changes, version, key=lambda change: change.version)
            return shelf.changes[first:]

    def _record(self, key: StorageKey, kind: str, obj: Json, before: Json | None) -> None:
        shelf = self.shelf(key)
        shelf.changes.append(Change(version=self.version, type=kind, obj=obj, before=before))
        if len(shelf.changes) > 2 * self._history:
            shelf.oldest = shelf.changes[-self._history - 1].version
            del shelf.changes[: -self._history]
        self._tell(key)

    def _tell(self, key: StorageKey) -> None:
        with self.lock:
            self.changed.notify_all()
        for listener in self._listeners:
            listener(key)
