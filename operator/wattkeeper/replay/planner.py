"""The real planner as a policy: the operator's fleet loop, pass by pass, in virtual time.

`FleetLoop.tick` runs as it is. Around it the network is taken out: the cluster is a `replay.store.Store` that this
policy fills with what the fleet is (the Deployment and its pods, nodes, GPUs as a node agent reports them) and from
which it reads what the operator wrote (replicas, arguments, power limits); measurements are the scraped snapshots. The
replay stage runs the same jobs in this process between two passes: the riskiest wishes first, at most
`replays_per_pass` of them, and their evidence is there for the next pass. In a cluster a worker would manage more.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wattkeeper.actuators import engine_args
from wattkeeper.api.base import GROUP, VERSION
from wattkeeper.api.inference_service import MetricsSourceKind
from wattkeeper.controller.act import Actor
from wattkeeper.controller.clock import Clock, from_rfc3339, to_rfc3339
from wattkeeper.controller.events import Recorder
from wattkeeper.controller.loop import FleetLoop
from wattkeeper.controller.measure import Measurements
from wattkeeper.controller.metrics import OperatorMetrics
from wattkeeper.controller.replays import Asked, Replays
from wattkeeper.controller.resolve import Service
from wattkeeper.controller.settings import OperatorSettings, ReplaySettings
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.energy.model import EnergyModel
from wattkeeper.queueing import replay as stage
from wattkeeper.replay.play import NAMESPACE, SERVICE, World
from wattkeeper.replay.scrape import EPOCH_SECONDS, Pipeline
from wattkeeper.replay.store import Store, StoreCache, StoreKube
from wattkeeper.rivals.types import Decision, Look
from wattkeeper.telemetry.source import Snapshot
from wattkeeper.twin import agent
from wattkeeper.twin.deployment import Deployment, PodPhase, PodView

Object = dict[str, Any]
_CONTAINER = "vllm"
_GPU_RESOURCE = "nvidia.com/gpu"


@dataclass(frozen=True, kw_only=True)
class PlannerOptions:
    """What its user allows, and how it runs."""

    name: str = "wattkeeper"
    least_replicas: int = 1
    most_replicas: int | None = None
    """None: as many as the GPUs hold."""
    power_cap_watts: tuple[float, float] | None = None
    clock_mhz: tuple[float, float] | None = None
    token_budgets: tuple[int, ...] = ()
    """Values of max_num_batched_tokens that it may roll out."""
    tick_seconds: float = 15.0
    replays_per_pass: int = 2
    """0: no replay stage."""


class _Measured(Measurements):
    """The pipeline's snapshots in place of collectors."""

    def __init__(self, pipeline: Pipeline, deployment: Deployment) -> None:
        super().__init__(default=MetricsSourceKind.PROMETHEUS)
        self._pipeline = pipeline
        self._deployment = deployment

    def of(self, service: Service) -> tuple[Snapshot | None, str | None]:
        """The last snapshot that arrived."""
        del service
        return self._pipeline.latest(self._deployment.fleet.now), self._pipeline.error

    def since(self, service: Service, time_seconds: float) -> tuple[Snapshot, ...]:
        """Snapshots taken after a Unix time."""
        del service
        return tuple(self._pipeline.since(self._deployment.fleet.now, time_seconds))


class _InlineReplays(Replays):
    """The replay stage in the calling thread: the first wishes of a pass, answered before the next."""

    def __init__(
        self, *, per_pass: int, tick_seconds: float, metrics: OperatorMetrics, monotonic: Callable[[], float]
    ) -> None:
        super().__init__(
            settings=ReplaySettings(workers=1), tick_seconds=tick_seconds, metrics=metrics, monotonic=monotonic
        )
        self._per_pass = per_pass

    def want(self, asked: Sequence[Asked]) -> None:
        """Take the wishes of a pass and answer the most urgent ones."""
        super().want(asked)
        for _ in range(min(self._per_pass, len(self._queue))):
            item = self._queue.pop()
            self._running.add(item.name)
            self._done(item, stage.run(item.job(self.settings.requests)), 0.0)


class Planner:
    """The operator in one process with the fleet. `notes` says what differs from a cluster."""

    def __init__(self, world: World, options: PlannerOptions, deployment: Deployment, pipeline: Pipeline) -> None:
        self._world = world
        self._options = options
        self._deployment = deployment
        self._store = Store()
        clock = Clock(wall=self._now, origin_seconds=EPOCH_SECONDS)
        metrics = OperatorMetrics()
        kube = StoreKube(self._store)
        settings = OperatorSettings(
            tick_seconds=options.tick_seconds,
            default_startup_seconds=world.lifecycle.startup_seconds,
            replays=ReplaySettings(workers=1 if options.replays_per_pass else 0),
            rate_window_seconds=world.scrape.rate_window_seconds,
        )
        replays = _InlineReplays(
            per_pass=options.replays_per_pass,
            tick_seconds=options.tick_seconds,
            metrics=metrics,
            monotonic=self._now,
        )
        self._loop = FleetLoop(
            cache=StoreCache(self._store, kube),
            kube=kube,
            actor=Actor(kube=kube, cap_ttl_seconds=max(settings.cap_ttl_seconds, 6.0 * options.tick_seconds)),
            recorder=Recorder(kube=kube),
            measurements=_Measured(pipeline, deployment),
            energy=EnergyModel.load(None),
            settings=settings,
            clock=clock,
            metrics=metrics,
            replays=replays if options.replays_per_pass else None,
        )
        self._engine = world.engine
        self._create()

    @property
    def name(self) -> str:
        """As tables show it."""
        return self._options.name

    @property
    def period_seconds(self) -> float:
        """Between two passes."""
        return self._options.tick_seconds

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader should know of this run."""
        if self._options.replays_per_pass:
            return (f"replay stage in the same process, at most {self._options.replays_per_pass} replays per pass",)
        return ("replay stage off",)

    def decide(self, look: Look) -> Decision:
        """One pass."""
        del look  # the operator looks for itself
        self._show()
        self._loop.tick()
        target = self._store.get("deployments", NAMESPACE, SERVICE)
        if target is None:
            raise AssertionError("nobody deletes the Deployment")
        engine = engine_args.read_engine(target["spec"]["template"]["spec"], _CONTAINER)
        changed, self._engine = engine != self._engine, engine
        return Decision(
            replicas=target["spec"]["replicas"], gpu_limits=self._limits(), engine=engine if changed else None
        )

    def status(self) -> Object:
        """The InferenceService's status as the operator last wrote it."""
        found = self._store.get("inferenceservices", NAMESPACE, SERVICE)
        return {} if found is None else dict(found.get("status") or {})

    def _now(self) -> float:
        return EPOCH_SECONDS + self._deployment.fleet.now

    def _limits(self) -> Mapping[str, tuple[float | None, float | None]]:
        now = self._now()
        return {
            entry["uuid"]: (entry.get("watts"), entry.get("clockMHz"))
            for item in self._store.every("nodepowercaps")
            for entry in (item.get("spec") or {}).get("caps") or []
            if (from_rfc3339(entry.get("expiresAt")) or 0.0) > now
        }

    # Objects

    def _create(self) -> None:
        world, options, deployment = self._world, self._options, self._deployment
        spec = deployment.hardware
        levers: Object = {
            "replicas": {"min": options.least_replicas, "max": options.most_replicas or world.most_replicas},
            "rollout": {"minInterval": "2h"},
        }
        if options.power_cap_watts is not None:
            low, high = options.power_cap_watts
            levers["powerCap"] = {"min": f"{low:.0f}W", "max": f"{high:.0f}W", "step": "25W"}
        if options.clock_mhz is not None:
            low, high = options.clock_mhz
            levers["clockLock"] = {"min": f"{low:.0f}MHz", "max": f"{high:.0f}MHz"}
        if options.token_budgets:
            levers["engine"] = {"maxNumBatchedTokens": sorted(options.token_budgets)}
        slo: Object = {"minAttainment": world.slo.min_attainment}
        for field, goal in (("ttft", world.slo.ttft), ("tpot", world.slo.tpot)):
            if goal is not None:
                slo[field] = {"percentile": goal.percentile, "target": f"{goal.seconds * 1000.0:g}ms"}
        self._put(
            "inferenceservices",
            "InferenceService",
            f"{GROUP}/{VERSION}",
            NAMESPACE,
            SERVICE,
            spec={
                "model": world.model,
                "targetRef": {"name": SERVICE, "container": _CONTAINER},
                "accelerator": {"type": world.accelerator, "perReplica": spec.gpus},
                "slo": slo,
                "mode": "Enforce",
                "levers": levers,
                "metrics": {"maxAge": f"{4.0 * world.scrape.interval_seconds + world.scrape.delay_seconds:.0f}s"},
            },
        )
        self._put(
            "deployments",
            "Deployment",
            "apps/v1",
            NAMESPACE,
            SERVICE,
            spec={
                "replicas": deployment.desired,
                "selector": {"matchLabels": {"app": SERVICE}},
                "template": {
                    "metadata": {"labels": {"app": SERVICE}},
                    "spec": {"containers": [_container(world.model, world.engine, spec.gpus)]},
                },
            },
        )
        for node, gpus in deployment.fleet.inventory.nodes.items():
            self._put(
                "nodes",
                "Node",
                "v1",
                None,
                node,
                labels={"nvidia.com/gpu.product": spec.card.dcgm_name.replace(" ", "-")},
                spec={},
                status={"allocatable": {_GPU_RESOURCE: str(len(gpus))}},
            )
            self._put("nodepowercaps", "NodePowerCap", f"{GROUP}/{VERSION}", None, node, spec={"caps": []})

    def _put(self, plural: str, kind: str, version: str, namespace: str | None, name: str, **parts: Any) -> None:
        meta: Object = {
            "name": name,
            "uid": f"{plural}-{name}",
            "generation": 1,
            "creationTimestamp": to_rfc3339(EPOCH_SECONDS),
            "labels": parts.pop("labels", {}),
        }
        if namespace is not None:
            meta["namespace"] = namespace
        self._store.put(plural, {"apiVersion": version, "kind": kind, "metadata": meta, **parts})

    def _show(self) -> None:
        """Bring the store to what the fleet is now."""
        deployment, store = self._deployment, self._store
        views = deployment.pods()
        store.replace_all("pods", [_pod(view, deployment) for view in views])
        target = store.get("deployments", NAMESPACE, SERVICE)
        if target is not None:
            current = [view for view in views if view.revision == deployment.revision]
            alive = [view for view in views if view.phase is not PodPhase.DRAINING]
            status = {
                "observedGeneration": target["metadata"]["generation"],
                "replicas": len(alive),
                "updatedReplicas": len([view for view in current if view in alive]),
                "readyReplicas": sum(view.phase is PodPhase.READY for view in views),
                "conditions": [
                    {
                        "type": "Progressing",
                        "status": "True",
                        "reason": "ReplicaSetUpdated" if deployment.rolling_out else "NewReplicaSetAvailable",
                    }
                ],
            }
            if target.get("status") != status:
                store.put("deployments", {**target, "status": status})
        now = to_rfc3339(self._now())
        for node, gpus in deployment.fleet.inventory.nodes.items():
            item = store.get("nodepowercaps", None, node)
            if item is not None:
                report = agent.status(gpus, item["metadata"]["generation"], since=to_rfc3339(EPOCH_SECONDS), now=now)
                store.put("nodepowercaps", {**item, "status": report})


def _pod(view: PodView, deployment: Deployment) -> Object:
    scheduled = to_rfc3339(EPOCH_SECONDS + view.since_seconds)
    conditions = []
    if view.node is not None:
        conditions.append({"type": "PodScheduled", "status": "True", "lastTransitionTime": scheduled})
    if view.ready_since_seconds is not None:
        ready = to_rfc3339(EPOCH_SECONDS + view.ready_since_seconds)
        conditions.append({"type": "Ready", "status": "True", "lastTransitionTime": ready})
    meta: Object = {
        "name": view.key[1],
        "namespace": view.key[0],
        "uid": view.key[1],
        "labels": {"app": SERVICE},
    }
    if view.phase is PodPhase.DRAINING:
        meta["deletionTimestamp"] = scheduled
    spec: Object = {
        "containers": [{"name": _CONTAINER, "resources": {"limits": {_GPU_RESOURCE: str(deployment.hardware.gpus)}}}]
    }
    if view.node is not None:
        spec["nodeName"] = view.node
    phase = "Pending" if view.phase is PodPhase.PENDING else "Running"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta,
        "spec": spec,
        "status": {"phase": phase, "conditions": conditions},
    }


def _container(model: str, engine: EngineSettings, gpus: int) -> Object:
    """A vLLM container with these arguments."""
    arguments = []
    for field, value in engine.__dict__.items():
        if value is None or field in ("vllm_version", "data_parallel_size"):
            continue
        flag = "--" + field.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(flag if value else flag.replace("--", "--no-", 1))
        elif not (field.endswith("parallel_size") and value == 1):
            arguments.append(f"{flag}={value}")
    return {
        "name": _CONTAINER,
        "image": "vllm/vllm-openai:v0.15.1",
        "command": ["vllm", "serve", model],
        "args": arguments,
        "resources": {"limits": {_GPU_RESOURCE: str(gpus)}},
    }
