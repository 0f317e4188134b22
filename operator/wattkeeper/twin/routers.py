"""How a service's gateway picks a replica for each request of one look period.

A gateway looks at its replicas now and then (outstanding requests, KV usage) and counts in between what it sent
itself. `LeastOutstanding` is what most proxies call least-request, `RoundRobin` what a plain Service over kept
connections comes to, `LeastKv` the KV-cache scorer of inference gateways. `PrefixAware` keeps, per replica, which
prefix blocks it has sent there (at most what the replica's KV memory holds, least recently used first out) and sends a
request where the longest run of its blocks is, unless that replica has `overload` more outstanding requests than the
least loaded: the rule of the prefix scorer of the Gateway API inference extension and of SGLang's router, with the hits
known to the router alone.
"""

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from wattkeeper.twin.replica import Replica
from wattkeeper.twin.request import Request


class Router(Protocol):
    """Hands requests to ready replicas. One object serves one service: it may remember."""

    def route(self, batch: Sequence[Request], replicas: Sequence[Replica]) -> None:
        """Submit every request, in order of arrival, to one of `replicas` (at least one)."""
        ...


class LeastOutstanding:
    """The replica with the fewest requests running or waiting; among equals the one that got none for longest."""

    def __init__(self) -> None:
        self._turn = itertools.count()

    def route(self, batch: Sequence[Request], replicas: Sequence[Replica]) -> None:
        """Submit every request."""
        turn = self._turn
        heap = [(replica.outstanding, next(turn), replica) for replica in replicas]
        heapq.heapify(heap)
        for request in batch:
            outstanding, _, replica = heap[0]
            replica.submit((request,))
            heapq.heapreplace(heap, (outstanding + 1, next(turn), replica))


class RoundRobin:
    """One after the other, whatever they do."""

    def __init__(self) -> None:
        self._next = 0

    def route(self, batch: Sequence[Request], replicas: Sequence[Replica]) -> None:
        """Submit every request."""
        for request in batch:
            replicas[self._next % len(replicas)].submit((request,))
            self._next += 1


class LeastKv:
    """The smallest share of KV memory in use, with the prompts sent since the look counted in."""

    def __init__(self) -> None:
        self._turn = itertools.count()

    def route(self, batch: Sequence[Request], replicas: Sequence[Replica]) -> None:
        """Submit every request."""
        turn = self._turn
        heap = [(replica.kv_usage, next(turn), replica) for replica in replicas]
        heapq.heapify(heap)
        for request in batch:
            usage, _, replica = heap[0]
            replica.submit((request,))
            capacity = replica.hardware.num_gpu_blocks * replica.hardware.block_size
            heapq.heapreplace(heap, (usage + request.prompt / capacity, next(turn), replica))


class PrefixAware:
    """The replica that was sent the longest prefix, unless it is overloaded; without a prefix the least loaded.

    Sets `Request.cached` to the hit that it counts on. Requests carry `blocks`, of `block_tokens` tokens each.
    """

    def __init__(self, *, block_tokens: int, overload: int = 16) -> None:
        if block_tokens < 1 or overload < 0:
            raise ValueError("block_tokens must be at least 1 and overload not negative")
        self._block_tokens = block_tokens
        self._overload = overload
        self._sent: dict[Replica, OrderedDict[int, None]] = {}
        self._turn = itertools.count()

    def route(self, batch: Sequence[Request], replicas: Sequence[Replica]) -> None:
        """Submit every request."""
        self._sent = {replica: self._sent.get(replica, OrderedDict()) for replica in replicas}
        load = {replica: replica.outstanding for replica in replicas}
        last = dict.fromkeys(replicas, -1)
        for request in batch:
            least = min(replicas, key=lambda each: (load[each], last[each]))
            chosen, hits = least, self._hits(least, request)
            for replica in replicas:
                found = self._hits(replica, request)
                if found > hits and load[replica] <= load[least] + self._overload:
                    chosen, hits = replica, found
            request.cached = min(hits * self._block_tokens, request.prompt)
            chosen.submit((request,))
            load[chosen] += 1
            last[chosen] = next(self._turn)
            self._remember(chosen, request)

    def _hits(self, replica: Replica, request: Request) -> int:
        sent = self._sent[replica]
        return sum(1 for _ in itertools.takewhile(sent.__contains__, request.blocks))

    def _remember(self, replica: Replica, request: Request) -> None:
        sent = self._sent[replica]
        for block in reversed(request.blocks):
            sent[block] = None
            sent.move_to_end(block)
        hardware = replica.hardware
        most = hardware.num_gpu_blocks * hardware.block_size // self._block_tokens
        while len(sent) > most:
            sent.popitem(last=False)


ROUTERS: dict[str, Callable[[], Router]] = {
    "least-outstanding": LeastOutstanding,
    "round-robin": RoundRobin,
    "least-kv": LeastKv,
    "prefix-aware": lambda: PrefixAware(block_tokens=512),
}
"""By the name that command lines take; prefix blocks as Mooncake's traces have them."""
