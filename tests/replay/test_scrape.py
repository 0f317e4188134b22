import dataclasses

import pytest

from tests.replay.played import Scripted, played, stage, trace
from wattkeeper.replay.play import Cell, play
from wattkeeper.replay.scrape import FleetSource
from wattkeeper.replay.stage import EPOCH_SECONDS, SERVICE, MetricsPath, ReplayError
from wattkeeper.rivals.types import Decision
from wattkeeper.telemetry.pages import PageReadings, ScrapeTarget
from wattkeeper.twin.exposition import dcgm_text, vllm_text


def looks(path: MetricsPath, *, period: float = 5.0, replicas: int = 3):
    policy = Scripted(lambda _: Decision(), period=period)
    played(policy, on=stage(metrics=path, replicas=replicas))
    return policy.looks


def test_pods_are_seen_in_turn_and_late():
    path = MetricsPath(interval_seconds=15.0, delay_seconds=4.0)
    seen = looks(path)
    first = next(look for look in seen if look.snapshot is not None)
    assert first.time_seconds >= path.interval_seconds
    ages = [
        reading.age_seconds + look.time_seconds - (look.snapshot.time_seconds - EPOCH_SECONDS)
        for look in seen
        if look.snapshot is not None and look.time_seconds > 60.0
        for reading in look.snapshot.pods.values()
    ]
    assert min(ages) >= path.delay_seconds
    assert max(ages) <= path.delay_seconds + path.interval_seconds + path.collect_seconds
    last = seen[-1].snapshot
    assert last is not None
    assert len({reading.age_seconds for reading in last.pods.values()}) > 1, "each pod has an offset of its own"


def test_rates_and_watts_are_those_of_the_fleet():
    last = looks(MetricsPath())[-1].snapshot
    assert last is not None
    rate = sum(reading.finished_per_second for reading in last.pods.values())
    assert rate == pytest.approx(4.0, rel=0.3)
    assert all(len(reading.gpus) == 1 and reading.gpus[0].power_watts > 60.0 for reading in last.pods.values())
    assert sum(reading.ttft_seconds.count for reading in last.pods.values()) == pytest.approx(rate, rel=0.05)


def test_lost_scrapes_make_readings_older_by_seed():
    path = MetricsPath(lost_share=0.5)

    def ages(seed):
        policy = Scripted(lambda _: Decision())
        cell = Cell(trace=trace(), trace_name="test", stage=stage(metrics=path), seed=seed)
        play(cell, lambda _d, _c: policy)
        return [
            reading.age_seconds
            for look in policy.looks
            if look.snapshot is not None
            for reading in look.snapshot.pods.values()
        ]

    assert max(ages(0)) > 20.0
    assert ages(0) == ages(0)
    assert ages(0) != ages(1)


def test_in_an_outage_the_last_snapshot_stands_and_grows_old():
    seen = {look.time_seconds: look for look in looks(MetricsPath(outages=((120.0, 240.0),)))}
    assert seen[235.0].snapshot is seen[125.0].snapshot
    after = seen[300.0].snapshot
    assert after is not None
    assert after.time_seconds >= EPOCH_SECONDS + 295.0


def test_no_text_makes_no_difference():
    """Samples straight from the counters read like the page that the twin serves."""
    found = {}

    def make(deployment, collector):
        found["deployment"] = deployment
        return Scripted(lambda _: Decision())

    play(Cell(trace=trace(minutes=3.0), trace_name="test", stage=stage()), make)
    fleet = found["deployment"].fleet
    service = fleet.services[SERVICE]
    path = MetricsPath(delay_seconds=0.0)
    source = FleetSource(fleet, service, path, seed=0)
    pages = PageReadings(rate_window_seconds=60.0, length_window_seconds=300.0)
    now = EPOCH_SECONDS + fleet.now
    for step in range(path.slots):
        source.scrape(step)
    for key, member in service.members.items():
        target = ScrapeTarget(url="", namespace=key[0], pod=key[1])
        pages.take(target, vllm_text(member.replica, model_name="m"), now)
    for node, gpus in fleet.inventory.nodes.items():
        pages.take(ScrapeTarget(url=node, role="gpu"), dcgm_text([gpu.sample() for gpu in gpus]), now)
    mine, theirs = source.collect(now), pages.snapshot(now)
    assert mine.pods.keys() == theirs.pods.keys()
    for key, reading in theirs.pods.items():
        assert dataclasses.replace(mine.pods[key], gpus=()) == dataclasses.replace(reading, gpus=())
        assert mine.pods[key].gpus[0].power_watts == pytest.approx(reading.gpus[0].power_watts, abs=1e-3)


@pytest.mark.parametrize(
    "wrong", [{"interval_seconds": 0.0}, {"delay_seconds": -1.0}, {"lost_share": 1.0}, {"outages": ((5.0, 5.0),)}]
)
def test_paths_that_cannot_be_are_errors(wrong):
    with pytest.raises(ReplayError):
        MetricsPath(**wrong)
