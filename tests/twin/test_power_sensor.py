"""Faults of simulated power exporters."""

import math

import pytest

from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.twin.exposition import GpuSample, dcgm_text
from wattkeeper.twin.power_sensor import PowerFault, PowerFaultKind, PowerSensor


def gpus(watts=300.0):
    return [
        GpuSample(
            index=index, uuid=f"GPU-{index}", node="a", model_name="H100", power_watts=watts + index, energy_joules=0.0,
            sm_clock_mhz=1980.0, utilisation=0.5, limit_watts=700.0, pod=f"chat-{index}" if index else None,
        )
        for index in range(2)
    ]  # fmt: skip


def shown(text, *, watts=300.0, at=10.0):
    return [gpu.power_watts for gpu in PowerSensor(PowerFault.parse(text)).shown(gpus(watts), traffic_seconds=at)]


def test_what_each_fault_shows():
    assert shown("scale=1.25") == [375.0, 376.25]
    assert shown("zero") == [0.0, 0.0]
    assert shown("negative") == [-300.0, -301.0]
    assert shown("missing") == [300.0]
    assert all(map(math.isnan, shown("nan")))
    assert "DCGM_FI_DEV_POWER_USAGE" in dcgm_text(
        PowerSensor(PowerFault.parse("nan")).shown(gpus(), traffic_seconds=0.0)
    )


def test_a_fault_begins_when_it_is_told_to():
    assert shown("zero@60", at=59.0) == [300.0, 301.0]
    assert shown("zero@60", at=60.0) == [0.0, 0.0]


def test_a_stuck_sensor_keeps_what_it_showed_until_it_is_mended():
    sensor = PowerSensor(PowerFault(kind=PowerFaultKind.STUCK))
    first = [gpu.power_watts for gpu in sensor.shown(gpus(300.0), traffic_seconds=0.0)]
    assert [gpu.power_watts for gpu in sensor.shown(gpus(500.0), traffic_seconds=9.0)] == first
    sensor.fault = None
    assert [gpu.power_watts for gpu in sensor.shown(gpus(500.0), traffic_seconds=9.0)] == [500.0, 501.0]


@pytest.mark.parametrize("text", ["", "broken", "scale", "zero=2", "scale=x", "scale=-1", "zero@soon", "zero@-5"])
def test_a_fault_that_is_none_is_refused_with_an_example(text):
    with pytest.raises(WattkeeperError, match=r"scale"):
        PowerFault.parse(text)
