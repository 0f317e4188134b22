"""How requests get into an engine, and what can be told of each afterwards."""

import math

import numpy as np

from wattkeeper.domain.workload import FloatArray
from wattkeeper.replica.contention import ContendedState
from wattkeeper.replica.engine import BoolArray, IntArray, Outcome, Prefix, Requests
from wattkeeper.replica.prefix import PrefixCache


class Intake(ContendedState):
    """An engine that takes requests, one by one or many at once; they are known by the index that `offer` returns."""

    def offer(
        self,
        arrival_seconds: float,
        prompt_tokens: int,
        output_tokens: int,
        hit_tokens: int = 0,
        priority: int = 0,
        prefix: Prefix | None = None,
    ) -> int:
        """Send a request that arrives no earlier than those sent before; its index, or -1 where it can never run.

        An arrival before `now` waits until the iteration under way has ended, as it would in an engine.
        """
        times = self._arrival
        if not (times[-2] if len(times) > 1 else 0.0) <= arrival_seconds < math.inf:
            raise ValueError(f"a request at {arrival_seconds} s: arrivals must be finite and ascend")
        if prompt_tokens < 1 or output_tokens < 1 or hit_tokens < 0:
            raise ValueError(f"a request of {prompt_tokens} + {output_tokens} tokens, {hit_tokens} of them cached")
        total = prompt_tokens + output_tokens - 1
        if total > self._longest_context:
            total = self._longest_context
        if not prompt_tokens <= total <= self._largest_footprint:
            return -1
        i = len(self._target)
        times[-1] = arrival_seconds
        times.append(math.inf)
        self._prompt.append(prompt_tokens)
        self._target.append(prompt_tokens)
        self._total.append(total)
        if hit_tokens:
            size = self.config.block_size
            hit_tokens = min(hit_tokens, prompt_tokens - 1) // size * size
        self._computed.append(hit_tokens)
        self._end.append(-1)
        self._first.append(-1.0)
        self._finish.append(-1.0)
        if priority:
            self._priority[i] = priority
        if prefix is not None:
            self._share(i, prefix)
        return i

    def _share(self, i: int, prefix: Prefix) -> None:
        if self.config.prefix_caching:
            if self._cache is None:
                self._cache = PrefixCache(blocks=self.config.kv_blocks, block_size=self.config.block_size)
            self._cache.expect(i, prefix, self._prompt[i])

    def load(self, requests: Requests) -> tuple[IntArray, BoolArray]:
        """Send many requests to a replica that has none; the tokens that each will be answered, and which can run."""
        if self._target:
            raise ValueError("this replica has requests: send further ones through `offer`")
        config, prompts = self.config, requests.prompt_tokens
        outputs = np.minimum(requests.output_tokens, config.longest_context + 1 - prompts)
        accepted = (outputs >= 1) & (prompts + outputs - 1 <= config.largest_footprint)
        self._arrival[:0] = requests.arrival_seconds[accepted].tolist()
        prompts = prompts[accepted]
        count = len(prompts)
        self._prompt.extend(prompts.tolist())
        self._target.extend(prompts.tolist())
        self._total.extend((prompts + outputs[accepted] - 1).tolist())
        if requests.hit_tokens is None:
            self._computed.extend([0] * count)
        else:
            hits = np.minimum(requests.hit_tokens[accepted], prompts - 1) // config.block_size * config.block_size
            self._computed.extend(hits.tolist())
        self._end.extend([-1] * count)
        self._first.extend([-1.0] * count)
        self._finish.extend([-1.0] * count)
        if requests.priorities is not None:
            self._priority = dict(enumerate(requests.priorities[accepted].tolist()))
        if requests.prefixes is not None:
            for i, at in enumerate(np.flatnonzero(accepted).tolist()):
                prefix = requests.prefixes[at]
                if prefix is not None:
                    self._share(i, prefix)
        return outputs, accepted

    def first_token_seconds(self, index: int) -> float | None:
        """When a request's first token was sampled; None: not yet."""
        return None if self._first[index] < 0.0 else self._first[index]

    def finish_seconds(self, index: int) -> float | None:
        """When a request's last token was sampled; None: not yet."""
        return None if self._finish[index] < 0.0 else self._finish[index]

    def preemptions(self, index: int) -> int:
        """How often a request was preempted."""
        return self._preempted.get(index, 0)

    def outcome(self, arrivals: FloatArray, outputs: IntArray, accepted: BoolArray) -> Outcome:
        """What became of the requests that were loaded, in their order."""
        times = np.full((2, len(accepted)), np.nan)
        times[:, accepted] = [self._first, self._finish]
        times[times < 0.0] = np.nan
        preemptions = np.zeros(np.count_nonzero(accepted), dtype=np.int64)
        preemptions[list(self._preempted)] = list(self._preempted.values())
        counts = np.zeros(len(accepted), dtype=np.int64)
        counts[accepted] = preemptions
        refused = ~accepted
        refused[np.flatnonzero(accepted)[self._turned_away]] = True
        return Outcome(
            arrival_seconds=arrivals,
            output_tokens=outputs,
            first_token_seconds=times[0],
            finish_seconds=times[1],
            preemptions=counts,
            refused=refused,
            front_end_seconds=self.config.front_end_seconds,
            activity=self.activity,
        )
