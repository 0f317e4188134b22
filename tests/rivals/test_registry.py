from dataclasses import replace

import pytest

from tests.rivals.looks import look, waiting
from wattkeeper.domain.plan import LatencyTarget, RangeLever, Slo
from wattkeeper.rivals.registry import RIVALS, STATIC_PEAK, find
from wattkeeper.rivals.settings import PolicySettingsError, ServerModel, Setting
from wattkeeper.rivals.static import Static

SETTING = Setting(
    min_replicas=1,
    max_replicas=16,
    slo=Slo(ttft=LatencyTarget(percentile=95, seconds=1.0), tpot=LatencyTarget(percentile=95, seconds=0.05)),
    demand_rps=tuple(float(rate) for rate in range(1, 101)),
    replica_rps=10.0,
    server=ServerModel(
        alpha_seconds=0.008, beta_seconds_per_token=2e-5, gamma_seconds_per_kv_token=4e-8, max_num_seqs=128
    ),
    power_cap=RangeLever(minimum=300.0, maximum=700.0, step=25.0),
    clock=RangeLever(minimum=900.0, maximum=1980.0, step=15.0),
)


def test_replicas_of_the_peak_and_of_the_95th_percentile():
    assert SETTING.replicas_for(100.0) == 10
    assert SETTING.replicas_for(95.0) == 10  # 95.05 requests per second
    assert SETTING.replicas_for(50.0) == 6
    assert replace(SETTING, max_replicas=7).replicas_for(100.0) == 7
    assert find("static-p95").build(SETTING).decide(look(0.0, None, ready=1)).replicas == 10


@pytest.mark.parametrize("name", RIVALS)
def test_each_runs_with_its_defaults_and_with_all_ends_of_its_grid(name):
    rival = RIVALS[name]
    defaults, grid = rival.defaults(SETTING), rival.grid(SETTING)
    assert set(grid) <= set(defaults)
    for parameter, values in grid.items():
        assert list(values) == sorted(set(values))
        assert len(values) >= 2
        for value in (values[0], values[-1]):
            assert rival.build(SETTING, {parameter: value}).name == name
    policy = rival.build(SETTING)
    assert policy.name == name
    assert policy.period_seconds > 0
    for time in (0.0, 15.0, 30.0):
        wanted = policy.decide(look(time, waiting(3, 4), ready=2)).replicas
        assert wanted is None or 1 <= wanted <= 16


def test_documented_defaults():
    assert find("hpa-waiting").defaults(SETTING) == {"target": 5.0, "min_replicas": 1.0, "down_window_seconds": 300.0}
    assert find("hpa-kv").defaults(SETTING)["target"] == 0.5
    assert find("keda-in-flight").defaults(SETTING)["target"] == 2.0
    assert find("wva").defaults(SETTING) == {"slo_scale": 1.0}
    assert find(STATIC_PEAK).defaults(SETTING) == {"replicas": 10.0}
    assert find("static-cap").defaults(SETTING) == {"replicas": 10.0, "power_cap_watts": 700.0}


def test_static_limits():
    decision = (
        find("static-cap").build(SETTING, {"power_cap_watts": 400.0, "replicas": 8}).decide(look(0.0, None, ready=1))
    )
    assert (decision.replicas, decision.power_cap_watts, decision.clock_mhz) == (8, 400.0, None)
    clocked = find("static-clock").build(SETTING, {"clock_mhz": 1200.0}).decide(look(0.0, None, ready=1))
    assert (clocked.power_cap_watts, clocked.clock_mhz) == (None, 1200.0)


def test_bad_parameters_are_refused():
    with pytest.raises(PolicySettingsError, match="no policy 'hpa'; there are: static-peak"):
        find("hpa")
    with pytest.raises(PolicySettingsError, match="hpa-kv has no parameter targt; it has: target"):
        find("hpa-kv").build(SETTING, {"targt": 0.5})
    with pytest.raises(PolicySettingsError, match=r"power_cap_watts must lie in 300\.\.700, not 200"):
        find("static-cap").build(SETTING, {"power_cap_watts": 200.0})
    with pytest.raises(PolicySettingsError, match=r"replicas must be a whole number, not 2\.5"):
        find(STATIC_PEAK).build(SETTING, {"replicas": 2.5})
    with pytest.raises(PolicySettingsError, match="static-cap cannot run here: its GPUs have no power limit"):
        find("static-cap").build(replace(SETTING, power_cap=None))
    with pytest.raises(PolicySettingsError, match="a power cap or a clock limit, not both"):
        Static(name="both", replicas=1, power_cap_watts=300.0, clock_mhz=1000.0)
    with pytest.raises(PolicySettingsError, match="at least one window"):
        replace(SETTING, demand_rps=())
    with pytest.raises(PolicySettingsError, match="replica_rps must be above 0"):
        replace(SETTING, replica_rps=float("nan"))
    with pytest.raises(PolicySettingsError, match="max_replicas must be at least 1, not 0"):
        replace(SETTING, max_replicas=0)
