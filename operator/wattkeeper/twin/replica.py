"""One vLLM replica of the twin: the stepper of `replica.stepper` at the speed and power of the twin's own tables.

The stepper says what happens when; here is what a pod makes of it: energy, the clock under a cap, and the counters of
its metrics page. None of that costs anything per iteration. The energy of an iteration is linear in its work, so sums
of work are priced when somebody asks or the clock changes; what counters need is written down by the stepper and added
up when somebody reads them.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from operator import sub

from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.replica import stepper
from wattkeeper.replica.engine import Coefficients, EngineConfig, Prefix, Work
from wattkeeper.replica.journal import Journal
from wattkeeper.twin.bookkeeping import Bookkeeper
from wattkeeper.twin.counters import EngineCounters
from wattkeeper.twin.crowd import Crowd
from wattkeeper.twin.governor import Governor
from wattkeeper.twin.hardware import ClockLevel, ReplicaHardware
from wattkeeper.twin.request import Request

_LONG_JOURNAL = 50_000
"""Entries after which a journal is added up although nobody asked."""
_OLD_REQUESTS = 4096
"""Finished requests that the stepper may remember before it is told to forget."""


@dataclass(frozen=True, kw_only=True)
class _Engine(EngineConfig):
    """Limits and memory of a pod, at the speed of its highest clock."""

    highest: ClockLevel

    def at_clock(self, clock_ratio: float) -> Coefficients:
        """What an iteration costs; the twin sets levels of its own, so there is no other clock here."""
        if clock_ratio != 1.0:
            raise ValueError(f"a replica of the twin starts at its highest clock, not at {clock_ratio} of it")
        return _coefficients(self.highest)


class Replica:
    """State of one engine; `run(until)` advances it. Energy and watts are per GPU, the replica has `hardware.gpus`."""

    def __init__(self, hardware: ReplicaHardware, *, now: float) -> None:
        self.hardware = hardware
        self.finished: list[Request] = []
        """Completed since the owner last took them."""
        self.refused: list[Request] = []
        """Longer than the model allows, or come when too many waited: answered with an error."""
        config = _Engine(
            highest=hardware.levels[-1],
            max_num_seqs=hardware.max_num_seqs,
            max_num_active_seqs=hardware.max_num_active_seqs,
            max_queued_requests=hardware.max_queued_requests,
            priorities=hardware.priorities,
            max_num_batched_tokens=hardware.max_num_batched_tokens,
            kv_blocks=hardware.num_gpu_blocks - 1,
            block_size=hardware.block_size,
            max_model_len=hardware.max_model_len,
            prefix_caching=hardware.prefix_caching,
        )
        self._journal = Journal()
        self._engine = stepper.Replica(config, now=now, journal=self._journal)
        self._requests: list[Request] = []
        """Those that the stepper remembers, by its index."""
        self._old = 0
        self._books = Bookkeeper(max_model_len=hardware.max_model_len, prefix_caching=hardware.prefix_caching)
        self._governor = Governor(hardware)
        self._crowd = Crowd()
        self._energy_joules = 0.0
        self._settled = (now, 0.0, *self._engine.work)
        """Time, busy time and work up to where energy is priced."""
        self._window: Work | None = None
        """Since when the governor has to judge; None while the cap cannot bind."""
        self._window_end = 0.0
        self._judge()

    # Levers and gauges

    def set_power(self, *, cap_watts: float | None, clock_mhz: float | None) -> None:
        """Per-GPU power limit (None = the card's default) and SM clock lock (None = free)."""
        governor = self._governor
        cap = self.hardware.card.tdp_watts if cap_watts is None else cap_watts
        top = self.hardware.level_at_most(clock_mhz)
        if cap != governor.cap_watts or top != governor.top:
            self._settle()
            governor.set_power(cap_watts=cap, top=top)
            self._follow()
            self._judge()

    @property
    def now(self) -> float:
        """End of the last iteration, or the time that an idle replica was advanced to."""
        return self._engine.now

    @property
    def cap_watts(self) -> float:
        """Power limit in force, per GPU."""
        return self._governor.cap_watts

    @property
    def clock_mhz(self) -> float:
        """SM clock at which it iterates."""
        return self.hardware.levels[self._governor.level].clock_mhz

    @property
    def energy_joules(self) -> float:
        """Spent so far, per GPU."""
        self._settle()
        return self._energy_joules

    @property
    def busy_seconds(self) -> float:
        """Time with an iteration running."""
        return self._engine.busy_seconds

    @property
    def counters(self) -> EngineCounters:
        """What the metrics page adds up; up to date when read."""
        self._add_up()
        return self._books.counters

    @property
    def outstanding(self) -> int:
        """Requests sent here that are neither finished nor refused."""
        return self._engine.outstanding

    @property
    def running(self) -> range:
        """One entry per request in the batch."""
        return range(self._engine.running)

    @property
    def waiting(self) -> range:
        """One entry per request that has come and is not in the batch."""
        return range(self._engine.waiting)

    @property
    def kv_usage(self) -> float:
        """Share of KV blocks in use, 0..1, counted in whole blocks without the null block, as vLLM does."""
        return self._engine.kv_usage

    # Requests

    def submit(self, requests: Iterable[Request]) -> None:
        """Hand over requests in order of arrival, none earlier than those handed over before."""
        offer, mine = self._engine.offer, self._requests
        prompts: list[int] = []
        longest, caching = self.hardware.max_model_len, self.hardware.prefix_caching
        for request in requests:
            prompt, output = request.prompt, request.output
            room = longest - prompt
            if room < 1:
                self._refuse(request)
                continue
            if not 1 <= output <= room:
                request.output = output = max(1, min(output, room))
            prefix = None
            cached = request.cached if caching else 0
            if caching and request.blocks:
                prefix = Prefix(tuple(request.blocks), self.hardware.prefix_block_tokens)
            if offer(request.arrival, prompt, output, cached, request.priority, prefix) < 0:
                self._crowd.add(prompts)
                raise WattkeeperError(
                    f"a request of {prompt} + {output} tokens does not fit into the KV cache of "
                    f"{self.hardware.model}: lower max_model_len"
                )
            mine.append(request)
            prompts.append(prompt)
        self._crowd.add(prompts)

    def unfinished(self) -> list[Request]:
        """All requests sent here that are neither finished nor refused."""
        return [self._requests[i] for i in self._engine.unfinished()]

    def abort(self, request: Request) -> bool:
        """Its client has gone; False where it is finished, refused or aborted already, or was never sent here."""
        for i in self._engine.unfinished():
            if self._requests[i] is request:
                self._books.counters.finished["abort"] += 1
                self._crowd.leave((request.prompt,))
                return self._engine.abort(i)
        return False

    def abort_all(self) -> list[Request]:
        """Give up everything that is not finished (the process ends); returns it."""
        engine, lost = self._engine, self.unfinished()
        self._books.counters.finished["abort"] += sum(request.arrival <= engine.now for request in lost)
        self._crowd.leave([request.prompt for request in lost])
        for i in engine.unfinished():
            engine.abort(i)
        return lost

    def set_active_limit(self, max_num_active_seqs: int | None) -> None:
        """Admission limit from now on; None: `max_num_seqs`."""
        self._engine.set_active_limit(max_num_active_seqs)

    def _refuse(self, request: Request) -> None:
        self._books.counters.finished["error"] += 1
        request.refusal = "too_long"
        self.refused.append(request)

    # Time

    def run(self, until: float) -> None:
        """Advance to `until`; an iteration that starts before it is completed, so `now` may end up slightly later."""
        engine, journal, governor, crowd = self._engine, self._journal, self._governor, self._crowd
        while engine.now < until:
            horizon = crowd.harmless_until(self._requests) if governor.free else -math.inf
            if horizon > engine.now:
                self._window = None
                engine.advance(min(until, horizon))
            else:
                self._run_window(until)
            if journal.finished or engine.has_refused:
                self._take()
        if len(journal.iterations) > _LONG_JOURNAL:
            self._add_up()

    def _run_window(self, until: float) -> None:
        """On in a window; windows end at multiples of their length, so that it does not matter how time is cut."""
        engine = self._engine
        if self._window is None:
            self._begin_window()
        if engine.idle and engine.next_arrival_seconds >= self._window_end:
            # Nothing happens in this window and perhaps in many more.
            self._end_window()
            engine.advance(min(until, engine.next_arrival_seconds))
            self._begin_window()
            return
        engine.advance(min(until, self._window_end))
        if engine.now >= self._window_end:
            self._end_window()
            self._begin_window()

    def _begin_window(self) -> None:
        length = self._governor.window_seconds
        self._window = self._engine.work
        self._window_end = (math.floor(self._engine.now / length) + 1) * length

    def _end_window(self) -> None:
        was, now, level = self._window, self._engine.work, self._governor.level
        if was is not None and self._governor.observe(*map(sub, now, was)) != level:
            self._settle(level)
            self._follow()

    def _follow(self) -> None:
        """Iterate at the governor's level from now on."""
        self._engine.set_coefficients(_coefficients(self.hardware.levels[self._governor.level]))

    def _judge(self) -> None:
        """Find anew how many requests cannot reach the cap."""
        self._take()
        fixed, decode, kv = self._governor.worst
        unfinished = frozenset(self._engine.unfinished())
        self._crowd.set_margins(fixed=fixed, decode=decode, kv=kv, requests=self._requests, unfinished=unfinished)

    # Account

    def _settle(self, level: int | None = None) -> None:
        """Price the work since the last time, at the level at which it was done (None: the one in force)."""
        engine = self._engine
        was, now = self._settled, (engine.now, engine.busy_seconds, *engine.work)
        self._settled = now
        hardware = self.hardware
        e0, en, ekv, et, ea = hardware.levels[self._governor.level if level is None else level].joules
        span, busy, steps, decodes, kv, prompts, products = map(sub, now, was)
        self._energy_joules += (
            hardware.static_watts * busy
            + hardware.idle_watts * (span - busy)
            + e0 * steps
            + en * decodes
            + ekv * kv
            + et * prompts
            + ea * products
        )

    def _take(self) -> None:
        """Finished and refused requests from the stepper."""
        engine, requests, leave = self._engine, self._requests, self._crowd.leave
        finished = self._books.follow(self._journal, requests, engine.preempted)
        self.finished += finished
        leave([request.prompt for request in finished])
        refused = engine.take_refused()
        self._books.counters.admission_rejections += len(refused)
        for i in refused:
            requests[i].refusal = "queue_full"
            self.refused.append(requests[i])
            leave((requests[i].prompt,))
        self._old += len(finished)
        if self._old > _OLD_REQUESTS:
            forgotten = engine.forget_finished()
            del requests[:forgotten]
            self._crowd.forget(forgotten)
            self._old = 0

    def _add_up(self) -> None:
        self._take()
        self._books.add_up(self._journal)


def _coefficients(level: ClockLevel) -> Coefficients:
    d0, dn, dkv, dt, da = level.seconds
    return d0, dt, dn, dkv, da
