"""From a simulated service through its own pages and a Prometheus to rows: what was true, or why there is none."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from tests.telemetry.twin_history import EPOCH, MODEL, record
from wattkeeper.cli import main, own_history
from wattkeeper.domain.errors import DataFileError, TelemetryError, UnknownAcceleratorError
from wattkeeper.energy import own_rows
from wattkeeper.telemetry import run_rows
from wattkeeper.telemetry.prometheus import PrometheusSettings
from wattkeeper.telemetry.run_history import HistorySpan
from wattkeeper.telemetry.run_rows import Deployment
from wattkeeper.telemetry.steady_runs import Reason
from wattkeeper.twin.exposition import VllmProfile

CHAT = Deployment(name="team/chat", namespace="team", pods="chat-[0-9]")


def collect(recorded, deployment=CHAT, step=30.0, **more):
    with recorded.store as store:
        settings = PrometheusSettings(url=store.url, timeout_seconds=30.0)
        span = HistorySpan(start_seconds=EPOCH, end_seconds=EPOCH + recorded.seconds, step_seconds=step)
        return run_rows.collect(settings, span, deployment, **more)


def seconds_of(found):
    return {reason: seconds for reason, seconds, _ in run_rows.left_out_by_reason(found.left_out)}


@pytest.fixture(scope="module")
def two_loads():
    return record(((0, 8.0), (1500, 8.0), (1510, 30.0), (3000, 30.0)))


@pytest.fixture(scope="module")
def found(two_loads):
    return collect(two_loads)


def test_rows_say_what_the_twin_did(two_loads, found):
    assert (found.model, found.gpu.name, found.gpus, found.precision) == (MODEL, "nvidia-h100-sxm", 1, "bfloat16")
    assert (found.replicas, found.thinned) == (2, 0)
    assert len(found.runs) >= 6
    for run in found.runs:
        watts, tokens, batch = two_loads.between(run.pod, run.start_seconds, run.start_seconds + run.seconds)
        assert run.gpu_watts == pytest.approx(watts, rel=0.01)
        assert run.tokens_per_second == pytest.approx(tokens, rel=0.01)
        assert run.batch == pytest.approx(batch, rel=0.01)
        assert run.prompt_tokens == pytest.approx(500.0, rel=0.1)
        assert run.output_tokens == pytest.approx(200.0, rel=0.1)
        assert run.inter_token_seconds * run.tokens_per_second == pytest.approx(run.batch, rel=0.02)
    rates = sorted(run.requests_per_second for run in found.runs)
    assert rates[0] == pytest.approx(4.0, rel=0.15)
    assert rates[-1] == pytest.approx(15.0, rel=0.15)


def test_prefix_hits_are_told(tmp_path):
    found = collect(record(((0, 14.0), (1500, 14.0)), pods=1, cached=0.6))
    assert found.runs
    for run in found.runs:
        assert run.hit_ratio == pytest.approx(0.6, abs=0.03)
        assert run.prompt_tokens == pytest.approx(500.0, rel=0.1)
        assert run.computed_tokens == pytest.approx(200.0, rel=0.15)
    run_rows.write([found], tmp_path / "own.csv")
    table = own_rows.read(tmp_path / "own.csv")
    assert table["prefix_hit_ratio"].tolist() == pytest.approx([run.hit_ratio for run in found.runs], rel=1e-5)


def test_no_time_is_lost(two_loads, found):
    assert found.history_seconds == pytest.approx(2 * two_loads.seconds, abs=2 * 30)
    assert all(run.start_seconds + run.seconds <= EPOCH + 1500 or run.start_seconds >= EPOCH + 1490
               for run in found.runs)  # fmt: skip


def test_rows_are_read_back_by_train(found, tmp_path):
    path = tmp_path / "own.csv"
    assert run_rows.write([found], path) == (len(found.runs), ())
    table = own_rows.read(path)
    assert set(table["task"]) == {"team/chat"}
    assert table["gpu_watts"].tolist() == pytest.approx([run.gpu_watts for run in found.runs], rel=1e-5)
    assert table["joules_per_token"].tolist() == pytest.approx(
        [run.gpu_watts / run.tokens_per_second for run in found.runs], rel=1e-4
    )
    assert {"4", "1e+01", "10", "20"} >= set(table["group_rate"]) - {"5", "3"}


@pytest.mark.parametrize("profile", VllmProfile)
def test_several_cards_and_older_engines(profile):
    recorded = record(((0, 6.0), (900, 6.0)), pods=1, gpus=2, profile=profile)
    found = collect(recorded)
    assert found.gpus == 2
    assert len(found.runs) >= 1
    watts, _, batch = recorded.between("chat-0", found.runs[0].start_seconds, found.runs[0].start_seconds + 600)
    assert found.runs[0].gpu_watts == pytest.approx(watts, rel=0.02)
    assert found.runs[0].batch == pytest.approx(batch, rel=0.1)


def test_a_coarser_scrape_than_the_step_is_no_gap(two_loads):
    coarse = collect(two_loads, step=10.0)
    assert sum(run.seconds for run in coarse.runs) > 0.8 * coarse.history_seconds


def test_gaps_restarts_and_caps_end_windows():
    def act(at, fleet):
        members = fleet.services["chat"].members
        if at == 900:
            fleet.kill_pod("chat", ("team", "chat-1"))
        elif at == 915:
            hardware = members["team", "chat-0"].hardware
            fleet.add_pod("chat", ("team", "chat-1"), node="node-0", container="vllm", hardware=hardware)
            fleet.set_ready("chat", ("team", "chat-1"))
        elif at == 1800:
            fleet.set_power(members["team", "chat-0"].gpus[0], watts=400.0, clock_mhz=None)
        elif at == 2400:
            fleet.set_power(members["team", "chat-0"].gpus[0], watts=None, clock_mhz=None)

    recorded = record(((0, 14.0), (3600, 14.0)), act=act, hidden=lambda at: 2700 < at < 3000)
    found = collect(recorded)
    left = seconds_of(found)
    assert left[Reason.RESTARTED] <= 60.0
    assert left[Reason.LIMIT_CHANGED] == pytest.approx(60.0, abs=31.0)
    assert left[Reason.CAPPED] == pytest.approx(600.0, abs=60.0)
    assert left[Reason.GAP] == pytest.approx(2 * 300.0, abs=100.0)
    assert left[Reason.SETTLING] > 100.0
    for run in found.runs:
        begin, end = run.start_seconds - EPOCH, run.start_seconds + run.seconds - EPOCH
        assert end <= 2715 or begin >= 2985
        if run.pod == "chat-0":
            assert end <= 1830 or begin >= 2400
        else:
            assert end <= 930 or begin >= 915
        watts, tokens, batch = recorded.between(run.pod, run.start_seconds, run.start_seconds + run.seconds)
        assert run.gpu_watts == pytest.approx(watts, rel=0.02)
        assert run.tokens_per_second == pytest.approx(tokens, rel=0.02)
        assert run.batch == pytest.approx(batch, rel=0.02)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"fault": "stuck@120"}, Reason.STUCK),
        ({"fault": "nan"}, Reason.NO_WATTS),
        ({"fault": "zero"}, Reason.NO_WATTS),
        ({"fault": "missing@60"}, Reason.NO_WATTS),
        ({"rates": ((0, 0.3), (900, 0.3))}, Reason.IDLE),
        ({"cached": 0.995}, Reason.PREFIX),
    ],
)
def test_what_cannot_be_used_is_named(options, reason, tmp_path):
    recorded = record(**{"rates": ((0, 12.0), (900, 12.0)), "pods": 1} | options)
    try:
        found = collect(recorded)
    except TelemetryError as error:
        # Watts that are no number from the beginning on: no card is known at all.
        assert reason is Reason.NO_WATTS
        assert "no power of their GPUs" in str(error)
        return
    left = seconds_of(found)
    assert max(left, key=left.get) is reason
    with pytest.raises(TelemetryError, match=f"no steady run in .*{reason.value}"):
        run_rows.write([found], tmp_path / "own.csv")
    assert not (tmp_path / "own.csv").exists()


def test_a_locked_clock_is_not_taken_for_full_power():
    def lock(at, fleet):
        if at == 0:
            fleet.set_power(fleet.services["chat"].members["team", "chat-0"].gpus[0], watts=None, clock_mhz=1200.0)

    found = collect(record(((0, 6.0), (900, 6.0)), pods=1, act=lock))
    assert found.runs == ()
    assert seconds_of(found)[Reason.CLOCKED] > 600.0


def test_a_held_operating_point_does_not_swamp_the_table(found):
    day = [run for run in found.runs for _ in range(50)]
    kept = run_rows.thinned(day, 3)
    cells = {run_rows._cell(run) for run in day}
    assert len(kept) <= 3 * len(cells)
    assert {run_rows._cell(run) for run in kept} == cells
    assert kept[0] is day[0]
    assert run_rows.thinned(found.runs, 100) == list(found.runs)


# What goes wrong.


def with_labels(recorded, change):
    recorded.store.series = {
        frozenset(change(dict(labels)).items()): values for labels, values in recorded.store.series.items()
    }
    return recorded


@pytest.fixture
def small():
    return record(((0, 12.0), (420, 12.0)), pods=2)


def test_no_engine_no_power(small):
    with pytest.raises(TelemetryError, match=r"no series vllm:num_requests_running.* of pods other-.* in team"):
        collect(small, Deployment(name="x", namespace="team", pods="other-.*"))
    without = {k: v for k, v in small.store.series.items() if "DCGM_FI_DEV_POWER_USAGE" not in dict(k).values()}
    small.store.series = without
    with pytest.raises(TelemetryError, match=r"engines of chat-0, chat-1, but no power .*DCGM_EXPORTER_KUBERNETES"):
        collect(small)


def test_mixed_cards_are_refused(small):
    def other(labels):
        if labels.get("exported_pod") == "chat-1":
            labels["modelName"] = "NVIDIA A100-SXM4-80GB"
        return labels

    with pytest.raises(TelemetryError, match=r"different GPUs: NVIDIA A100.* \(chat-1\), NVIDIA H100.* \(chat-0\)"):
        collect(with_labels(small, other))


def test_cards_that_nobody_knows(small):
    unknown = with_labels(small, lambda labels: labels | ({"modelName": "Abacus 9"} if "modelName" in labels else {}))
    with pytest.raises(UnknownAcceleratorError, match=r"'Abacus 9' is not in the catalogue.*--gpu"):
        collect(unknown)
    assert collect(unknown, Deployment(**vars(CHAT) | {"gpu": "h100-sxm"})).gpu.name == "nvidia-h100-sxm"


def test_what_is_said_must_agree_with_what_is_seen(small):
    with pytest.raises(TelemetryError, match=r"said to run on nvidia-b200, but chat-\d has NVIDIA H100"):
        collect(small, Deployment(**vars(CHAT) | {"gpu": "b200"}))
    with pytest.raises(TelemetryError, match="said to have 4 GPUs per replica, but chat-0 has watts of 1"):
        collect(small, Deployment(**vars(CHAT) | {"gpus": 4}))


def test_two_models_must_be_told_apart(small):
    def other(labels):
        if labels.get("pod") == "chat-1" and "model_name" in labels:
            labels["model_name"] = "acme/other"
        return labels

    with pytest.raises(TelemetryError, match=r"serve acme/other, meta-llama.*--model"):
        collect(with_labels(small, other))
    only = Deployment(**vars(CHAT) | {"engine_matchers": (f'model_name="{MODEL}"',)})
    assert collect(small, only).replicas == 1


def test_data_parallel_ranks_are_one_replica():
    recorded = record(((0, 12.0), (600, 12.0)), pods=1, gpus=2)
    alone = collect(recorded)
    for labels, points in list(recorded.store.series.items()):
        named = dict(labels)
        if named.get("engine") == "0":
            recorded.store.series[frozenset((named | {"engine": "1"}).items())] = points
    found = collect(recorded)
    assert (found.engines, found.gpus) == (2, 2)
    row, half = found.rows().iloc[0], alone.rows().iloc[0]
    assert (row["tensor_parallel"], row["data_parallel"], half["data_parallel"]) == (1, 2, 1)
    for name in ("batch", "tokens_per_second", "requests_per_second"):
        assert row[name] == pytest.approx(2.0 * half[name], rel=1e-4)
    for name in ("inter_token_seconds", "gpu_watts", "prompt_tokens", "output_tokens"):
        assert row[name] == pytest.approx(half[name], rel=1e-4)


def test_engines_that_do_not_fit(small):
    for labels, points in list(small.store.series.items()):
        named = dict(labels)
        if named.get("engine") == "0" and named["pod"] == "chat-0":
            small.store.series[frozenset((named | {"engine": "1"}).items())] = points
    with pytest.raises(TelemetryError, match=r"different numbers of engines \(chat-1: 1, chat-0: 2\)"):
        collect(small)
    with pytest.raises(TelemetryError, match="have 2 engines on 1 GPUs"):
        collect(small, Deployment(**vars(CHAT) | {"pods": "chat-0"}))


def test_speculative_decoding_is_not_a_plain_step(small):
    recorded = record(((0, 12.0), (600, 12.0)), pods=1)
    for labels, (_, values) in recorded.store.series.items():
        if dict(labels)["__name__"] == "vllm:generation_tokens_total":
            values[:] = [2.0 * value for value in values]
    found = collect(recorded)
    assert found.runs == ()
    assert seconds_of(found)[Reason.SPECULATIVE] > 400.0


def test_two_pods_on_one_card_have_no_watts(small):
    for labels, points in list(small.store.series.items()):
        named = dict(labels)
        if named.get("exported_pod") == "chat-0":
            small.store.series[frozenset((named | {"exported_pod": "chat-1"}).items())] = points
    found = collect(small, Deployment(**vars(CHAT) | {"gpus": 1}))
    assert {run.pod for run in found.runs} <= {"chat-1"}
    assert seconds_of(found)[Reason.NO_WATTS] > 300.0
    assert any("raise it" in line for line in run_rows.summary(found))


def test_slices_and_shared_cards_have_no_watts(small):
    mig = collect(with_labels(small, lambda labels: labels | ({"GPU_I_ID": "1"} if "UUID" in labels else {})),
                  Deployment(**vars(CHAT) | {"gpus": 1}))  # fmt: skip
    assert mig.runs == ()
    assert Reason.NO_WATTS in seconds_of(mig)


def test_kepler_stands_in_for_dcgm(small):
    recorded = record(((0, 12.0), (600, 12.0)), pods=1)
    power = {}
    for labels, points in recorded.store.series.items():
        named = dict(labels)
        if named["__name__"].startswith("DCGM"):
            if named["__name__"] == "DCGM_FI_DEV_POWER_USAGE" and named.get("exported_pod") == "chat-0":
                kepler = {"__name__": "kepler_pod_gpu_watts", "pod_name": "chat-0", "pod_namespace": "team"}
                power[frozenset(kepler.items())] = points
            continue
        power[labels] = points
    recorded.store.series = power
    with pytest.raises(TelemetryError, match="do not name the GPU model: give --gpu"):
        collect(recorded)
    found = collect(recorded, Deployment(**vars(CHAT) | {"gpu": "h100", "gpus": 1}))
    assert len(found.runs) == 1
    watts, _, _ = recorded.between("chat-0", found.runs[0].start_seconds, found.runs[0].start_seconds + 500)
    assert found.runs[0].gpu_watts == pytest.approx(watts, rel=0.02)


def test_impossible_rows_are_refused_and_left_out(found, tmp_path):
    path = tmp_path / "own.csv"
    wrong = [run.__class__(**vars(run) | {"gpu_watts": 900.0}) for run in found.runs[:2]]
    mixed = found.__class__(**vars(found) | {"runs": (*wrong, *found.runs[2:])})
    rows, refused = run_rows.write([mixed], path)
    assert rows == len(found.runs) - 2
    assert [each.row for each in refused] == [1, 2]
    assert "over the rated power" in refused[0].reason
    assert len(pd.read_csv(path)) == rows
    with pytest.raises(TelemetryError, match="none of 2 runs is possible, the first for: gpu_watts is over"):
        run_rows.write([found.__class__(**vars(found) | {"runs": tuple(wrong)})], path)
    with pytest.raises(DataFileError, match="cannot be written"):
        run_rows.write([found], tmp_path / "no" / "own.csv")


# The commands.

WIS = {
    "kind": "InferenceService",
    "metadata": {"namespace": "team", "name": "chat"},
    "spec": {
        "model": MODEL,
        "targetRef": {"kind": "StatefulSet", "name": "chat"},
        "accelerator": {"type": "nvidia-h100-sxm", "perReplica": 1},
        "slo": {"ttft": {"target": "500ms"}},
    },
}


def run(recorded, *words, until=None):
    with recorded.store as store:
        times = ["--since", "2023-11-14T22:13:30Z", "--until", until or "2023-11-14T23:03:30Z"]
        return CliRunner().invoke(main.app, ["data", "from-prometheus", store.url, *words, *times])


def test_the_command_writes_rows_and_tells_the_rest(two_loads, tmp_path):
    path, status = tmp_path / "own.csv", tmp_path / "wis.json"
    status.write_text(json.dumps(WIS))
    found = run(two_loads, "--service", "team/chat", "--status", str(status), "--output", str(path))
    assert found.exit_code == 0, found.output
    assert "team/chat: 2 replicas of meta-llama/Llama-3.1-8B-Instruct (bfloat16) on 1 x nvidia-h100-sxm" in found.output
    assert "runs kept" in found.output
    assert "stretches: idle, or hardly busy" in found.output
    assert f"wrote {path}: {len(own_rows.read(path))} rows" in found.output
    checked = CliRunner().invoke(main.app, ["data", "check", "--rows", str(path)])
    assert "0 are refused" in checked.output


def test_pods_of_a_deployment_are_told_from_those_of_its_neighbours(tmp_path):
    status = tmp_path / "wis.json"
    wis = WIS | {"spec": WIS["spec"] | {"targetRef": {"kind": "Deployment", "name": "chat"}}}
    status.write_text(json.dumps(wis))
    (found,) = own_history.of_services(
        ["team/chat"], own_history.Said(gpus=2, precision="fp8"), status=status, kubeconfig=None, context=None
    )
    assert re.fullmatch(found.pods, "chat-7d9f8c6b5-x2k4q")
    assert not re.fullmatch(found.pods, "chat-long-7d9f8c6b5-x2k4q")
    assert not re.fullmatch(found.pods, "chat-0")
    assert (found.gpu, found.gpus, found.precision, found.model) == ("nvidia-h100-sxm", 2, "fp8", MODEL)


def test_the_same_from_pods(two_loads, tmp_path):
    path = tmp_path / "own.csv"
    found = run(two_loads, "--namespace", "team", "--pods", "chat-1", "--per-point", "1", "--output", str(path))
    assert found.exit_code == 0, found.output
    assert "team: 1 replica of" in found.output
    assert "runs more of operating points" in found.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--namespace", "team"], "say whose history"),
        (["--service", "chat"], "'chat' names no InferenceService"),
        (["--namespace", "team", "--pods", "("], "no regular expression"),
        (["--namespace", "team", "--pods", "x", "--matcher", "cluster"], "no label matcher"),
        (["--namespace", "team", "--pods", "x", "--since", "7w"], "'7w' is no time"),
        (["--namespace", "team", "--pods", "x", "--since", "1h", "--until", "2h"], "nothing lies between"),
    ],
)
def test_wrong_words(words, message, tmp_path):
    words = ["data", "from-prometheus", "http://127.0.0.1:1", *words, "--output", str(tmp_path / "own.csv")]
    found = CliRunner().invoke(main.app, words)
    assert found.exit_code == 1
    assert message in found.output


def test_train_joins_the_same_rows(two_loads, tmp_path, monkeypatch):
    asked = {}

    def train(folder, *, own, seed, report):
        asked.update(own=own, rows=own_rows.read(own[-1]))
        raise DataFileError("enough")

    monkeypatch.setattr("wattkeeper.energy.train.train", train)
    other = tmp_path / "other.csv"
    with two_loads.store as store:
        times = ["--since", "2023-11-14T22:13:30Z", "--until", "2023-11-14T23:03:30Z"]
        words = ["train", "--from-prometheus", store.url, "--namespace", "team", "--pods", "chat-.*", *times]
        words += ["--data", str(tmp_path), "--rows", str(other), "--output", str(tmp_path / "energy.json")]
        found = CliRunner().invoke(main.app, words)
        again = CliRunner().invoke(main.app, ["data", "from-prometheus", store.url, "--namespace", "team", "--pods",
                                              "chat-.*", *times, "--output", str(tmp_path / "own.csv")])  # fmt: skip
    assert found.exit_code == 1
    assert "enough" in found.output
    assert "runs kept" in found.output
    assert again.exit_code == 0
    assert asked["own"] == [other, tmp_path / "energy.own-rows.csv"]
    pd.testing.assert_frame_equal(asked["rows"], own_rows.read(tmp_path / "own.csv"))


def test_nobody_answers(tmp_path):
    words = ["--namespace", "team", "--pods", "x", "--output", str(tmp_path / "own.csv")]
    found = CliRunner().invoke(main.app, ["data", "from-prometheus", "http://127.0.0.1:1", *words])
    assert found.exit_code == 1
    assert "no connection" in found.output


def test_points_are_finite(found):
    for each in found.runs:
        numbers = [value for value in vars(each).values() if isinstance(value, float)]
        assert np.isfinite(numbers).all()
