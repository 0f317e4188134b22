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
Iterations in which one prompt takes all of the budget that the same decodes leave are alike too: each further chunk of
c tokens takes dA c^2 more, nothing can be admitted, and k is the least of: chunks before the last, iterations to the
next completion.

Memory is only looked at where it may run out: as long as all blocks that the running requests will ever hold exist, no
block is counted.
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
        d0, dt, dn, dkv, da = self._coefficients
        longest = self._longest
        arrival, target, total, computed = self._arrival, self._target, self._total, self._computed
        end, first, finish, order, front = self._end, self._first, self._finish, self._order, self._front
        partials, residues, ends, padding = self._partials, self._residues, self._ends, self._padding
        now, step, head, running, decodes = self.now, self._step, self._head, self._running, self._decodes
        kv, kv_read, decode_tokens, promised = self._kv_tokens, self._kv_read, self._decode_tokens, self._promised
        prefill_steps, prefill_tokens, all_products = self._prefill_steps, self._prefill_tokens, self._products
        sequence_seconds, kv_seconds, squared = self._sequence_seconds, self._kv_seconds, self._squared
        prompt, idle = self._prompt, self.idle_seconds
        coming, counted = arrival[head], self._counted
        due = ends[0] >> KEY_BITS if ends else KEY_MASK
        voids = len(ends) > decodes
        # Beyond what requests hold at most, one block of each for rounding up, and the watermark.
        roomy = -1 if cache is not None else (blocks - watermark - config.max_num_seqs) * size
        ample = promised <= roomy
        contended, free, exact, held, shared = False, 0, False, 0, 0
        found: list[int] = []
        completed: list[int] = []
        leaving: list[int] = []
        if cache is not None and not counted:
            self.count_residues()
            counted = True
        runs: list[float] = [] if journal is None else journal.iterations
        while now < until:
            if managed:
                head = self._arrive(now, head)
                coming = arrival[head]
            tokens, products = 0, 0.0
            budget = batched - decodes
            if not ample and (partials or front or coming <= now):
                if not counted:
                    self.count_residues()
                    counted = True
                needed, held, left = 0, 0, budget
                for i in partials:
                    have = computed[i]
                    chunk = min(target[i] - have, limit, left)
                    left -= chunk
                    own = (have + size - 1) // size
                    held += own
                    needed += (have + chunk + size - 1) // size - own
                # Blocks free once every decode has its next token: a lower bound until it matters.
                free, exact = blocks - decodes - held + -kv // size, False
                if needed > free:
                    used = kv + decodes + sum(map(mul, residues, padding[(step + 1) % size]))
                    free, exact = blocks - used // size - held, True
                    contended = needed > free
                if not contended:
                    free -= needed
                    held += needed
            if partials and not contended:
                for i in partials:
                    have, goal = computed[i], target[i]
                    chunk = goal - have
                    if chunk > limit:
                        chunk = limit
                    if chunk > budget:
                        chunk = budget
                    budget -= chunk
                    tokens += chunk
                    products += chunk * (have + 0.5 * chunk)
                    computed[i] = have = have + chunk
                    if cache is not None:
                        cache.computed(i, have)
                    if have == goal:
                        completed.append(i)
                for i in completed:
                    partials.remove(i)
            if (coming <= now or front) and running < slots and not contended:
                while budget:
                    if front:
                        i = front[-1]
                    elif coming <= now:
                        i = head
                    else:
                        break
                    goal = target[i]
                    promised += total[i]
                    if ample and promised > roomy:
                        ample = False
                        if not counted:
                            self.count_residues()
                            counted = True
                        held = self.held_blocks(completed)
                        free, exact = blocks - decodes - held + -kv // size, False
                    if not ample:
                        need = (goal + size - 1) // size
                        if cache is not None:
                            if not exact:
                                used = kv + decodes + sum(map(mul, residues, padding[(step + 1) % size]))
                                free, exact = blocks - used // size - held, True
                            if free < 0:
                                promised -= total[i]
                                break
                            cache.sync(free)
                            found, shared = [], 0
                            if cache.knows(i):
                                found, shared = cache.find(i, (goal - 1) // size)
                                computed[i] = len(found) * size
                                need -= shared
                        if need + watermark > free and (running or need > free):
                            if not exact:
                                used = kv + decodes + sum(map(mul, residues, padding[(step + 1) % size]))
                                free, exact = blocks - used // size - held, True
                            if need + watermark > free and (running or need > free):
                                promised -= total[i]
                                break
                    have = computed[i]
                    chunk = goal - have
                    if chunk > limit:
                        chunk = limit
                    if chunk > budget:
                        if not chunked:
                            promised -= total[i]
                            break
                        chunk = budget
                    if front:
                        front.pop()
                        again = i in self._preempted
                    else:
                        head += 1
                        coming, again = arrival[head], False
                    if journal is not None and not again:
                        journal.admitted.append((i, now, have))
                    order.append(i)
                    running += 1
                    budget -= chunk
                    tokens += chunk
                    products += chunk * (have + 0.5 * chunk)
                    computed[i] = have = have + chunk
                    if have == goal:
                        completed.append(i)
                    else:
                        partials.append(i)
                    if not ample:
                        need = (have + size - 1) // size
                        held += need
                        free -= need - shared
                        if cache is not None:
                            cache.take_turn(i)
                            if cache.knows(i):
                                cache.admit(i, found)
                                cache.computed(i, have)
                                blocks += shared
                    if running == slots:
                        break
            steps = 1
            served, reads = decodes, kv + decodes
            if not (tokens or contended):
                stop = until
                if now < coming < until and (ranked or not front) and running < slots:
                    stop = coming
                if not decodes:
                    if stop == math.inf:
                        break
                    idle += stop - now
                    now, counted = stop, counted and not ample
                    continue
                if voids:
                    due = self.next_end()
                steps = due - step
                if steps > longest:
                    steps = longest
                if not ample and kv + decodes * (steps + size - 1) > blocks * size:
                    if not counted:
                        self.count_residues()
                        counted = True
                    self._step, self._kv_tokens, self._decodes, self._blocks = step, kv, decodes, blocks
                    steps = self.fitting_steps(steps)
                    contended = steps == 0
            if contended:
                self._step, self._kv_tokens, self._decodes, self._blocks = step, kv, decodes, blocks
                self._running, self._promised, self.now = running, promised, now
                steps, served, reads, tokens, products = 1, *self.serve_contended(completed)
                decodes, kv, running, promised = self._decodes, self._kv_tokens, self._running, self._promised
                blocks, due, voids = self._blocks, self.next_end(), True
                ample = promised <= roomy
                if not (served or tokens):
                    contended = False
                    continue
            # The first iteration takes `start` seconds, each further one `growth` more.
            growth = dkv * served
            start = d0 + dn * served + dkv * reads
            if tokens or contended:
                start += dt * tokens + da * products
                stop, contended = until, False
                if not budget and ample and not completed and len(partials) == 1 and not voids:
                    # One prompt gets the whole budget, and will as long as it needs more and no sequence ends.
                    i = partials[0]
                    steps = (target[i] - computed[i] - 1) // tokens + 1
                    if steps > due - step:
                        steps = due - step
                    if steps > longest:
                        steps = longest
                    growth += da * tokens * tokens
            if steps == 1:
                seconds, pairs = start, 0
                kv_read += reads
            else:
                pairs = steps * (steps - 1) // 2
                seconds, span = steps * start + growth * pairs, stop - now
                if seconds > span:
                    linear = start - 0.5 * growth
                    steps = int(2.0 * span / (linear + math.sqrt(linear * linear + 2.0 * growth * span))) + 1
                    pairs = steps * (steps - 1) // 2
                    seconds = steps * start + growth * pairs
                    while seconds < span:
                        seconds += start + growth * steps
                        pairs += steps
                        steps += 1
                    while steps > 1 and seconds - start - growth * (steps - 1) >= span:
                        steps -= 1
                        pairs -= steps
                        seconds = steps * start + growth * pairs
                kv_read += steps * reads + served * pairs
                if tokens:
                    computed[partials[0]] += (steps - 1) * tokens
                    products = steps * products + tokens * tokens * pairs
                    tokens *= steps
            if tokens:
                prefill_steps += steps
                prefill_tokens += tokens
                all_products += products
            gained = served * steps
            if journal is None:
                squares = pairs * (2 * steps - 1) / 3.0
                sequence_seconds += served * seconds
                kv_seconds += reads * seconds + served * (start * pairs + growth * squares)
                squared += start * (seconds + growth * pairs) + growth * growth * squares
            now += seconds
            step += steps
            kv += gained
            decode_tokens += gained
            if cache is not None and (completed or step >= due):
                used = kv + sum(map(mul, residues, padding[step % size]))
                cache.sync(blocks - used // size - self.held_blocks(completed))
            if step >= due:
                while due <= step:
                    key = heappop(ends)
                    due = ends[0] >> KEY_BITS if ends else KEY_MASK
                    i = key & KEY_MASK
                    if not voids or end[i] == key >> KEY_BITS:
                        finish[i] = now
                        context = total[i]
                        decodes -= 1
                        running -= 1
                        kv -= context
                        promised -= context
                        if counted:
                            residues[(context - step) % size] -= 1
                        if journal is not None:
                            journal.finished.append((i, now))
                        if cache is not None:
                            leaving.append(i)
                if not ample:
                    ample = promised <= roomy
            number = served
            if completed:
                for i in completed:
                    # As vLLM counts: whole prompts, cached tokens included, when they are done; else nothing of them.
                    number += 1
                    if first[i] < 0.0:
                        first[i] = now
                        number += prompt[i]
                        if journal is not None:
                            journal.first_tokens.append((i, now))
                    elif journal is not None:
                        journal.resumed(i, now)
                    context, last = target[i], total[i]
                    if context == last:
                        finish[i] = now
                        running -= 1
                        promised -= last
                        if journal is not None:
                            journal.finished.append((i, now))
                        if cache is not None:
                            leaving.append(i)
                    else:
                        decodes += 1
                        kv += context
                        if counted:
                            residues[(context - step) % size] += 1
                        end[i] = done = step + last - context
                        heappush(ends, done << KEY_BITS | i)
                        if done < due:
                            due = done
                completed.clear()
            if journal is not None and number:
                runs += (start, growth, steps, served, number)
            if cache is not None and leaving:
                leaving.sort(key=cache.turn)
                for i in leaving:
                    cache.release(i, (total[i] + size - 1) // size)
                leaving.clear()
                self._blocks = blocks = config.kv_blocks + cache.surplus
        self._blocks, self._promised, self._counted = blocks, promised, counted
        self.now, self._step, self._head, self._running, self._decodes = now, step, head, running, decodes
        self._kv_tokens, self._kv_read, self._decode_tokens, self.idle_seconds = kv, kv_read, decode_tokens, idle
        self._prefill_steps, self._prefill_tokens, self._products = prefill_steps, prefill_tokens, all_products
        self._sequence_seconds, self._kv_seconds, self._squared = sequence_seconds, kv_seconds, squared


def simulate(config: EngineConfig, requests: Requests, *, macro_steps: bool = True) -> Outcome:
    """Serve all requests to the end.

    `macro_steps=False` runs every iteration by itself: the same result to rounding, for checks and for comparison.
    """
    replica = Replica(config, macro_steps=macro_steps)
    outputs, accepted = replica.load(requests)
    replica.advance(math.inf)
    return replica.outcome(requests.arrival_seconds, outputs, accepted)
