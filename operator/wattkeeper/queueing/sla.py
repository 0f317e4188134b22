"""The SLA check: stability, activity and latency percentiles of many candidates of many services at once.

Method: closed forms (`queueing.analysis`: capacity, occupancy and clock under a power cap, latency tails) times a
learnt correction (`queueing.correction`). Services of one profile share the arrays of the first, the whole fleet shares
one pass through the trees of the second. Where the method is unsure its upper bounds are wide.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from wattkeeper.domain.workload import FloatArray, Workload
from wattkeeper.physics.profile import ServingProfile
from wattkeeper.queueing import correction as corrections
from wattkeeper.queueing.analysis import Analysis, Asked, analyse
from wattkeeper.queueing.correction import Corrected, Correction
from wattkeeper.queueing.features import Tables
from wattkeeper.queueing.types import Candidates, SlaPrediction, SlaQuery

_ROWS_PER_PASS = 2048
"""More rows at once would leave the processor's caches."""


def predict(
    profile: ServingProfile,
    workload: Workload,
    candidates: Candidates,
    *,
    ttft_percentile: float,
    tpot_percentile: float,
) -> SlaPrediction:
    """Stability, load and latency of each candidate; all arrays have the shape (N,) of the candidates.

    The workload's rate is the service's and is shared evenly by the replicas; its dispersion falls with the split.
    Percentiles are in (0, 100), 99.9 at most being sensible. Raises ValueError for percentiles out of range.
    """
    query = SlaQuery(
        profile=profile,
        workload=workload,
        candidates=candidates,
        ttft_percentile=ttft_percentile,
        tpot_percentile=tpot_percentile,
    )
    return predict_fleet([query])[0]


def predict_fleet(queries: Sequence[SlaQuery], *, correction: Correction | None = None) -> list[SlaPrediction]:
    """The same for many services, one answer per query in their order.

    `correction` is the one that ships with the package unless another is given. Raises ModelFileError where that file
    cannot be used.
    """
    groups: dict[tuple[ServingProfile, float, float], list[int]] = defaultdict(list)
    for index, query in enumerate(queries):
        groups[query.profile, query.ttft_percentile, query.tpot_percentile].append(index)
    lots: list[tuple[list[int], Analysis]] = []
    for (profile, ttft_percentile, tpot_percentile), members in groups.items():
        for part in _passes(queries, members):
            asked = Asked.of([queries[index] for index in part])
            found = analyse(profile, asked, ttft_percentile=ttft_percentile, tpot_percentile=tpot_percentile)
            lots.append((part, found))
    answers: dict[int, SlaPrediction] = {}
    for (part, found), corrected in zip(lots, _corrected([found for _, found in lots], correction), strict=True):
        whole = _prediction(found, corrected)
        end = 0
        for index in part:
            begin, end = end, end + len(queries[index].candidates)
            answers[index] = whole.part(slice(begin, end))
    return [answers[index] for index in range(len(queries))]


def _passes(queries: Sequence[SlaQuery], members: Sequence[int]) -> Iterator[list[int]]:
    """Members in lots of at most so many rows, one query at least."""
    lot: list[int] = []
    rows = 0
    for index in members:
        size = len(queries[index].candidates)
        if lot and rows + size > _ROWS_PER_PASS:
            yield lot
            lot, rows = [], 0
        lot.append(index)
        rows += size
    yield lot


def _corrected(analyses: Sequence[Analysis], correction: Correction | None) -> Iterator[Corrected | None]:
    """Corrected latencies of the loaded candidates of each analysis, from one pass through the trees."""
    tables = [found.tables for found in analyses if found.tables is not None]
    if not tables:
        yield from (None for _ in analyses)
        return
    whole = (correction or corrections.shipped()).apply(Tables.joined(tables))
    end = 0
    for found in analyses:
        if found.tables is None:
            yield None
            continue
        begin, end = end, end + len(found.loaded)
        yield whole.part(slice(begin, end))


def _prediction(found: Analysis, corrected: Corrected | None) -> SlaPrediction:
    def placed(name: str, otherwise: FloatArray) -> FloatArray:
        if corrected is None:
            return otherwise
        values = otherwise.copy()
        values[found.loaded] = getattr(corrected, name)
        return values

    return SlaPrediction(
        stable=found.stable,
        capacity_rps=found.capacity_rps,
        utilisation=found.utilisation,
        ttft_seconds=placed("ttft_seconds", found.ttft_seconds),
        tpot_seconds=placed("tpot_seconds", found.tpot_seconds),
        ttft_upper_seconds=placed("ttft_upper_seconds", found.ttft_seconds),
        tpot_upper_seconds=placed("tpot_upper_seconds", found.tpot_seconds),
        widening=placed("widening", np.zeros_like(found.utilisation)),
        batch=found.mean.batch,
        busy=found.mean.busy,
        step_seconds=found.mean.step_seconds,
        kv_tokens=found.mean.kv_tokens,
        clock_ratio=found.clock_ratio,
        prefill_tokens_per_second=found.prefill_tokens_per_second,
        decode_tokens_per_second=found.decode_tokens_per_second,
        preemption_risk=found.preemption_risk,
        binding=found.cause,
    )
