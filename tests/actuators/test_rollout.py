import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattkeeper.actuators.rollout import impact, scaled


def deployment(replicas, surge=None, unavailable=None, kind="RollingUpdate"):
    rolling = {
        name: value for name, value in (("maxSurge", surge), ("maxUnavailable", unavailable)) if value is not None
    }
    return {"kind": "Deployment", "spec": {"replicas": replicas, "strategy": {"type": kind, "rollingUpdate": rolling}}}


def stateful(replicas, strategy):
    return {"kind": "StatefulSet", "spec": {"replicas": replicas, "updateStrategy": strategy}}


@pytest.mark.parametrize(
    ("target", "surge", "lost"),
    [
        (deployment(1), 1, 0),
        (deployment(4), 1, 1),
        (deployment(10), 3, 2),
        (deployment(10, "100%", 0), 10, 0),
        (deployment(3, 0, 0), 0, 1),
        (deployment(3, "0%", "10%"), 0, 1),
        (deployment(3, 0, 2), 0, 2),
        (deployment(3, 1, "100%"), 1, 3),
        (deployment(3, kind="Recreate"), 0, 3),
        ({"kind": "Deployment", "spec": {}}, 1, 0),
        (stateful(4, {}), 0, 1),
        (
            {
                "kind": "StatefulSet",
                "spec": {"replicas": 4, "updateStrategy": {"rollingUpdate": {"maxUnavailable": "50%"}}},
            },
            0,
            2,
        ),
    ],
)
def test_pods_as_kubernetes_counts_them(target, surge, lost):
    result = impact(target, gpus_per_replica=2, free_gpus=100)
    assert (result.surge_pods, result.unavailable_pods, result.surge_gpus) == (surge, lost, 2 * surge)
    assert result.capacity_loss == pytest.approx(lost / result.replicas)


def test_full_cluster_stalls_a_surge_only_roll_out():
    result = impact(deployment(4, "100%", 0), gpus_per_replica=2, free_gpus=1)
    assert result.stalls and result.reason == "RolloutNeedsFreeGpus"
    assert result.recommended_strategy == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1},
    }
    assert not impact(deployment(4, "100%", 0), gpus_per_replica=2, free_gpus=2).stalls
    assert not impact(deployment(4, "100%", 1), gpus_per_replica=2, free_gpus=0).stalls
    unknown = impact(deployment(4, "100%", 0), gpus_per_replica=2, free_gpus=None)
    assert unknown.reason == "GpusNotKnown" and not unknown.stalls and unknown.recommended_strategy


def test_loss_of_the_whole_service_is_said():
    assert impact(deployment(1, 0, 1), gpus_per_replica=1, free_gpus=0).reason == "RolloutStopsService"
    assert impact(deployment(3, kind="Recreate"), gpus_per_replica=1, free_gpus=9).reason == "RolloutStopsService"
    assert impact(deployment(0), gpus_per_replica=1, free_gpus=0).reason == "RolloutFits"
    by_hand = {"kind": "StatefulSet", "spec": {"replicas": 2, "updateStrategy": {"type": "OnDelete"}}}
    assert impact(by_hand, gpus_per_replica=1, free_gpus=0).stalls


@given(st.integers(0, 200), st.integers(0, 100))
def test_percentages_round_as_kubernetes_rounds(total, percent):
    exact = Fraction(total * percent, 100)
    assert scaled(f"{percent}%", total, up=True) == math.ceil(exact)
    assert scaled(f"{percent}%", total, up=False) == math.floor(exact)
    assert scaled(percent, total, up=True) == percent
