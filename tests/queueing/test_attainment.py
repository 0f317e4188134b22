import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.queueing import cases
from wattkeeper.queueing import sla
from wattkeeper.queueing.attainment import tails
from wattkeeper.queueing.types import SlaQuery


def query(load, candidates=None):
    return SlaQuery(
        profile=cases.H100_8B,
        workload=cases.workload("conversation", load),
        candidates=candidates or cases.candidates(),
        ttft_percentile=95.0,
        tpot_percentile=95.0,
    )


@given(st.floats(0.05, 5.0), st.floats(0.005, 0.2), st.floats(0.5, 20.0))
@settings(max_examples=30, deadline=None)
def test_shares_are_shares_and_grow_with_their_targets(ttft, tpot, rate):
    levels = tails([query(rate)])[0]
    tight, loose = (levels.attainment(ttft_seconds=factor * ttft, tpot_seconds=factor * tpot) for factor in (1.0, 1.5))
    for found in (tight, loose):
        assert 0.0 <= found.least[0] <= found.most[0] <= 1.0
    assert loose.ttft[0] >= tight.ttft[0]
    assert loose.tpot[0] >= tight.tpot[0]


def test_the_share_at_a_percentile_is_that_percentile():
    asked = query(8.0)
    level = sla.predict_fleet([asked])[0]
    found = tails([asked])[0].attainment(ttft_seconds=float(level.ttft_seconds[0]), tpot_seconds=np.inf)
    assert found.ttft[0] == pytest.approx(0.95, abs=1e-6)
    assert found.tpot[0] == pytest.approx(0.995)
    assert found.least[0] == pytest.approx(0.945)


def test_overload_and_absurd_targets_attain_nothing():
    overloaded, lazy = tails([query(500.0), query(5.0)])
    assert overloaded.attainment(ttft_seconds=1.0, tpot_seconds=0.05).least[0] == 0.0
    assert lazy.attainment(ttft_seconds=0.0, tpot_seconds=float("nan")).most[0] == 0.0
