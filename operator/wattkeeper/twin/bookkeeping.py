"""From what a stepper wrote down to the counters of a metrics page: many observations at once, when somebody looks."""

from collections.abc import Mapping, Sequence

import numpy as np

from wattkeeper.replica.journal import Journal
from wattkeeper.twin.counters import EngineCounters, FloatArray
from wattkeeper.twin.request import FRONT_END_SECONDS, Request


class Bookkeeper:
    """Counters of one engine, and the passages of requests that they do not contain yet."""

    def __init__(self, *, max_model_len: int, prefix_caching: bool) -> None:
        self.counters = EngineCounters(max_model_len)
        self._prefix_caching = prefix_caching
        self._answered: list[Request] = []
        self._finished: list[Request] = []
        self._evicted = False
        """Some request was preempted since the counters were brought up to date."""

    def follow(self, journal: Journal, requests: list[Request], preemptions: Mapping[int, int]) -> list[Request]:
        """Write what happened into the requests (by the journal's indices), and return those that are finished."""
        admitted, answered, finished = [], self._answered, []
        for i, now, cached in journal.admitted:
            request = requests[i]
            request.scheduled = now
            request.cached = cached
            admitted.append(request)
        if self._prefix_caching and admitted:
            self.counters.prefix_queries += sum([request.prompt for request in admitted])
            self.counters.prefix_hits += sum([request.cached for request in admitted])
        for i, now in journal.first_tokens:
            request = requests[i]
            request.first_token = now
            answered.append(request)
        for i, now in journal.finished:
            request = requests[i]
            request.last_token = now
            finished.append(request)
        if preemptions:
            self._evicted = True
            for i, _ in journal.finished:
                if i in preemptions:
                    requests[i].preemptions = preemptions[i]
        self._finished += finished
        journal.admitted.clear()
        journal.first_tokens.clear()
        journal.finished.clear()
        return finished

    def add_up(self, journal: Journal) -> EngineCounters:
        """Bring the counters up to date; call `follow` before."""
        counters = self.counters
        if journal.iterations:
            self._add_iterations(_array(journal.iterations).reshape(-1, 5))
            journal.iterations.clear()
        if journal.gaps:
            counters.inter_token_seconds.observe(np.array(journal.gaps))
            counters.generation_tokens += len(journal.gaps)
            journal.gaps.clear()
        counters.preemptions += journal.preemptions
        journal.preemptions = 0
        if self._answered:
            self._add_answered()
            self._answered.clear()
        if self._finished:
            self._add_finished()
            self._finished.clear()
        return counters

    def _add_iterations(self, rows: FloatArray) -> None:
        first, increment, steps, served, tokens = rows.T
        counters = self.counters
        counters.iteration_tokens.observe(tokens, steps)
        counters.inter_token_seconds.observe_ramps(first, increment, steps, served)
        counters.generation_tokens += int((steps * served).sum())

    def _add_answered(self) -> None:
        answered, counters = self._answered, self.counters
        counters.ttft_seconds.observe(
            _array([request.first_token - request.arrival for request in answered]) + FRONT_END_SECONDS
        )
        counters.prompt_tokens += sum([request.prompt for request in answered])
        counters.cached_prompt_tokens += sum([request.cached for request in answered])
        counters.generation_tokens += len(answered)

    def _add_finished(self) -> None:
        finished, counters = self._finished, self.counters
        arrival = _array([request.arrival for request in finished])
        scheduled = _array([request.scheduled for request in finished])
        first = _array([request.first_token for request in finished])
        last = _array([request.last_token for request in finished])
        prompt = _array([request.prompt for request in finished])
        output = _array([request.output for request in finished])
        cached = _array([request.cached for request in finished]) if self._prefix_caching else 0.0
        preemptions = _array([each.preemptions for each in finished]) if self._evicted else np.zeros(len(finished))
        counters.e2e_seconds.observe(last - arrival + FRONT_END_SECONDS)
        counters.queue_seconds.observe(scheduled - arrival)
        counters.prefill_seconds.observe(first - scheduled)
        counters.decode_seconds.observe(last - first)
        counters.inference_seconds.observe(last - scheduled)
        counters.time_per_output_token_seconds.observe((last - first) / np.maximum(output - 1.0, 1.0))
        counters.prompt_lengths.observe(prompt)
        counters.generation_lengths.observe(output)
        counters.prefill_computed_lengths.observe(prompt - cached)
        counters.request_preemptions.observe(preemptions)
        counters.finished["stop"] += len(finished)
        self._evicted = False


def _array(values: Sequence[float]) -> FloatArray:
    return np.fromiter(values, np.float64, len(values))
