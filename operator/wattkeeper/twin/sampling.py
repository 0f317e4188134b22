"""Few replicas that stand for many: what makes a week of traffic cheap.

Behind a router that balances, ready replicas of equal settings and power are exchangeable. Of such a group only
`simulated` are played; the others mirror them: their energy, gauges and metrics are those of the one they mirror. The
requests of a group are thinned in order of arrival, so that each simulated replica gets the share of one replica, and
each request that is played carries the weight of those that it stands for. Weights are whole numbers that add up to
the requests that arrived, so nothing is lost by thinning.

A new replica is empty and gets more than its share until it is as full as the others: at first it is played itself. A
replica that ends is first set apart from those that mirror it: it keeps its requests once, as the real one would
have them, and the others go on with the rest.
"""

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field

from wattkeeper.twin.arrivals import Batch
from wattkeeper.twin.replica import Replica
from wattkeeper.twin.request import Request
from wattkeeper.twin.routers import Router


@dataclass(kw_only=True)
class Group:
    """Ready replicas of equal settings and power: `pods` of them, of which `replicas` are played."""

    pods: int
    replicas: list[Replica]
    due: float = 0.0
    """Requests that pass before the next one that is played."""

    @property
    def stride(self) -> float:
        """How many requests one that is played stands for, in the mean."""
        return self.pods / len(self.replicas)


@dataclass(kw_only=True)
class Thinning:
    """Sends batches to groups, each to those replicas that are played."""

    groups: list[Group] = field(default_factory=list)
    held: int = 0
    """Requests that arrived and that the next one played will stand for."""

    def regroup(self, groups: Sequence[Group]) -> None:
        """Other groups from now on."""
        before = self.groups
        self.groups = list(groups)
        for index, group in enumerate(self.groups):
            due = before[index].due if index < len(before) else group.stride
            group.due = min(due, group.stride - 1.0)

    def route(self, batch: Batch, *, start_seconds: float, router: Router, last: bool) -> None:
        """Thin a batch and send what is left; `last` where the trace ends with it. There must be a group."""
        for group, indices in self._shares(len(batch)):
            picked, weights = self._thin(group, indices, last=last)
            requests = []
            for index, weight in zip(picked, weights, strict=True):
                request = Request(
                    start_seconds + batch.times_seconds[index],
                    batch.prompt_tokens[index],
                    batch.output_tokens[index],
                    batch.cached_tokens[index],
                    batch.blocks[index],
                )
                request.weight = weight
                requests.append(request)
            if requests:
                router.route(requests, group.replicas)

    def _shares(self, count: int) -> list[tuple[Group, Sequence[int]]]:
        if len(self.groups) == 1:
            return [(self.groups[0], range(count))]
        loads = [sum(each.outstanding for each in group.replicas) / len(group.replicas) for group in self.groups]
        shares: list[list[int]] = [[] for _ in self.groups]
        for index in range(count):
            least = loads.index(min(loads))
            shares[least].append(index)
            loads[least] += 1.0 / self.groups[least].pods
        return list(zip(self.groups, shares, strict=True))

    def _thin(self, group: Group, indices: Sequence[int], *, last: bool) -> tuple[list[int], list[int]]:
        picked: list[int] = []
        weights: list[int] = []
        done, stride = 0, group.stride
        while group.due < len(indices):
            at = int(group.due)
            picked.append(indices[at])
            weights.append(self.held + at + 1 - done)
            self.held, done = 0, at + 1
            group.due += stride
        group.due -= len(indices)
        self.held += len(indices) - done
        if last and self.held and indices:
            if not picked or picked[-1] != indices[-1]:
                picked.append(indices[-1])
                weights.append(0)
            weights[-1] += self.held
            self.held = 0
        return picked, weights


def split(replica: Replica) -> Replica:
    """A copy that takes over all but one of what each request stands for; the original keeps one."""
    twin = _copied(replica)
    for mine, other in zip(replica.unfinished(), twin.unfinished(), strict=True):
        mine.weight, other.weight = min(mine.weight, 1), max(0, mine.weight - 1)
    return twin


def _copied(replica: Replica) -> Replica:
    """All of its state but the hardware, which both share. Pickling takes a tenth of what `copy.deepcopy` takes."""
    hardware, buffer = replica.hardware, io.BytesIO()

    class Writer(pickle.Pickler):
        def persistent_id(self, obj: object) -> str | None:
            return "hardware" if obj is hardware else None

    class Reader(pickle.Unpickler):
        def persistent_load(self, _pid: str) -> object:
            return hardware

    Writer(buffer, pickle.HIGHEST_PROTOCOL).dump(replica)
    buffer.seek(0)
    found = Reader(buffer).load()
    if not isinstance(found, Replica):
        raise TypeError(f"a copy of a replica became {type(found).__name__}")
    return found
