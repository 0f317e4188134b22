"""The collecting thread: never twice at a time, keeps the last good snapshot, ends at once."""

import math
import threading
import time
from dataclasses import replace

import pytest

from wattkeeper.domain.errors import TelemetryError
from wattkeeper.domain.histogram import Histogram
from wattkeeper.domain.observation import PodReading
from wattkeeper.telemetry.collector import Collector
from wattkeeper.telemetry.source import Snapshot


class Source:
    def __init__(self, *, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.calls = 0
        self.at_once = 0
        self.most_at_once = 0
        self.failure: Exception | None = None
        self._lock = threading.Lock()

    def collect(self, now_seconds):
        with self._lock:
            self.calls += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.seconds)
        with self._lock:
            self.at_once -= 1
        if self.failure is not None:
            raise self.failure
        return Snapshot(time_seconds=now_seconds, pods={})


def wait_for(condition, seconds=3.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.005)


def test_it_collects_at_once_and_again():
    source = Source()
    collector = Collector(source, 0.02)
    assert collector.latest() is None
    assert collector.age_seconds(5.0) is None
    collector.start()
    wait_for(lambda: collector.attempts >= 3)
    assert collector.stop()
    calls = source.calls
    time.sleep(0.06)
    assert source.calls == calls
    assert collector.last_duration_seconds is not None


def test_failures_keep_the_last_good_snapshot_and_say_why():
    now = [100.0]
    source = Source()
    collector = Collector(source, clock=lambda: now[0])
    good = collector.collect_once()
    assert collector.last_error is None
    for failure, text in ((TelemetryError("down"), "down"), (KeyError("x"), "unexpected KeyError: 'x'")):
        source.failure = failure
        now[0] += 10.0
        assert collector.collect_once() is None
        assert collector.last_error == text
        assert collector.latest() is good
    assert collector.age_seconds(now[0]) == 20.0
    source.failure = None
    assert collector.collect_once() is collector.latest()
    assert collector.last_error is None
    assert collector.attempts == 4


def test_readers_that_come_by_less_often_find_what_was_collected_in_between():
    now = [0.0]
    lengths = Histogram(upper_bounds=(math.inf,), cumulative=(1.0,), total=1.0)

    class Pods(Source):
        def collect(self, now_seconds):
            reading = PodReading(namespace="team", pod="a", age_seconds=0.0, finished_requests=now_seconds)
            pods = {("team", "a"): replace(reading, ttft_seconds=lengths, output_tokens=lengths)}
            return Snapshot(time_seconds=now_seconds, pods=pods)

    collector = Collector(Pods(), clock=lambda: now[0])
    assert collector.since(0.0) == ()
    for now[0] in range(5, 105, 5):
        collector.collect_once()
    shown = collector.since(85.0)
    assert [snapshot.time_seconds for snapshot in shown] == [90.0, 95.0, 100.0]
    assert shown[-1] is collector.latest()
    readings = [snapshot.pods["team", "a"] for snapshot in shown]
    assert [reading.finished_requests for reading in readings] == [90.0, 95.0, 100.0]
    assert [reading.output_tokens for reading in readings] == [None, None, lengths]
    assert len(collector.since(0.0)) == 7, "bounded"
    assert collector.since(100.0) == ()


def test_a_slow_source_is_never_asked_twice_at_a_time():
    source = Source(seconds=0.05)
    collector = Collector(source, 0.01)
    collector.start()
    helpers = [threading.Thread(target=collector.collect_once) for _ in range(3)]
    for helper in helpers:
        helper.start()
    wait_for(lambda: collector.attempts >= 5)
    assert collector.stop()
    for helper in helpers:
        helper.join()
    assert source.most_at_once == 1


def test_stop_does_not_wait_for_the_interval():
    collector = Collector(Source(), 3600.0)
    collector.start()
    wait_for(lambda: collector.attempts >= 1)
    began = time.monotonic()
    assert collector.stop()
    assert time.monotonic() - began < 30


def test_stop_says_when_a_query_holds_it():
    collector = Collector(Source(seconds=0.4), 1.0)
    collector.start()
    assert not collector.stop(timeout_seconds=0.02)
    assert collector.stop(timeout_seconds=2.0)


def test_start_twice_is_a_mistake_and_stop_before_start_is_none():
    collector = Collector(Source(), 1.0)
    assert collector.stop()
    collector.start()
    with pytest.raises(RuntimeError):
        collector.start()
    assert collector.stop()
    collector.start()
    assert collector.stop()


def test_snapshots_are_handed_on():
    seen = []
    collector = Collector(Source(), on_snapshot=seen.append)
    collector.collect_once()
    assert seen == [collector.latest()]


def test_the_interval_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        Collector(Source(), 0.0)
