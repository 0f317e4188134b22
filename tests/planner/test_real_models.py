"""The planner on the models that ship: a settled service is cheap to plan, and its plan saves watts within the SLO."""

import pytest

from tests.planner.fakes import CLOCK_LEVERS, ENGINE_LEVERS, LEVERS, applied, observation, request
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.plan import PlanReason
from wattkeeper.domain.workload import LengthDistribution, Workload
from wattkeeper.energy.model import EnergyModel
from wattkeeper.physics import profiles
from wattkeeper.planner.plan import plan
from wattkeeper.planner.types import PlannerSettings
from wattkeeper.queueing import sla

ENGINE = EngineSettings(max_num_seqs=256, max_num_batched_tokens=2048)
SETTINGS = PlannerSettings(margin_base=0.1)


@pytest.fixture(scope="module")
def energy():
    return EnergyModel.load()


def service(rate, *, replicas, levers):
    workload = Workload(
        requests_per_second=rate,
        prompt=LengthDistribution.lognormal(mean=1000, coefficient_of_variation=1.0),
        output=LengthDistribution.lognormal(mean=200, coefficient_of_variation=1.0),
    )
    profile = profiles.serving_profile(
        model="meta-llama/Llama-3.1-8B-Instruct", accelerator="nvidia-h100-sxm", gpus_per_replica=1, engine=ENGINE
    )
    return request(
        rate=rate,
        replicas=replicas,
        levers=levers,
        profile=profile,
        engine=ENGINE,
        observation=observation(rate=rate, workload=workload),
    )


@pytest.mark.parametrize("levers", [LEVERS, CLOCK_LEVERS, ENGINE_LEVERS])
@pytest.mark.parametrize("rate", [0.5, 8.0, 40.0])
def test_a_plan_meets_the_slo_for_fewer_watts_and_settles(energy, levers, rate):
    calls = []

    def counting(queries):
        calls.append([len(query.candidates) for query in queries])
        return sla.predict_fleet(queries)

    asked = service(rate, replicas=12, levers=levers)
    first = plan([asked], energy=energy, settings=SETTINGS, predict=counting)[0]
    assert first.reason is PlanReason.LEAST_ENERGY and first.feasible
    assert first.prediction.ttft_seconds <= 0.5 / 1.1 and first.prediction.tpot_seconds <= 0.05 / 1.1
    assert first.prediction.power_interval_watts[0] <= first.prediction.power_watts < 12 * 700
    calls.clear()
    settled = applied(asked, first)
    second = plan([settled], energy=energy, settings=SETTINGS, predict=counting)[0]
    assert second.target == first.target
    assert len(calls) == 1, "a settled service costs one call of the SLA check"


def test_a_lever_more_never_costs_watts(energy):
    with_clock, without = (
        plan([service(20.0, replicas=12, levers=levers)], energy=energy, settings=SETTINGS)[0]
        for levers in (CLOCK_LEVERS, LEVERS.__class__(replicas=LEVERS.replicas))
    )
    assert with_clock.prediction.power_watts < without.prediction.power_watts
