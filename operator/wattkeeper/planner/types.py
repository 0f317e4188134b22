"""Inputs of the planner: what it is told of one service, what it remembers, and its documented settings."""

from dataclasses import dataclass, field, fields, replace

from wattkeeper.domain.engine import EngineChange
from wattkeeper.domain.observation import ServiceObservation
from wattkeeper.domain.plan import Levers, Slo, Target
from wattkeeper.domain.replay import Replayed
from wattkeeper.energy.calibration import Calibration
from wattkeeper.physics.profile import ServingProfile


@dataclass(frozen=True, kw_only=True)
class Barren:
    """What was seen of replicas that the router left without work. Times are Unix seconds."""

    even_replicas: int = 0
    """The count at which all had work when last seen; 0: never."""
    used_replicas: int | None = None
    """More than these, and than `even_replicas`, helped nobody; None: no replica was seen without work."""
    planned_requests_per_second: float = 0.0
    """What was planned for when some were seen without work."""
    seen_seconds: float = 0.0
    """When they were last seen."""
    hold_seconds: float = 0.0
    """For how long after that not one more is tried."""


@dataclass(frozen=True, kw_only=True)
class PlanMemory:
    """Unix times of the last moves of a service; None: never, or not known. Restorable from the cluster's state.

    A missing time does not make a plan unsafe: without a known stabilised rate no replica is taken away, and
    `rollout_allowed` is the caller's word.
    """

    last_scale_down_seconds: float | None = None
    last_scale_up_seconds: float | None = None
    last_rollout_seconds: float | None = None
    last_cap_seconds: float | None = None
    """Last change of cap or clock lock, up or down."""
    last_guard_seconds: float | None = None
    """Last plan whose reason was one of the guards (`SloAtRisk`, `QueueGrowing`, `Preempting`)."""
    barren: Barren | None = None
    """None: nothing was seen yet."""


@dataclass(frozen=True, kw_only=True)
class ReplayEvidence:
    """What the replay stage knows of one service."""

    replayed: tuple[Replayed, ...] = ()
    trouble: str = ""
    """Why no replays come at present; empty where the stage works."""


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """Everything that the decision for one service rests on. Rates are requests per second of the whole service."""

    key: str
    """Names the service in messages and logs, such as "namespace/name"."""
    now_seconds: float
    slo: Slo
    levers: Levers
    profile: ServingProfile
    observation: ServiceObservation
    planned_rate: float | None
    """Quantile of the rate until a replica asked for now would serve: fast window, trend over the start-up, noise.
    None where no rate was ever seen: the plan then holds."""
    planned_rate_stabilised: float | None
    """What fewer replicas must carry: at least the largest rate of the stabilisation window; a value below
    `planned_rate` counts as that. None while too little history is known: then no replica is taken away."""
    current: Target
    """What is asked for now: desired replicas, cap and lock last set, and the engine arguments in place."""
    memory: PlanMemory = field(default_factory=PlanMemory)
    ready_replicas: int
    startup_seconds: float
    """From asking for a replica until it serves, measured where possible."""
    power_lever: bool = True
    """False where caps and clock locks cannot be enforced (no agent, refused): targets then leave power alone."""
    rollout_allowed: bool = False
    """True where the caller would roll out new engine arguments now (mode, windows, no roll-out running). It doubles
    the work of a plan, so a large fleet may look at it for some of its services in each tick."""
    trusted: bool = True
    """ModelTrusted: False widens the latency margin."""
    margin: float = 0.0
    """Relative latency margin learnt from live residuals (0.1 = 10 %), on top of the margins of the settings."""
    calibration: Calibration | None = None
    """What measured watts taught of the energy model for this deployment; None: nothing was measured."""
    bad_engines: tuple[EngineChange, ...] = ()
    """Engine arguments that failed to start here before: never proposed again."""
    free_gpus: int | None = None
    """Unallocated GPUs that new replicas could use; None: not known, no bound."""
    metrics_max_age_seconds: float | None = None
    """Overrides the setting of the same name for this service."""
    replays: ReplayEvidence | None = None
    """Evidence from replays. None: no replay stage is configured, the analytic check decides alone; with one, less
    capacity than in place is taken only where a replay shows that it meets the SLO."""


@dataclass(frozen=True, kw_only=True)
class PlannerSettings:
    """Settings of the decision; every field with unit and default. Ratios are shares of one."""

    planned_load_ceiling: float = 0.82
    """Planned rate over stable capacity may not exceed this: beyond it a p95 is not a stable number."""
    planned_load_ceiling_bursty: float = 0.65
    """The same where arrivals are very bursty (`bursty_dispersion`)."""
    planned_load_ceiling_proved: float = 0.88
    """Replays of recorded arrivals may lift either ceiling up to this ..."""
    planned_load_step_ratio: float = 0.05
    """... in steps: beyond the highest load that a replay showed to meet the SLO by this share."""
    bursty_dispersion: float = 5.0
    """Index of dispersion of arrival counts in a second (1 = Poisson) above which arrivals count as very bursty."""
    preemption_risk_ceiling: float = 0.05
    """Predicted share of time in which the running requests want more KV than there is may not exceed this."""

    margin_base: float = 0.05
    """Relative margin on the upper bounds of TTFT and TPOT, always applied: for what no simulation knows."""
    margin_partial_metrics: float = 0.15
    """Added where some pods have no fresh series."""
    margin_untrusted: float = 0.35
    """Added where the models are not trusted (safe widening)."""
    margin_estimated_profile: float = 0.15
    """Added where the profile is a data-sheet estimate instead of a measurement: at `estimated_profile_error`, else in
    proportion to the profile's error, up to twice of it."""
    estimated_profile_error: float = 0.25
    """One-sigma relative error of step time of a data-sheet estimate."""
    margin_max: float = 1.0
    """Upper bound of the sum of all margins."""

    hysteresis_ratio: float = 0.03
    """Keep what is in place unless the gain, price of the move included, exceeds this share of its watts."""
    scale_down_stabilisation_seconds: float = 300.0
    """No fewer replicas until this long after the last scale-up or guard, whatever the forecast says."""
    min_seconds_between_cap_moves: float = 15.0
    """Between two changes of cap or clock that the SLO does not call for; more power is never delayed."""
    min_seconds_between_replica_moves: float = 60.0
    """Between two scale-downs; a scale-up is never delayed."""
    guard_cooldown_seconds: float = 120.0
    """After a guard, cap and clock may not go below what is in place for this long."""

    metrics_max_age_seconds: float = 60.0
    """Metrics not usable for longer than this: full power. Until then the last target is held."""
    observation_window_seconds: float = 60.0
    """Window of the observed percentiles: with the rate it tells how many requests they rest on."""
    guard_min_requests: float = 20.0
    """Requests that an observed percentile must rest on to trip the SLO guard."""
    guard_slo_ratio: float = 1.0
    """The SLO guard trips where an observed percentile exceeds its target times this."""
    guard_waiting_per_replica: float = 4.0
    """Waiting requests per ready replica above which the queue counts as growing ..."""
    guard_waiting_share_of_ttft: float = 0.5
    """... if working them off at the present rate takes more than this share of the TTFT target."""
    guard_preemptions_per_second: float = 0.05
    """Preemptions per second and ready replica above which the KV guard trips ..."""
    guard_preemptions_per_request: float = 0.02
    """... if they are also more than this share of the requests."""
    guard_scale_up_ratio: float = 0.25
    """Replicas that a guard adds, as a share of the current ones (at least one; more where the model asks for it)."""

    barren_hold_seconds: float = 300.0
    """After replicas were seen without work, no more than the used ones are asked for this long, then one more; twice
    as long each time that the try was in vain ..."""
    barren_hold_longest_seconds: float = 7200.0
    """... up to this."""
    barren_forget_seconds: float = 28800.0
    """After this what was seen bounds nothing any more."""
    barren_rate_ratio: float = 1.2
    """A planned rate of more than this times that of the time ends the bound at once."""

    idle_rate_per_second: float = 0.02
    """Rate that an idle service is planned for, requests per second: the first request must still meet its SLO."""
    startup_share_of_tdp: float = 0.26
    """Power of a starting replica's GPUs as a share of their TDP (180 W of 700 W while weights load)."""
    replica_dwell_seconds: float = 900.0
    """Expected stay at a replica count: the start-up energy of added replicas is spread over it."""
    power_dwell_seconds: float = 300.0
    """Power limits that moved this long ago may move again for a gain of the hysteresis; sooner for more, later for
    less. More power that the SLO asks for never waits."""
    engine_dwell_seconds: float = 14400.0
    """Expected stay with engine arguments: the price of a roll-out is spread over it."""
    rollout_gain_ratio: float = 0.05
    """A roll-out must gain more than this share of the watts in place, its price included."""

    replay_rate_step_ratio: float = 0.03
    """Replays are made for the rate rounded up to a geometric grid of this step, to hold while the rate jitters."""
    replay_max_age_seconds: float = 600.0
    """Older replays say nothing."""
    replay_refresh_seconds: float = 240.0
    """A replay of what is in place is asked for again after this long."""
    replay_candidates: int = 3
    """Cheapest candidates for which replays are asked at once."""
    replay_length_tolerance: float = 0.1
    """Relative change of mean lengths (and change of the prefix-hit share) up to which a replay still holds."""
    replay_pace_tolerance: float = 0.05
    """Relative change of the time of a reference iteration (the profile was refitted) up to which it still holds."""

    grid_power_values: int = 16
    """Values per power lever at most; a lever with more steps is thinned evenly."""
    grid_power_points: int = 6
    """Points per power lever in the coarse pass; the fine pass looks at all values around the best of them."""
    grid_engine_options: int = 32
    """Engine argument sets whose least replicas are sought, per service at most."""
    grid_engine_finalists: int = 2
    """Of these, the sets besides the one in place that are examined at every power limit."""

    def scaled(self, speed_up: float) -> "PlannerSettings":
        """These settings for time that runs `speed_up` times faster than the wall clock (a simulated day)."""
        if speed_up <= 0:
            raise ValueError(f"speed_up must be positive, not {speed_up}")
        seconds = {
            item.name: getattr(self, item.name) / speed_up
            for item in fields(self)
            if item.name.endswith("_seconds") or item.name.startswith("min_seconds_")
        }
        return replace(self, **seconds)
