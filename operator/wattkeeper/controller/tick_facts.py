"""What all services of one tick share, and what is kept of their targets from tick to tick."""

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pydantic

from wattkeeper.actuators import engine_args, scale
from wattkeeper.api.model_profile import ModelProfileSpec
from wattkeeper.controller import cache as cluster
from wattkeeper.controller import overrides
from wattkeeper.controller.gpu_nodes import allocatable_gpus, product_of
from wattkeeper.controller.kube import Object
from wattkeeper.domain.errors import PatchRefusedError
from wattkeeper.physics import profiles


class EngineReadings:
    """Engine arguments of targets, read again only where the target's spec changed."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str | None], tuple[int, engine_args.EngineReading | PatchRefusedError]] = {}

    def read(self, target: Object, container: str | None) -> engine_args.EngineReading:
        """The reading of a target's pod template. Raises PatchRefusedError where there is no engine to be found."""
        key, generation = (target["metadata"]["uid"], container), target["metadata"].get("generation", 0)
        known = self._known.get(key)
        if known is None or known[0] != generation:
            found: engine_args.EngineReading | PatchRefusedError
            try:
                found = engine_args.inspect_engine(target["spec"]["template"]["spec"], container)
            except PatchRefusedError as error:
                found = error
            self._known[key] = known = (generation, found)
        if isinstance(known[1], PatchRefusedError):
            raise known[1]
        return known[1]

    def keep_only(self, uids: Iterable[str]) -> None:
        """Forget the targets that are kept no more."""
        alive = set(uids)
        self._known = {key: value for key, value in self._known.items() if key[0] in alive}


class ForeignWrites:
    """When somebody else's value was first seen: the API server puts no time on writes of the scale."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, tuple[str, ...]], tuple[str, object, float]] = {}

    def since(self, target: Object, path: Sequence[str], *, by: str, now_seconds: float) -> float:
        """Wall time at which what this writer made of the field was first seen."""
        meta = target["metadata"]
        value = target["spec"].get("replicas") if path == scale.REPLICAS else meta.get("generation")
        known = self._seen.get((meta["uid"], tuple(path)))
        if known is None or known[:2] != (by, value):
            self._seen[meta["uid"], tuple(path)] = known = (by, value, now_seconds)
        return known[2]


@dataclass(kw_only=True)
class TickFacts:
    """What all services of one tick share, computed when first asked for."""

    cache: cluster.ClusterCache
    readings: EngineReadings
    writes: ForeignWrites
    conflict_hold_seconds: float
    """Wall time for which somebody else's replica count is respected."""
    argument_hold_seconds: float
    """The same for engine arguments."""
    now_seconds: float
    """Wall time."""

    @functools.cached_property
    def autoscalers(self) -> list[Object]:
        """All HorizontalPodAutoscalers."""
        return self.cache.objects(cluster.AUTOSCALERS)

    @functools.cached_property
    def scaled_objects(self) -> list[Object]:
        """All ScaledObjects of KEDA."""
        return self.cache.objects(cluster.SCALED_OBJECTS)

    @functools.cached_property
    def overrides(self) -> dict[tuple[str, str, str, int], tuple[str, profiles.ProfileOverrides]]:
        """Name and content of the ModelProfile by namespace, model, accelerator and GPUs per replica."""
        found = {}
        for body in self.cache.objects(cluster.PROFILES):
            try:
                spec = ModelProfileSpec.model_validate(body.get("spec", {}))
            except pydantic.ValidationError:
                continue
            meta = body["metadata"]
            key = (meta["namespace"], spec.model, overrides.canonical(spec.accelerator), spec.gpus_per_replica)
            found[key] = (meta["name"], overrides.of_profile(meta["name"], spec))
        return found

    @functools.cached_property
    def free_gpus_by_product(self) -> Mapping[str, int] | None:
        """Unallocated GPUs per product label; None where the whole cluster cannot be seen."""
        if not self.cache.watches(cluster.NODES) or self.cache.namespaces:
            return None
        used: Counter[str] = Counter()
        for pod in self.cache.objects(cluster.PODS):
            if pod["spec"].get("nodeName") and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
                used[pod["spec"]["nodeName"]] += sum(map(engine_args.gpus, pod["spec"].get("containers") or []))
        free: Counter[str] = Counter()
        for node in self.cache.objects(cluster.NODES):
            product = product_of(node)
            if product is not None and not (node.get("spec") or {}).get("unschedulable"):
                free[product] += max(0, allocatable_gpus(node) - used[node["metadata"]["name"]])
        return free
