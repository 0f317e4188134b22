"""Steps 3 and 5 of a pass: what is asked of the planner for each service, and what its answer means for the state."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from wattkeeper.api.inference_service import Mode
from wattkeeper.api.service_status import HistoryEntry
from wattkeeper.controller import status
from wattkeeper.controller.act import propose
from wattkeeper.controller.calibrations import Calibrations
from wattkeeper.controller.clock import Clock, from_rfc3339, to_rfc3339
from wattkeeper.controller.entry import Entry
from wattkeeper.controller.kube import Object
from wattkeeper.controller.metrics import OperatorMetrics
from wattkeeper.controller.note import read_note
from wattkeeper.controller.replays import Asked, Replays
from wattkeeper.controller.service import Service
from wattkeeper.controller.settings import OperatorSettings
from wattkeeper.domain.errors import PatchRefusedError
from wattkeeper.domain.plan import Plan, PlanReason
from wattkeeper.energy.model import EnergyModel
from wattkeeper.forecast import rates
from wattkeeper.planner import plan as planner
from wattkeeper.planner import unused
from wattkeeper.planner.types import PlanRequest

_GUARDS = (PlanReason.GUARD_SLO, PlanReason.GUARD_QUEUE, PlanReason.GUARD_PREEMPTION)


@dataclass(kw_only=True)
class Planning:
    """Plans services; decisions go into their entries and their states."""

    energy: EnergyModel
    settings: OperatorSettings
    clock: Clock
    metrics: OperatorMetrics
    calibrations: Calibrations
    replays: Replays | None
    """None: no replay stage, the analytic check decides alone."""

    def plan(self, entries: Sequence[Entry], *, fleet_size: int) -> None:
        """Decide for all of them in one call; `fleet_size` also counts those that are not among them."""
        asked = []
        requests = []
        for entry in entries:
            request = self._request(entry, fleet_size=fleet_size)
            if request is not None:
                asked.append(entry)
                requests.append(request)
        for entry, decided in zip(
            asked, planner.plan(requests, energy=self.energy, settings=self.settings.planner), strict=True
        ):
            self._decide(entry, decided)

    def _request(self, entry: Entry, *, fleet_size: int) -> PlanRequest | None:
        service, state, observation = entry.service, entry.state, entry.observation
        if service.spec.paused or service.spec.mode is Mode.OBSERVE:
            state.plan = None if service.spec.mode is Mode.OBSERVE else state.plan
            return None
        if observation is None or service.profile is None:
            state.plan = None
            return None
        now = self.clock.now()
        startup = self._startup_seconds(service)
        forecast = rates.plan_rates(
            state.rates,
            now_seconds=now,
            startup_seconds=startup,
            dispersion=float(observation.workload.dispersion.at(60.0)) if observation.workload is not None else 1.0,
            settings=self.settings.forecast,
        )
        state.barren = unused.learn(
            state.barren,
            observation,
            planned_rate=None if forecast is None else forecast.planned,
            now_seconds=now,
            settings=self.settings.planner,
        )
        # Of a drifting model nothing that was learnt is believed.
        learnt = self.calibrations.calibration(service, wall=self.clock.wall()) if state.correction.trusted else None
        cap = entry.current.power_cap_watts
        state.caution.look(
            service,
            observation,
            learnt,
            read=self.calibrations.of(service).full_power,
            cap_watts=cap,
            model=self.energy,
            now=now,
            wall=self.clock.wall(),
        )
        reading = state.caution.waits(
            service.profile,
            measured=observation.power_watts is not None,
            cap_watts=cap,
            seen_seconds=now - state.seen_since,
        )
        enforcing = service.spec.mode is Mode.ENFORCE
        usable = entry.report is not None and (entry.report.usable or not enforcing)
        # While new arguments are watched no replica goes: a dip of its making would be blamed on them.
        watching = read_note(service.target) is not None
        return PlanRequest(
            key=service.owner,
            now_seconds=now,
            slo=service.slo,
            levers=service.levers,
            profile=state.caution.of(service.profile),
            observation=observation,
            planned_rate=None if forecast is None else forecast.planned,
            planned_rate_stabilised=None if forecast is None or watching else forecast.stabilised,
            current=entry.current,
            memory=state.memory(),
            ready_replicas=service.ready_replicas,
            startup_seconds=startup,
            power_lever=usable and not reading,
            rollout_allowed=self._rollout_allowed(entry, fleet_size=fleet_size),
            trusted=state.correction.trusted and state.sensor.trusted and self.energy.trusted,
            margin=state.latency_margin,
            calibration=learnt,
            bad_engines=tuple(state.bad_engines),
            free_gpus=service.free_gpus,
            metrics_max_age_seconds=service.spec.metrics.max_age,
            replays=None if self.replays is None else self.replays.evidence(service.key),
        )

    def ask_replays(self, entries: Sequence[Entry]) -> None:
        """Hand over what the plans of this pass wish for; nothing waits."""
        if self.replays is None:
            return
        now = self.clock.now()
        self.replays.want(
            [
                Asked(
                    key=entry.service.key,
                    wish=wish,
                    profile=entry.state.caution.of(entry.service.profile),
                    slo=entry.service.slo,
                    workload=entry.observation.workload,
                    arrivals=entry.observation.arrivals,
                    time_seconds=now,
                    seed=zlib.crc32(entry.service.uid.encode()),
                )
                for entry in entries
                if entry.plan is not None and entry.observation is not None and not entry.failed
                for wish in entry.plan.wishes
                if entry.service.profile is not None and entry.observation.workload is not None
            ]
        )

    def _rollout_allowed(self, entry: Entry, *, fleet_size: int) -> bool:
        """Whether new engine arguments are looked at now, which doubles the work of a plan.

        In a large fleet a service that is enforced gets its turn every `rollout_look_seconds`; one that is only
        recommended to is looked at always, or its recommendation would come and go.
        """
        service, state, now = entry.service, entry.state, self.clock.now()
        if service.engine_refusal is not None or service.rolling_out or read_note(service.target) is not None:
            return False
        if fleet_size <= self.settings.large_fleet_services or not entry.acting:
            return True
        every = self.settings.rollout_look_seconds
        if state.engine_looked is None:
            state.engine_looked = now - every * (zlib.crc32(service.uid.encode()) % 1000) / 1000
        if now - state.engine_looked < every:
            return False
        state.engine_looked = now
        return True

    def _startup_seconds(self, service: Service) -> float:
        measured = sorted(filter(None, map(_pod_startup_seconds, service.pods)))
        # Time stamps have whole seconds: sped up, they tell nothing of a start.
        if not measured or self.clock.speed_up > 1:
            return self.settings.default_startup_seconds
        return measured[len(measured) // 2]

    def _decide(self, entry: Entry, decided: Plan) -> None:
        state, before = entry.state, entry.state.plan
        entry.plan = state.plan = decided
        if decided.reason in _GUARDS:
            state.last_guard = self.clock.now()
        self.metrics.decisions.labels(*entry.service.key, decided.reason.value).inc()
        decides, held = status.decision(decided), entry.scaling_is_held(decided)
        target = replace(decided.target, replicas=entry.current.replicas) if held else decided.target
        change = status.describe_change(entry.current, target, decided.engine_change)
        if decides != state.decided or held != state.scaling_held:
            state.decided, state.decided_at, state.scaling_held = decides, to_rfc3339(self.clock.wall()), held
            if change:
                state.remember(
                    HistoryEntry(
                        time=state.decided_at, reason=decided.reason.value, change=change, applied=entry.acting
                    )
                )
        if before is None or before.engine_change != decided.engine_change:
            state.engine_diff = self._engine_diff(entry.service, decided)

    def _engine_diff(self, service: Service, decided: Plan) -> str | None:
        if not decided.engine_change or service.target is None or service.engine_refusal is not None:
            return None
        try:
            return propose(service, service.target["spec"]["template"]["spec"], decided.engine_change).diff
        except PatchRefusedError as error:
            return f"refused: {error}"


def _pod_startup_seconds(pod: Object) -> float | None:
    """From being scheduled to being ready, wall time; None where the pod's conditions do not tell."""
    times = {
        item["type"]: from_rfc3339(item.get("lastTransitionTime"))
        for item in (pod.get("status") or {}).get("conditions") or []
        if item["status"] == "True"
    }
    scheduled, ready = times.get("PodScheduled"), times.get("Ready")
    if scheduled is None or ready is None or ready <= scheduled:
        return None
    return ready - scheduled
