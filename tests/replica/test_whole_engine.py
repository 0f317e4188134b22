"""Everything an engine can do at once, in thousands of random cases, against a literal loop with numbered blocks."""

import math

import numpy as np
import pytest

from tests.replica.literal import Job, Literal
from tests.replica.test_stepper import A100_7B, simple
from wattkeeper.replica import stepper
from wattkeeper.replica.journal import Journal
from wattkeeper.replica.types import Prefix, ReplicaConfig, Requests

CASES, PARTS = 2000, 10


def case(seed):
    """A small replica, requests that fill it, and what of each prompt others have too."""
    rng = np.random.default_rng(seed)
    size = int(rng.choice([1, 4, 16]))
    longest_prompt, longest_answer = int(rng.choice([8, 60, 200])), int(rng.choice([1, 12, 80]))
    longest = longest_prompt + longest_answer
    seqs = int(rng.integers(1, 20))
    chunked = rng.random() < 0.8
    config = ReplicaConfig(
        iteration=A100_7B,
        max_num_seqs=seqs,
        max_num_active_seqs=None if rng.random() < 0.7 else int(rng.integers(1, 20)),
        max_queued_requests=None if rng.random() < 0.6 else int(rng.integers(1, 12)),
        priorities=bool(rng.random() < 0.5),
        max_num_batched_tokens=max(seqs, int(rng.integers(1, 300)) + (0 if chunked else longest)),
        kv_blocks=int(rng.integers(longest // size + 1, 5 * longest // size + 2)),
        block_size=size,
        watermark=float(rng.choice([0.0, 0.0, 0.05, 0.3])),
        long_prefill_token_threshold=int(rng.choice([0, 0, 7, 50])) if chunked else 0,
        chunked_prefill=bool(chunked),
        max_model_len=None if rng.random() < 0.7 else longest // 2 + 2,
    )
    count = int(rng.integers(1, 40))
    gaps = rng.exponential(float(rng.choice([1e-9, 0.01, 0.05, 0.3])), count)
    prompts = rng.integers(1, longest_prompt, count, endpoint=True)
    prefixes = None
    if rng.random() < 0.7:
        per = int(rng.integers(1, 4))
        prefixes = []
        for prompt in prompts:
            # A conversation is a chain of blocks; a request has it up to some point, then blocks of its own.
            chain, blocks = int(rng.integers(3)), -(-int(prompt) // (size * per))
            common = int(rng.integers(0, blocks + 1))
            ids = [10_000 * chain + k for k in range(common)] + rng.integers(10**6, 10**9, blocks - common).tolist()
            prefixes.append(None if rng.random() < 0.1 else Prefix(tuple(ids), size * per))
    requests = Requests(
        arrival_seconds=np.cumsum(gaps),
        prompt_tokens=prompts,
        output_tokens=rng.integers(1, longest_answer, count, endpoint=True),
        hit_tokens=rng.integers(0, int(rng.choice([1, 50, 250])), count),
        priorities=rng.integers(0, 3, count),
        prefixes=prefixes,
    )
    aborts = []
    if rng.random() < 0.5:
        span = float(requests.arrival_seconds[-1]) + 0.5
        aborts = sorted((float(rng.random()) * span, int(rng.integers(count))) for _ in range(count // 3))
    return config, requests, aborts


def literal_of(config, requests, aborts):
    oracle = Literal.of(config)
    jobs = []
    for row in range(len(requests)):
        job = Job(
            float(requests.arrival_seconds[row]),
            int(requests.prompt_tokens[row]),
            int(requests.output_tokens[row]),
            hit=int(requests.hit_tokens[row]),
            priority=int(requests.priorities[row]) if config.priorities else 0,
        )
        prefix = requests.prefixes[row] if requests.prefixes else None
        if prefix is not None:
            per = prefix.block_tokens // config.block_size
            every = [(each, place) for each in prefix.ids for place in range(per)]
            job.contents = every[: job.prompt // config.block_size]
        jobs.append(job)
    return oracle.play(jobs, [(time, jobs[row]) for time, row in aborts]), jobs


def play(config, requests, aborts, *, macro_steps, forgetful):
    """The stepper, fed with all requests at once; what became of each request by what the journal says."""
    journal = Journal()
    replica = stepper.Replica(config, journal=journal, macro_steps=macro_steps)
    index = {}
    for row in range(len(requests)):
        i = replica.offer(
            float(requests.arrival_seconds[row]),
            int(requests.prompt_tokens[row]),
            int(requests.output_tokens[row]),
            int(requests.hit_tokens[row]),
            int(requests.priorities[row]),
            requests.prefixes[row] if requests.prefixes else None,
        )
        if i >= 0:
            index[i] = row
    fates, aborted, dropped = {}, set(), 0
    first, finish, found = {}, {}, {}

    def read():
        for i, _, tokens in journal.admitted:
            found[index[i + dropped]] = tokens
        first.update({index[i + dropped]: now for i, now in journal.first_tokens})
        finish.update({index[i + dropped]: now for i, now in journal.finished})
        fates.update(dict.fromkeys((index[i + dropped] for i in replica.take_refused()), "refused"))
        for entries in (journal.admitted, journal.first_tokens, journal.finished):
            entries.clear()

    place = {row: i for i, row in index.items()}
    for time, row in aborts:
        replica.advance(time)
        assert 0.0 <= replica.kv_usage <= 1.0
        if forgetful:
            read()
            dropped += replica.forget_finished()
        if row in place and row not in finish and place[row] >= dropped and replica.abort(place[row] - dropped):
            aborted.add(row)
    replica.advance(math.inf)
    read()
    assert replica.outstanding == 0
    assert replica.kv_usage == 0.0
    fates.update(dict.fromkeys(finish, "finished"))
    fates.update(dict.fromkeys(aborted, "aborted"))
    return replica, fates, first, finish, found


@pytest.mark.parametrize("part", range(PARTS))
def test_everything_at_once_equals_a_literal_loop(part):
    seen = dict.fromkeys(("refused", "aborted", "preempted", "shared"), 0)
    for seed in range(part * CASES // PARTS, (part + 1) * CASES // PARTS):
        config, requests, aborts = case(seed)
        oracle, jobs = literal_of(config, requests, aborts)
        replica, fates, first, finish, found = play(
            config, requests, aborts, macro_steps=seed % 4 != 0, forgetful=seed % 3 == 0
        )
        for row, job in enumerate(jobs):
            assert fates.get(row, "") == (job.fate if job.fate != "aborted" or row in fates else ""), (seed, row)
            assert found.get(row) == job.found, (seed, row)
            if job.token_times:
                assert first[row] == pytest.approx(job.token_times[0], abs=1e-9), (seed, row)
            if job.fate == "finished":
                assert finish[row] == pytest.approx(job.token_times[-1], abs=1e-9), (seed, row)
            seen["shared"] += (job.found or 0) > 0
            seen[job.fate] = seen.get(job.fate, 0) + 1
            seen["preempted"] += job.preemptions
        sums, steps = replica.activity, oracle.iterations
        assert sums.steps == len(steps), seed
        assert sums.decode_tokens == sum(s.decodes for s in steps), seed
        assert sums.kv_read_tokens == sum(s.kv for s in steps), seed
        assert sums.prefill_tokens == sum(s.prefill for s in steps), seed
        assert sums.preemptions == sum(job.preemptions for job in jobs), seed
        assert sums.busy_seconds == pytest.approx(sum(s.seconds for s in steps), rel=1e-9), seed
    assert min(seen[name] for name in ("refused", "aborted", "preempted", "shared")) > 50, seen


def requests_of(*rows, priorities=None, prefixes=None):
    times, prompts, outputs = (np.array(column) for column in zip(*rows, strict=True))
    return Requests(
        arrival_seconds=times.astype(float),
        prompt_tokens=prompts,
        output_tokens=outputs,
        priorities=None if priorities is None else np.array(priorities),
        prefixes=prefixes,
    )


def test_the_lower_value_is_served_first():
    config = simple(max_num_seqs=1, priorities=True)
    outcome = stepper.simulate(config, requests_of((0, 10, 5), (1, 10, 5), (2, 10, 5), priorities=[5, 5, 1]))
    assert np.argsort(outcome.finish_seconds).tolist() == [0, 2, 1]


def test_who_finds_too_many_waiting_is_refused():
    config = simple(max_num_seqs=1, max_queued_requests=1)
    outcome = stepper.simulate(config, requests_of((0, 10, 50), (1, 10, 5), (2, 10, 5)))
    assert outcome.refused.tolist() == [False, False, True]
    assert np.isnan(outcome.finish_seconds).tolist() == [False, False, True]


def test_shared_blocks_are_computed_and_held_once():
    config = simple(kv_blocks=100, block_size=16)
    chain = Prefix((7, 8), 512)
    replica = stepper.Replica(config)
    replica.offer(0.0, 640, 40, 0, 0, chain)
    replica.advance(1.0)
    assert replica.kv_usage == pytest.approx(0.4)
    replica.offer(1.0, 640, 40, 0, 0, chain)
    replica.advance(9.0)
    # All but the block of the last token is there; that one is computed again.
    assert replica.activity.prefill_tokens == 640 + 16
    assert replica.kv_usage <= 0.44
    replica.advance(math.inf)
    assert replica.kv_usage == 0.0


def test_without_prefix_caching_nothing_is_shared():
    config = simple(kv_blocks=100, block_size=16, prefix_caching=False)
    chain = Prefix((7, 8), 512)
    outcome = stepper.simulate(config, requests_of((0, 640, 1), (50, 640, 1), prefixes=[chain, chain]))
    assert outcome.activity.prefill_tokens == 2 * 640


def test_prefix_blocks_must_be_whole_kv_blocks():
    with pytest.raises(ValueError, match="multiple"):
        stepper.Replica(simple()).offer(0.0, 640, 1, 0, 0, Prefix((1,), 100))
    with pytest.raises(ValueError, match="ids"):
        Prefix((-1,))


def test_a_lower_active_limit_holds_from_now_on():
    replica = stepper.Replica(simple(max_num_seqs=4))
    for _ in range(8):
        replica.offer(0.0, 10, 100)
    replica.advance(5.0)
    assert (replica.running, replica.waiting) == (4, 4)
    replica.set_active_limit(2)
    replica.advance(200.0)
    assert (replica.running, replica.waiting) == (2, 2)
    with pytest.raises(ValueError, match="max_num_active_seqs"):
        replica.set_active_limit(0)


@pytest.mark.parametrize("settings", [{"max_num_active_seqs": 0}, {"max_queued_requests": -1}])
def test_refuses_limits_that_make_no_sense(settings):
    with pytest.raises(ValueError, match="must be at least"):
        simple(**settings)
