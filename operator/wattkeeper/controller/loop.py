"""The fleet loop: one pass over all services, in numbered steps, in a thread of its own.

1 look at the cluster; 2 observe; 3 forecast; 4 learn and keep accounts; 5 plan (one call for the fleet); 6 look again
and act; 7 write status where it changed. What goes wrong with one service becomes that service's condition; the others
go on.
"""

import itertools
import logging
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from wattkeeper.api.conditions import ConditionType, Status
from wattkeeper.api.inference_service import HistoryEntry, Mode
from wattkeeper.controller import account, caps, conditions, factor_status, rollout, status
from wattkeeper.controller import cache as cluster
from wattkeeper.controller.act import Actor, propose
from wattkeeper.controller.calibrations import Calibrations
from wattkeeper.controller.clock import Clock, from_rfc3339, to_rfc3339
from wattkeeper.controller.enact import Enactor
from wattkeeper.controller.entry import Entry
from wattkeeper.controller.events import Recorder
from wattkeeper.controller.http import Health
from wattkeeper.controller.kube import Kube, Object
from wattkeeper.controller.measure import Measurements
from wattkeeper.controller.metrics import OperatorMetrics
from wattkeeper.controller.note import read_note
from wattkeeper.controller.passes import Pass, Stopwatch
from wattkeeper.controller.publish import Publisher
from wattkeeper.controller.replays import Asked, Replays
from wattkeeper.controller.resolve import Problem, Resolver, Service, ServiceKey
from wattkeeper.controller.settings import OperatorSettings
from wattkeeper.controller.state import ServiceState, restore
from wattkeeper.controller.writers import Writers
from wattkeeper.domain.errors import PatchRefusedError
from wattkeeper.domain.plan import Plan, PlanReason, Target
from wattkeeper.energy.model import EnergyModel
from wattkeeper.forecast import rates
from wattkeeper.planner import plan as planning
from wattkeeper.planner import unused
from wattkeeper.planner.types import PlanRequest
from wattkeeper.telemetry.observe import observe

_log = logging.getLogger(__name__)

_TIDY_PASSES = 20
_GUARDS = (PlanReason.GUARD_SLO, PlanReason.GUARD_QUEUE, PlanReason.GUARD_PREEMPTION)


@dataclass(kw_only=True)
class FleetLoop:
    """The loop and what it works with. `tick` may be called directly; `start` runs it every `tick_seconds`."""

    cache: cluster.ClusterCache
    kube: Kube
    actor: Actor
    recorder: Recorder
    measurements: Measurements
    energy: EnergyModel
    settings: OperatorSettings
    clock: Clock
    metrics: OperatorMetrics
    replays: Replays | None = None
    """None: no replay stage, the analytic check decides alone."""
    on_pass: Callable[[Pass], None] | None = None
    """Called in the loop's thread after every pass."""
    tidy: Callable[[], None] | None = None
    """Called in the loop's thread now and then, between two passes."""
    states: dict[ServiceKey, ServiceState] = field(default_factory=dict)
    _uids: dict[ServiceKey, str] = field(default_factory=dict)
    _wake: threading.Event = field(default_factory=threading.Event)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        self.stopwatch = Stopwatch(metrics=self.metrics)
        self.health = Health(tick_seconds=self.settings.tick_seconds, clock=self.clock.wall)
        self.resolver = Resolver(
            cache=self.cache,
            conflict_hold_seconds=self.settings.conflict_hold_seconds / self.settings.speed_up,
            argument_hold_seconds=self.settings.argument_hold_seconds / self.settings.speed_up,
        )
        self.calibrations = Calibrations(
            kube=self.kube,
            cache=self.cache,
            kernel=self.energy.kernel,
            energy_model=self.energy.version,
            every_seconds=self.settings.observed_refresh_seconds,
        )
        self.writers = Writers()
        self.enactor = Enactor(
            actor=self.actor,
            writers=self.writers,
            recorder=self.recorder,
            metrics=self.metrics,
            settings=self.settings,
            clock=self.clock,
        )
        self.publisher = Publisher(
            kube=self.kube,
            recorder=self.recorder,
            written=self.metrics.status_writes.inc,
            refresh_seconds=self.settings.observed_refresh_seconds,
        )

    def start(self) -> None:
        """Run in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="fleet-loop", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the tick under way."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=30)
        self.writers.close()

    def wake(self) -> None:
        """Tick soon: a service was created or changed."""
        self._wake.set()

    def _run(self) -> None:
        for number in itertools.count():
            if self._stopping.is_set():
                return
            if self.tidy is not None and number % _TIDY_PASSES == 0:
                self.tidy()
            self.stopwatch.start()
            failed = False
            try:
                self.tick()
            except Exception:
                failed = True
                self.metrics.ticks.labels("error").inc()
                _log.exception("a pass of the fleet loop failed; the next one starts afresh")
            else:
                self.metrics.ticks.labels("success").inc()
                self.health.last_good_pass = self.clock.wall()
                self.metrics.last_success.set(self.health.last_good_pass)
            done = self.stopwatch.finish(failed=failed)
            if self.on_pass is not None:
                self.on_pass(done)
            # Woken early, the loop still leaves a fifth of the interval between two passes.
            self._wake.wait(max(0.0, self.settings.tick_seconds - done.seconds))
            self._wake.clear()
            self._stopping.wait(max(0.0, 0.2 * self.settings.tick_seconds - done.seconds))

    def tick(self) -> None:
        """One pass over all services."""
        wall = self.clock.wall()
        with self.stopwatch.step("resolve"):
            bodies = [body for body in self.cache.objects(cluster.SERVICES) if not _leaving(body)]
            services, invalid = self.resolver.resolve_all(bodies, now_seconds=wall)
            view = caps.view(self.cache, now_seconds=wall, agent_max_age_seconds=self.settings.agent_max_age_seconds)
            # What is kept of an invalid one is read from its status again once it is valid.
            self._forget_all_but({(body["metadata"]["namespace"], body["metadata"]["name"]) for body in bodies})
            for key in invalid:
                self.states.pop(key, None)
            entries = self._entries(services, view)
            self.measurements.aim(services, self._node_addresses())
        with self.stopwatch.step("observe"):
            self._each(entries, lambda entry: self._observe(entry, view, wall), "observing")
        with self.stopwatch.step("account"):
            self._together(entries, self._account, "accounting")
        with self.stopwatch.step("plan"):
            self._together(entries, lambda group: self._plan(group, fleet_size=len(entries)), "planning")
            self._ask_replays(entries)
        with self.stopwatch.step("act"):
            self._each(entries, lambda entry: self._act(entry, wall), "acting", at_once=True)
            self.enactor.set_caps(entries, view)
        with self.stopwatch.step("status"):
            self._each(entries, lambda entry: self._build_status(entry, wall), "building status")
            due = [entry for entry in entries if entry.status is not None]
            self._each(due, lambda entry: self._write_status(entry, wall), "writing status", at_once=True)
            self.calibrations.write(wall)
            for body in bodies:
                key = (body["metadata"]["namespace"], body["metadata"]["name"])
                if key in invalid:
                    self.publisher.publish_invalid(body, invalid[key], wall=wall)
        self._export(entries)

    def _each(
        self, entries: Sequence[Entry], step: Callable[[Entry], None], doing: str, *, at_once: bool = False
    ) -> None:
        """A step for one service after the other, or side by side; one that fails does not stop the others."""

        def attempt(entry: Entry) -> None:
            try:
                step(entry)
            except Exception:
                _log.exception("%s %s failed", doing, entry.service.owner)
                entry.failed, entry.plan, entry.state.plan = True, None, None
                entry.problems.append(
                    Problem(
                        condition=ConditionType.READY,
                        reason="InternalError",
                        message=f"{doing} failed in an unexpected way; the operator's log has the trace",
                    )
                )

        if at_once:
            self.writers.each(entries, attempt)
        else:
            for entry in entries:
                attempt(entry)

    def _together(self, entries: Sequence[Entry], step: Callable[[Sequence[Entry]], None], doing: str) -> None:
        """A step for the whole fleet in one call; where that fails, for each service alone."""
        group = [entry for entry in entries if not entry.failed]
        try:
            step(group)
        except Exception:
            _log.exception("%s all services at once failed: once more, one by one", doing)
            self._each(group, lambda entry: step([entry]), doing)

    # 1 look

    def _entries(self, services: Sequence[Service], view: caps.PowerView) -> list[Entry]:
        entries = []
        for service in services:
            try:
                entries.append(self._enter(service, view))
            except Exception:  # its caps are not renewed and run out
                _log.exception("%s cannot be looked at", service.owner)
        return entries

    def _enter(self, service: Service, view: caps.PowerView) -> Entry:
        state = self.states.get(service.key)
        if state is None or self._uids.get(service.key) != service.uid:
            state = restore(service.status, clock=self.clock, forecast=self.settings.forecast, seed=service.uid)
            self.states[service.key], self._uids[service.key] = state, service.uid
        if service.profile is not None:
            service = replace(service, profile=state.learning.profile_of(service.profile, service.engine))
        watts, clock_mhz = view.current(service)
        current = Target(
            replicas=service.desired_replicas, power_cap_watts=watts, clock_mhz=clock_mhz, engine=service.engine
        )
        acting = service.spec.mode is Mode.ENFORCE
        since = self.clock.wall_time(state.seen_since if state.last_cap_move is None else state.last_cap_move)
        report = view.report(service, acting=acting, asked_since=since)
        if state.bad_engines:
            state.bad_engines = [bad for bad in state.bad_engines if rollout.offered(bad, service.levers.engine)]
            state.rolled_back = state.rolled_back if state.bad_engines else None
        return Entry(
            service=service,
            state=state,
            current=current,
            report=self._hold_refusal(state, report) if acting else report,
        )

    def _hold_refusal(self, state: ServiceState, report: caps.CapReport | None) -> caps.CapReport | None:
        """A refused limit is not asked for again at once: the lever would come and go with every tick."""
        if report is None:
            state.cap_refusal = None
        elif report.reason == caps.CAP_REFUSED:
            until = self.clock.now() + self.settings.refusal_hold_seconds
            again = to_rfc3339(self.clock.wall_time(until))
            state.cap_refusal = (until, f"{report.message}; planning goes on without caps until {again}")
            return replace(report, message=state.cap_refusal[1])
        elif report.usable and state.cap_refusal is not None and self.clock.now() < state.cap_refusal[0]:
            return replace(report, enforced=False, usable=False, reason=caps.CAP_REFUSED, message=state.cap_refusal[1])
        return report

    def _forget_all_but(self, alive: set[ServiceKey]) -> None:
        self.calibrations.keep_only(alive)
        for key in set(self.states) - alive:
            del self.states[key]
            self._uids.pop(key, None)
            self.resolver.forget(key)
            self.recorder.forget(key)
            if self.replays is not None:
                self.replays.forget(key)
            self.metrics.forget(*key)

    def _node_addresses(self) -> dict[str, str]:
        found = {}
        for node in self.cache.objects(cluster.NODES):
            for address in (node.get("status") or {}).get("addresses") or []:
                if address["type"] == "InternalIP":
                    found[node["metadata"]["name"]] = address["address"]
        return found

    # 2 observe

    def _observe(self, entry: Entry, view: caps.PowerView, wall: float) -> None:
        service, state = entry.service, entry.state
        if service.target is None:
            return
        snapshot, error = self.measurements.of(service)
        if snapshot is None and error is None:
            return  # the first collection since the start is under way: nothing is missing yet
        gpus_by_pod = view.gpus(service)
        for shown in self.measurements.since(service, state.snapshot_seen):
            state.dispersion.update(namespace=service.namespace, pods=service.pod_names, snapshot=shown)
            state.spread.update(namespace=service.namespace, pods=service.pod_names, snapshot=shown)
            state.learning.observe(
                shown,
                namespace=service.namespace,
                pods=service.pod_names,
                current=entry.current,
                workload=state.workload,
                gpus_by_pod=gpus_by_pod,
                rolling_out=service.rolling_out,
            )
        state.learning.conclude(wall)
        observation = observe(
            pods=service.pod_names,
            namespace=service.namespace,
            snapshot=snapshot,
            snapshot_error=error,
            now_seconds=wall,
            max_age_seconds=service.spec.metrics.max_age,
            slo=service.slo,
            last_workload=state.workload,
            dispersion=self.settings.dispersion or state.dispersion.value,
            # Counted in wall time: sped up, a bin would span minutes and its edges jitter by seconds.
            arrivals=state.dispersion.record if self.clock.speed_up == 1.0 else None,
            longest_tokens=None if service.profile is None else service.profile.max_model_len,
            gpus_per_pod=service.gpus_per_replica,
            gpus_by_pod=gpus_by_pod,
        )
        used_pods, unused_pods = state.spread.used_and_unused or (None, None)
        observation = replace(observation, used_pods=used_pods, unused_pods=unused_pods)
        entry.observation = observation
        if snapshot is not None:
            keys = ((pod, (service.namespace, pod)) for pod in service.pod_names)
            entry.readings = {pod: snapshot.pods[key] for pod, key in keys if key in snapshot.pods}
        if observation.workload is not None and observation.state.usable:
            state.workload = observation.workload
            if snapshot is not None and snapshot.time_seconds > state.snapshot_seen:
                state.rates.append(
                    self.clock.decision_time(snapshot.time_seconds), observation.workload.requests_per_second
                )
        if snapshot is not None:
            state.snapshot_seen = snapshot.time_seconds

    # 3, 4 forecast, learn

    def _account(self, entries: Sequence[Entry]) -> None:
        accounts = [
            account.Account(
                service=entry.service, state=entry.state, observation=entry.observation, current=entry.current
            )
            for entry in entries
            if entry.observation is not None
        ]
        standings = account.predictions(accounts)
        for entry in entries:
            entry.standing = standings.get(entry.service.key)
        now = self.clock.now()
        for item in accounts:
            if not item.state.savings.since and item.service.spec.mode is Mode.ENFORCE:
                item.state.savings.since = to_rfc3339(self.clock.wall())
        account.keep_accounts(
            accounts, standings, energy=self.energy, calibrations=self.calibrations, now=now, wall=self.clock.wall()
        )

    # 5 plan

    def _plan(self, entries: Sequence[Entry], *, fleet_size: int) -> None:
        asked = []
        requests = []
        for entry in entries:
            request = self._request(entry, fleet_size=fleet_size)
            if request is not None:
                asked.append(entry)
                requests.append(request)
        for entry, decided in zip(
            asked, planning.plan(requests, energy=self.energy, settings=self.settings.planner), strict=True
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
        state.caution.look(service, observation, learnt, cap_watts=cap, model=self.energy, now=now)
        enforcing = service.spec.mode is Mode.ENFORCE
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
            power_lever=entry.report is not None and (entry.report.usable or not enforcing),
            rollout_allowed=self._rollout_allowed(entry, fleet_size=fleet_size),
            trusted=state.correction.trusted and state.sensor.trusted and self.energy.trusted,
            margin=state.latency_margin,
            calibration=learnt,
            bad_engines=tuple(state.bad_engines),
            free_gpus=service.free_gpus,
            metrics_max_age_seconds=service.spec.metrics.max_age,
            replays=None if self.replays is None else self.replays.evidence(service.key),
        )

    def _ask_replays(self, entries: Sequence[Entry]) -> None:
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

    # 6 act

    def _act(self, entry: Entry, wall: float) -> None:
        self.enactor.act(entry, wall=wall)

    # 7 status

    def _build_status(self, entry: Entry, wall: float) -> None:
        service, state = entry.service, entry.state
        findings = conditions.Findings(
            service=service,
            observation=entry.observation,
            current=entry.current,
            caps=entry.report,
            problems=tuple(entry.problems),
            energy_trusted=self.energy.trusted,
            energy_problem=self.energy.problem,
            calibration=self.calibrations.kept_in_service(service),
            calibrated=self.calibrations.describe(service),
            replay_trouble=None if self.replays is None else self.replays.trouble,
        )
        built = status.build(
            findings, state, now_text=to_rfc3339(wall), to_text=lambda time: to_rfc3339(self.clock.wall_time(time))
        )
        if self.publisher.due(service, state, built, wall=wall):
            # Only now: with a thousand services they are most of the work of a status.
            told = factor_status.of_entry(entry, energy=self.energy, now_text=to_rfc3339(wall))
            entry.status = built.model_copy(update={"factors": told})

    def _write_status(self, entry: Entry, wall: float) -> None:
        if entry.status is not None:
            self.publisher.publish(entry.service, entry.state, entry.status, wall=wall)

    def _export(self, entries: Sequence[Entry]) -> None:
        modes = dict.fromkeys(Mode, 0)
        for entry in entries:
            modes[entry.service.spec.mode] += 1
            labels, state = entry.service.key, entry.state
            if state.plan is None:
                self.metrics.forget_plan(*labels)
            else:
                self.metrics.plan_replicas.labels(*labels).set(state.plan.target.replicas)
                self.metrics.plan_cap.labels(*labels).set(state.plan.target.power_cap_watts or 0.0)
                if state.plan.check is not None and state.plan.check.replayed is not None:
                    age = self.clock.now() - state.plan.check.replayed.time_seconds
                    self.metrics.replay_age.labels(*labels).set(age)
                else:
                    self.metrics.replay_age.remove(*labels)
                if state.plan.prediction is not None:
                    self.metrics.predicted_watts.labels(*labels).set(state.plan.prediction.power_watts)
            if entry.observation is not None and entry.observation.power_watts is not None:
                self.metrics.observed_watts.labels(*labels).set(entry.observation.power_watts)
            if entry.observation is not None and entry.observation.workload is not None:
                self.metrics.observed_rate.labels(*labels).set(entry.observation.workload.requests_per_second)
            learned, profile = state.learning.learned, entry.service.profile
            if profile is not None:
                self.metrics.profile_level.labels(*labels).set(learned.level)
                self.metrics.profile_error.labels(*labels).set(profile.relative_error)
                self.metrics.profile_confidence.labels(*labels).set(learned.confidence)
                self.metrics.profile_windows.labels(*labels).set(learned.windows)
            if state.power_learnt is not None:
                self.metrics.power_learnt.labels(*labels).set(state.power_learnt)
            self.metrics.energy.labels(*labels).set(state.savings.measured_joules)
            self.metrics.counterfactual.labels(*labels).set(state.savings.counterfactual_joules)
            shown = {item.type: item.status for item in state.written.conditions} if state.written is not None else {}
            for type_ in ConditionType:
                if type_ in shown:
                    value = {Status.TRUE: 1.0, Status.FALSE: 0.0, Status.UNKNOWN: -1.0}[shown[type_]]
                    self.metrics.condition.labels(*labels, type_).set(value)
                else:
                    self.metrics.condition.remove(*labels, type_)
        for mode, count in modes.items():
            self.metrics.services.labels(mode.value).set(count)


def _leaving(body: Object) -> bool:
    return bool(body["metadata"].get("deletionTimestamp"))


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
