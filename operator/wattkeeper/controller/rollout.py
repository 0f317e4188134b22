"""Roll-outs of engine arguments: judged on every tick by the note on the target, taken back once if they fail."""

import enum

from wattkeeper.controller.clock import Clock, from_rfc3339
from wattkeeper.controller.conditions import missed_targets
from wattkeeper.controller.note import Note, fields_of, fingerprint
from wattkeeper.controller.service import Service
from wattkeeper.controller.settings import OperatorSettings
from wattkeeper.domain.engine import EngineChange
from wattkeeper.domain.observation import ServiceObservation
from wattkeeper.domain.plan import EngineLever


class Verdict(enum.Enum):
    """How a roll-out stands."""

    RUNNING = "Running"
    READY = "Ready"
    """All pods run the new arguments, and the note does not say so yet."""
    WATCHING = "Watching"
    """All pods run the new arguments; the SLO is being watched."""
    COMPLETE = "Complete"
    FAILED = "Failed"
    SUPERSEDED = "Superseded"
    """Somebody else changed the arguments meanwhile: theirs stay."""


def judge(
    note: Note, service: Service, observation: ServiceObservation | None, *, clock: Clock, settings: OperatorSettings
) -> tuple[Verdict, str]:
    """How the roll-out of `note` stands, and why where it failed.

    It fails where pods do not become ready in time, or where the SLO was met before and is missed while it is being
    watched, by enough requests to mean something.
    """
    fields = fields_of(service.target["spec"]["template"]["spec"], note.container) if service.target else None
    if fields is None or fingerprint(fields) != note.after:
        return Verdict.SUPERSEDED, ""
    what = ", ".join(f"{name}={value}" for name, value in note.change.as_dict().items())
    if service.rolling_out:
        elapsed = _since(note.started_at, clock)
        if service.stuck is not None:
            return Verdict.FAILED, f"{what}: {service.stuck}"
        if elapsed is None or elapsed > settings.rollout_deadline_seconds:
            limit = settings.rollout_deadline_seconds / 60
            return Verdict.FAILED, f"{what}: pods did not become ready within {limit:.0f} min"
        return Verdict.RUNNING, ""
    if note.ready_at is None:
        return Verdict.READY, ""
    elapsed = _since(note.ready_at, clock)
    if elapsed is None or elapsed >= settings.rollout_watch_seconds:
        return Verdict.COMPLETE, ""
    # The first window of measurements still holds requests that the restarting fleet served.
    settled = elapsed >= settings.rate_window_seconds * clock.speed_up
    if note.slo_was_met and settled and _enough(observation, settings):
        missed = missed_targets(service.slo, observation)
        if missed:
            return Verdict.FAILED, f"{what}: the SLO was met before and is missed since ({'; '.join(missed)})"
    return Verdict.WATCHING, ""


def offered(change: EngineChange, lever: EngineLever) -> bool:
    """True where the lever still offers every value of a change."""
    return all(value in getattr(lever, name) for name, value in change.as_dict().items())


def _since(text: str | None, clock: Clock) -> float | None:
    time = from_rfc3339(text)
    return None if time is None else clock.now() - clock.decision_time(time)


def _enough(observation: ServiceObservation | None, settings: OperatorSettings) -> bool:
    if observation is None or observation.workload is None:
        return False
    requests = observation.workload.requests_per_second * settings.planner.observation_window_seconds
    return requests >= settings.planner.guard_min_requests
