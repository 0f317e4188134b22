"""The replay stage: wishes of plans go to worker processes, and what comes back is evidence for the next plans.

A pass never waits here. Each pass replaces the queue by what its plans wish for now: the riskiest first, and what has
waited long before what has not; at most so many per service and in all. Replays take at most a share of the time, so
that a large fleet is checked more slowly, not at the cost of the loop. A worker that dies or hangs is replaced; until
replays come again there is no new evidence, and plans hold or move to more capacity.

Evidence lives in memory: after a restart it is made anew within a pass or two.
"""

import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from wattkeeper.controller.metrics import OperatorMetrics
from wattkeeper.controller.service import ServiceKey
from wattkeeper.controller.settings import ReplaySettings
from wattkeeper.controller.workers import Worker, WorkerError
from wattkeeper.domain.arrivals import ArrivalRecord
from wattkeeper.domain.plan import Slo
from wattkeeper.domain.replay import Replayed, ReplayResult, ReplayStatus, ReplayWish
from wattkeeper.domain.workload import Workload
from wattkeeper.physics import step
from wattkeeper.physics.profile import ServingProfile
from wattkeeper.planner.types import ReplayEvidence
from wattkeeper.queueing import replay
from wattkeeper.queueing.replay import ReplayJob

_log = logging.getLogger(__name__)
_PATIENCE_SECONDS = 120.0
"""Wall time of waiting that counts as much as a slack of 1 (a latency at half its target)."""
_KEPT = 16
"""Replays kept per service."""
_LONGEST_REST_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A wish with all that the replay needs."""

    key: ServiceKey
    wish: ReplayWish
    profile: ServingProfile
    slo: Slo
    workload: Workload
    arrivals: ArrivalRecord | None
    time_seconds: float
    """Decision time of the measurements."""
    seed: int

    @functools.cached_property
    def name(self) -> "_Name":
        """Tells it from other wishes; a later pass has the same for the same. Plain values, as it is hashed a lot."""
        setting = self.wish.setting
        return (
            self.key,
            setting.replicas,
            setting.power_cap_watts,
            setting.clock_mhz,
            setting.max_num_seqs,
            setting.max_num_batched_tokens,
            setting.kv_capacity_tokens,
            self.wish.requests_per_second,
        )

    def job(self, requests: int) -> ReplayJob:
        """For a worker."""
        return ReplayJob(
            profile=self.profile,
            setting=self.wish.setting,
            workload=self.workload.at_rate(self.wish.requests_per_second),
            slo=self.slo,
            arrivals=self.arrivals,
            requests=requests,
            seed=self.seed,
        )

    def replayed(self, result: ReplayResult) -> Replayed:
        """As evidence."""
        return Replayed(
            setting=self.wish.setting,
            requests_per_second=self.wish.requests_per_second,
            time_seconds=self.time_seconds,
            prompt_tokens=self.workload.prompt.mean,
            output_tokens=self.workload.output.mean,
            prefix_hit_ratio=self.workload.prefix_hit_ratio,
            iteration_seconds=step.reference_seconds(self.profile.iteration),
            result=result,
        )


_Name = tuple[ServiceKey, int, float | None, float | None, int, int, float, float]


@dataclass(kw_only=True)
class Replays:
    """The stage. All methods but `stop` return at once."""

    settings: ReplaySettings
    tick_seconds: float
    metrics: OperatorMetrics
    make_worker: Callable[[], Worker] = Worker
    monotonic: Callable[[], float] = time.monotonic
    _queue: list[Asked] = field(default_factory=list)
    """The most urgent last."""
    _waiting: dict[_Name, float] = field(default_factory=dict)
    """Since when each wish is waiting or under way."""
    _running: set[_Name] = field(default_factory=set)
    _evidence: dict[ServiceKey, list[Replayed]] = field(default_factory=dict)
    _trouble: str = ""
    _spent_seconds: float = 0.0
    """Of the time that this pass and those before it allow."""
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _stopping: bool = False
    _threads: list[threading.Thread] = field(default_factory=list)
    _workers: dict[int, Worker] = field(default_factory=dict)

    def start(self) -> None:
        """Start the workers, each with a thread that feeds it."""
        for number in range(self.settings.workers):
            thread = threading.Thread(target=self._feed, args=(number,), name=f"replays-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """End the workers; what is under way is lost."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            workers = list(self._workers.values())
        for worker in workers:
            worker.end()
        for thread in self._threads:
            thread.join(timeout=10.0)
        for worker in workers:
            worker.close()

    def work_off(self) -> None:
        """Replay all that waits in the calling thread, for simulations; takes the place of `start`.

        The queue bounds the work of a pass, the share of the time does not: how fast this machine is must not change
        what a simulation finds.
        """
        while self._queue:
            item = self._queue.pop()
            self._running.add(item.name)
            self._done(item, replay.run(item.job(self.settings.requests)), 0.0)

    def evidence(self, key: ServiceKey) -> ReplayEvidence:
        """What is known of a service."""
        with self._changed:
            return ReplayEvidence(replayed=tuple(self._evidence.get(key, ())), trouble=self._trouble)

    @property
    def trouble(self) -> str:
        """Why no replays come at present; empty where the stage works."""
        with self._changed:
            return self._trouble

    def forget(self, key: ServiceKey) -> None:
        """A service is gone."""
        with self._changed:
            self._evidence.pop(key, None)

    def want(self, asked: Sequence[Asked]) -> None:
        """Take the wishes of a pass in place of those before."""
        now = self.monotonic()
        with self._changed:
            self._waiting = {item.name: self._waiting.get(item.name, now) for item in asked} | {
                name: since for name, since in self._waiting.items() if name in self._running
            }
            ordered = sorted(asked, key=lambda item: self._urgency(item, now))
            taken: dict[ServiceKey, int] = {}
            queue = []
            for item in ordered:
                if item.name in self._running or taken.get(item.key, 0) >= self.settings.per_service:
                    continue
                taken[item.key] = taken.get(item.key, 0) + 1
                queue.append(item)
            self._queue = queue[: self.settings.queue][::-1]
            allowed = self.settings.share * self.tick_seconds * self.settings.workers
            self._spent_seconds = max(0.0, self._spent_seconds - allowed)
            self.metrics.replay_queue.set(len(self._queue))
            self.metrics.replay_wait.set(max((now - since for since in self._waiting.values()), default=0.0))
            self._changed.notify_all()

    def _urgency(self, item: Asked, now: float) -> float:
        """Smaller is more urgent."""
        return min(item.wish.slack, 10.0) - (now - self._waiting[item.name]) / _PATIENCE_SECONDS

    def _feed(self, number: int) -> None:
        """The thread of one worker."""
        failures = 0
        while (item := self._next()) is not None:
            began = self.monotonic()
            try:
                if number not in self._workers and not self._begin(number):
                    return
                result = self._workers[number].run(
                    item.job(self.settings.requests), timeout_seconds=self.settings.timeout_seconds
                )
            except (WorkerError, OSError) as error:
                if number in self._workers:
                    self._workers.pop(number).close()
                if self._stopping:
                    return
                failures += 1
                self._failed(item, str(error), failures)
            else:
                failures = 0
                self._done(item, result, self.monotonic() - began)

    def _begin(self, number: int) -> bool:
        """Start a worker; False where the stage is being stopped."""
        worker = self.make_worker()
        with self._changed:
            if not self._stopping:
                self._workers[number] = worker
                return True
        worker.close()
        return False

    def _next(self) -> Asked | None:
        """The most urgent wish, once there is one and time for it; None: stop."""
        with self._changed:
            allowed = self.settings.share * self.tick_seconds * self.settings.workers
            while not self._stopping and (not self._queue or self._spent_seconds >= allowed):
                self._changed.wait()
            if self._stopping:
                return None
            item = self._queue.pop()
            self._running.add(item.name)
            self.metrics.replay_queue.set(len(self._queue))
            return item

    def _done(self, item: Asked, result: ReplayResult, seconds: float) -> None:
        self.metrics.replays.labels(result.status.value).inc()
        self.metrics.replay_seconds.observe(seconds)
        with self._changed:
            self._spent_seconds += seconds
            self._trouble = ""
            self.metrics.replay_available.set(1.0)
            since = self._waiting.pop(item.name, None)
            if since is not None:
                self.metrics.replay_latency.observe(self.monotonic() - since)
            self._keep(item, result)

    def _failed(self, item: Asked, why: str, failures: int) -> None:
        """Say so, rest, and try once more; a replay that ends two workers counts as one that proves nothing."""
        _log.warning("replays: %s; a new worker follows", why)
        self.metrics.replays.labels("Died").inc()
        with self._changed:
            self._trouble = f"{why} ({failures} in a row)"
            self.metrics.replay_available.set(0.0)
            if failures > 1:
                self._waiting.pop(item.name, None)
                self._keep(item, ReplayResult(status=ReplayStatus.INVALID, message=why))
            else:
                self._running.discard(item.name)
                self._queue.append(item)
            until = self.monotonic() + min(2.0**failures, _LONGEST_REST_SECONDS)
            while not self._stopping and (rest := until - self.monotonic()) > 0:
                self._changed.wait(rest)

    def _keep(self, item: Asked, result: ReplayResult) -> None:
        self._running.discard(item.name)
        known = [
            other
            for other in self._evidence.get(item.key, ())
            if (other.setting, other.requests_per_second) != (item.wish.setting, item.wish.requests_per_second)
        ]
        self._evidence[item.key] = [*known, item.replayed(result)][-_KEPT:]
