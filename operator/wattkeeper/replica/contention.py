"""The rare iteration in which running requests want more KV blocks than there are: served one by one, some preempted.

Nothing is admitted in such an iteration.
"""

from heapq import heappush

from wattkeeper.replica.state import KEY_BITS, EngineState

Served = tuple[int, int, int, float]
"""Decoding sequences served, KV tokens that they read, prompt tokens, attention products."""


class ContendedState(EngineState):
    """An engine that can serve request by request."""

    def serve_contended(self, completed: list[int]) -> Served:
        """The tokens of one iteration; appends the requests whose prompt is now complete to `completed`."""
        self._order[:] = [i for i in self._order if self._finish[i] < 0.0]
        return self._serve_by_priority(completed) if self.config.priorities else self._serve_in_order(completed)

    def _serve_in_order(self, completed: list[int]) -> Served:
        """In order of admission; where blocks run out the last one is preempted.

        The token budget always reaches the last one: it was met when that one was admitted, and what those before it
        want only shrinks.
        """
        config, size, step = self.config, self.config.block_size, self._step
        limit = config.long_prefill_token_threshold or config.max_num_batched_tokens
        order, partials, total, end = self._order, set(self._partials), self._total, self._end
        wanting = [k for k, i in enumerate(order) if i in partials or (total[i] - end[i] + step) % size == 0]
        free = self._free_blocks()
        tokens, prompts, products = 0, 0, 0.0
        for place in wanting:
            if place >= len(order):
                break
            i = order[place]
            if i in partials:
                have = self._computed[i]
                decodes_before = place - prompts
                chunk = min(self._target[i] - have, limit, config.max_num_batched_tokens - decodes_before - tokens)
                need = -(-(have + chunk) // size) - -(-have // size)
            else:
                need = 1
            while need > free and place < len(order):
                free += self.preempt(order.pop(), free)
            if place >= len(order):
                break
            free -= need
            if i in partials:
                self._compute(i, chunk)
                tokens += chunk
                prompts += 1
                products += chunk * (have + 0.5 * chunk)
                if have + chunk == self._target[i]:
                    self._partials.remove(i)
                    completed.append(i)
        return self._decodes, self._kv_tokens + self._decodes, tokens, products

    def _serve_by_priority(self, completed: list[int]) -> Served:
        """In order of admission; where blocks run out the one that ranks last is preempted, served or not.

        Where that is the one to be served, those behind it get nothing in this iteration, as in vLLM; where it is the
        first, nothing is served at all.
        """
        config, size, order = self.config, self.config.block_size, self._order
        limit = config.long_prefill_token_threshold or config.max_num_batched_tokens
        free, budget, place = self._free_blocks(), config.max_num_batched_tokens, 0
        decoding: dict[int, int] = {}
        chunks: dict[int, int] = {}
        while place < len(order) and budget:
            i = order[place]
            if partial := i in self._partials:
                have = self._computed[i]
                count = min(self._target[i] - have, limit, budget)
                need = -(-(have + count) // size) - -(-have // size)
            else:
                count, need = 1, int((self._total[i] - self._end[i] + self._step) % size == 0)
            while need > free and i in order:
                victim = min(order, key=self._rank)
                at = order.index(victim)
                del order[at]
                place -= at < place
                free += self.preempt(victim, free, taken=decoding.get(victim, 0))
                budget += chunks.pop(victim, 0) + (decoding.pop(victim, None) is not None)
            if place >= len(order) or order[place] != i:
                break
            free -= need
            budget -= count
            place += 1
            if partial:
                self._compute(i, count)
                chunks[i] = count
            else:
                decoding[i] = need
        tokens, products = 0, 0.0
        for i, count in chunks.items():
            tokens += count
            products += count * (self._computed[i] - 0.5 * count)
            if self._computed[i] == self._target[i]:
                self._partials.remove(i)
                completed.append(i)
        if not (decoding or chunks):
            return 0, 0, 0, 0.0
        passed_over = [i for i in order if i not in decoding and self._end[i] >= 0]
        reads = self._kv_tokens + len(decoding) - sum(map(self._delay, passed_over))
        return len(decoding), reads, tokens, products

    def _compute(self, i: int, chunk: int) -> None:
        self._computed[i] += chunk
        if self._cache is not None:
            self._cache.computed(i, self._computed[i])

    def _delay(self, i: int) -> int:
        """A decoding request gets no token in this iteration; its context."""
        size = self.config.block_size
        context = self._total[i] - self._end[i] + self._step
        self._residues[(context - self._step) % size] -= 1
        self._residues[(context - self._step - 1) % size] += 1
        self._end[i] += 1
        heappush(self._ends, self._end[i] << KEY_BITS | i)
        return context
