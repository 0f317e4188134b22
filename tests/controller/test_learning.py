"""The on-line refit in the operator: pages of simulated engines, read as telemetry reads them, teach the profile."""

import dataclasses
import itertools
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.physics import engines
from tests.telemetry.servers import Server
from wattkeeper.api.service_status import ProfileStatus
from wattkeeper.controller import learned, learning
from wattkeeper.controller.learned import Learned
from wattkeeper.controller.learning import Learning
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.observation import EngineCounters, GpuReading, KvCacheInfo, PodReading
from wattkeeper.domain.plan import Target
from wattkeeper.domain.workload import LengthDistribution, Workload
from wattkeeper.physics import profiles, step
from wattkeeper.physics.profile import Provenance
from wattkeeper.telemetry import assemble, promql
from wattkeeper.telemetry.assemble import Sample
from wattkeeper.telemetry.exposition import ExpositionReader, wanted_names
from wattkeeper.telemetry.pages import ScrapeTarget
from wattkeeper.telemetry.scrape import ScrapeSource
from wattkeeper.telemetry.source import Snapshot
from wattkeeper.twin.exposition import VllmProfile, vllm_text

TRUE = engines.truth()
LONG_ANSWERS = ((1155, 0.95), (700, 0.6))
HOUR = 3600.0
ENGINE = EngineSettings()
BASE = profiles.serving_profile(
    model="meta-llama/Llama-3.1-8B-Instruct", accelerator="h100-sxm", gpus_per_replica=1, engine=ENGINE
)
WORK = {"prefill_tokens": 130.0, "decode_sequences": 40.0, "kv_tokens": 60_000.0}


def estimated(iteration):
    """A data-sheet estimate with these coefficients."""
    return dataclasses.replace(BASE, iteration=iteration, provenance=Provenance.ESTIMATED, relative_error=0.25)


def workload(lengths):
    (prompt, prompt_cv), (output, output_cv) = lengths
    make = LengthDistribution.lognormal
    return Workload(
        requests_per_second=5.0,
        prompt=make(mean=prompt, coefficient_of_variation=prompt_cv, points=200),
        output=make(mean=output, coefficient_of_variation=output_cv, points=200),
    )


def swing(at):
    return 5.0 + 3.0 * math.sin(at / 570.0)


class Pages:
    """The metrics pages of one simulated engine, and the ways they are read."""

    def __init__(self, rate_of, *, seconds, lengths=LONG_ANSWERS, seed=1, spacing=5.0, profile=VllmProfile.CURRENT):
        self.pages = [
            (replica.now, vllm_text(replica, model_name="acme/m", profile=profile))
            for replica in engines.played(rate_of, seconds=seconds, lengths=lengths, seed=seed, spacing=spacing)
        ]

    def from_prometheus(self):
        """As Prometheus answers the query of counters."""
        reader = ExpositionReader(wanted_names(["vllm:"]))
        pod = {"namespace": "team", "pod": "a"}
        for at, text in self.pages:
            series = reader.read(text)
            counters = [
                Sample({**labels, **pod, "__name__": name}, at, value)
                for name, found in series.items()
                if not name.endswith("_bucket")
                for labels, value in found
            ]
            counters.append(Sample({**pod, promql.PART: promql.TIME_PART}, at, at))
            cache = [
                Sample({**labels, **pod}, at, 1.0)
                for labels, _ in next(found for name, found in series.items() if name.endswith("cache_config_info"))
            ]
            pods, errors = assemble.pod_readings(
                {"age": [Sample(pod, at, at)], "counters": counters, "cache_info": cache}, {}
            )
            assert not errors
            yield Snapshot(time_seconds=at, pods=pods)

    def from_scrapes(self):
        """As the pod's page is scraped."""
        now = [0.0]
        text = [""]
        source = ScrapeSource(clock=lambda: now[0])
        with Server(lambda path, headers: (200, text[0])) as server:
            source.set_targets([ScrapeTarget(url=server.url, namespace="team", pod="a")])
            for now[0], text[0] in self.pages:
                yield source.collect(now[0])
        source.close()


def follow(snapshots, profile, *, lengths=LONG_ANSWERS, made=None, target=None, **options):
    """(what was learnt after these snapshots, the profile to plan with)."""
    made = made or Learning(seed="x")
    made.profile_of(profile, ENGINE)
    at = 0.0
    for snapshot in snapshots:
        at = snapshot.time_seconds
        made.observe(
            snapshot,
            **{
                "namespace": "team",
                "pods": ["a"],
                "current": target or Target(replicas=1),
                "workload": workload(lengths),
                "gpus_by_pod": {},
                "rolling_out": False,
                **options,
            },
        )
        made.conclude(at)
    made.conclude(at + 61.0)
    return made, made.profile_of(profile, ENGINE)


@pytest.fixture(scope="module")
def long_answers():
    return Pages(swing, seconds=HOUR)


@pytest.mark.parametrize("prior", [(1.4, 0.7, 1.6), (0.7, 1.4, 0.6)])
def test_recovers_known_coefficients_from_what_prometheus_answers(long_answers, prior):
    base = estimated(engines.wrong(TRUE, *prior))
    made, planned = follow(long_answers.from_prometheus(), base)
    assert made.learned.state == "Identified"
    assert made.learned.confidence > 0.9
    assert engines.ratios(planned.iteration, TRUE) == pytest.approx(1.0, abs=0.05)
    assert planned.provenance is Provenance.FITTED
    assert planned.relative_error < 0.06
    assert made.used + made.dropped.total() == len(long_answers.pages) - 1
    assert made.dropped.keys() <= {"Preempted", "LightLoad", "Idled"}


def test_a_scrape_teaches_the_same(long_answers):
    base, count = estimated(engines.wrong(TRUE, 1.4, 0.7, 1.6)), 150
    asked, _ = follow(itertools.islice(long_answers.from_prometheus(), count), base)
    scraped, planned = follow(itertools.islice(long_answers.from_scrapes(), count), base)
    assert scraped.learned == asked.learned
    assert scraped.learned.fits
    assert float(step.step_seconds(planned.iteration, **WORK)) == pytest.approx(
        float(step.step_seconds(TRUE, **WORK)), rel=0.05
    )


def test_older_versions_teach_as_well():
    made, planned = follow(
        Pages(swing, seconds=HOUR, profile=VllmProfile.LEGACY).from_prometheus(),
        estimated(engines.wrong(TRUE, 1.4, 0.7, 1.6)),
    )
    assert made.learned.state == "Identified"
    assert engines.ratios(planned.iteration, TRUE) == pytest.approx(1.0, abs=0.05)


def test_follows_engines_that_slow_down_by_a_fifth(long_answers):
    """With a restart of the pod in between."""
    slow = dataclasses.replace(
        engines.H100,
        levels=tuple(
            dataclasses.replace(level, seconds=tuple(1.2 * each for each in level.seconds))
            for level in engines.H100.levels
        ),
    )
    later = engines.played(swing, seconds=HOUR / 2, lengths=LONG_ANSWERS, seed=2, engine=slow, begin=HOUR)
    pages = Pages.__new__(Pages)
    pages.pages = [(replica.now, vllm_text(replica, model_name="m")) for replica in later]
    snapshots = itertools.chain(long_answers.from_prometheus(), pages.from_prometheus())
    made, planned = follow(snapshots, estimated(TRUE))
    assert made.learned.level == pytest.approx(1.2, abs=0.05)
    assert float(step.step_seconds(planned.iteration, **WORK)) == pytest.approx(
        1.2 * float(step.step_seconds(TRUE, **WORK)), rel=0.04
    )
    assert made.dropped["Reset"] == 1


def test_a_load_that_does_not_tell_the_terms_says_so_and_teaches_the_level():
    base = estimated(engines.wrong(TRUE, 1.3, 1.3, 1.3))
    pages = Pages(lambda _: 6.0, seconds=1200.0, lengths=engines.CONVERSATION)
    made, planned = follow(pages.from_prometheus(), base, lengths=engines.CONVERSATION)
    assert made.learned.state == "LoadTooSteady"
    assert "dKV" in made.learned.weak
    assert planned.provenance is Provenance.ESTIMATED
    assert planned.relative_error < 0.25
    assert made.learned.level == pytest.approx(1 / 1.3, rel=0.05)
    work = {"prefill_tokens": 60.0, "decode_sequences": 8.0, "kv_tokens": 10_000.0}
    assert float(step.step_seconds(planned.iteration, **work)) == pytest.approx(
        float(step.step_seconds(TRUE, **work)), rel=0.05
    )
    assert "does not tell" in learned.describe(made.learned, made.dropped)


def test_a_nearly_idle_service_keeps_its_profile():
    base = estimated(engines.wrong(TRUE, 1.3, 1.3, 1.3))
    made, planned = follow(Pages(lambda _: 0.3, seconds=600.0).from_prometheus(), base)
    assert made.learned.state in ("NotStarted", "TooFewWindows")
    assert planned is base
    assert "left out for" in learned.describe(made.learned, made.dropped)


def bare(snapshot, **changes):
    """Without some of the engine's series."""
    pods = {
        key: dataclasses.replace(reading, engine=dataclasses.replace(reading.engine, **changes))
        for key, reading in snapshot.pods.items()
    }
    return dataclasses.replace(snapshot, pods=pods)


OPTIONAL = [field.name for field in dataclasses.fields(EngineCounters) if field.name != "time_seconds"]
UNNEEDED = {"waiting", "finished_requests", "prompt_tokens", "cached_prompt_tokens"}


@pytest.mark.parametrize("series", OPTIONAL)
def test_a_missing_series_leaves_the_profile_where_it_is_needed(long_answers, series):
    base = estimated(TRUE)
    few = list(itertools.islice(long_answers.from_prometheus(), 60))
    made, planned = follow((bare(snapshot, **{series: None}) for snapshot in few), base)
    if series in UNNEEDED:
        assert made.used > 40
    else:
        assert made.used == 0
        assert planned is base
        assert made.learned.state == ("NoSeries" if series == "iteration_count" else "NotStarted")


def test_readings_without_counters_at_all():
    base = estimated(TRUE)
    snapshots = [
        Snapshot(
            time_seconds=5.0 * index,
            pods={("team", "a"): PodReading(namespace="team", pod="a", age_seconds=1.0, running=3.0)},
        )
        for index in range(40)
    ]
    made, planned = follow(snapshots, base)
    assert planned is base
    assert made.learned.state == "NoSeries"
    assert "serve no" in learned.describe(made.learned, made.dropped)


def test_nothing_is_learnt_during_a_roll_out_or_under_an_unknown_clock(long_answers):
    few = list(itertools.islice(long_answers.from_prometheus(), 60))
    made, _ = follow(few, estimated(TRUE), rolling_out=True)
    assert (made.used, made.dropped[learning.ROLLING_OUT]) == (0, 60)
    made, _ = follow(few, estimated(TRUE), target=Target(replicas=1, power_cap_watts=400.0))
    assert made.used == 0
    assert made.dropped[learning.CLOCK_UNKNOWN] > 40


def with_clock(snapshot, mhz):
    gpu = GpuReading(uuid="g", node="n", sm_clock_mhz=mhz)
    pods = {key: dataclasses.replace(reading, gpus=(gpu,)) for key, reading in snapshot.pods.items()}
    return dataclasses.replace(snapshot, pods=pods)


def test_a_clock_that_moves_spoils_its_windows(long_answers):
    few = list(itertools.islice(long_answers.from_prometheus(), 60))
    full = BASE.gpu.max_clock_mhz
    shown = [with_clock(snapshot, full * (0.7 if index % 10 < 5 else 1.0)) for index, snapshot in enumerate(few)]
    made, _ = follow(shown, estimated(TRUE))
    assert made.dropped[learning.CLOCK_MOVED] == pytest.approx(11, abs=1)


def test_the_clock_of_a_locked_card_counts():
    """Engines at 60 % of their clock teach the coefficients at full clock."""
    level = engines.H100.level_at_most(0.6 * BASE.gpu.max_clock_mhz)
    pages = Pages.__new__(Pages)
    played = engines.played(
        lambda at: 0.7 * swing(at), seconds=HOUR, lengths=LONG_ANSWERS, clock_mhz=0.6 * BASE.gpu.max_clock_mhz
    )
    pages.pages = [(replica.now, vllm_text(replica, model_name="m")) for replica in played]
    mhz = engines.H100.levels[level].clock_mhz
    _, planned = follow((with_clock(snapshot, mhz) for snapshot in pages.from_prometheus()), estimated(TRUE))
    ratio = mhz / BASE.gpu.max_clock_mhz
    d0, dn, dkv, dt, _ = engines.H100.levels[level].seconds
    work = WORK["decode_sequences"], WORK["kv_tokens"], WORK["prefill_tokens"]
    expected = d0 + dn * work[0] + dkv * work[1] + dt * work[2]
    assert float(step.step_seconds(planned.iteration, **WORK, clock_ratio=ratio)) == pytest.approx(expected, rel=0.04)


def test_what_was_learnt_survives_a_restart_and_nothing_else(long_answers):
    base = estimated(engines.wrong(TRUE, 1.4, 0.7, 1.6))
    made, planned = follow(itertools.islice(long_answers.from_prometheus(), 400), base)
    kept = learned.to_status(made.learned, planned)
    again = Learning(seed="x", learned=learned.from_status(ProfileStatus.model_validate(kept.model_dump())))
    assert again.profile_of(base, ENGINE).iteration == planned.iteration
    again.conclude(0.0)
    again.conclude(100.0)
    assert again.profile_of(base, ENGINE).iteration == planned.iteration, "no windows: what is remembered stands"
    later = itertools.islice(long_answers.from_prometheus(), 400, None)
    _, after = follow(later, base, made=again)
    assert engines.ratios(after.iteration, TRUE) == pytest.approx(1.0, abs=0.06)
    other = estimated(engines.wrong(TRUE, 1.1, 1.1, 1.1))
    assert again.profile_of(other, ENGINE) is other, "of another profile nothing is known"
    fp8 = dataclasses.replace(ENGINE, kv_cache_dtype="fp8")
    follow(long_answers.from_prometheus(), base, made=again)
    assert again.profile_of(base, fp8) is base
    assert learned.from_status(ProfileStatus(refit="PoorFit")).state == learned.NOT_STARTED
    wild = ProfileStatus(refit="Identified", d0_factor=40.0, learned_of="x")
    assert learned.from_status(wild).state == learned.NOT_STARTED


def test_arguments_of_the_scheduler_keep_what_was_learnt(long_answers):
    base = estimated(engines.wrong(TRUE, 1.4, 0.7, 1.6))
    made, planned = follow(itertools.islice(long_answers.from_prometheus(), 400), base)
    assert made.profile_of(base, dataclasses.replace(ENGINE, max_num_seqs=64)) == planned


def test_a_poor_fit_widens_and_changes_no_coefficient(long_answers):
    """A pod whose scrapes are stamped late every second time."""
    fitted = dataclasses.replace(BASE, iteration=TRUE, provenance=Provenance.FITTED, relative_error=0.05)
    shown = [
        bare(snapshot, time_seconds=snapshot.time_seconds + 2.0 * (index % 2))
        for index, snapshot in enumerate(itertools.islice(long_answers.from_prometheus(), 100))
    ]
    made, planned = follow(shown, fitted)
    assert made.learned.state == "PoorFit"
    assert planned.iteration == fitted.iteration
    assert planned.provenance is Provenance.ESTIMATED
    assert planned.relative_error >= 0.25
    assert "do not fit" in learned.describe(made.learned, made.dropped)
    _, planned = follow(shown, estimated(TRUE))
    assert planned.relative_error > 0.25, "wider than the estimate alone"


def test_services_on_equal_hardware_keep_equal_profiles():
    """Small differences end on the same point of the grid, so that the models judge them in one call."""
    base = estimated(engines.wrong(TRUE, 1.3, 1.3, 1.3))
    seen = {
        follow(Pages(swing, seconds=1500.0, seed=seed).from_prometheus(), base)[1].iteration for seed in range(3, 6)
    }
    values = sorted(iteration.d0_seconds / TRUE.d0_seconds for iteration in seen)
    assert values[-1] / values[0] < 1.09
    assert len({round(math.log(value * 1.0 / values[0]) / 0.04) for value in values}) <= 3


def test_cost_and_memory_are_bounded():
    """Many pods, many snapshots: one window per five seconds, and well under a millisecond for each."""
    counters = {
        "running": 30.0, "kv_usage": 0.3, "preemptions": 0.0, "prompt_tokens": 0.0, "cached_prompt_tokens": 0.0,
    }  # fmt: skip
    cache = KvCacheInfo(num_gpu_blocks=26_000, block_size=16)
    made = Learning(seed="x")
    made.profile_of(estimated(TRUE), ENGINE)
    pods = [f"p{index}" for index in range(50)]
    spent = 0.0
    for index in range(900):
        at = 5.0 * index
        engine = EngineCounters(
            time_seconds=at, inter_token_seconds_sum=150.0 * index, inter_token_count=12_000.0 * index,
            iteration_tokens_sum=20_000.0 * index, iteration_count=400.0 * index, generation_tokens=13_000.0 * index,
            **counters,
        )  # fmt: skip
        snapshot = Snapshot(
            time_seconds=at,
            pods={
                ("team", pod): PodReading(namespace="team", pod=pod, age_seconds=0.0, engine=engine, kv_cache=cache)
                for pod in pods
            },
        )
        began = time.process_time()
        made.observe(
            snapshot, namespace="team", pods=pods, current=Target(replicas=50), workload=workload(LONG_ANSWERS),
            gpus_by_pod={}, rolling_out=False,
        )  # fmt: skip
        made.conclude(at)
        spent += time.process_time() - began
    assert made.used == pytest.approx(899, abs=2)
    assert made.learned.windows <= 720
    assert spent / 900 < 0.003, "seconds per snapshot, on a machine that does other things as well"


@pytest.mark.parametrize("counts_hits", [True, False])
def test_prefix_hits_are_no_prefill_whichever_way_a_version_counts(counts_hits):
    """Older versions count cached tokens of prompts in their iteration tokens, newer ones do not."""
    made = Learning(seed="x")
    base = estimated(engines.wrong(TRUE, 1.3, 1.3, 1.3))
    made.profile_of(base, ENGINE)
    totals = dict.fromkeys(("gaps", "seconds", "tokens", "steps", "prompts", "hits"), 0.0)
    load = dataclasses.replace(workload(LONG_ANSWERS), prefix_hit_ratio=0.6)
    cache = KvCacheInfo(num_gpu_blocks=26_001, block_size=16)
    for index in range(200):
        n = 60.0 + 50.0 * math.sin(index / 3.0)
        computed, kv = n * (4.0 + 3.0 * math.sin(index / 2.1)), n * (900.0 + 400.0 * math.sin(index / 4.7))
        hits = 1.5 * computed
        seconds = float(
            step.step_seconds(
                dataclasses.replace(TRUE, da_seconds_per_token_squared=0.0),
                prefill_tokens=computed,
                decode_sequences=n,
                kv_tokens=kv,
            )
        )
        steps = 5.0 / seconds
        for name, value in {
            "gaps": n, "seconds": n * seconds, "tokens": n + computed + hits * counts_hits, "steps": 1.0,
            "prompts": computed + hits, "hits": hits,
        }.items():  # fmt: skip
            totals[name] += steps * value
        engine = EngineCounters(
            time_seconds=5.0 * index, running=n, kv_usage=(kv + 8.0 * n) / 416_000.0, preemptions=0.0,
            prompt_tokens=totals["prompts"], cached_prompt_tokens=totals["hits"], generation_tokens=totals["gaps"],
            inter_token_seconds_sum=totals["seconds"], inter_token_count=totals["gaps"],
            iteration_tokens_sum=totals["tokens"], iteration_count=totals["steps"],
        )  # fmt: skip
        reading = PodReading(namespace="team", pod="a", age_seconds=0.0, engine=engine, kv_cache=cache)
        snapshot = Snapshot(time_seconds=5.0 * index, pods={("team", "a"): reading})
        follow([snapshot], base, made=made, workload=load)
    planned = made.profile_of(base, ENGINE)
    work = {"prefill_tokens": 240.0, "decode_sequences": 60.0, "kv_tokens": 54_000.0}
    assert float(step.step_seconds(planned.iteration, **work)) == pytest.approx(
        float(step.step_seconds(TRUE, **work)), rel=0.06
    )


NUMBERS = st.floats(allow_nan=True, allow_infinity=True) | st.none()
COUNTERS = st.builds(
    EngineCounters, time_seconds=st.floats(0, 1e6), **dict.fromkeys(OPTIONAL, NUMBERS | st.floats(0, 1e9))
)


@settings(max_examples=60, deadline=None)
@given(st.lists(COUNTERS, max_size=40), st.floats(0, 3000), st.integers(1, 5))
def test_no_counters_however_odd_break_it(strange, mhz, speed_up):
    base = estimated(TRUE)
    shown = [
        with_clock(
            Snapshot(
                time_seconds=5.0 * index,
                pods={("team", "a"): PodReading(namespace="team", pod="a", age_seconds=0.0, engine=counters)},
            ),
            mhz,
        )
        for index, counters in enumerate(strange)
    ]
    made, planned = follow(shown, base, made=Learning(seed="x", speed_up=float(speed_up)))
    assert all(math.isfinite(value) and value > 0 for value in made.learned.factors)
    assert planned.relative_error > 0
    learned.to_status(made.learned, planned)


def test_a_sped_up_world_is_measured_in_its_own_seconds(long_answers):
    """Snapshots ten times as fast as the engine's own time."""
    fast = (
        dataclasses.replace(
            bare(snapshot, time_seconds=snapshot.pods["team", "a"].engine.time_seconds / 10.0),
            time_seconds=snapshot.time_seconds / 10.0,
        )
        for snapshot in list(long_answers.from_prometheus())[::10]
    )
    made, planned = follow(fast, estimated(engines.wrong(TRUE, 1.3, 1.3, 1.3)), made=Learning(seed="x", speed_up=10.0))
    assert made.learned.fits
    assert float(step.step_seconds(planned.iteration, **WORK)) == pytest.approx(
        float(step.step_seconds(TRUE, **WORK)), rel=0.06
    )


def test_a_profile_without_a_fixed_term_is_left_alone():
    base = estimated(dataclasses.replace(TRUE, d0_seconds=0.0))
    made = Learning(seed="x", learned=Learned(of="other", state="Identified"))
    assert made.profile_of(base, ENGINE) is base
    made.conclude(0.0)
    made.conclude(100.0)
    assert made.profile_of(base, ENGINE) is base
