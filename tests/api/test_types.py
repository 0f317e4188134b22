import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattkeeper.api import conditions, convert, quantities
from wattkeeper.api.inference_service import InferenceServiceSpec
from wattkeeper.domain import plan

MINIMAL = {"model": "m/x-8B", "targetRef": {"name": "chat"}, "slo": {"ttft": {"target": "500ms"}}}


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("30s", 30), ("1h30m", 5400), ("1.5s", 1.5), ("2m500ms", 120.5)]
)
def test_durations(text, seconds):
    assert quantities.parse_duration_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "5 s", "-5s", "5d", "s", "1h-3m"])
def test_wrong_durations_say_what_to_write(text):
    with pytest.raises(ValueError, match="for example 500ms"):
        quantities.parse_duration_seconds(text)


@pytest.mark.parametrize(("text", "count"), [("20Gi", 20 * 2**30), ("500M", 500_000_000), ("1024", 1024)])
def test_bytes(text, count):
    assert quantities.parse_bytes(text) == count


@pytest.mark.parametrize(
    ("parse", "text"),
    [(quantities.parse_watts, "350"), (quantities.parse_mhz, "1.9GHz"), (quantities.parse_bytes, "0Gi")],
)
def test_wrong_quantities_say_what_to_write(parse, text):
    with pytest.raises(ValueError, match="for example"):
        parse(text)


@given(st.integers(1, 10_000_000))
def test_durations_survive_writing_and_reading(milliseconds):
    text = quantities.format_duration(milliseconds / 1000)
    assert quantities.parse_duration_seconds(text) == pytest.approx(milliseconds / 1000)


@given(st.integers(1, 2**50))
def test_bytes_survive_writing_and_reading(count):
    assert quantities.parse_bytes(quantities.format_bytes(count)) == count


def test_minimal_spec_has_safe_defaults():
    spec = InferenceServiceSpec.model_validate(MINIMAL)
    assert spec.mode.value == "Recommend"
    assert convert.levers(spec) == plan.Levers()
    assert convert.slo(spec.slo).ttft == plan.LatencyTarget(percentile=95, seconds=0.5)


def test_levers_are_converted_with_units():
    spec = InferenceServiceSpec.model_validate(
        {
            **MINIMAL,
            "levers": {
                "replicas": {"min": 2, "max": 6, "control": "External"},
                "powerCap": {"min": "350W", "max": "700W"},
                "engine": {"maxNumSeqs": [256, 64, 64], "kvCacheMemory": ["20Gi"]},
                "rollout": {"minInterval": "10m"},
            },
        }
    )
    levers = convert.levers(spec)
    assert levers.replicas == plan.ReplicaLever(minimum=2, maximum=6, control=plan.ReplicaControl.EXTERNAL)
    assert levers.power_cap == plan.RangeLever(minimum=350, maximum=700, step=25)
    assert levers.engine.max_num_seqs == (64, 256)
    assert levers.engine.kv_cache_memory_bytes == (20 * 2**30,)
    assert levers.rollout_min_interval_seconds == 600


def test_a_pinned_count_narrows_the_bounds():
    spec = InferenceServiceSpec.model_validate({**MINIMAL, "replicas": 3, "levers": {"replicas": {"max": 6}}})
    assert convert.levers(spec).replicas == plan.ReplicaLever(minimum=3, maximum=3)


def test_spec_is_written_back_in_typed_form():
    spec = InferenceServiceSpec.model_validate({**MINIMAL, "levers": {"powerCap": {"min": "350W", "max": "700W"}}})
    dumped = spec.model_dump(by_alias=True, exclude_none=True)
    assert dumped["slo"]["ttft"]["target"] == "500ms"
    assert dumped["levers"]["powerCap"] == {"min": "350W", "max": "700W", "step": "25W"}


def test_wrong_quantity_names_the_field():
    with pytest.raises(pydantic.ValidationError, match=r"(?s)levers\.powerCap\.min.*for example 350W"):
        InferenceServiceSpec.model_validate({**MINIMAL, "levers": {"powerCap": {"min": "350", "max": "700W"}}})


def test_condition_keeps_its_time_while_its_status_stays():
    first = conditions.update(
        [], [conditions.Condition(type="Ready", status="True", reason="A")], now="t1", generation=1
    )
    same = conditions.update(
        first, [conditions.Condition(type="Ready", status="True", reason="B")], now="t2", generation=2
    )
    other = conditions.update(
        same, [conditions.Condition(type="Ready", status="False", reason="C")], now="t3", generation=2
    )
    assert (same[0].last_transition_time, same[0].reason, same[0].observed_generation) == ("t1", "B", 2)
    assert other[0].last_transition_time == "t3"
