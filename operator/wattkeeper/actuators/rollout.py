"""What a roll-out of new engine arguments needs and costs while it runs: spare GPUs, and replicas out of service.

Rounding as the Deployment controller does it (k8s.io/kubernetes pkg/controller/deployment/util, ResolveFenceposts):
maxSurge percentages round up, maxUnavailable percentages round down, and where both come to zero one pod may be
unavailable. A StatefulSet replaces pods one after the other, without surge.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class RolloutImpact:
    """What changing the pod template of a workload does."""

    replicas: int
    surge_pods: int
    unavailable_pods: int
    surge_gpus: int
    """GPUs that the surge pods ask for on top of those in use."""
    capacity_loss: float
    """Share of the replicas out of service at the worst moment, 0..1."""
    reason: str
    """RolloutFits, RolloutNeedsFreeGpus (it would wait for ever), RolloutStopsService, GpusNotKnown, RolloutByHand."""
    message: str
    recommended_strategy: dict[str, Any] | None = None
    """A spec.strategy under which the roll-out needs no spare GPU; None: the present one will do."""

    @property
    def stalls(self) -> bool:
        """True where the roll-out would wait for GPUs that are not there, or for a person."""
        return self.reason in ("RolloutNeedsFreeGpus", "RolloutByHand")


def impact(target: Mapping[str, Any], *, gpus_per_replica: int, free_gpus: int | None) -> RolloutImpact:
    """The roll-out impact of a Deployment or StatefulSet (a dict); `free_gpus` None: not known."""
    spec = target.get("spec") or {}
    replicas = int(spec.get("replicas", 1))
    if target.get("kind") == "StatefulSet":
        surge, unavailable, by_hand = _stateful(spec.get("updateStrategy") or {}, replicas)
    else:
        surge, unavailable, by_hand = *_deployment(spec.get("strategy") or {}, replicas), False
    lost = min(unavailable, replicas)
    loss = lost / replicas if replicas else 0.0
    reason, message = _judge(replicas, surge, lost, gpus_per_replica, free_gpus)
    if by_hand:
        reason, message = (
            "RolloutByHand",
            "updateStrategy OnDelete or a partition: pods keep the old arguments until somebody acts",
        )
    strategy = None
    if reason in ("RolloutNeedsFreeGpus", "GpusNotKnown"):
        strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    return RolloutImpact(
        replicas=replicas,
        surge_pods=surge,
        unavailable_pods=lost,
        surge_gpus=surge * gpus_per_replica,
        capacity_loss=loss,
        reason=reason,
        message=message,
        recommended_strategy=strategy,
    )


def scaled(value: Any, total: int, *, up: bool) -> int:
    """An integer or a percentage of `total`, rounded as Kubernetes rounds it. Raises ValueError on other text."""
    text = str(value).strip()
    if not text.endswith("%"):
        return int(text)
    exact = total * int(text[:-1])
    return -(-exact // 100) if up else exact // 100


def _deployment(strategy: Mapping[str, Any], replicas: int) -> tuple[int, int]:
    if strategy.get("type") == "Recreate":
        return 0, replicas
    rolling = strategy.get("rollingUpdate") or {}
    surge = scaled(rolling.get("maxSurge", "25%"), replicas, up=True)
    unavailable = scaled(rolling.get("maxUnavailable", "25%"), replicas, up=False)
    return surge, 1 if surge == 0 and unavailable == 0 else unavailable


def _stateful(strategy: Mapping[str, Any], replicas: int) -> tuple[int, int, bool]:
    if strategy.get("type") == "OnDelete":
        return 0, 0, True
    rolling = strategy.get("rollingUpdate") or {}
    if rolling.get("partition"):
        return 0, 0, True
    return 0, max(scaled(rolling.get("maxUnavailable", 1), replicas, up=False), 1), False


def _judge(replicas: int, surge: int, lost: int, gpus_per_replica: int, free_gpus: int | None) -> tuple[str, str]:
    if replicas == 0:
        return "RolloutFits", "no replica runs: nothing is replaced now"
    if lost == replicas:
        return (
            "RolloutStopsService",
            f"all {replicas} replicas go down at once during a roll-out; allow maxSurge 1 where a spare GPU exists",
        )
    if lost == 0 and surge * gpus_per_replica > 0:
        if free_gpus is None:
            return (
                "GpusNotKnown",
                f"a roll-out starts {surge} more pods ({surge * gpus_per_replica} GPUs) before it stops one, and free "
                "GPUs are not known; maxSurge 0 with maxUnavailable 1 needs none",
            )
        if free_gpus < gpus_per_replica:
            return (
                "RolloutNeedsFreeGpus",
                f"a roll-out must start a new pod ({gpus_per_replica} GPUs) before it stops one, and {free_gpus} are "
                "free: it would wait for ever; set maxSurge 0 and maxUnavailable 1",
            )
    waves = math.ceil(replicas / max(lost + surge, 1))
    return "RolloutFits", f"{lost} of {replicas} replicas at a time are out of service, in about {waves} waves"
