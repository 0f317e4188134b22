"""The replay stage: real worker processes, and a controller that takes capacity away only with their evidence."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from tests.controller.world import service, wait
from tests.queueing.cases import H100_8B, workload
from wattkeeper.cli.main import app
from wattkeeper.controller.metrics import OperatorMetrics
from wattkeeper.controller.replays import Asked, Replays
from wattkeeper.controller.settings import ReplaySettings
from wattkeeper.controller.workers import Worker, WorkerError
from wattkeeper.domain.plan import LatencyTarget, Slo
from wattkeeper.domain.replay import ReplayResult, ReplaySetting, ReplayStatus, ReplayWish
from wattkeeper.queueing import replay

SLO = Slo(ttft=LatencyTarget(percentile=95, seconds=0.5), tpot=LatencyTarget(percentile=95, seconds=0.05))
KEY = ("team", "chat")


def asked(*, key=KEY, replicas=2, slack=0.5, rate=8.0, **changes) -> Asked:
    setting = {"replicas": replicas, "max_num_seqs": 256, "max_num_batched_tokens": 2048, "kv_capacity_tokens": 4e5}
    return Asked(
        key=key,
        wish=ReplayWish(
            setting=ReplaySetting(**(setting | changes)),
            requests_per_second=rate,
            slack=slack,
            evidence_age_seconds=None,
        ),
        profile=H100_8B,
        slo=SLO,
        workload=workload("chat", 7.0),
        arrivals=None,
        time_seconds=1000.0,
        seed=7,
    )


@pytest.fixture
def stage():
    """Makes stages and stops them."""
    made = []

    def make(*, start=True, tick_seconds=15.0, make_worker=Worker, **settings) -> Replays:
        found = Replays(
            settings=ReplaySettings(**{"requests": 500, **settings}),
            tick_seconds=tick_seconds,
            metrics=OperatorMetrics(),
            make_worker=make_worker,
        )
        made.append(found)
        if start:
            found.start()
        return found

    yield make
    for each in made:
        each.stop()


def sample(stage: Replays, name: str, **labels: str) -> float | None:
    registry: CollectorRegistry = stage.metrics.registry
    return registry.get_sample_value(name, labels)


def evidence(stage: Replays, key=KEY):
    return stage.evidence(key).replayed


def test_a_worker_gives_what_the_simulation_gives_here():
    job = asked().job(500)
    worker = Worker()
    try:
        there, here = worker.run(job, timeout_seconds=60.0), replay.run(job)
    finally:
        worker.close()
    assert there.status is ReplayStatus.DONE
    assert (there.ttft_seconds, there.tpot_upper_seconds) == (here.ttft_seconds, here.tpot_upper_seconds)
    worker.close()


def test_wishes_become_evidence_and_are_counted(stage):
    replays = stage()
    replays.want([asked(replicas=count, slack=count) for count in (3, 2)])
    wait(lambda: len(evidence(replays)) == 2)
    first, second = evidence(replays)
    assert (first.setting.replicas, second.setting.replicas) == (2, 3), "riskiest first"
    assert first.requests_per_second == 8.0 and first.time_seconds == 1000.0
    assert first.output_tokens == pytest.approx(326, rel=0.05)
    assert sample(replays, "wattkeeper_replay_runs_total", outcome="Done") == 2
    assert sample(replays, "wattkeeper_replay_available") == 1
    assert sample(replays, "wattkeeper_replay_queue") == 0
    replays.want([asked(replicas=2)])
    wait(lambda: sample(replays, "wattkeeper_replay_runs_total", outcome="Done") == 3)
    assert len(evidence(replays)) == 2, "a newer replay of the same takes the place of the older one"
    replays.forget(KEY)
    assert evidence(replays) == ()


def test_data_that_cannot_be_replayed_are_a_verdict(stage):
    replays = stage()
    replays.want([asked(kv_capacity_tokens=float("nan"))])
    wait(lambda: evidence(replays))
    assert evidence(replays)[0].result.status is ReplayStatus.INVALID
    assert replays.trouble == ""


def test_a_dead_worker_is_told_of_and_replaced(stage):
    replays = stage()
    replays.want([asked()])
    wait(lambda: evidence(replays))
    os.kill(replays._workers[0].pid, signal.SIGKILL)
    replays.want([asked(replicas=3)])
    wait(lambda: replays.trouble)
    assert "the replay worker ended with code -9" in replays.trouble
    assert sample(replays, "wattkeeper_replay_available") == 0
    wait(lambda: len(evidence(replays)) == 2)
    assert evidence(replays)[-1].result.status is ReplayStatus.DONE
    assert replays.trouble == "" and sample(replays, "wattkeeper_replay_available") == 1
    assert sample(replays, "wattkeeper_replay_runs_total", outcome="Died") == 1


def test_a_replay_that_ends_every_worker_proves_nothing(stage):
    replays = stage(make_worker=lambda: Worker(command=("-c", "raise SystemExit(3)")))
    replays.want([asked()])
    wait(lambda: evidence(replays))
    assert evidence(replays)[0].result.status is ReplayStatus.INVALID
    assert "ended with code 3 (2 in a row)" in replays.trouble


class Slow:
    """A worker whose replays take their time."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.ended = False

    def run(self, job, *, timeout_seconds):
        for _ in range(20):
            time.sleep(0.01)
            if self.ended:
                raise WorkerError("ended")
        self.seen.append(job.setting.replicas)
        return ReplayResult(status=ReplayStatus.DONE)

    def end(self) -> None:
        self.ended = True

    close = end


def test_wishes_never_make_a_pass_wait_and_the_share_of_time_is_kept(stage):
    worker = Slow()
    replays = stage(make_worker=lambda: worker, tick_seconds=1.0, share=0.35, per_service=3, queue=6)
    many = [asked(key=("team", f"s{index}"), replicas=count) for index in range(4) for count in range(1, 9)]
    began = time.monotonic()
    replays.want(many)
    assert time.monotonic() - began < 0.1
    assert sample(replays, "wattkeeper_replay_queue") <= 6
    time.sleep(1.0)
    assert len(worker.seen) == 2, "the second begins within the share of the pass, a third would not"
    replays.want(many)
    wait(lambda: len(worker.seen) >= 3)


def test_what_has_waited_long_goes_before_what_is_riskier(stage):
    now = [0.0]
    replays = Replays(settings=ReplaySettings(), tick_seconds=15.0, metrics=OperatorMetrics(), monotonic=lambda: now[0])
    replays.want([asked(replicas=5, slack=2.0)])
    now[0] = 300.0
    replays.want([asked(replicas=5, slack=2.0), asked(replicas=6, slack=0.1)])
    assert [item.wish.setting.replicas for item in reversed(replays._queue)] == [5, 6]
    assert sample(replays, "wattkeeper_replay_longest_wait_seconds") == 300.0


def test_a_worker_that_hangs_is_ended(stage):
    worker = Worker(command=("-c", "import time; time.sleep(60)"))
    with pytest.raises(WorkerError, match="did not end within 0 s"):
        worker.run(asked().job(10), timeout_seconds=0.2)
    with pytest.raises(WorkerError, match="ended with code"):
        worker.run(asked().job(10), timeout_seconds=0.2)
    worker.close()


# Through the controller


def told(world, *arguments: str) -> str:
    command = ["explain", f"{world.namespace}/chat", f"--kubeconfig={world.cluster.kubeconfig}", *arguments]
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 0, answer.output
    return answer.output


def test_capacity_goes_only_once_a_replay_has_shown_that_the_rest_is_enough(make_world):
    world = make_world(settings={"replays": ReplaySettings(requests=1000)})
    world.operator.replays.start()
    try:
        world.fleet(replicas=4, rate=1.0)
        world.create(service(world.namespace, levers={"replicas": {"min": 1, "max": 6}}))
        seen = set()
        for _ in range(60):
            world.measure(rate=4.0 / world.replicas())
            world.report_agent()
            world.tick(every=65.0)
            seen.add(world.status()["plan"]["reason"])
            if world.replicas() < 4:
                break
            time.sleep(0.3)
        assert world.replicas() < 4 and "AwaitingReplay" in seen
        world.rolled_out()
        world.measure(rate=4.0 / world.replicas())
        world.tick(every=15.0)
        check = world.status()["plan"]["check"]
        assert check["replay"]["standing"] == "Meets" and check["replay"]["requests"] > 900
        assert world.said("SLOChecked") == ("True", "Replayed")
        text = told(world)
        for part in ("replayed (at most", "binding:", "what if", "10 % more rate", "Meets: ", check["ttft"]["upper"]):
            assert part in text
        facts = json.loads(told(world, "--output=json"))
        assert facts["plan"]["check"] == {
            name: value for name, value in facts["plan"]["check"].items() if value not in (None, [])
        }
        assert facts["plan"]["check"]["replay"]["requests"] == check["replay"]["requests"]
        assert world.operator.metrics.registry.get_sample_value("wattkeeper_replay_available") == 1
        assert world.metric("wattkeeper_plan_replay_age_seconds") < 600
    finally:
        world.operator.replays.stop()


def test_without_replays_that_come_the_plan_holds_and_says_so(make_world):
    world = make_world(settings={"replays": ReplaySettings(requests=1000)})
    replays = world.operator.replays
    replays._failed(asked(), "the replay worker ended with code 1", -20)
    replays._queue.clear()
    world.fleet(replicas=4, rate=1.0)
    world.create(service(world.namespace, levers={"replicas": {"min": 1, "max": 6}}))
    for _ in range(12):
        world.measure(rate=1.0)
        world.tick(every=60.0)
    assert world.replicas() == 4
    assert world.said("SLOChecked") == ("False", "ReplayUnavailable")
    assert world.said("Ready")[0] == "False"
    assert "none comes: the replay worker ended" in world.status()["plan"]["message"]
    world.measure(rate=7.0)
    world.tick(every=15.0)
    assert world.replicas() >= 4


def test_explain_says_what_is_wrong(world):
    world.fleet(replicas=2)
    missing = CliRunner().invoke(app, ["explain", f"{world.namespace}/no", f"--kubeconfig={world.cluster.kubeconfig}"])
    assert missing.exit_code == 1 and "404" in missing.output
    malformed = CliRunner().invoke(app, ["explain", "chat"])
    assert malformed.exit_code == 2
    world.create(service(world.namespace, target="nothing"))
    assert "no plan yet" in told(world)
    world.tick()
    text = told(world)
    assert "TargetResolved: False, TargetNotFound" in text
