"""One vLLM replica as a discrete-event model that steps whole runs of identical iterations at once.

What it models of vLLM V1's scheduler: running requests get their tokens first (one per decode, the rest of an
unfinished prompt in chunks), then waiting requests are admitted first come first served while the token budget,
`max_num_seqs` and the free KV blocks (for the whole prompt) last; when a running request finds no block the last
admitted one is preempted, loses its KV cache and waits at the front to be computed again; nothing is admitted in a step
that preempted.

Macro-steps: with n decodes, no prefill and nothing admissible, k steps take

    T(k) = k (d0 + dN n + dKV (kv + n)) + dKV n k (k - 1) / 2

and k is the least of: steps to the next completion, to KV exhaustion, to the end of the step in which the next arrival
falls, to the next decision of the clock governor. Results equal a literal step-by-step loop (see the tests).

The clock: the highest level not above the lock whose power fits under the cap is chosen for every iteration with
prefill, and for decodes whenever their number changed or GOVERNOR_STEPS steps have passed. If even the lowest clock
needs more than the cap, the card stays there and draws more, as real cards do.
"""

import heapq
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable

from wattkeeper.twin.counters import MOST_NOTES, EngineCounters
from wattkeeper.twin.hardware import ReplicaHardware
from wattkeeper.twin.ramps import least_steps
from wattkeeper.twin.request import Request

GOVERNOR_STEPS = 64


class Replica:
    """State of one engine; `run(until)` advances it. Energy and watts are per GPU, the replica has `hardware.gpus`."""

    def __init__(self, hardware: ReplicaHardware, *, now: float) -> None:
        self.hardware = hardware
        self.now = now
        self.counters = EngineCounters(hardware.max_model_len)
        self.energy_joules = 0.0
        self.busy_seconds = 0.0
        self.finished: list[Request] = []
        """Completed since the owner last took them."""
        self.refused: list[Request] = []
        """Longer than the model allows: answered with an error."""
        self.waiting: deque[Request] = deque()
        self.running: dict[Request, None] = {}
        self.clock_mhz = hardware.card.maximum_clock_mhz
        self._pending: deque[Request] = deque()
        self._prefilling: Request | None = None
        self._decoders = 0
        self._kv_tokens = 0
        self._decode_step = 0
        self._ends: list[tuple[int, int, Request]] = []
        self._sequence = 0
        self._free_blocks = hardware.num_gpu_blocks - 1
        self._residues = [0] * hardware.block_size
        self._cap_watts = hardware.card.tdp_watts
        self._top_level = len(hardware.levels) - 1
        self._level = self._top_level
        self._governed_decoders = -1
        self._governed_steps = 0

    # Levers and gauges

    def set_power(self, *, cap_watts: float | None, clock_mhz: float | None) -> None:
        """Per-GPU power limit (None = the card's default) and SM clock lock (None = free)."""
        cap = self.hardware.card.tdp_watts if cap_watts is None else cap_watts
        top = self.hardware.level_at_most(clock_mhz)
        if cap != self._cap_watts or top != self._top_level:
            self._cap_watts, self._top_level = cap, top
            self._level = top
            self._governed_decoders = -1
            self.clock_mhz = min(self.clock_mhz, self.hardware.levels[top].clock_mhz)

    @property
    def cap_watts(self) -> float:
        """Power limit in force, per GPU."""
        return self._cap_watts

    @property
    def outstanding(self) -> int:
        """Requests sent here that are neither finished nor refused."""
        return len(self.running) + len(self.waiting) + len(self._pending)

    @property
    def kv_usage(self) -> float:
        """Share of KV blocks in use, 0..1, counted in whole blocks without the null block, as vLLM does."""
        return 1.0 - self._free_blocks / (self.hardware.num_gpu_blocks - 1)

    def submit(self, requests: Iterable[Request]) -> None:
        """Hand over requests in order of arrival, none earlier than those handed over before."""
        self._pending.extend(requests)

    def unfinished(self) -> list[Request]:
        """All requests sent here that are neither finished nor refused."""
        return [*self.running, *self.waiting, *self._pending]

    def abort_all(self) -> list[Request]:
        """Give up everything that is not finished (the process ends); returns it."""
        lost = self.unfinished()
        self.counters.finished["abort"] += len(self.running) + len(self.waiting)
        self._pending.clear()
        self.waiting.clear()
        self.running.clear()
        self._ends.clear()
        self._prefilling = None
        self._decoders = self._kv_tokens = 0
        self._residues = [0] * self.hardware.block_size
        self._free_blocks = self.hardware.num_gpu_blocks - 1
        return lost

    # Time

    def run(self, until: float) -> None:
        """Advance to `until`; an iteration that starts before it is completed, so `now` may end up slightly later."""
        pending, waiting = self._pending, self.waiting
        while True:
            while pending and pending[0].arrival <= self.now:
                self._accept(pending.popleft())
            if not self.running and not waiting:
                target = min(until, pending[0].arrival) if pending else until
                if target > self.now:
                    self.energy_joules += self.hardware.idle_watts * (target - self.now)
                    self.now = target
                    self._governed_decoders = -1
                if not pending or pending[0].arrival > self.now or self.now >= until:
                    return
                continue
            if self.now >= until:
                return
            if self._prefilling is None and (not waiting or not self._admissible(waiting[0])):
                self._decode(until)
            else:
                self._mixed_step()

    def _accept(self, request: Request) -> None:
        room = self.hardware.max_model_len - request.prompt
        if room < 1:
            self.counters.finished["error"] += 1
            self.refused.append(request)
            return
        request.output = max(1, min(request.output, room))
        self.waiting.append(request)

    def _admissible(self, request: Request) -> bool:
        if len(self.running) >= self.hardware.max_num_seqs:
            return False
        return self._blocks(request.prompt + request.generated) <= self._free_blocks

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.hardware.block_size)

    # Iterations

    def _decode(self, until: float) -> None:
        """One macro-step of decodes only."""
        n, kv = self._decoders, self._kv_tokens
        steps = self._steps_to_next_end()
        fitting = self._steps_to_exhaustion(steps)
        if fitting == 0:
            self._mixed_step()
            return
        steps = min(steps, fitting)
        if self._governed_decoders != n or self._governed_steps >= GOVERNOR_STEPS:
            self._level = self._govern(n, kv + n, 0, 0.0)
            self._governed_decoders, self._governed_steps = n, 0
        steps = min(steps, GOVERNOR_STEPS - self._governed_steps)
        level = self.hardware.levels[self._level]
        d0, dn, dkv, _, _ = level.seconds
        first, increment = d0 + dn * n + dkv * (kv + n), dkv * n
        stop = until
        if self._pending and not self.waiting and len(self.running) < self.hardware.max_num_seqs:
            stop = min(until, self._pending[0].arrival)
        steps = min(steps, least_steps(first, increment, stop - self.now))
        pairs = steps * (steps - 1) // 2
        seconds = steps * first + increment * pairs
        e0, en, ekv, _, _ = level.joules
        self.energy_joules += (
            self.hardware.static_watts * seconds + steps * (e0 + en * n + ekv * (kv + n)) + ekv * n * pairs
        )
        self.now += seconds
        self.busy_seconds += seconds
        self._free_blocks -= self._new_blocks(steps)
        self._decode_step += steps
        self._kv_tokens = kv + n * steps
        self._governed_steps += steps
        self.clock_mhz = level.clock_mhz
        counters = self.counters
        counters.generation_tokens += n * steps
        counters.inter_token_seconds.ramps.append((first, increment, steps, n))
        counters.iteration_tokens.values.append(n)
        counters.iteration_tokens.times.append(steps)
        if self._ends[0][0] <= self._decode_step:
            self._complete_decodes()

    def _mixed_step(self) -> None:
        """One literal iteration: decodes, the unfinished prompt, admissions; preempts where blocks run out."""
        hardware, waiting = self.hardware, self.waiting
        preempted = self._make_room_for_decodes()
        self._free_blocks -= self._residues[-self._decode_step % hardware.block_size]
        n, kv = self._decoders, self._kv_tokens
        budget = hardware.max_num_batched_tokens - n
        tokens, attention = 0, 0.0
        completed: list[Request] = []
        partial = self._prefilling
        if partial is not None:
            chunk = min(partial.prompt + partial.generated - partial.computed, budget)
            need = self._blocks(partial.computed + chunk) - self._blocks(partial.computed)
            if need > self._free_blocks:
                self._preempt_last()
                preempted = True
            else:
                self._free_blocks -= need
                attention += chunk * (partial.computed + chunk / 2)
                partial.computed += chunk
                tokens += chunk
                budget -= chunk
                if partial.computed == partial.prompt + partial.generated:
                    completed.append(partial)
                    self._prefilling = None
        while budget > 0 and waiting and not preempted and self._admissible(waiting[0]):
            request = waiting.popleft()
            self._start(request)
            target = request.prompt + request.generated
            chunk = min(target - request.computed, budget)
            self._free_blocks -= self._blocks(request.computed + chunk)
            attention += chunk * (request.computed + chunk / 2)
            request.computed += chunk
            tokens += chunk
            budget -= chunk
            self.running[request] = None
            if request.computed == target:
                completed.append(request)
            else:
                self._prefilling = request
        index = self._govern(n, kv + n, tokens, attention)
        level = hardware.levels[index]
        d0, dn, dkv, dt, da = level.seconds
        e0, en, ekv, et, ea = level.joules
        seconds = d0 + dn * n + dkv * (kv + n) + dt * tokens + da * attention
        joules = e0 + en * n + ekv * (kv + n) + et * tokens + ea * attention
        self.energy_joules += hardware.static_watts * seconds + joules
        self.now += seconds
        self.busy_seconds += seconds
        self.clock_mhz = level.clock_mhz
        self._governed_decoders = -1
        self._decode_step += 1
        self._kv_tokens = kv + n
        counters = self.counters
        counters.generation_tokens += n
        if n or completed:
            # As vLLM counts: whole prompts, cached tokens included, when their prefill is done; else nothing of them.
            prompts = sum(request.prompt for request in completed if request.first_token < 0)
            counters.iteration_tokens.observe(n + len(completed) + prompts)
        if n:
            counters.inter_token_seconds.observe(seconds, n)
            self._complete_decodes()
        for request in completed:
            self._first_token(request)

    def _start(self, request: Request) -> None:
        if request.scheduled >= 0:
            request.computed = 0
            return
        request.scheduled = self.now
        counters = self.counters
        cached = 0
        if self.hardware.prefix_caching:
            size = self.hardware.block_size
            cached = min(request.cached, request.prompt - 1) // size * size
            counters.prefix_queries += request.prompt
            counters.prefix_hits += cached
        request.cached = cached
        request.computed = cached

    def _first_token(self, request: Request) -> None:
        """A prompt, or a prompt computed again after a preemption, is complete: it yields one token."""
        counters = self.counters
        if request.first_token < 0:
            request.first_token = self.now
            counters.ttft_seconds.observe(request.ttft_seconds)
            counters.prompt_tokens += request.prompt
            counters.cached_prompt_tokens += request.cached
        else:
            counters.inter_token_seconds.observe(self.now - request.last_token)
        request.last_token = self.now
        counters.generation_tokens += 1
        context = request.prompt + request.generated
        request.generated += 1
        if request.generated >= request.output:
            self._free_blocks += self._blocks(context)
            self._finish(request)
            return
        request.base = context - self._decode_step
        self._residues[request.base % self.hardware.block_size] += 1
        self._decoders += 1
        self._kv_tokens += context
        self._sequence += 1
        request.sequence = self._sequence
        heapq.heappush(self._ends, (self._decode_step + request.output - request.generated, self._sequence, request))

    # Completions

    def _steps_to_next_end(self) -> int:
        ends = self._ends
        while ends[0][2].sequence != ends[0][1]:
            heapq.heappop(ends)
        return ends[0][0] - self._decode_step

    def _complete_decodes(self) -> None:
        ends, step = self._ends, self._decode_step
        while ends and ends[0][0] <= step:
            _, sequence, request = heapq.heappop(ends)
            if request.sequence == sequence:
                self._leave(request)
                request.generated = request.output
                request.last_token = self.now
                self._finish(request)

    def _leave(self, request: Request) -> None:
        """Take a decoding request out of the batch and free its blocks."""
        context = request.base + self._decode_step
        self._decoders -= 1
        self._kv_tokens -= context
        self._residues[request.base % self.hardware.block_size] -= 1
        self._free_blocks += self._blocks(context)
        request.sequence = -1

    def _finish(self, request: Request) -> None:
        del self.running[request]
        counters = self.counters
        counters.done.append(request)
        if len(counters.done) >= MOST_NOTES:
            counters.settle()
        counters.finished["stop"] += 1
        self.finished.append(request)

    # KV blocks

    def _new_blocks(self, steps: int) -> int:
        """Blocks that all decodes together need for the next `steps` tokens each."""
        size = self.hardware.block_size
        full, rest = divmod(steps, size)
        blocks = self._decoders * full
        for offset in range(rest):
            blocks += self._residues[-(self._decode_step + offset) % size]
        return blocks

    def _steps_to_exhaustion(self, wanted: int) -> int:
        """How many of the wanted steps the free blocks allow."""
        size = self.hardware.block_size
        if self._decoders * (wanted // size + 1) <= self._free_blocks:
            return wanted
        full = min(self._free_blocks // self._decoders, wanted // size)
        steps, left = full * size, self._free_blocks - full * self._decoders
        while steps < wanted:
            left -= self._residues[-(self._decode_step + steps) % size]
            if left < 0:
                break
            steps += 1
        return steps

    def _make_room_for_decodes(self) -> bool:
        """Preempt until every decode that is left has its next block; True where something was preempted."""
        size = self.hardware.block_size
        if self._residues[-self._decode_step % size] <= self._free_blocks:
            return False
        taken = 0
        for request in list(self.running):
            if request not in self.running or request is self._prefilling:
                continue
            if (request.base + self._decode_step) % size:
                continue
            while request in self.running and self._free_blocks <= taken:
                self._preempt_last()
            if request in self.running:
                taken += 1
        return True

    def _preempt_last(self) -> None:
        request, _ = self.running.popitem()
        if request is self._prefilling:
            self._free_blocks += self._blocks(request.computed)
            self._prefilling = None
        else:
            request.generated = request.base + self._decode_step - request.prompt + 1
            # Its last decode ended with the latest iteration.
            request.last_token = self.now
            self._leave(request)
        request.computed = 0
        request.preemptions += 1
        self.counters.preemptions += 1
        self.waiting.appendleft(request)

    # Clock

    def _govern(self, decodes: int, kv: int, tokens: int, attention: float) -> int:
        """Index of the highest clock level not above the lock whose power fits under the cap."""
        levels, static, cap = self.hardware.levels, self.hardware.static_watts, self._cap_watts

        def fits(index: int) -> bool:
            level = levels[index]
            s0, sn, skv, st, sa = level.seconds
            j0, jn, jkv, jt, ja = level.joules
            seconds = s0 + sn * decodes + skv * kv + st * tokens + sa * attention
            joules = j0 + jn * decodes + jkv * kv + jt * tokens + ja * attention
            return joules <= (cap - static) * seconds

        top = self._top_level
        if fits(top):
            return top
        return max(0, bisect_left(range(top), True, key=lambda index: not fits(index)) - 1)
