"""What was read at full power outlives the operator: limits are planned as before, and nothing else is believed."""

import logging
import math
from dataclasses import replace

import pytest

from tests.energy import fleet
from wattkeeper.api.calibration import CalibrationStatus, FullPowerStatus
from wattkeeper.controller import full_power
from wattkeeper.controller.full_power import FullPower, FullPowerReadings

NOW = 1_800_000_000.0
PROFILE = fleet.profile(*fleet.ESTIMATED)
CHAT, OTHER = ("llm", "chat"), ("llm", "other")


def read(factor, seconds=NOW):
    return FullPower(factor=factor, seconds=seconds, estimate=full_power.estimate_of(PROFILE))


def test_the_largest_that_any_service_read_is_kept_and_begins_the_next():
    readings = FullPowerReadings(kept=read(1.3))
    assert readings.of(CHAT, PROFILE) == 1.3
    readings.take(OTHER, read(1.1))
    assert readings.most() == read(1.3)
    readings.take(CHAT, read(1.05))
    assert readings.most() == read(1.1)
    readings.keep_only({CHAT, OTHER})
    assert readings.of(CHAT, PROFILE) == 1.05
    readings.keep_only(set())
    assert readings.most() == read(1.1)
    assert readings.of(("llm", "third"), PROFILE) == 1.1


def test_what_is_not_believed_any_more_is_not_kept():
    readings = FullPowerReadings(kept=read(1.3))
    readings.take(CHAT, None)
    assert readings.of(CHAT, PROFILE) is None
    assert full_power.to_status(readings.most()) is None


def test_a_factor_of_another_estimate_says_nothing(caplog):
    readings = FullPowerReadings(kept=read(1.3))
    changed = replace(PROFILE, energy=replace(PROFILE.energy, static_watts=PROFILE.energy.static_watts + 10.0))
    assert readings.of(CHAT, changed) is None
    assert "llm/chat: the kept reading of watts at full power is not used (the estimate" in caplog.text
    assert readings.of(CHAT, replace(PROFILE, relative_error=0.2, cap_caution=2.0)) is None, "it is forgotten"


def test_status_keeps_it_and_gives_it_back():
    held = full_power.to_status(read(1.25))
    assert full_power.from_status(held, wall=NOW + 3600.0, service="llm/chat") == read(1.25)
    assert full_power.from_status(None, wall=NOW, service="llm/chat") is None


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({"wattsFactor": math.nan}, "its factor is nan"),
        ({"wattsFactor": math.inf}, "its factor is inf"),
        ({"wattsFactor": -1.2}, "its factor is -1.2"),
        ({"wattsFactor": 0.4}, "its factor is 0.4"),
        ({"time": "yesterday"}, "its time 'yesterday' is none"),
        ({"time": "2026-01-01T00:00:00Z"}, "more than 28 days ago"),
        ({"time": "2099-01-01T00:00:00Z"}, "is still to come"),
    ],
)
def test_nonsense_is_left_out_with_a_reason(caplog, status, reason):
    held = FullPowerStatus.model_validate({"wattsFactor": 1.2, "time": "2027-01-15T08:00:00Z"} | status)
    with caplog.at_level(logging.WARNING):
        assert full_power.from_status(held, wall=NOW, service="llm/chat") is None
    assert reason in caplog.text
    assert "llm/chat" in caplog.text


def test_the_same_factor_is_written_again_only_after_a_day():
    before, soon, later, other = (
        full_power.to_status(read(factor, NOW + seconds))
        for factor, seconds in ((1.2, 0.0), (1.2, 3600.0), (1.2, 2e5), (1.3, 0.0))
    )
    assert not full_power.changed(None, None)
    assert not full_power.changed(before, soon)
    assert full_power.changed(before, later)
    assert full_power.changed(before, other)
    assert full_power.changed(None, before)


def test_objects_of_before_are_read():
    old = {"energyModel": "energy-v2-00000000", "kvCacheDtype": "auto", "readings": [{"batch": 8.0, "errorLog": 0.1,
           "weight": 2.0, "time": "2026-01-01T00:00:00Z"}]}  # fmt: skip
    status = CalibrationStatus.model_validate(old)
    assert status.full_power is None
    assert status.gpus_per_replica is None
