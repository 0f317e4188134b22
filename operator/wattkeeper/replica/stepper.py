"""A vLLM V1 replica, stepped exactly: whole runs of identical iterations at once, everything else one by one.

Scheduling, as vLLM's V1 engine does it: running requests are served first in order of admission (one token per decode,
a chunk for a prompt under way), then waiting ones are admitted first come first served while the token budget, the
admission limit and the free KV blocks last; the blocks must hold the whole prompt, and the first that does not fit
blocks those behind it. Where a running request finds no block, the last admitted is preempted, loses its KV cache and
waits in front to be computed again; nothing is admitted in that iteration. With priorities the waiting queue is sorted
by them, and the victim is the running request that ranks last. Prefix hits that are given as a number of tokens save
prefill work but still take KV blocks of their own, and a preempted request finds none; those of blocks with ids are
shared and found as `replica.prefix` says.

An iteration takes  d0 + dT tokens + dN decodes + dKV kv + dA sum(chunk (history + chunk / 2)),  with kv the contexts
that decodes read, each one's new token included. With n decodes, nothing to prefill and nothing admissible, k
iterations take

    T(k) = k (d0 + dN n + dKV (kv + n)) + dKV n k (k - 1) / 2

and k is the least of: iterations to the next completion, until KV blocks run out, until one ends at or after the next
arrival (the root of a quadratic, corrected by one). While the head of the queue is blocked, arrivals end nothing.
"""

import math
from heapq import heappop, heappush
from operator import mul

from wattkeeper.replica.engine import EngineConfig, Outcome, Requests
from wattkeeper.replica.intake import Intake
from wattkeeper.replica.journal import Journal
from wattkeeper.replica.state import KEY_BITS, KEY_MASK


class Replica(Intake):
    """One engine that can be fed and advanced bit by bit; requests are known by the index that `offer` returns."""

    def __init__(
        self, config: EngineConfig, *, now: float = 0.0, journal: Journal | None = None, macro_steps: bool = True
    ) -> None:
        super().__init__(config, now=now, journal=journal)
        self._longest = KEY_MASK if macro_steps else 1

    def advance(self, until: float) -> None:  # noqa: C901 - one loop over local variables: all time is spent here
        """Run every iteration that starts before `until` (inf: all); `now` may end up later by part of an iteration."""
        if not (self._running or self._front) and self.now < until <= self._arrival[self._head] and until < math.inf:
            self.idle_seconds += until - self.now
            self.now = until
            return
        config = self.config
        size, slots, batched = config.block_size, self._slots, config.max_num_batched_tokens
        blocks, watermark, chunked = self._blocks, config.watermark_blocks, config.chunked_prefill
        managed, ranked, cache, journal = self._managed, config.priorities, self._cache, self.journal
        limit = config.long_prefill_token_threshold or batched
        capacity = blocks * size
        d0, dt, dn, dkv, da = self._coefficients
        longest = self._longest
        arrival, target, total, hit, computed = self._arrival, self._target, self._total, self._hit, self._computed
        end, first, finish, order, front = self._end, self._first, self._finish, self._order, self._front
        prompt, preempted = self._prompt, self._preempted
        partials, residues, ends, padding = self._partials, self._residues, self._ends, self._padding
        now, step, head, running, held = self.now, self._step, self._head, self._running, self._partial_blocks
        decodes, kv, idle = self._decodes, self._kv_tokens, self.idle_seconds
        prefill_steps, prefill_tokens, all_products = self._prefill_steps, self._prefill_tokens, self._products
        decode_tokens, kv_read, sequence_seconds = self._decode_tokens, self._kv_read, self._sequence_seconds
        kv_seconds, prefill_squared = self._kv_seconds, self._prefill_squared
        voids = len(ends) > decodes
        shared = 0
        found: list[int] = []
        completed: list[int] = []
        chunks: list[int] = []
        leaving: list[int] = []
        runs: list[float] = [] if journal is None else journal.iterations
        while now < until:
            tokens, products, contended, stop = 0, 0.0, False, until
            if managed:
                head = self._arrive(now, head)
            budget = batched - decodes
            if partials:
                # Blocks free once every decode has its next token: a lower bound until it matters.
                free, exact = (capacity - kv - decodes * size) // size - held, False
                needed = 0
                for i in partials:
                    have = computed[i]
                    chunk = min(target[i] - have, limit, budget)
                    budget -= chunk
                    needed += (have + chunk + size - 1) // size - (have + size - 1) // size
                    chunks.append(chunk)
                if needed > free:
                    used = kv + decodes + sum(map(mul, residues, padding[(step + 1) % size]))
                    free, exact = blocks - used // size - held, True
                    contended = needed > free
                if not contended:
                    free -= needed
                    held += needed
                    for i, chunk in zip(partials, chunks, strict=True):
                        have = computed[i]
                        tokens += chunk
                        products += chunk * (have + 0.5 * chunk)
                        computed[i] = have = have + chunk
                        if cache is not None:
                            cache.computed(i, have)
                        if have == target[i]:
                            completed.append(i)
                    for i in completed:
                        partials.remove(i)
                chunks.clear()
            if running >= slots or contended:
                pass
            elif front or arrival[head] <= now:
                if not partials and not tokens:
                    free, exact = (capacity - kv - decodes * size) // size - held, False
                while budget:
                    if front:
                        i = front[-1]
                    elif arrival[head] <= now:
                        i = head
                    else:
                        break
                    goal = target[i]
                    need = (goal + size - 1) // size
                    if cache is not None:
                        if not exact:
                            used = kv + decodes + sum(map(mul, residues, padding[(step + 1) % size]))
                            free, exact = blocks - used // size - held, True
                        if free < 0:
                            break
                        cache.sync(free)
                        found, shared = [], 0
                        if cache.knows(i):
                            found, shared = cache.find(i, (goal - 1) // size)
                            hit[i] = len(found) * size
                            need -= shared
                    if need + watermark > free and (running or need > free):
                        if not exact:
                            used = kv + decodes + sum(map(mul, residues, padding[(step + 1) % size]))
                            free, exact = blocks - used // size - held, True
                        if need + watermark > free and (running or need > free):
                            break
                    have = hit[i]
                    chunk = goal - have
                    if chunk > limit:
                        chunk = limit
                    if chunk > budget:
                        if not chunked:
                            break
                        chunk = budget
                    if front:
                        front.pop()
                    else:
                        head += 1
                    order.append(i)
                    running += 1
                    if journal is not None and i not in preempted:
                        journal.admitted.append((i, now, have))
                    budget -= chunk
                    tokens += chunk
                    products += chunk * (have + 0.5 * chunk)
                    have += chunk
                    if have == goal:
                        completed.append(i)
                    else:
                        computed[i] = have
                        partials.append(i)
                        need = (have + size - 1) // size - shared
                    held += need + shared
                    free -= need
                    if cache is not None:
                        cache.take_turn(i)
                        if cache.knows(i):
                            cache.admit(i, found)
                            cache.computed(i, have)
                            blocks += shared
                            capacity += shared * size
                    if running == slots:
                        break
                if ranked and running < slots and arrival[head] < until:
                    stop = arrival[head]
            elif arrival[head] < until:
                stop = arrival[head]
            steps, served, reads = 1, decodes, kv + decodes
            if not tokens and not contended:
                if not decodes:
                    if stop == math.inf:
                        break
                    idle += stop - now
                    now = stop
                    continue
                if voids:
                    while end[ends[0] & KEY_MASK] != ends[0] >> KEY_BITS:
                        heappop(ends)
                steps = (ends[0] >> KEY_BITS) - step
                if steps > longest:
                    steps = longest
                if kv + decodes * (steps + size - 1) > capacity:
                    self._step, self._kv_tokens, self._decodes, self._blocks = step, kv, decodes, blocks
                    steps = self.fitting_steps(steps)
                    contended = steps == 0
            if contended:
                self._step, self._kv_tokens, self._decodes, self._blocks = step, kv, decodes, blocks
                self._running, self._partial_blocks, self.now = running, held, now
                steps, served, reads, tokens, products = 1, *self.serve_contended(completed)
                decodes, kv, running, held = self._decodes, self._kv_tokens, self._running, self._partial_blocks
                blocks = self._blocks
                capacity = blocks * size
                voids = True
                if not (served or tokens):
                    continue
            base = d0 + dn * served + dkv * reads
            if tokens or contended:
                seconds = base + dt * tokens + da * products
                prefill_steps += 1 if tokens else 0
                prefill_tokens += tokens
                all_products += products
                kv_read += reads
                kv_seconds += reads * seconds
                prefill_squared += (seconds - base) * seconds
                if journal is not None:
                    # As vLLM counts: whole prompts, cached tokens included, when they are done; else nothing of them.
                    number = served + len(completed)
                    for i in completed:
                        if first[i] < 0.0:
                            number += prompt[i]
                    if number:
                        runs += (seconds, 0.0, 1, served, number)
            else:
                # The first iteration takes `base`, each further one `growth` more.
                growth = dkv * served
                pairs = steps * (steps - 1) // 2
                seconds = steps * base + growth * pairs
                span = stop - now
                if seconds > span and steps > 1:
                    linear = base - 0.5 * growth
                    steps = int(2.0 * span / (linear + math.sqrt(linear * linear + 2.0 * growth * span))) + 1
                    pairs = steps * (steps - 1) // 2
                    seconds = steps * base + growth * pairs
                    while seconds < span:
                        seconds += base + growth * steps
                        pairs += steps
                        steps += 1
                    while steps > 1 and seconds - base - growth * (steps - 1) >= span:
                        steps -= 1
                        pairs -= steps
                        seconds = steps * base + growth * pairs
                if journal is not None:
                    runs += (base, growth, steps, served, served)
                total_reads = steps * reads + served * pairs
                kv_read += total_reads
                kv_seconds += base * total_reads + growth * pairs * (reads + served * (2 * steps - 1) / 3.0)
            now += seconds
            step += steps
            gained = served * steps
            kv += gained
            decode_tokens += gained
            sequence_seconds += served * seconds
            bound = (step + 1) << KEY_BITS
            if cache is not None and (completed or (ends and ends[0] < bound)):
                used = kv + sum(map(mul, residues, padding[step % size]))
                cache.sync(blocks - used // size - held)
            while ends and ends[0] < bound:
                key = heappop(ends)
                i = key & KEY_MASK
                if not voids or end[i] == key >> KEY_BITS:
                    finish[i] = now
                    context = total[i]
                    decodes -= 1
                    running -= 1
                    kv -= context
                    residues[(context - step) % size] -= 1
                    if journal is not None:
                        journal.finished.append((i, now))
                    if cache is not None:
                        leaving.append(i)
            if completed:
                for i in completed:
                    if first[i] < 0.0:
                        first[i] = now
                        if journal is not None:
                            journal.first_tokens.append((i, now))
                    elif journal is not None:
                        journal.resumed(i, now)
                    context, last = target[i], total[i]
                    held -= (context + size - 1) // size
                    if context == last:
                        finish[i] = now
                        running -= 1
                        if journal is not None:
                            journal.finished.append((i, now))
                        if cache is not None:
                            leaving.append(i)
                    else:
                        decodes += 1
                        kv += context
                        residues[(context - step) % size] += 1
                        end[i] = done = step + last - context
                        heappush(ends, done << KEY_BITS | i)
                completed.clear()
            if leaving and cache is not None:
                leaving.sort(key=cache.turn)
                for i in leaving:
                    cache.release(i, (total[i] + size - 1) // size)
                leaving.clear()
                self._blocks = blocks = config.kv_blocks + cache.surplus
                capacity = blocks * size
        self._blocks = blocks
        self.now, self._step, self._head, self._running, self._partial_blocks = now, step, head, running, held
        self._decodes, self._kv_tokens, self.idle_seconds = decodes, kv, idle
        self._prefill_steps, self._prefill_tokens, self._products = prefill_steps, prefill_tokens, all_products
        self._decode_tokens, self._kv_read, self._sequence_seconds = decode_tokens, kv_read, sequence_seconds
        self._kv_seconds, self._prefill_squared = kv_seconds, prefill_squared


def simulate(config: EngineConfig, requests: Requests, *, macro_steps: bool = True) -> Outcome:
    """Serve all requests to the end.

    `macro_steps=False` runs every iteration by itself: the same result to rounding, for checks and for comparison.
    """
    replica = Replica(config, macro_steps=macro_steps)
    outputs, accepted = replica.load(requests)
    replica.advance(math.inf)
    return replica.outcome(requests.arrival_seconds, outputs, accepted)
