"""Carries plans out, service by service: which action may be taken now, and what became of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from wattkeeper.api.inference_service import Mode
from wattkeeper.controller import caps, conditions, rollout, status
from wattkeeper.controller.act import Actor, CapWish
from wattkeeper.controller.clock import Clock, from_rfc3339, to_rfc3339
from wattkeeper.controller.entry import Entry
from wattkeeper.controller.events import Recorder
from wattkeeper.controller.metrics import OperatorMetrics
from wattkeeper.controller.note import Note, read_note
from wattkeeper.controller.service import Problem, Service
from wattkeeper.controller.settings import OperatorSettings
from wattkeeper.controller.writers import Writers
from wattkeeper.domain.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Enactor:
    """Takes actions through `actor`, and notes them in a service's state, its events and the metrics."""

    actor: Actor
    writers: Writers
    recorder: Recorder
    metrics: OperatorMetrics
    settings: OperatorSettings
    clock: Clock

    def act(self, entry: Entry, *, wall: float) -> None:
        """Roll-outs under way, replicas, arguments. `wall` is the time now."""
        if not entry.acting:
            return
        self._see_rollout(entry, wall)
        if entry.plan is not None:
            self._act_on_replicas(entry, entry.plan, wall)
            self._act_on_engine(entry, entry.plan, wall)

    def _act_on_replicas(self, entry: Entry, decided: Plan, wall: float) -> None:
        service, state = entry.service, entry.state
        now = self.clock.now()
        wanted, have = decided.target.replicas, service.desired_replicas
        if wanted == have or not service.replicas_are_ours or entry.scaling_is_held(decided):
            return
        outcome = self.actor.scale(service, wanted)
        self._count(service, "scale", outcome.problem)
        if outcome.problem is not None:
            entry.problems.append(outcome.problem)
        if not outcome.done:
            return
        if wanted > have:
            state.last_scale_up = now
        else:
            state.last_scale_down = now
        self.recorder.normal(
            service,
            "ScaledUp" if wanted > have else "ScaledDown",
            f"replicas {have} -> {wanted}: {decided.message}",
            now=wall,
        )

    def _act_on_engine(self, entry: Entry, decided: Plan, wall: float) -> None:
        service, state = entry.service, entry.state
        if not decided.engine_change or service.engine_refusal is not None or service.rolling_out:
            return
        if decided.target.replicas < service.desired_replicas:
            return  # one disruptive action per service and tick
        met = entry.observation is not None and not conditions.missed_targets(service.slo, entry.observation)
        outcome = self.actor.change_engine(service, decided.engine_change, now=wall, slo_was_met=met)
        self._count(service, "engine", outcome.problem)
        if outcome.problem is not None:
            entry.problems.append(outcome.problem)
        if outcome.done:
            state.last_rollout, state.rolled_back = self.clock.now(), None
            change = status.describe_change(entry.current, entry.current, decided.engine_change)
            self.recorder.normal(service, "RolloutStarted", f"{change}: {decided.message}", now=wall)

    def _see_rollout(self, entry: Entry, wall: float) -> None:
        service, state = entry.service, entry.state
        note = read_note(service.target)
        if note is None:
            return
        started = from_rfc3339(note.started_at)
        if started is not None:  # an operator that died right after the patch did not write it down
            state.last_rollout = max(state.last_rollout or 0.0, self.clock.decision_time(started))
        if note.failed is not None:
            self._remember_failure(entry, note, note.failed)
            return
        verdict, why = rollout.judge(note, service, entry.observation, clock=self.clock, settings=self.settings)
        if verdict in (rollout.Verdict.COMPLETE, rollout.Verdict.SUPERSEDED):
            self._note(entry, self.actor.write_note(service, None).problem)
        elif verdict is rollout.Verdict.READY:
            self._note(entry, self.actor.write_note(service, replace(note, ready_at=to_rfc3339(wall))).problem)
        elif verdict is rollout.Verdict.FAILED:
            outcome = self.actor.roll_back(service, note, why)
            self._count(service, "rollback", outcome.problem)
            self._note(entry, outcome.problem)
            if outcome.done:
                state.remember_bad(note.change, why)
                self.recorder.warning(service, "RolledBack", state.rolled_back or why, now=wall)
                entry.plan = state.plan = None  # it was made for arguments that are just going away

    def _remember_failure(self, entry: Entry, note: Note, why: str) -> None:
        """The note of a failed roll-out goes once the object's status remembers what it says."""
        if status.engine_status(note.change) in entry.service.status.memory.bad_engines:
            self._note(entry, self.actor.write_note(entry.service, None).problem)
        else:
            entry.state.remember_bad(note.change, why)

    def _note(self, entry: Entry, problem: Problem | None) -> None:
        if problem is not None:
            entry.problems.append(problem)

    def set_caps(self, entries: Sequence[Entry], view: caps.PowerView) -> None:
        """Power limits of all services, at most one write per node."""
        wishes = []
        nodes: set[str] = set()
        for entry in entries:
            wish = self._cap_wish(entry)
            if wish is None:
                continue
            wishes.append(wish)
            if entry.report is not None and entry.acting:
                nodes |= entry.service.nodes
        self.actor.ensure_nodes(sorted(nodes), view)
        outcome = self.actor.set_caps(wishes, view, self.writers)
        for entry in entries:
            if entry.service.key in outcome.moved:
                entry.state.last_cap_move = self.clock.now()
                self._count(entry.service, "cap", None)
            problem = outcome.problems.get(entry.service.key)
            if problem is not None:
                self._count(entry.service, "cap", problem)
                entry.problems.append(problem)

    def _cap_wish(self, entry: Entry) -> CapWish | None:
        """Power wanted for a service. Leaving Enforce, losing the lever or the target releases its GPUs."""
        service, decided = entry.service, entry.plan
        enforcing = service.spec.mode is Mode.ENFORCE
        if not enforcing or entry.report is None or service.target is None:
            return CapWish(service=service, watts=None, clock_mhz=None)
        if decided is None:  # paused, or not measured since the start: what is set stays, and is renewed
            if not entry.failed and (service.spec.paused or entry.observation is None):
                return CapWish(service=service, watts=entry.current.power_cap_watts, clock_mhz=entry.current.clock_mhz)
            return CapWish(service=service, watts=None, clock_mhz=None)
        return CapWish(service=service, watts=decided.target.power_cap_watts, clock_mhz=decided.target.clock_mhz)

    def _count(self, service: Service, action: str, problem: Problem | None) -> None:
        counter = self.metrics.actions if problem is None else self.metrics.action_errors
        counter.labels(*service.key, action).inc()
