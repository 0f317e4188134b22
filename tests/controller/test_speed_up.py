"""A sped-up world: every rate is read in its own seconds, and nothing else changes."""

from __future__ import annotations

import dataclasses

import pytest

from tests.controller.world import SettableSource, reading
from wattkeeper.controller.measure import SpedUpSource


def test_all_rates_and_only_rates_are_slowed():
    source = SettableSource()
    source.pods = {("a", "b"): reading("a", "b", rate=40.0)}
    source.pods["a", "b"] = dataclasses.replace(source.pods["a", "b"], in_system_growth_per_second=-6.0)
    [fast], [slow] = (each.collect(0.0).pods.values() for each in (source, SpedUpSource(source=source, speed_up=20.0)))
    for field in dataclasses.fields(fast):
        before, after = getattr(fast, field.name), getattr(slow, field.name)
        if field.name.endswith("_per_second"):
            assert after == pytest.approx(before / 20.0), field.name
        else:
            assert after == before, field.name
