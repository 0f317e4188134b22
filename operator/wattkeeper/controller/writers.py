"""A few threads for writes to the API.

A write is mostly waiting for the API server; one after the other, a thousand of them would take longer than a tick.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from wattkeeper.controller.kube import WRITERS

_Item = TypeVar("_Item")


class Writers:
    """Runs writes side by side, a bounded number at a time. The threads start with the first write."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(WRITERS, thread_name_prefix="wattkeeper-write")

    def each(self, items: Iterable[_Item], write: Callable[[_Item], None]) -> None:
        """Call `write` for every item and return when all are done; raises what a call raised, the first by order."""
        for _ in self._pool.map(write, items):
            pass

    def close(self) -> None:
        """Let the threads end after what they do now; nothing can be written afterwards."""
        self._pool.shutdown(wait=False, cancel_futures=True)
