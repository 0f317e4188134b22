"""The rivals by name: how each is built from its parameters, what its documentation recommends, and what to try."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wattkeeper.queueing import mean_chain
from wattkeeper.rivals import hpa, wva
from wattkeeper.rivals.fixed import Fixed
from wattkeeper.rivals.types import Policy

Parameters = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the rivals are sized from: the fleet, and the demand of the days they are tuned on."""

    peak_replicas: int
    """The fewest that meet the SLO on the tuning days without ever moving."""
    most_replicas: int
    """As many as there are GPUs for."""
    p95_share: float
    """95th percentile of the rate of the tuning days (ten-minute means) over its maximum."""
    server: mean_chain.Server
    """One replica at full clock, as a perfect tuner of the mean model would know it."""
    targets: wva.Targets
    default_watts: float
    lowest_watts: float
    highest_mhz: float
    lowest_mhz: float

    @property
    def p95_replicas(self) -> int:
        """Enough for all but one ten-minute stretch in twenty."""
        return max(1, math.ceil(self.peak_replicas * self.p95_share))


@dataclass(frozen=True, kw_only=True)
class Rival:
    """One entry."""

    name: str
    summary: str
    build: Callable[[Facts, Parameters], Policy]
    documented: Parameters
    """What its documentation starts with; empty where nobody recommends anything."""
    grid: Callable[[Facts], tuple[Parameters, ...]]
    """What the tuning may try; empty: nothing to tune."""
    ordered: bool = True
    """The grid goes from little energy to much, and attainment with it: the search may halve it."""


def _floor(facts: Facts, parameters: Parameters) -> int:
    share = parameters["floor"]
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"floor is a share of the peak fleet in [0, 1], not {share}")
    return max(1, round(share * facts.peak_replicas))


def _autoscaler(
    name: str, *metrics: tuple[str, Callable[[float], hpa.PodsMetric | hpa.SumMetric]]
) -> Callable[[Facts, Parameters], Policy]:
    def build(facts: Facts, parameters: Parameters) -> Policy:
        return hpa.Autoscaler(
            name=name,
            metrics=[make(parameters[key]) for key, make in metrics],
            stabiliser=hpa.Stabiliser(minimum=_floor(facts, parameters), maximum=facts.most_replicas),
        )

    return build


def _grid(
    key: str, values: tuple[float, ...], floors: tuple[float, ...] = (0.0, 0.5)
) -> Callable[[Facts], tuple[Parameters, ...]]:
    return lambda _: tuple({key: value, "floor": floor} for value in values for floor in floors)


def _even(low: float, high: float, count: int) -> tuple[float, ...]:
    return tuple(round(low + (high - low) * step / (count - 1)) for step in range(count))


RIVALS: dict[str, Rival] = {
    entry.name: entry
    for entry in (
        Rival(
            name="static-peak",
            summary="the fewest replicas that meet the SLO on the tuning days, full power",
            build=lambda facts, _: Fixed(name="static-peak", replicas=facts.peak_replicas),
            documented={},
            grid=lambda _: (),
        ),
        Rival(
            name="static-p95",
            summary="replicas for the 95th percentile of demand, full power",
            build=lambda facts, _: Fixed(name="static-p95", replicas=facts.p95_replicas),
            documented={},
            grid=lambda _: (),
        ),
        Rival(
            name="static-cap",
            summary="the peak fleet under one power limit",
            build=lambda facts, p: Fixed(name="static-cap", replicas=facts.peak_replicas, power_cap_watts=p["watts"]),
            documented={},
            grid=lambda facts: tuple(
                {"watts": watts} for watts in _even(facts.lowest_watts, facts.default_watts, 8)[:-1]
            ),
        ),
        Rival(
            name="static-clock",
            summary="the peak fleet at one locked clock",
            build=lambda facts, p: Fixed(name="static-clock", replicas=facts.peak_replicas, clock_mhz=p["mhz"]),
            documented={},
            grid=lambda facts: tuple(
                {"mhz": mhz} for mhz in _even(max(facts.lowest_mhz, 900.0), facts.highest_mhz, 8)[:-1]
            ),
        ),
        Rival(
            name="hpa-waiting",
            summary="HPA on vllm:num_requests_waiting per pod (production-stack's example: 5)",
            build=_autoscaler("hpa-waiting", ("waiting", lambda t: hpa.PodsMetric(read=hpa.waiting, target=t))),
            documented={"waiting": 5.0, "floor": 0.0},
            grid=_grid("waiting", (0.2, 1.0, 5.0)),
            ordered=False,
        ),
        Rival(
            name="hpa-kv",
            summary="HPA on vllm:kv_cache_usage_perc per pod",
            build=_autoscaler("hpa-kv", ("usage", lambda t: hpa.PodsMetric(read=hpa.kv_usage, target=t))),
            documented={"usage": 0.8, "floor": 0.0},
            grid=_grid("usage", (0.8, 0.4, 0.2, 0.1, 0.05, 0.025), (0.0,)),
        ),
        Rival(
            name="keda-in-flight",
            summary="KEDA on running + waiting requests per replica",
            build=_autoscaler("keda-in-flight", ("requests", lambda t: hpa.SumMetric(read=hpa.in_flight, target=t))),
            documented={"requests": 16.0, "floor": 0.0},
            grid=_grid("requests", (64.0, 48.0, 32.0, 24.0, 16.0, 8.0, 4.0), (0.0,)),
        ),
        Rival(
            name="mean-queue",
            summary="autoscaler on a queue's means, as llm-d's workload-variant-autoscaler",
            build=lambda facts, p: wva.MeanQueue(
                name="mean-queue",
                server=facts.server,
                targets=facts.targets,
                minimum=1,
                maximum=facts.most_replicas,
                headroom=p["headroom"],
            ),
            documented={"headroom": 1.0},
            grid=lambda _: tuple({"headroom": value} for value in (1.0, 1.15, 1.3, 1.5, 1.75, 2.0, 2.5)),
        ),
    )
}
