"""Every factor has a value or a reason, and no reason hides behind a number."""

from dataclasses import replace

import numpy as np
import pytest

from tests.controller.world import reading
from tests.controller.world import service as service_body
from tests.energy import fleet
from wattkeeper.api import convert
from wattkeeper.api.conditions import ConditionType
from wattkeeper.api.inference_service import InferenceServiceSpec
from wattkeeper.api.service_status import InferenceServiceStatus
from wattkeeper.controller import live_factors
from wattkeeper.controller.live_factors import Seen
from wattkeeper.controller.service import Problem, Service
from wattkeeper.domain.arrivals import Dispersion
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.observation import GpuReading
from wattkeeper.domain.plan import Target
from wattkeeper.energy import factor_schema, points
from wattkeeper.telemetry.observe import observe
from wattkeeper.telemetry.source import Snapshot

PODS = ("chat-1", "chat-2")


def service(**changes) -> Service:
    spec = InferenceServiceSpec.model_validate(service_body("llm")["spec"])
    values = {
        "namespace": "llm",
        "name": "chat",
        "uid": "u",
        "generation": 1,
        "spec": spec,
        "status": InferenceServiceStatus(),
        "slo": convert.slo(spec.slo),
        "levers": convert.levers(spec),
        "engine": EngineSettings(max_num_seqs=64, block_size=16),
        "desired_replicas": 2,
        "ready_replicas": 2,
        "pods": tuple({"metadata": {"name": name}, "spec": {}} for name in PODS),
        "profile": fleet.profile(*fleet.ESTIMATED),
        **changes,
    }
    return Service(**values)


def seen(kept=None, *, target=None, dispersion=None, predicted=True, **changes) -> Seen:
    """Two pods; `changes` are of their readings, a pod of its own by name."""
    kept = kept or service()
    common = {name: value for name, value in changes.items() if name not in ("first", "second")}
    readings = {
        pod: reading("llm", pod, **{**common, **changes.get(which, {})})
        for pod, which in zip(PODS, ("first", "second"), strict=True)
        if changes.get(which, {}) is not None
    }
    observation = observe(
        pods=PODS,
        namespace="llm",
        snapshot=Snapshot(time_seconds=0.0, pods={("llm", pod): each for pod, each in readings.items()}),
        snapshot_error=None,
        now_seconds=0.0,
        max_age_seconds=60.0,
        slo=kept.slo,
        last_workload=None,
        dispersion=dispersion,
    )
    state = None
    if predicted and kept.profile is not None:
        state, _ = points.of_queries([fleet.query(kept.profile, batch=[12.0], load=observation.workload)])
    return Seen(
        service=kept,
        observation=observation,
        readings=readings,
        current=target or Target(replicas=2, engine=kept.engine),
        standing=state,
    )


def told(found: Seen):
    return {factor.name: factor for factor in live_factors.assemble(found)}


def test_every_factor_of_the_schema_has_a_value_or_a_reason():
    for case in (
        seen(),
        seen(predicted=False),
        seen(service(profile=None)),
        seen(first=None, second=None, predicted=False),
        replace(seen(predicted=False), observation=None, readings={}),
    ):
        found = live_factors.assemble(case)
        assert [factor.name for factor in found] == [each.name for each in factor_schema.everything()]
        assert all(factor.value is not None or factor.note for factor in found)
        units = {each.name: each.unit for each in factor_schema.everything()}
        for factor in found:
            assert factor.value is None or isinstance(factor.value, str) == (units[factor.name] == "name"), factor


def test_values_are_those_of_the_planner_and_of_the_pods():
    found = told(seen(dispersion=Dispersion(windows_seconds=(1.0, 60.0), index=(1.5, 4.0)), rate=4.0))
    expected = {
        "requests_per_second": 8.0,
        "burstiness": 1.5,
        "rate_volatility": 4.0,
        "batch": 12.0,
        "realised_batch": 8.0,
        "measured_tokens_per_second": 600.0,
        "max_num_seqs": 64.0,
        "block_size": 16.0,
        "kv_capacity_tokens": 416_000.0,
        "recent_kv_usage": 0.2,
        "preemptions": 0.0,
        "realised_clock": 1980.0,
        "prompt_tokens": 600.0,
        "replicas": 2.0,
        "gpu": "nvidia-h100-sxm",
        "mig_slice": "off",
    }
    for name, value in expected.items():
        assert found[name].value == (value if isinstance(value, str) else pytest.approx(value)), name


def test_what_stands_in_for_a_setting_says_so():
    found = told(seen())
    assert found["max_num_seqs"].note == ""
    assert found["max_num_batched_tokens"].value == 8192.0
    assert "vLLM's default" in found["max_num_batched_tokens"].note
    assert found["policy"].value is None and "fcfs" in found["policy"].note
    assert told(seen(service(scheduling_policy="priority")))["policy"].value == "priority"
    assert (found["power_cap"].value, found["power_cap"].note) == (700.0, "no cap is asked for: the card's own limit")
    assert told(seen(target=Target(replicas=2, power_cap_watts=400.0)))["power_cap"].note == ""


@pytest.mark.parametrize(
    ("changes", "name", "reason"),
    [
        ({"second": {"preemptions_per_second": None}, "first": {"preemptions_per_second": None}}, "preemptions",
         "pods chat-1, chat-2 serve no num_preemptions_total"),
        ({"prefix_queries_per_second": None}, "prefix_hit_ratio", "serve no prefix_cache_queries_total"),
        ({"kv_cache": None}, "kv_cache_dtype", "serve no cache_config_info"),
        ({"tpot_seconds": None}, "measured_inter_token_seconds", "serve no request_time_per_output_token_seconds"),
        ({"gpus": ()}, "realised_clock", "no GPU exporter and no node agent shows the GPUs of pods chat-1, chat-2"),
        ({"gpus": ()}, "mig_slice", "no GPU exporter"),
        ({"gpus": (GpuReading(uuid="kepler:llm/chat-1", node="", power_watts=300.0),)}, "realised_clock",
         "watts of pods alone"),
        ({"gpus": (GpuReading(uuid="GPU-1", node="n", power_watts=300.0),)}, "realised_clock",
         "no exporter serves DCGM_FI_DEV_SM_CLOCK of these GPUs"),
        ({}, "rate_volatility", "too few arrivals"),
        ({}, "multimodal", "do not tell whether requests carry images"),
        ({"first": None, "second": None, "predicted": False}, "requests_per_second", "no series of chat-1, chat-2"),
        ({"first": None, "second": None, "predicted": False}, "batch", "not predicted: no series of chat-1, chat-2"),
    ],
)  # fmt: skip
def test_what_is_missing_has_a_reason(changes, name, reason):
    found = told(seen(**changes))[name]
    assert found.value is None
    assert reason in found.note


def test_a_hit_ratio_that_nobody_asked_for_lately_is_marked():
    found = told(seen(prefix_queries_per_second=0.0))
    assert found["prefix_hit_ratio"].value == 0.0
    assert "last seen" in found["prefix_hit_ratio"].note


def test_outcomes_of_the_cards_are_means_over_those_that_show_them():
    first = GpuReading(uuid="GPU-1", node="n", utilisation=0.9, temperature_celsius=60.0, sm_clock_mhz=1900.0)
    second = GpuReading(uuid="GPU-2", node="n", utilisation=0.7)
    found = told(seen(first={"gpus": (first,)}, second={"gpus": (second,)}))
    assert (found["gpu_utilisation"].value, found["gpu_utilisation"].note) == (pytest.approx(0.8), "mean of 2 GPUs")
    assert (found["gpu_temperature"].value, found["gpu_temperature"].note) == (60.0, "mean of 1 of 2 GPUs")
    assert found["realised_clock"].value == 1900.0


def test_a_slice_of_a_card_is_named():
    found = told(seen(gpus=(GpuReading(uuid="GPU-1/3", node="n"),)))
    assert found["mig_slice"].value == "3"
    assert "slice" in found["mig_slice"].note


def test_without_a_profile_the_condition_s_words_are_the_reason():
    problem = Problem(condition=ConditionType.MODEL_TRUSTED, reason="UnknownModel", message="no model acme/x")
    found = told(seen(service(profile=None, problems=(problem,)), predicted=False))
    assert {found[name].note for name in ("gpu", "batch", "max_num_seqs", "host_seconds_per_step")} == {
        "no model acme/x"
    }
    assert found["requests_per_second"].value == 8.0


def test_replicas_that_cannot_keep_up_have_no_steady_state():
    case = seen()
    assert case.standing is not None
    found = told(replace(case, standing=replace(case.standing, step_seconds=np.array([np.nan]))))
    assert found["step_seconds"].value is None
    assert "cannot keep up" in found["step_seconds"].note
    assert found["gpu_bandwidth"].value is not None
