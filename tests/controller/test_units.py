"""The pure parts of the controller."""

import json
import logging
import math
import urllib.request
from types import SimpleNamespace

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from wattkeeper.api.factors import FactorsStatus
from wattkeeper.api.node_power_cap import CapEntry, DeviceStatus
from wattkeeper.api.service_status import HistoryEntry, InferenceServiceStatus
from wattkeeper.controller import caps, logs, note, publish, rollout, status
from wattkeeper.controller.clock import Clock, from_rfc3339, to_rfc3339
from wattkeeper.controller.http import Health, HealthServer
from wattkeeper.controller.settings import OperatorSettings
from wattkeeper.controller.state import restore
from wattkeeper.controller.text import digits
from wattkeeper.controller.workload import rolling_out
from wattkeeper.domain.engine import EngineChange, EngineSettings
from wattkeeper.domain.observation import MetricsState, ServiceObservation
from wattkeeper.domain.plan import EngineLever, LatencyTarget, Levers, RangeLever, Slo, Target
from wattkeeper.domain.workload import LengthDistribution, Workload
from wattkeeper.forecast.rates import ForecastSettings

# clock


@given(st.integers(0, 4_000_000_000))
def test_a_time_stamp_survives_the_clock_and_the_text(seconds):
    clock = Clock(wall=lambda: 1_795_264_609.8615036, origin_seconds=1_795_264_609.8615036)
    decision = clock.decision_time(from_rfc3339(to_rfc3339(seconds)))
    assert from_rfc3339(to_rfc3339(clock.wall_time(decision))) == seconds


def test_decisions_run_ahead_of_the_wall():
    clock = Clock(speed_up=60.0, wall=lambda: 110.0, origin_seconds=100.0)
    assert clock.now() == 700.0
    assert clock.wall_time(700.0) == 110.0


@pytest.mark.parametrize("text", [None, "", "yesterday", "2026-13-01T00:00:00Z"])
def test_what_is_no_time_stamp_is_none(text):
    assert from_rfc3339(text) is None


# notes

CONTAINER = st.fixed_dictionaries(
    {"name": st.just("vllm"), "image": st.just("v")},
    optional={
        "command": st.lists(st.text(max_size=8), min_size=1, max_size=3),
        "args": st.lists(st.text(max_size=8), min_size=1, max_size=5),
        "env": st.lists(
            st.fixed_dictionaries({"name": st.text("AB", min_size=1), "value": st.text()}), min_size=1, max_size=2
        ),
    },
)
ANNOTATIONS = st.none() | st.dictionaries(st.sampled_from(["a", "b/c", note.ANNOTATION]), st.text(max_size=5))


def target(container, annotations):
    metadata = {"resourceVersion": "7"} if annotations is None else {"resourceVersion": "7", "annotations": annotations}
    spec = {"template": {"spec": {"containers": [{"name": "sidecar", "args": ["x"]}, container]}}}
    return {"metadata": metadata, "spec": spec}


@given(CONTAINER, CONTAINER, ANNOTATIONS)
def test_there_and_back_again_is_where_it_was(before, after, annotations):
    first = target(before, annotations)
    fields = note.fields_of(first["spec"]["template"]["spec"], "vllm")
    wanted = note.fields_of({"containers": [after]}, "vllm")
    changed = jsonpatch.apply_patch(first, note.container_patch(first, "vllm", wanted, "a note"))
    assert note.fields_of(changed["spec"]["template"]["spec"], "vllm") == wanted
    assert changed["metadata"]["annotations"][note.ANNOTATION] == "a note"
    back = jsonpatch.apply_patch(changed, note.container_patch(changed, "vllm", fields, None))
    assert back["spec"] == first["spec"], "byte for byte"
    kept = {key: value for key, value in (annotations or {}).items() if key != note.ANNOTATION}
    assert back["metadata"].get("annotations", {}) == kept


def test_a_patch_is_void_where_somebody_wrote_in_between():
    first = target({"name": "vllm"}, None)
    operations = note.container_patch(first, "vllm", {"args": ["--new"]}, "note")
    first["metadata"]["resourceVersion"] = "8"
    with pytest.raises(jsonpatch.JsonPatchTestFailed):
        jsonpatch.apply_patch(first, operations)


@given(
    st.builds(
        note.Note,
        container=st.just("vllm"),
        before=st.dictionaries(st.sampled_from(note.FIELDS), st.lists(st.text())),
        after=st.text(),
        change=st.builds(
            EngineChange, max_num_seqs=st.none() | st.integers(1, 9), kv_cache_dtype=st.none() | st.just("fp8")
        ),
        started_at=st.just("2026-01-01T00:00:00Z"),
        slo_was_met=st.booleans(),
        ready_at=st.none() | st.text(min_size=1),
        failed=st.none() | st.text(min_size=1),
    )
)
def test_a_note_is_read_as_it_was_written(written):
    assert note.read_note({"metadata": {"annotations": {note.ANNOTATION: written.dump()}}}) == written


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"container": "c", "before": 3}', "null"])
def test_a_garbled_note_is_none(text):
    assert note.read_note({"metadata": {"annotations": {note.ANNOTATION: text}}}) is None


# judging a roll-out

SLO = Slo(ttft=LatencyTarget(percentile=95, seconds=0.5), tpot=None)
SETTINGS = OperatorSettings()
LENGTHS = LengthDistribution(tokens=(100.0,), weights=(1.0,))


def seen(*, ttft=0.1, rate=10.0, state=MetricsState.FRESH):
    workload = Workload(requests_per_second=rate, prompt=LENGTHS, output=LENGTHS, dispersion=1.0, prefix_hit_ratio=0.0)
    return ServiceObservation(time_seconds=0.0, state=state, workload=workload, ttft_seconds=ttft)


def verdict(*, started=0.0, ready=None, met=True, now=100.0, observation=None, args=("--b",), **service):
    fields = {"args": ["--b"]}
    written = note.Note(
        container="vllm",
        before={"args": ["--a"]},
        after=note.fingerprint(fields),
        change=EngineChange(max_num_seqs=4),
        started_at=to_rfc3339(started),
        ready_at=None if ready is None else to_rfc3339(ready),
        slo_was_met=met,
    )
    live = target({"name": "vllm", "args": list(args)}, None)
    found = SimpleNamespace(**{"target": live, "rolling_out": False, "stuck": None, "slo": SLO, **service})
    clock = Clock(wall=lambda: now, origin_seconds=now)
    return rollout.judge(written, found, observation, clock=clock, settings=SETTINGS)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({"rolling_out": True}, "Running"),
        ({"rolling_out": True, "now": 1801.0}, "Failed"),
        ({"rolling_out": True, "stuck": "ReplicaSet timed out"}, "Failed"),
        ({"rolling_out": True, "observation": seen(ttft=2.0)}, "Running"),
        ({}, "Ready"),
        ({"now": 90_000.0}, "Ready"),
        ({"ready": 90.0}, "Watching"),
        ({"ready": 90.0, "observation": seen(ttft=2.0)}, "Watching"),
        ({"ready": 30.0, "observation": seen(ttft=2.0)}, "Failed"),
        ({"ready": 30.0, "observation": seen(ttft=2.0), "met": False}, "Watching"),
        ({"ready": 30.0, "observation": seen(ttft=2.0, rate=0.1)}, "Watching"),
        ({"ready": 30.0, "observation": seen(ttft=2.0, state=MetricsState.STALE)}, "Watching"),
        ({"ready": 30.0, "observation": None}, "Watching"),
        ({"ready": 30.0, "now": 630.0, "observation": seen(ttft=2.0)}, "Complete"),
        ({"args": ("--hand",)}, "Superseded"),
        ({"args": ("--hand",), "rolling_out": True, "stuck": "x"}, "Superseded"),
        ({"target": None}, "Superseded"),
    ],
)
def test_how_a_roll_out_stands(case, expected):
    found, why = verdict(**case)
    assert found.value == expected
    assert bool(why) == (expected == "Failed")
    if why:
        assert why.startswith("max_num_seqs=4: ")


def test_a_change_is_offered_where_each_of_its_values_is():
    lever = EngineLever(max_num_seqs=(64, 128), kv_cache_dtype=("auto", "fp8"))
    assert rollout.offered(EngineChange(max_num_seqs=64), lever)
    assert rollout.offered(EngineChange(max_num_seqs=64, kv_cache_dtype="fp8"), lever)
    assert not rollout.offered(EngineChange(max_num_seqs=64, max_num_batched_tokens=512), lever)


def reported(generation=2, **state):
    return {
        "metadata": {"generation": generation},
        "spec": {"replicas": 2},
        "status": {"observedGeneration": 2, **state},
    }


COUNTS = {"replicas": 2, "updatedReplicas": 2, "readyReplicas": 2}
AVAILABLE = [{"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}]


@pytest.mark.parametrize(
    ("live", "rolling"),
    [
        (reported(**COUNTS, conditions=AVAILABLE), False),
        (reported(**{**COUNTS, "readyReplicas": 1}, conditions=AVAILABLE), False),
        (reported(**{**COUNTS, "replicas": 1, "updatedReplicas": 1}, conditions=AVAILABLE), False),
        (reported(**{**COUNTS, "replicas": 3}, conditions=AVAILABLE), True),
        (reported(3, **COUNTS, conditions=AVAILABLE), True),
        (reported(**COUNTS, conditions=[{**AVAILABLE[0], "reason": "ReplicaSetUpdated"}]), True),
        (reported(**{**COUNTS, "readyReplicas": 1}), True),
        (reported(**COUNTS), False),
        (reported(**{**COUNTS, "readyReplicas": 1}, currentRevision="a", updateRevision="a"), False),
        (reported(**COUNTS, currentRevision="a", updateRevision="b"), True),
    ],
)
def test_a_roll_out_is_told_from_a_scale_up(live, rolling):
    assert rolling_out(live) is rolling


# status

TEXT = st.text(max_size=6)
TREE = st.recursive(
    st.none()
    | st.integers()
    | TEXT
    | st.lists(st.dictionaries(TEXT, st.integers() | st.none(), max_size=2), max_size=2),
    lambda inner: st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def merged(base, patch):
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    base = dict(base) if isinstance(base, dict) else {}
    for name, value in patch.items():
        if value is None:
            base.pop(name, None)
        else:
            base[name] = merged(base.get(name), value)
    return base


def bare(value):
    if isinstance(value, dict):
        return {name: bare(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [bare(item) for item in value]
    return value


def full(value):
    """Without empty maps, which a merge cannot tell from absent ones."""
    if isinstance(value, dict):
        kept = {name: full(item) for name, item in value.items()}
        return {name: item for name, item in kept.items() if item not in ({}, None)}
    return value


@given(st.dictionaries(TEXT, TREE, max_size=4), st.dictionaries(TEXT, TREE, max_size=4))
def test_a_difference_leads_from_one_status_to_the_next(old, new):
    patch = publish._difference(old, new)
    assert full(merged(bare(old), patch)) == full(bare(new))
    assert publish._difference(new, new) == {}


def test_a_status_patch_holds_only_what_changed():
    before = InferenceServiceStatus(phase="Ready", observed_generation=1)
    assert publish.status_patch(before, before) == {}
    assert publish.status_patch(before, before.model_copy(update={"phase": "Paused"})) == {"phase": "Paused"}


def test_factors_that_drift_are_no_reason_to_write_and_one_that_vanished_is_taken_out():
    before = InferenceServiceStatus(factors=FactorsStatus(time="a", values={"batch": "4", "gpu": "x"}))
    after = before.model_copy(update={"factors": FactorsStatus(time="b", values={"batch": "5"})})
    assert publish._steady(after, before) == publish._steady(before, before)
    assert publish.status_patch(before, after) == {"factors": {"time": "b", "values": {"batch": "5", "gpu": None}}}


def test_a_decision_in_words():
    before = Target(replicas=4, engine=EngineSettings(max_num_seqs=64))
    after = Target(replicas=3, power_cap_watts=450.0, clock_mhz=1500.0)
    assert status.describe_change(before, after, EngineChange(max_num_seqs=128)) == (
        "replicas 4 -> 3, cap default -> 450W, clock free -> 1500MHz, max_num_seqs 64 -> 128"
    )
    assert status.describe_change(before, before, EngineChange()) == ""
    assert status.describe(Target(replicas=1)) == "1 replica"


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_not_shown(value):
    assert digits(value) is None


def test_history_keeps_the_last_ten_and_the_newest_first():
    state = restore(InferenceServiceStatus(), clock=Clock(), forecast=ForecastSettings())
    for index in range(12):
        state.remember(HistoryEntry(time=str(index), reason="LeastEnergy", change=f"replicas {index} -> {index + 1}"))
    assert [entry.time for entry in state.history] == [str(index) for index in range(11, 1, -1)]


# power


def view(*, heartbeat=1000.0, now=1000.0, entries=(), **device):
    shown = DeviceStatus(uuid="GPU-1", pods=["ns/p"], **device)
    node = caps.Node(name="n", resource_version="1", entries=tuple(entries), devices=(shown,), heartbeat=heartbeat)
    return caps.PowerView(nodes={"n": node}, now_seconds=now)


LEVERS = Levers(power_cap=RangeLever(minimum=300, maximum=700, step=50))
FAR = "2099-01-01T00:00:00Z"
MINE = CapEntry(uuid="GPU-1", watts=400, owner="ns/chat", expires_at=FAR)


def report(found, *, acting=True, asked_since=0.0, levers=LEVERS):
    of = SimpleNamespace(levers=levers, namespace="ns", owner="ns/chat", pod_names=("p",), nodes=frozenset({"n"}))
    return found.report(of, acting=acting, asked_since=asked_since)


@pytest.mark.parametrize(
    ("found", "options", "reason", "usable"),
    [
        (view(), {}, "NoCap", True),
        (view(), {"acting": False}, "NotEnforcing", True),
        (view(heartbeat=None), {}, "AgentAbsent", False),
        (view(now=1091.0), {}, "AgentAbsent", False),
        (view(now=1091.0), {"acting": False}, "NotEnforcing", True),
        (caps.PowerView(served=False), {}, "CrdNotInstalled", False),
        (view(entries=[MINE], requested=400, clamped=400, enforced=401.5), {}, "Enforced", True),
        (view(entries=[MINE], requested=400, clamped=400, enforced=700), {}, "CapRefused", False),
        (view(entries=[MINE], requested=400, clamped=400, enforced=700), {"asked_since": 950.0}, "Enforced", True),
        (view(entries=[MINE]), {}, "CapRefused", False),
        (view(entries=[MINE]), {"asked_since": 950.0}, "NoCap", True),
        (view(entries=[MINE], requested=400, clamped=500, enforced=500), {}, "Enforced", True),
    ],
)
def test_what_is_said_of_the_power_lever(found, options, reason, usable):
    said = report(found, **options)
    assert (said.reason, said.usable) == (reason, usable)


def test_without_a_power_lever_nothing_is_said():
    assert report(view(), levers=Levers()) is None


def test_a_limit_that_the_card_changed_is_said_so():
    said = report(view(entries=[MINE], requested=400, clamped=500, enforced=500))
    assert "bounds" in said.message


# the process


def test_logs_are_json_with_extras_and_traces():
    record = logging.makeLogRecord(
        {"name": "x", "levelname": "WARNING", "msg": "slow %s", "args": ("tick",), "node": "n"}
    )
    try:
        raise ValueError("why")
    except ValueError as error:
        record.exc_info = (type(error), error, error.__traceback__)
    line = json.loads(logs.JsonFormatter().format(record))
    assert (line["level"], line["logger"], line["message"], line["node"]) == ("warning", "x", "slow tick", "n")
    assert "ValueError: why" in line["exception"]
    assert line["time"].endswith("+00:00")


def health(**values):
    return Health(tick_seconds=15.0, clock=lambda: 1000.0, **values)


@pytest.mark.parametrize(
    ("found", "alive", "ready"),
    [
        (health(), True, True),
        (health(acting_since=990.0), True, False),
        (health(acting_since=800.0), False, False),
        (health(acting_since=0.0, last_good_pass=990.0), True, True),
        (health(acting_since=0.0, last_good_pass=950.0), True, False),
        (health(acting_since=0.0, last_good_pass=800.0), False, False),
    ],
)
def test_health_is_the_age_of_the_last_good_pass(found, alive, ready):
    assert found.judge(ready=False)[0] is alive
    assert found.judge(ready=True)[0] is ready


def test_health_pages_and_metrics_are_served():
    server = HealthServer(
        port=0, registry=CollectorRegistry(), health=health(acting_since=0.0, last_good_pass=950.0), address="127.0.0.1"
    )
    server.start()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz") as page:
            assert json.load(page)["lastGoodPassAgeSeconds"] == 50.0
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/readyz")
        assert refused.value.code == 503
        refused.value.close()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as page:
            assert page.status == 200
    finally:
        server.stop()
