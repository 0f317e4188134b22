"""The fleet loop: one pass over all services, in numbered steps, in a thread of its own.

1 look at the cluster; 2 observe; 3 forecast; 4 learn and keep accounts; 5 plan (one call for the fleet); 6 look again
and act; 7 write status where it changed. What goes wrong with one service becomes that service's condition; the others
go on.
"""

import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from wattkeeper.api.conditions import ConditionType
from wattkeeper.api.inference_service import Mode
from wattkeeper.controller import account, caps, conditions, factor_status, rollout, status
from wattkeeper.controller import cache as cluster
from wattkeeper.controller.act import Actor
from wattkeeper.controller.calibrations import Calibrations
from wattkeeper.controller.clock import Clock, to_rfc3339
from wattkeeper.controller.enact import Enactor
from wattkeeper.controller.entry import Entry
from wattkeeper.controller.events import Recorder
from wattkeeper.controller.export import export
from wattkeeper.controller.http import Health
from wattkeeper.controller.kube import Kube, Object
from wattkeeper.controller.measure import Measurements
from wattkeeper.controller.metrics import OperatorMetrics
from wattkeeper.controller.observing import Observer
from wattkeeper.controller.passes import Pass, Stopwatch
from wattkeeper.controller.planning import Planning
from wattkeeper.controller.publish import Publisher
from wattkeeper.controller.replays import Replays
from wattkeeper.controller.resolve import Resolver
from wattkeeper.controller.service import Problem, Service, ServiceKey
from wattkeeper.controller.settings import OperatorSettings
from wattkeeper.controller.state import ServiceState, restore
from wattkeeper.controller.writers import Writers
from wattkeeper.domain.plan import Target
from wattkeeper.energy.model import EnergyModel

_log = logging.getLogger(__name__)

_TIDY_PASSES = 20


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
            kernel_of=self.energy.kernel_of,
            energy_model=self.energy.version,
            wall=self.clock.wall,
            every_seconds=self.settings.observed_refresh_seconds,
        )
        self.observer = Observer(measurements=self.measurements, settings=self.settings, clock=self.clock)
        self.planning = Planning(
            energy=self.energy,
            settings=self.settings,
            clock=self.clock,
            metrics=self.metrics,
            calibrations=self.calibrations,
            replays=self.replays,
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
            self._each(entries, lambda entry: self.observer.observe(entry, view, wall), "observing")
        with self.stopwatch.step("account"):
            self._together(entries, self._account, "accounting")
        with self.stopwatch.step("plan"):
            self._together(entries, lambda group: self.planning.plan(group, fleet_size=len(entries)), "planning")
            self.planning.ask_replays(entries)
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
        export(entries, self.metrics, now=self.clock.now())

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

    # 4 learn

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
            energy_reason=self.energy.reason,
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


def _leaving(body: Object) -> bool:
    return bool(body["metadata"].get("deletionTimestamp"))
