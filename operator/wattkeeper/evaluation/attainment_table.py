"""How well the share of requests that meet a joint target is foretold."""

import itertools

import numpy as np

from wattkeeper.evaluation import sla, tables
from wattkeeper.evaluation.rendering import Cell, Table
from wattkeeper.evaluation.runs import SLO_TPOT_SECONDS, SLO_TTFT_SECONDS
from wattkeeper.evaluation.score import PLANNED_LOAD
from wattkeeper.evaluation.sla import Evaluation
from wattkeeper.queueing.attainment import PERCENTILES, Tails

_PROMISED = (0.9, 0.95, 0.99)
_SHORT = 0.01


def attainment_table(evaluation: Evaluation) -> Table:
    """Of all points and all pairs of targets for which so much is promised."""
    levels = [evaluation.latencies(sla.PATH, sla.MODEL, percentile) for percentile in PERCENTILES]
    tails = Tails(
        ttft_seconds=np.stack([level.ttft_seconds for level in levels]),
        tpot_seconds=np.stack([level.tpot_seconds for level in levels]),
    )
    part = tables.planned(evaluation)
    pairs = list(itertools.product(SLO_TTFT_SECONDS, SLO_TPOT_SECONDS))
    found = [tails.attainment(ttft_seconds=ttft, tpot_seconds=tpot) for ttft, tpot in pairs]
    least = np.stack([each.least for each in found], axis=1)[part]
    most = np.stack([each.most for each in found], axis=1)[part]
    real = np.array([run.attainment for run in evaluation.runs])[part]
    rows: list[tuple[Cell, ...]] = []
    for promised in _PROMISED:
        kept, hoped = least >= promised, most >= promised
        rows.append(
            (
                f"{promised:.0%} or more",
                int(kept.sum()),
                _percent(real[kept] < promised),
                _percent(real[kept] < promised - _SHORT),
                int(hoped.sum()),
                _percent(real[hoped] < promised),
            )
        )
    return Table(
        key="attainment",
        title="Share of requests that meet both targets",
        note=(
            f"Load <= {PLANNED_LOAD}, all pairs of targets. A promise rests on the lower bound (the sum of both shares "
            "less one); hope rests on the upper bound (the smaller share). % of promises that the stepper breaks."
        ),
        columns=("predicted", "promises", "broken", "by more than a point", "hopes", "disappointed"),
        rows=tuple(rows),
    )


def _percent(missed: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> str:
    return f"{100 * float(missed.mean()):.2g} %" if len(missed) else "-"
