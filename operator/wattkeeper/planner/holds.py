"""Why a move must wait that the SLO would allow: timers of the planner, and roll-outs without room."""

from wattkeeper.planner.scored import Search
from wattkeeper.planner.sizing import Case


def scale_down_hold(case: Case) -> str:
    """Why replicas may not be taken away now; empty where they may."""
    request, settings = case.request, case.settings
    memory, now = request.memory, request.now_seconds
    if request.planned_rate_stabilised is None:
        return "too little is known of recent rates"
    for what, last, wait in (
        ("replicas were last removed", memory.last_scale_down_seconds, settings.min_seconds_between_replica_moves),
        ("replicas were last added", memory.last_scale_up_seconds, settings.scale_down_stabilisation_seconds),
        ("the SLO was last at risk", memory.last_guard_seconds, settings.scale_down_stabilisation_seconds),
        ("a roll-out started", memory.last_rollout_seconds, _rollout_seconds(case)),
    ):
        if last is not None and now - last < wait:
            return _since(what, now - last, wait)
    return ""


def _since(what: str, seconds: float, wait_seconds: float) -> str:
    return f"{what} {max(0.0, seconds):.0f} s ago (at least {wait_seconds:.0f} s)"


def _rollout_seconds(case: Case) -> float:
    """A roll-out counts as running for one start-up per replica and one more while some replica is not ready."""
    request = case.request
    if request.ready_replicas >= request.current.replicas:
        return 0.0
    return request.startup_seconds * (request.current.replicas + 1)


def power_down_hold(case: Case) -> str:
    """Why power limits may not go deeper now; empty where they may."""
    request, settings = case.request, case.settings
    memory, now = request.memory, request.now_seconds
    if memory.last_guard_seconds is not None and now - memory.last_guard_seconds < settings.guard_cooldown_seconds:
        return _since("the SLO was last at risk", now - memory.last_guard_seconds, settings.guard_cooldown_seconds)
    wait = settings.min_seconds_between_cap_moves
    if memory.last_cap_seconds is not None and now - memory.last_cap_seconds < wait:
        return _since("power limits last moved", now - memory.last_cap_seconds, wait)
    return ""


def rollout_blocked(search: Search) -> str:
    """Why a roll-out has no room: it costs one replica, or a spare GPU group; empty where it has."""
    case = search.case
    request, least = case.request, search.required[0].replicas
    spare = request.free_gpus is None or request.free_gpus >= request.profile.gpus_per_replica
    if spare or (least is not None and case.space.current.replicas - 1 >= max(least, 1)):
        return ""
    return (
        f"a roll-out takes one replica away at a time, and {case.space.current.replicas} are needed; "
        f"it needs {request.profile.gpus_per_replica} free GPU(s)"
    )
