import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattkeeper.physics import fitting, host, itl
from wattkeeper.physics.fitting import FitError, Pull, StepRows
from wattkeeper.physics.profile import IterationCoefficients

SIZES = (0.0, 1.0, 8.0, 64.0, 256.0)


def rows(truth, *, noise=0.0, seed=0):
    cells = np.array([(p, n, c) for p in (0.0, 256.0, 2048.0) for n in SIZES for c in (256.0, 4096.0) if p or n])
    prefill, decodes, context = cells.T
    made = StepRows(
        prefill_tokens=prefill,
        decode_sequences=decodes,
        kv_tokens=decodes * context,
        attention_products=prefill**2 / 2,
        seconds=np.ones(len(cells)),
    )
    exact = made.design() @ np.array(truth)
    factor = np.exp(noise * np.random.default_rng(seed).normal(size=len(cells)))
    return StepRows(**{**vars(made), "seconds": exact * factor})


TRUTH = (6e-3, 2e-5, 6e-5, 5e-8, 1e-8)
COEFFICIENTS = st.tuples(
    st.floats(1e-3, 0.1), st.floats(1e-6, 1e-3), st.floats(1e-6, 1e-3), st.floats(1e-9, 1e-6), st.floats(1e-11, 1e-8)
)


@given(truth=COEFFICIENTS)
@settings(deadline=None)
def test_exact_rows_give_back_their_coefficients(truth):
    found = fitting.fit(rows(truth))
    for name, value in zip(fitting.TERMS, truth, strict=True):
        assert found.value(name) == pytest.approx(value, rel=1e-3)
    assert found.mape < 1e-4
    assert found.r_squared > 0.9999


def test_standard_errors_cover_the_errors():
    inside = []
    for seed in range(40):
        found = fitting.fit(rows(TRUTH, noise=0.05, seed=seed))
        for name, value in zip(fitting.TERMS, TRUTH, strict=True):
            term = found.terms[name]
            inside.append(abs(term.value / value - 1.0) < 2.0 * term.standard_error)
    assert 0.85 < np.mean(inside) < 1.0
    assert found.relative_error == pytest.approx(0.05, rel=0.4)


def test_terms_can_be_held_and_are_never_negative():
    found = fitting.fit(rows(TRUTH), held={"dt": 4e-5})
    assert found.value("dt") == 4e-5
    assert not found.terms["dt"].fitted
    assert found.terms["dt"].standard_error is None
    assert all(term.value >= 0 for term in found.terms.values())


def test_a_pull_decides_where_rows_do_not():
    whole = rows(TRUTH)
    one_context = StepRows(**{name: value[whole.prefill_tokens == 0][::2] for name, value in vars(whole).items()})
    held = {"dt": TRUTH[1], "da": TRUTH[4]}
    pulled = fitting.fit(one_context, held=held, pulls={"dkv": Pull(value=TRUTH[3], spread=0.1)})
    assert pulled.value("dkv") == pytest.approx(TRUTH[3], rel=0.02)
    assert pulled.value("dn") == pytest.approx(TRUTH[2], rel=0.1)
    assert pulled.terms["dkv"].pulled


def test_outliers_count_less_where_asked():
    broken = rows(TRUTH, noise=0.01)
    broken.seconds[:3] *= 4.0
    plain, robust = fitting.fit(broken), fitting.fit(broken, robust=True)
    off = [abs(found.value("d0") / TRUTH[0] - 1.0) for found in (plain, robust)]
    assert off[1] < 0.05 < off[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seconds": np.array([1.0, np.nan] * 3)}, "not finite"),
        ({"seconds": np.array([1.0, 0.0] * 3)}, "not positive"),
        ({"kv_tokens": np.full(6, -1.0)}, "negative amount"),
    ],
)
def test_impossible_rows_are_refused(change, message):
    plain = {name: np.ones(6) for name in vars(rows(TRUTH))}
    with pytest.raises(FitError, match=message):
        fitting.fit(StepRows(**{**plain, **change}))


def test_too_few_rows_are_refused():
    few = StepRows(**{name: value[:4] for name, value in vars(rows(TRUTH)).items()})
    with pytest.raises(FitError, match="4 rows cannot tell 5 terms"):
        fitting.fit(few)


PRIOR = IterationCoefficients(
    d0_seconds=5e-3,
    dt_seconds_per_token=TRUTH[1],
    dn_seconds_per_decode=3e-5,
    dkv_seconds_per_kv_token=TRUTH[3],
    da_seconds_per_token_squared=TRUTH[4],
)


def runs(batches):
    batch = np.array(batches, dtype=float)
    made = itl.LatencyRuns(
        batch=batch,
        prompt_tokens=np.full_like(batch, 200.0),
        output_tokens=np.full_like(batch, 600.0),
        inter_token_seconds=np.ones_like(batch),
    )
    seconds = made.rows().design() @ np.array(TRUTH)
    return itl.LatencyRuns(**{**vars(made), "inter_token_seconds": seconds})


def test_latencies_of_a_closed_loop_give_the_fixed_and_the_sequence_part():
    found = itl.fit_latencies(runs([8, 16, 32, 64, 128, 256, 2048]), PRIOR)
    assert found.rows == 6
    assert found.value("d0") == pytest.approx(TRUTH[0], rel=0.01)
    assert found.value("dn") == pytest.approx(TRUTH[2], rel=0.02)


@pytest.mark.parametrize("batches", [[8, 16, 32], [8, 8, 8, 8, 8], [8, 16, 1024, 2048, 4096]])
def test_too_few_batches_are_refused(batches):
    with pytest.raises(FitError, match="at least 4 different batches"):
        itl.fit_latencies(runs(batches), PRIOR)


def test_the_host_is_what_kernels_do_not_explain():
    sequences = np.array([1.0, 8.0, 64.0, 256.0] * 3)
    kernels = 0.004 + 2e-5 * sequences
    truth = host.HostOverhead(step_seconds=5e-4, sequence_seconds=4e-5)
    measured = kernels + truth.seconds(sequences)
    measured[0] *= 3.0
    found = host.fit_host(measured_seconds=measured, kernel_seconds=kernels, sequences=sequences)
    assert found.step_seconds == pytest.approx(truth.step_seconds, rel=0.15)
    assert found.sequence_seconds == pytest.approx(truth.sequence_seconds, rel=0.05)
    with pytest.raises(FitError, match="at least two runs"):
        host.fit_host(measured_seconds=measured[:1], kernel_seconds=kernels[:1], sequences=sequences[:1])
