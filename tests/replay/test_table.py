from dataclasses import replace

import pytest

from tests.replay import made
from wattkeeper.replay import spread, table
from wattkeeper.replay.result import Hours, Latency

TRACE = "azure-2024-conv, Tuesday"


@pytest.fixture(scope="module")
def report():
    return made.report(hours=6.0, seeds=2, policies=("static-peak", "hpa-waiting", "wattkeeper"))


def row_of(report, policy):
    return next(row for row in table.rows(report, TRACE) if row.policy == policy)


def test_rows_are_means_over_seeds_and_shares_over_all_requests(report):
    runs = report.of("wattkeeper", TRACE)
    row = row_of(report, "wattkeeper")
    assert row.seeds == 2
    assert row.energy_kwh == pytest.approx(sum(run.energy.total_kwh for run in runs) / 2)
    base = sum(run.energy.total_kwh for run in report.of("static-peak", TRACE)) / 2
    assert row.saved is not None
    assert row.saved.value == pytest.approx(100 * (1 - row.energy_kwh / base))
    assert row.saved.low <= row.saved.value <= row.saved.high
    met, arrived = sum(run.requests.met for run in runs), sum(run.requests.arrived for run in runs)
    assert row.attainment is not None
    assert row.attainment.value == pytest.approx(100 * met / arrived)
    assert row.joules_per_token == pytest.approx(
        3.6e6 * 2 * row.energy_kwh / sum(r.requests.output_tokens for r in runs)
    )
    assert row.mean_replicas == pytest.approx(runs[0].replica_hours / 6.0)
    assert (row.replica_changes, row.limit_changes, row.rollouts) == (41.0, 37.0, 2.0)
    assert row_of(report, "static-peak").saved is None
    assert row_of(report, "hpa-waiting").lost > 0


def test_the_goal_decides_what_is_marked(report):
    assert not row_of(report, "hpa-waiting").reached
    assert row_of(report, "static-peak").reached
    text = table.text(report)
    marked = [line for line in text.splitlines() if " ! " in line]
    assert [line.split()[0] for line in marked] == ["hpa-waiting"]
    assert "! below the goal: its savings are no savings at equal service." in text


def test_text_lines_up(report):
    lines = table.text(report).splitlines()
    at = next(index for index, line in enumerate(lines) if set(line) == {"-"})
    rows = lines[at + 1 : at + 4]
    assert [line.split()[0] for line in rows] == ["static-peak", "hpa-waiting", "wattkeeper"]
    assert len({len(line) for line in rows}) == 1
    assert "first token within 1 s and 50 ms per output token, for 99 % of all requests" in "\n".join(lines)


def test_a_policy_without_the_baselines_seeds_saves_nothing_known(report):
    alone = replace(report, baseline="other")
    assert all(row.saved is None for row in table.rows(alone, TRACE))
    assert "-" in table.text(alone)


def test_nothing_finished_is_shown_as_unknown(report):
    none = Latency(p50_seconds=None, p95_seconds=None, p99_seconds=None, grid_seconds=())
    run = report.of("wattkeeper", TRACE)[0]
    dead = replace(
        run,
        policy="dead",
        ttft=none,
        tpot=none,
        requests=replace(run.requests, finished=0, met=0, output_tokens=0, unfinished=run.requests.arrived),
        hours=replace(run.hours, met=(0,) * 6),
        windows_below_goal=1.0,
    )
    row = row_of(replace(report, runs=(*report.runs, dead)), "dead")
    assert (row.joules_per_token, row.ttft_p95_seconds, row.tpot_p95_seconds) == (None, None, None)
    assert row.attainment is not None
    assert row.attainment.value == 0.0
    assert row.lost == run.requests.arrived


def with_hours(run, *, energy, arrived, met):
    return replace(
        run,
        energy=replace(run.energy, busy_kwh=sum(energy), idle_kwh=0.0, startup_kwh=0.0),
        requests=replace(run.requests, arrived=sum(arrived), met=sum(met)),
        hours=Hours(energy_kwh=energy, arrived=arrived, met=met, output_tokens=(0,) * len(energy)),
    )


def test_equal_hours_have_a_sharp_interval_of_savings(report):
    run = report.of("wattkeeper", TRACE)[0]
    ours = with_hours(run, energy=(3.0,) * 5, arrived=(100,) * 5, met=(100,) * 5)
    base = with_hours(run, energy=(4.0,) * 5, arrived=(100,) * 5, met=(100,) * 5)
    found = spread.saved([ours], [base])
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((25.0, 25.0, 25.0))


def test_no_missed_request_is_no_certainty(report):
    run = report.of("wattkeeper", TRACE)[0]
    perfect = with_hours(run, energy=(1.0,) * 5, arrived=(100,) * 5, met=(100,) * 5)
    found = spread.attainment([perfect])
    assert found is not None
    assert found.value == found.high == 100.0
    # Wilson: z^2 / (n + z^2) = 3.84 / 503.84
    assert found.low == pytest.approx(100 - 0.7625, abs=0.001)


def test_short_traces_take_their_interval_from_the_seeds(report):
    run = report.of("wattkeeper", TRACE)[0]
    base = with_hours(run, energy=(10.0,), arrived=(100,), met=(100,))
    seeds = [(replace(base, seed=seed), seed) for seed in range(3)]
    ours = [
        replace(with_hours(run, energy=(used,), arrived=(100,), met=(99,)), seed=seed)
        for seed, used in enumerate((7.0, 8.0, 9.0))
    ]
    found = spread.saved(ours, [each for each, _ in seeds])
    assert found is not None
    # Student with 2 degrees of freedom: 4.303 x 1 / sqrt(3) = 2.484 kWh of 10.
    assert (found.value, found.low, found.high) == pytest.approx((20.0, -4.84, 44.84), abs=0.01)
    assert spread.saved(ours[:1], [seeds[0][0]]) == spread.Estimate(value=pytest.approx(30.0))


def test_days_are_the_blocks_of_long_traces(report):
    run = report.of("wattkeeper", TRACE)[0]
    # Nights save more than days: an hourly bootstrap would move the mix, a daily one has nothing to move.
    used = (1.0,) * 12 + (9.0,) * 12
    ours = with_hours(run, energy=used * 3, arrived=(100,) * 72, met=(99,) * 72)
    base = with_hours(run, energy=(10.0,) * 72, arrived=(100,) * 72, met=(99,) * 72)
    found = spread.saved([ours], [base])
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((50.0, 50.0, 50.0))
