"""All policies by name, with their parameters: what is documented, and what a user would try."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from wattkeeper.domain.plan import RangeLever
from wattkeeper.rivals.hpa import HorizontalPodAutoscaler, kv_usage_metric, waiting_metric
from wattkeeper.rivals.hpa_behavior import DOWN, Behavior
from wattkeeper.rivals.hpa_metrics import Metric
from wattkeeper.rivals.keda import THRESHOLD, ScaledObject
from wattkeeper.rivals.settings import Parameters, PolicySettingsError, Setting, whole, within
from wattkeeper.rivals.static import Static
from wattkeeper.rivals.types import Policy
from wattkeeper.rivals.wva import QueueingAutoscaler

STATIC_PEAK = "static-peak"
Grid = Mapping[str, tuple[float, ...]]
"""Values to try of each parameter, ascending; no parameter: nothing to tune."""
_TARGET, _WINDOW, _MINIMUM = "target", "down_window_seconds", "min_replicas"
_WINDOWS = (60.0, 120.0, 300.0, 600.0, 1200.0)
_SLO_SCALES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0)
_MINIMA_PERCENTILES = (5.0, 25.0, 50.0, 75.0, 95.0)
_P95 = 95.0
_LIMIT_STEPS = 9


@dataclass(frozen=True, kw_only=True)
class Rival:
    """One policy: how it is made, what its documentation gives as defaults, and the grid for tuning."""

    name: str
    summary: str
    make: Callable[[Setting, Parameters], Policy]
    defaults: Callable[[Setting], Parameters]
    grid: Callable[[Setting], Grid] = lambda _: {}
    needs: Callable[[Setting], str] = lambda _: ""
    """What the setting lacks for this policy to run; empty: nothing."""

    def build(self, setting: Setting, parameters: Parameters | None = None) -> Policy:
        """A fresh policy for one run; parameters that are not given take their default.

        Raises PolicySettingsError where a parameter is not known or out of range, or the policy cannot run here.
        """
        if lacking := self.needs(setting):
            raise PolicySettingsError(f"{self.name} cannot run here: {lacking}")
        known = self.defaults(setting)
        unknown = sorted(set(parameters or {}) - set(known))
        if unknown:
            names = ", ".join(known) or "none"
            raise PolicySettingsError(f"{self.name} has no parameter {', '.join(unknown)}; it has: {names}")
        return self.make(setting, {**known, **(parameters or {})})


def find(name: str) -> Rival:
    """The policy of this name. Raises PolicySettingsError where there is none."""
    if name not in RIVALS:
        raise PolicySettingsError(f"there is no policy {name!r}; there are: {', '.join(RIVALS)}")
    return RIVALS[name]


def _static(name: str) -> Callable[[Setting, Parameters], Policy]:
    return lambda _, given: Static(name=name, replicas=whole("replicas", given["replicas"]))


def _capped(setting: Setting, given: Parameters) -> Policy:
    return Static(
        name="static-cap",
        replicas=whole("replicas", given["replicas"]),
        power_cap_watts=within("power_cap_watts", given["power_cap_watts"], _lever(setting.power_cap)),
    )


def _clocked(setting: Setting, given: Parameters) -> Policy:
    return Static(
        name="static-clock",
        replicas=whole("replicas", given["replicas"]),
        clock_mhz=within("clock_mhz", given["clock_mhz"], _lever(setting.clock)),
    )


def _lever(lever: RangeLever | None) -> RangeLever:
    if lever is None:
        raise PolicySettingsError("the accelerator has no such limit")
    return lever


def _limits(lever: RangeLever | None) -> tuple[float, ...]:
    """A few values from the lowest to the highest limit."""
    values = () if lever is None else lever.grid()
    if len(values) <= _LIMIT_STEPS:
        return values
    return tuple(values[round(index)] for index in np.linspace(0, len(values) - 1, _LIMIT_STEPS))


def _counts(setting: Setting) -> tuple[float, ...]:
    """Every replica count within the bounds."""
    return tuple(float(each) for each in range(setting.min_replicas, setting.max_replicas + 1))


def _minima(setting: Setting) -> tuple[float, ...]:
    """The bound itself, and what quiet, usual and busy windows need."""
    found = {setting.min_replicas, *(setting.replicas_for(percentile) for percentile in _MINIMA_PERCENTILES)}
    return tuple(float(each) for each in sorted(found))


def _window(seconds: float) -> Behavior:
    return Behavior(down=replace(DOWN, window_seconds=seconds))


def _hpa(name: str, metric: Callable[[float], Metric]) -> Callable[[Setting, Parameters], Policy]:
    def make(setting: Setting, given: Parameters) -> Policy:
        return HorizontalPodAutoscaler(
            name=name,
            metrics=(metric(given[_TARGET]),),
            min_replicas=whole(_MINIMUM, given[_MINIMUM]),
            max_replicas=setting.max_replicas,
            behavior=_window(given[_WINDOW]),
            stale_seconds=setting.stale_seconds,
        )

    return make


def _keda(setting: Setting, given: Parameters) -> Policy:
    return ScaledObject(
        name="keda-in-flight",
        threshold=given[_TARGET],
        min_replicas=whole(_MINIMUM, given[_MINIMUM]),
        max_replicas=setting.max_replicas,
        behavior=_window(given[_WINDOW]),
        stale_seconds=setting.stale_seconds,
    )


def _wva(setting: Setting, given: Parameters) -> Policy:
    return QueueingAutoscaler(
        name="wva",
        server=setting.server,
        slo=setting.slo,
        min_replicas=setting.min_replicas,
        max_replicas=setting.max_replicas,
        slo_scale=given["slo_scale"],
    )


def _scaling(target: float) -> Callable[[Setting], Parameters]:
    """Defaults of an autoscaler with one target."""
    return lambda setting: {
        _TARGET: target,
        _MINIMUM: float(setting.min_replicas),
        _WINDOW: DOWN.window_seconds,
    }


def _scaling_grid(targets: Callable[[Setting], tuple[float, ...]]) -> Callable[[Setting], Grid]:
    return lambda setting: {_TARGET: targets(setting), _MINIMUM: _minima(setting), _WINDOW: _WINDOWS}


def _in_flight(setting: Setting) -> tuple[float, ...]:
    """From below the documented example up to all slots of a replica."""
    slots = float(setting.server.max_num_seqs)
    return tuple(
        sorted({1.0, THRESHOLD, 4.0, 8.0, *(round(slots * part) for part in (0.0625, 0.125, 0.25, 0.5, 0.8, 1.0))})
    )


def _peak(setting: Setting) -> Parameters:
    return {"replicas": float(setting.replicas_for(100.0))}


_ALL = (
    Rival(
        name=STATIC_PEAK,
        summary="as many replicas as the busiest window of the tuning days needs, full power",
        make=_static(STATIC_PEAK),
        defaults=_peak,
        grid=lambda setting: {"replicas": _counts(setting)},
    ),
    Rival(
        name="static-p95",
        summary="as many replicas as 95 % of the windows of the tuning days need, full power",
        make=_static("static-p95"),
        defaults=lambda setting: {"replicas": float(setting.replicas_for(_P95))},
    ),
    Rival(
        name="static-cap",
        summary="replicas of the peak, one power limit on all GPUs",
        make=_capped,
        defaults=lambda setting: {**_peak(setting), "power_cap_watts": _lever(setting.power_cap).maximum},
        grid=lambda setting: {
            "power_cap_watts": _limits(setting.power_cap),
            "replicas": _counts(setting),
        },
        needs=lambda setting: "" if setting.power_cap else "its GPUs have no power limit to set",
    ),
    Rival(
        name="static-clock",
        summary="replicas of the peak, one clock limit on all GPUs",
        make=_clocked,
        defaults=lambda setting: {**_peak(setting), "clock_mhz": _lever(setting.clock).maximum},
        grid=lambda setting: {
            "clock_mhz": _limits(setting.clock),
            "replicas": _counts(setting),
        },
        needs=lambda setting: "" if setting.clock else "its GPUs have no clock limit to set",
    ),
    Rival(
        name="hpa-waiting",
        summary="Kubernetes autoscaler on vllm:num_requests_waiting per pod",
        make=_hpa("hpa-waiting", waiting_metric),
        defaults=_scaling(5.0),
        grid=_scaling_grid(lambda _: (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)),
    ),
    Rival(
        name="hpa-kv",
        summary="Kubernetes autoscaler on vllm:kv_cache_usage_perc per pod",
        make=_hpa("hpa-kv", kv_usage_metric),
        defaults=_scaling(0.5),
        grid=_scaling_grid(lambda _: (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8)),
    ),
    Rival(
        name="keda-in-flight",
        summary="KEDA on running and waiting requests per pod",
        make=_keda,
        defaults=_scaling(THRESHOLD),
        grid=_scaling_grid(_in_flight),
    ),
    Rival(
        name="wva",
        summary="queueing autoscaler on means, in the way of llm-d's",
        make=_wva,
        defaults=lambda _: {"slo_scale": 1.0},
        grid=lambda _: {"slo_scale": _SLO_SCALES},
    ),
)
RIVALS: dict[str, Rival] = {rival.name: rival for rival in _ALL}
