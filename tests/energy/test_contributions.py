"""Shares of the four dimensions: exact, complete, and at home where the change was made."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.energy import fleet
from wattkeeper.domain import boosting
from wattkeeper.energy import columns, contributions
from wattkeeper.energy.contributions import CAUSES, DIMENSIONS, NAMES, State
from wattkeeper.energy.factors import Dimension
from wattkeeper.energy.model import EnergyModel
from wattkeeper.energy.points import closed_loop

SHIPPED = EnergyModel.load()
PAIRS = [fleet.ESTIMATED, fleet.FITTED, fleet.OTHER_GPU, ("meta-llama/Llama-3.1-70B-Instruct", "nvidia-b200", 2)]


def state(pair, *, batch=32.0, prompt=400.0, output=300.0, busy=0.8, replicas=2.0, clock=1.0, limit=1.0) -> State:
    arrays = [np.atleast_1d(np.asarray(value, dtype=float)) for value in (batch, prompt, output, busy, replicas)]
    batch, prompt, output, busy, replicas = np.broadcast_arrays(*arrays)
    served = fleet.profile(*pair)
    points = closed_loop(
        served, batch=batch, prompt_tokens=prompt, output_tokens=output, multimodal=np.zeros_like(batch)
    )
    points = replace(points, clock_ratio=np.full_like(batch, clock), limit_watts=limit * points.limit_watts)
    points = replace(points, step_seconds=contributions._step_seconds(points))
    return State(points=points, busy=busy, replicas=replicas)


def shipped(states):
    busy = SHIPPED.busy_watts([each.points for each in states])
    return [each.watts(watts) for each, watts in zip(states, busy, strict=True)]


states = st.builds(
    state,
    st.sampled_from(PAIRS),
    batch=st.floats(0.5, 400.0),
    prompt=st.floats(1.0, 8000.0),
    output=st.floats(1.0, 2000.0),
    busy=st.floats(0.01, 1.0),
    replicas=st.integers(1, 40),
    clock=st.floats(0.4, 1.0),
    limit=st.floats(0.5, 1.0),
)


@settings(max_examples=25, deadline=None)
@given(reference=states, asked=states)
def test_shares_add_up_exactly_and_swap_sign_with_the_ends(reference, asked):
    found = contributions.contributions(reference, asked, shipped)
    np.testing.assert_allclose(found.watts, shipped([asked])[0])
    np.testing.assert_allclose(found.reference_watts, shipped([reference])[0])
    expected = np.log(found.watts / found.reference_watts)
    np.testing.assert_allclose(found.by_cause.sum(axis=1), expected, atol=1e-10)
    np.testing.assert_allclose(found.by_dimension.sum(axis=1), expected, atol=1e-10)
    back = contributions.contributions(asked, reference, shipped)
    np.testing.assert_allclose(back.by_cause, -found.by_cause, atol=1e-9)
    np.testing.assert_allclose(back.interactions, found.interactions, atol=1e-9)
    np.testing.assert_allclose(found.interactions, found.interactions.transpose(0, 2, 1))


@settings(max_examples=25, deadline=None)
@given(one=states)
def test_nothing_moved_nothing_contributed(one):
    found = contributions.contributions(one, one, shipped)
    assert not found.by_cause.any() and not found.interactions.any()


def test_of_a_product_each_dimension_gets_its_own_factor_and_nothing_interacts():
    reference, asked = state(fleet.ESTIMATED), state(fleet.ESTIMATED, batch=64.0, output=600.0, replicas=6.0)

    def product(each):
        return [item.replicas * item.points.batch**0.5 * item.points.output_tokens**0.25 for item in each]

    found = contributions.contributions(reference, asked, product)
    by_name = dict(zip(NAMES, found.by_cause[0], strict=True))
    np.testing.assert_allclose(by_name.pop("replicas"), np.log(3.0))
    np.testing.assert_allclose(by_name.pop("batch"), 0.5 * np.log(2.0))
    np.testing.assert_allclose(by_name.pop("output_tokens"), 0.25 * np.log(2.0))
    np.testing.assert_allclose(list(by_name.values()), 0.0, atol=1e-12)
    np.testing.assert_allclose(found.interactions, 0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "dimension"),
    [
        ({"replicas": 5.0}, Dimension.SYSTEM),
        ({"limit": 0.6}, Dimension.SYSTEM),
        ({"busy": 0.3}, Dimension.SCHEDULING),
        ({"batch": 128.0}, Dimension.SCHEDULING),
        ({"prompt": 4000.0}, Dimension.WORKLOAD),
    ],
)
def test_a_single_change_is_charged_to_its_dimension(changes, dimension):
    found = contributions.contributions(state(fleet.ESTIMATED), state(fleet.ESTIMATED, **changes), shipped)
    total = float(np.log(found.watts / found.reference_watts)[0])
    assert found.by_dimension[0, DIMENSIONS.index(dimension)] == pytest.approx(total, abs=0.02)
    assert abs(total) > 0.02


def test_a_smaller_cache_type_is_a_matter_of_the_kv_cache():
    before = state(fleet.ESTIMATED, batch=128.0, prompt=4000.0)
    half = before.points.profile
    half = replace(
        half,
        kv_bytes_per_token=half.kv_bytes_per_token / 2,
        iteration=replace(half.iteration, dkv_seconds_per_kv_token=half.iteration.dkv_seconds_per_kv_token / 2),
        energy=replace(half.energy, ekv_joules_per_kv_token=half.energy.ekv_joules_per_kv_token / 2),
    )
    assert contributions._with_kv_bytes(before.points.profile, half.kv_bytes_per_token) == half


def test_rows_must_match_and_watts_must_be_positive():
    with pytest.raises(ValueError, match="1 reference rows for 2 states"):
        contributions.contributions(state(fleet.ESTIMATED), state(fleet.ESTIMATED, batch=[1.0, 2.0]), shipped)
    with pytest.raises(ValueError, match="not positive"):
        contributions.contributions(
            state(fleet.ESTIMATED), state(fleet.ESTIMATED, batch=2.0), lambda all_: [0.0 * each.busy for each in all_]
        )


def test_every_dimension_has_causes():
    assert {cause.dimension for cause in CAUSES} == set(Dimension)
    assert len(set(NAMES)) == len(NAMES)


def test_tree_shares_by_column_are_half_of_what_the_trees_say():
    points = closed_loop(
        fleet.profile(*fleet.ESTIMATED),
        batch=np.array([16.0, 64.0]),
        prompt_tokens=np.full(2, 400.0),
        output_tokens=np.full(2, 300.0),
        multimodal=np.zeros(2),
    )
    shares = SHIPPED.learned_by_column(points)
    assert shares.shape == (2, len(columns.COLUMNS))
    assert SHIPPED.correction is not None
    model, runs = SHIPPED.correction.model, SHIPPED.correction.runs([points])
    trees = np.mean([boosting.predict(booster, model.priors.columns(runs)) for booster in model.boosters], axis=0)
    np.testing.assert_allclose(np.diff(shares.sum(axis=1)), np.diff(trees) / 2.0, atol=1e-9)
    assert np.abs(shares).max() > 1e-3
    assert not EnergyModel.physics_only().learned_by_column(points).any()
