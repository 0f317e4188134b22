"""Pods that a router leaves without work are found; new, restarted and lightly loaded ones are not accused."""

import numpy as np

from wattkeeper.domain.observation import PodReading
from wattkeeper.telemetry.source import Snapshot
from wattkeeper.telemetry.spread import WINDOW_SECONDS, LoadSpread


def watched(rates, *, seconds=WINDOW_SECONDS, joined=None, step=15.0):
    """A spread after pods got Poisson arrivals at these rates; `joined`: seconds after which a pod appears."""
    random, spread = np.random.default_rng(5), LoadSpread()
    totals = np.zeros(len(rates))
    for at in np.arange(0.0, seconds + step, step):
        if at:
            totals += random.poisson(np.multiply(rates, step))
        shown = [pod for pod in range(len(rates)) if at >= (joined or {}).get(pod, 0.0)]
        pods = {
            ("team", f"p{pod}"): PodReading(
                namespace="team",
                pod=f"p{pod}",
                age_seconds=0.0,
                finished_requests=float(totals[pod]),
                running=2.0,
                waiting=0.0,
            )
            for pod in shown
        }
        snapshot = Snapshot(time_seconds=1000.0 + at, pods=pods)
        spread.update(namespace="team", pods=[name for _, name in pods], snapshot=snapshot)
    return spread


def test_an_even_spread_uses_all():
    assert watched([0.4] * 12).used_and_unused == (12, 0)


def test_pods_without_work_are_counted():
    assert watched([0.9, 0.5, 0.3, 0.0, 0.0]).used_and_unused == (3, 2)


def test_little_work_is_some_work():
    assert watched([1.0, 0.2]).used_and_unused == (2, 0)


def test_new_pods_are_not_judged():
    assert watched([0.5, 0.5, 0.0], joined={2: 60.0}).used_and_unused == (2, 0)


def test_few_requests_tell_nothing():
    assert watched([0.05, 0.05, 0.0]).used_and_unused is None
    assert watched([2.0, 0.0], seconds=30.0).used_and_unused is None


def test_a_restarted_pod_starts_afresh():
    spread = watched([1.0, 1.0])
    pods = {
        ("team", "p1"): PodReading(namespace="team", pod="p1", age_seconds=0.0, finished_requests=0.0, running=0.0),
    }
    spread.update(namespace="team", pods=["p0", "p1"], snapshot=Snapshot(time_seconds=1125.0, pods=pods))
    assert spread.used_and_unused == (1, 0)


def test_a_burst_before_a_pod_came_does_not_accuse_it():
    """Old pods got 600 requests in the first seconds; the new one has been there for most of the window since."""
    spread = LoadSpread()
    for at in range(0, 151, 15):
        pods = {
            ("team", f"p{pod}"): PodReading(
                namespace="team", pod=f"p{pod}", age_seconds=0.0, finished_requests=300.0 * (at > 30), running=0.0
            )
            for pod in range(2)
        }
        if at > 30:
            pods[("team", "new")] = PodReading(
                namespace="team", pod="new", age_seconds=0.0, finished_requests=0.0, running=0.0
            )
        snapshot = Snapshot(time_seconds=1000.0 + at, pods=pods)
        spread.update(namespace="team", pods=[name for _, name in pods], snapshot=snapshot)
    assert spread.used_and_unused is None
