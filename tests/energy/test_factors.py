from dataclasses import replace

import mypy.api
import numpy as np
import pytest

from tests.energy import fleet
from wattkeeper.energy import estimate, factor_kinds, factor_schema, factors, points
from wattkeeper.energy.factors import Dimension


def test_every_dimension_has_learned_factors():
    assert {factor.dimension for factor in factors.FACTORS} == set(Dimension)


def test_names_are_unique():
    names = [factor.name for factor in (*factors.FACTORS, *factors.UNLEARNED_FACTORS)]
    assert len(names) == len(set(names))


def test_the_whole_schema_has_unique_names_and_all_dimensions():
    before = (*factors.FACTORS, *factors.UNLEARNED_FACTORS, *factor_schema.THROUGH_OTHERS, *factor_schema.UNUSED)
    everything = [factor.name for factor in (*before, *factor_schema.OUTCOMES)]
    assert sorted(everything) == sorted(each.name for each in factor_schema.everything())
    assert len(everything) == len(set(everything))
    assert {factor.dimension for factor in factor_schema.OUTCOMES} == set(Dimension)
    assert sum(line.startswith("| ") for line in factor_schema.markdown()) == len(everything) + 1


@pytest.mark.parametrize("outcome", factor_schema.OUTCOMES, ids=lambda outcome: outcome.name)
def test_an_outcome_cannot_be_a_feature(outcome):
    with pytest.raises(factor_kinds.OutcomeAsFeatureError, match=f"{outcome.name} is known only after acting .* use "):
        factor_kinds.before_acting(*factors.FACTORS, outcome)


def test_the_type_checker_refuses_an_outcome_too(tmp_path):
    path = tmp_path / "leak.py"
    path.write_text(
        "from wattkeeper.energy import factor_kinds, factor_schema, factors\n"
        "factor_kinds.before_acting(*factors.FACTORS)\n"
        "factor_kinds.before_acting(factor_schema.OUTCOMES[0])\n"
    )
    output, _, status = mypy.api.run(
        ["--config-file", "pyproject.toml", "--follow-imports", "silent", "--cache-dir", str(tmp_path), str(path)]
    )
    assert status == 1
    assert 'leak.py:3: error: Argument 1 to "before_acting" has incompatible type "OutcomeFactor"' in output
    assert output.count("error:") == 1


def test_training_and_live_questions_give_the_same_factors():
    """A closed-loop run, and a query about a replica that runs like it, must look alike to the trees."""
    served = estimate.profile_of(
        model="Qwen/Qwen3-14B", gpu="nvidia-h100-sxm", gpus=1, parameters=np.nan, activated_parameters=np.nan,
        precision="bfloat16",
    )  # fmt: skip
    batch = np.array([8.0, 64.0, 200.0])
    load = fleet.workload(prompt=400.0, output=300.0)
    run = points.closed_loop(
        served,
        batch=batch,
        prompt_tokens=np.full(3, 400.0),
        output_tokens=np.full(3, 300.0),
        multimodal=np.zeros(3),
    )
    asked = fleet.query(served, batch=batch, load=load)
    asked = fleet.with_sla(
        asked, step_seconds=run.step_seconds, prefill_tokens_per_second=run.prefill_tokens / run.step_seconds
    )
    live, busy = points.of_queries([asked])
    np.testing.assert_array_equal(busy, 1.0)
    np.testing.assert_allclose(live.busy_watts, run.busy_watts)
    np.testing.assert_allclose(factors.matrix(live, live.busy_watts), factors.matrix(run, run.busy_watts), atol=2e-6)


def test_scaled_factors_are_finite_where_nothing_runs():
    state, _ = points.of_queries([fleet.query(fleet.profile(*fleet.ESTIMATED), batch=0.0, busy=0.0)])
    assert np.isfinite(factors.matrix(state, state.busy_watts)).all()


def test_unscaled_undoes_the_logarithm():
    state, _ = points.of_queries([fleet.query(fleet.profile(*fleet.ESTIMATED), batch=[7.0, 32.0])])
    raw = factors.unscaled(factors.matrix(state, state.busy_watts))
    np.testing.assert_allclose(raw[:, factors.NAMES.index("batch")], [7.0, 32.0], rtol=1e-5)


def test_at_another_clock_the_iterations_are_the_same():
    served = fleet.profile(*fleet.ESTIMATED)
    slowed, _ = points.of_queries([fleet.query(served, batch=[16.0, 64.0], clock=0.6)])
    plain, _ = points.of_queries([fleet.query(served, batch=[16.0, 64.0])])
    full = slowed.at_clock(np.ones(2))
    np.testing.assert_allclose(full.step_seconds, plain.step_seconds)
    np.testing.assert_allclose(full.busy_watts, plain.busy_watts)


def test_a_clock_that_is_only_feared_saves_no_watts():
    """The check slowed steps down for caution; the watts are those at the lock, or the limit."""
    served = fleet.profile(*fleet.ESTIMATED)
    batch = [16.0, 64.0, 200.0]
    slowed = fleet.query(replace(served, cap_caution=2.0), batch=batch, clock=0.6, cap=420.0)
    feared = replace(slowed, candidates=replace(slowed.candidates, clock_ratio=np.ones(3)))
    state, _ = points.of_queries([feared])
    free, _ = points.of_queries([fleet.query(served, batch=batch)])
    np.testing.assert_allclose(state.step_seconds, free.step_seconds)
    np.testing.assert_allclose(state.busy_watts, np.minimum(free.busy_watts, 420.0))
    locked, _ = points.of_queries([slowed])
    assert (locked.clock_ratio == 0.6).all()
    assert (locked.busy_watts < state.busy_watts).all()


def test_a_prefix_hit_takes_prompt_tokens_off():
    served = fleet.profile(*fleet.ESTIMATED)
    asked = fleet.query(served, batch=8.0)
    hit = replace(asked, workload=replace(asked.workload, prefix_hit_ratio=0.75))
    state, _ = points.of_queries([hit])
    assert state.prompt_tokens[0] == 100.0
