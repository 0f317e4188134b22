"""From measured runs to what the model file holds: the learned model, where it may be used, and how sure it is."""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import data, estimate, evaluate, factors, learned, learned_file
from wattkeeper.energy.artefact import Payload
from wattkeeper.energy.baselines import Rows
from wattkeeper.energy.correction import Deployment, canonical, deployment_groups
from wattkeeper.energy.estimate import Estimated
from wattkeeper.energy.learned import Runs
from wattkeeper.energy.model import EnergyModel, correction_of
from wattkeeper.energy.points import IndexArray

TARGET: learned.Target = "W per GPU"
_WIDTHS = {"known_model": "curve", "known_backbone": "model", "new_backbone": "backbone"}
"""What inner folds hold out for the intervals of each kind of deployment."""
_PROCESSES = 2
_DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class Measured:
    """N closed-loop runs in the forms that fitting and asking want, row by row the same."""

    table: pd.DataFrame
    runs: Runs
    rows: Rows
    """Factors at the operating points of the runs, with measured watts and the catalogue's estimate."""
    estimated: tuple[Estimated, ...]
    """The operating points, one part after the other in the order of the rows."""

    def groups(self, name: str) -> pd.Series:
        """What must be held out together: `curve`, `model` or `backbone`."""
        return self.table[f"group_{name}"]

    def answers(self, model: EnergyModel, index: IndexArray) -> tuple[FloatArray, FloatArray]:
        """What a model says of these runs: watts per GPU, and half-width of the interval in ln; (M,).

        As in the operator, but for its table between half doublings: a run need not be in a steady state.
        """
        watts, half, start = np.full(len(self.rows), np.nan), np.full(len(self.rows), np.nan), 0
        for part in self.estimated:
            own = index[(index >= start) & (index < start + len(part.rows))]
            if len(own):
                state = part.points.take(own - start)
                watts[own], half[own] = model.of_runs(state, self.runs[own])
            start += len(part.rows)
        return watts[index], half[index]


def measured(closed: pd.DataFrame) -> Measured:
    """Closed-loop runs of the tidy table (`energy.data`). Raises UnknownModelError: a model without an architecture."""
    estimated = estimate.closed_loop_runs(closed)
    rows, kept = evaluate.rows_of(closed, estimated, "watts")
    return Measured(table=kept, runs=learned.runs_of(kept), rows=rows, estimated=tuple(estimated))


def payload(given: Measured, index: IndexArray, *, seed: int, asked: Sequence[str] = tuple(_WIDTHS)) -> Payload:
    """What is learned from some of the runs; the card is empty.

    Terms are chosen, and how the error of a new deployment varies is learned, on inner folds by model. Intervals rest
    on inner folds by curve for models of the training runs, by model for others of a backbone among them, by backbone
    for the rest; `asked` names those that are needed.
    """
    runs, rows = given.runs[index], given.rows[index]

    def inner(split: str) -> learned.IndexArray:
        groups = given.groups(split).iloc[index]
        folds = evaluate.group_folds(groups, folds=min(learned.INNER_FOLDS, groups.nunique()), seed=seed)
        return np.asarray(folds, dtype=np.int_)

    model = learned.fit(runs, TARGET, inner=inner("model"), seed=seed)
    multiples = {"known_backbone": model.spread}
    for name in asked:
        if name not in multiples:
            held = inner(_WIDTHS[name])
            multiples[name] = learned.spread(runs, TARGET, inner=held, seed=seed, term_list=model.term_list)
    miss = np.log(rows.target / rows.estimate)
    return Payload(
        factors=factors.NAMES,
        factor_low=tuple(map(float, rows.scaled.min(axis=0))),
        factor_high=tuple(map(float, rows.scaled.max(axis=0))),
        residual_low=round(float(miss.min()), _DIGITS),
        residual_high=round(float(miss.max()), _DIGITS),
        half_width={
            **{name: round(multiples.get(name, max(multiples.values())), _DIGITS) for name in _WIDTHS},
            "physics": round(float(np.quantile(np.abs(miss), learned.COVERAGE)), _DIGITS),
        },
        reference_watts=estimate.reference_watts(),
        deployments=tuple(_deployments(given.table.iloc[index], runs)),
        learned=learned_file.plain(model, runs.log_target(TARGET) - model.priors.log_value(runs, TARGET)),
        card={},
    )


def held_out(given: Measured, split: str, *, folds: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Watts and half-widths (N,) of all runs, each from a model that saw nothing of its group.

    Folds are fitted in two processes.
    """
    groups = given.groups(split)
    fold = evaluate.group_folds(groups, folds=min(folds, groups.nunique()), seed=seed)
    asked = ("known_model",) if split == "curve" else ("known_backbone", "new_backbone")
    watts, half = np.empty(len(fold)), np.empty(len(fold))
    tests = [np.flatnonzero(fold == number) for number in np.unique(fold)]
    with ProcessPoolExecutor(max_workers=_PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        answers = pool.map(_held_fold, [(given, test, asked, seed) for test in tests])
        for test, (found, width) in zip(tests, answers, strict=True):
            watts[test], half[test] = found, width
    return watts, half


def _held_fold(work: tuple[Measured, IndexArray, Sequence[str], int]) -> tuple[FloatArray, FloatArray]:
    given, test, asked, seed = work
    train = np.setdiff1d(np.arange(len(given.rows)), test)
    return given.answers(EnergyModel(correction_of(payload(given, train, seed=seed, asked=asked))), test)


def _deployments(table: pd.DataFrame, runs: Runs) -> Iterator[dict[str, Any]]:
    """As `correction.Deployment`, in order of their names."""
    computed = np.maximum(table["prompt_tokens"].to_numpy(dtype=np.float64) - data.cached_tokens(table), 1.0)
    logs = pd.DataFrame(np.log2(np.column_stack([computed, table["output_tokens"].to_numpy(dtype=np.float64)])))
    for name in np.unique(runs.groups[:, 3]):
        own = np.flatnonzero(runs.groups[:, 3] == name)
        first = table.iloc[own[0]]
        prompt, output = logs.iloc[own].mean()
        found = Deployment(
            model=canonical(str(first["model"])),
            gpu=str(first["gpu"]),
            gpus=int(first["num_gpus"]),
            data_parallel=int(first["data_parallel"]),
            log2_prompt=round(float(prompt), _DIGITS),
            log2_output=round(float(output), _DIGITS),
            multimodal=bool(first["multimodal"] > 0),
            groups=deployment_groups(runs.groups[own[0]]),
            own=bool(first["source"] != data.ML_ENERGY_V3.name),
        )
        yield asdict(found) | {"groups": list(found.groups)}
