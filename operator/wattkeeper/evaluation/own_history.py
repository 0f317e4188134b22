"""What a user's own history is worth: a simulated service whose cards draw more or less than any table says.

A replica of the twin serves hours of uneven traffic, and its power is multiplied by a bias that nothing knows of. What
its exporters would have told Prometheus is cut into rows as `wattkeeper data from-prometheus` does. The first hours
train a model as `wattkeeper train --rows` does. Held against it are later runs of the same service, partly at larger
batches than ever before, and runs of another service with other lengths. Beside it: a model without own rows; that
times the mean error of the training rows, the simplest correction there is; and both models conditioned on these rows,
as the operator does with live readings. A second table is of services whose prompts are partly in the prefix cache; a
third shows what the bounds of a steady window cost and bring.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import calibration, data, estimate, fitting, own_rows, train
from wattkeeper.energy.calibration import Reading
from wattkeeper.energy.model import EnergyModel, correction_of
from wattkeeper.evaluation.rendering import Cell, Table
from wattkeeper.evaluation.simulated_history import Cards, Traffic, simulated
from wattkeeper.telemetry import run_rows, steady_runs
from wattkeeper.telemetry.run_history import ReplicaHistory
from wattkeeper.telemetry.run_rows import Deployment, OwnHistory

TRAINING = Traffic(hours=8.0, rates=(2.0, 9.0))
LATER = Traffic(hours=12.0, rates=(3.0, 16.0))
"""Beyond the rates of the training."""
OTHER = Traffic(hours=8.0, rates=(1.0, 6.0), prompt_tokens=200.0, output_tokens=500.0)
"""Another service of the same model and card."""
QUICK = Traffic(hours=6.0, rates=(2.0, 16.0), swing_hours=1.0)
"""What bounds are tried on: eightfold within half an hour."""
CACHED = replace(TRAINING, prefix_hit_ratio=0.6)
"""The same service with a shared prompt."""
HITS = (0.0, 0.3, 0.6, 0.9)
"""Of later runs, for the second table."""
_RESAMPLES = 1000
_ALL = 10**6
FACTORS = (0.3, 0.6, 1.0, 1.7, 3.0)
"""On the bounds of steady windows, for the second table; 1: as shipped."""


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Of the predictions for N runs, in percent of the measured watts."""

    name: str
    mean_absolute: float
    low: float
    high: float
    """Ends of its 90 % interval, from a bootstrap over hours: neighbouring runs are alike."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """All predictions for one kind of held-out runs."""

    name: str
    runs: int
    errors: tuple[Errors, ...]


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What bounds of steady windows, times a factor, make of the same history."""

    factor: float
    runs: int
    used: float
    """Share of the history, 0..1."""
    scatter: float
    """Root mean square distance of watts from a smooth curve over the batch, in percent."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """All that was found."""

    cards: Cards
    training_rows: int
    held: tuple[Held, ...]
    cached_rows: int
    """Own rows of the service with prefix hits."""
    prefix: tuple[Held, ...]
    """Later runs by their share of prefix hits."""
    bounds: tuple[Bounds, ...]


def evaluate(folder: Path, cards: Cards, *, seed: int, report: Callable[[str], None]) -> Found:
    """Simulate, train on the first hours and public runs, and hold the rest against it. Raises WattkeeperError."""
    public = data.load_ml_energy(folder)
    deployment = Deployment(name="team/chat", pods=".+", model=cards.model)
    shared = [replace(LATER, prefix_hit_ratio=hits) for hits in HITS if hits > 0.0]
    traffics = (TRAINING, LATER, OTHER, QUICK, CACHED, *shared)
    report(f"simulating {sum(each.hours for each in traffics):g} hours of a replica")
    training, later, other, quick, cached, *alike = (
        simulated(traffic, cards, seed=seed + index) for index, traffic in enumerate(traffics)
    )
    rows = run_rows.of_histories([training], deployment)
    for line in run_rows.summary(rows):
        report(line)
    held = [run_rows.of_histories([each], deployment, per_point=_ALL) for each in (later, other)]
    report("training without and with own rows")
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "own.csv"
        known, *asked = (_table(each, path) for each in (rows, *held))
        _table(rows, path)
        methods = _Methods.of(public, train.joined(public, path), known, seed=seed)
    parts = []
    for history, table in zip(held, asked, strict=True):
        hours = np.array([run.start_seconds // 3600.0 for run in history.runs])
        beyond = table["batch"].to_numpy() > known["batch"].max()
        everything = np.ones(len(table), dtype=np.bool_)
        kinds = (
            {"later runs": everything, "- batches seen": ~beyond, "- larger batches": beyond}
            if history is held[0]
            else {"another service": everything}
        )
        measured, predicted = table["gpu_watts"].to_numpy(dtype=np.float64), methods.watts(table)
        for kind, where in kinds.items():
            errors = tuple(
                _errors(name, watts[where], measured[where], hours[where], seed=seed)
                for name, watts in predicted.items()
            )
            parts.append(Held(name=kind, runs=int(where.sum()), errors=errors))
    report("training with own rows of a service with prefix hits")
    rows = run_rows.of_histories([cached], deployment)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "own.csv"
        cached_rows = len(_table(rows, path))
        models = {
            "without": methods.without,
            "trained without hits": methods.trained,
            "trained with hits": _trained(train.joined(public, path), seed=seed),
        }
        later_runs = [held[0], *(run_rows.of_histories([each], deployment, per_point=_ALL) for each in alike)]
        prefix = [_prefix(hits, each, models, path, seed=seed) for hits, each in zip(HITS, later_runs, strict=True)]
    return Found(
        cards=cards,
        training_rows=len(known),
        held=tuple(parts),
        cached_rows=cached_rows,
        prefix=tuple(prefix),
        bounds=tuple(bounds_of(quick, deployment)),
    )


def _prefix(hits: float, history: OwnHistory, models: Mapping[str, EnergyModel], path: Path, *, seed: int) -> Held:
    table = _table(history, path)
    hours = np.array([run.start_seconds // 3600.0 for run in history.runs])
    measured = table["gpu_watts"].to_numpy(dtype=np.float64)
    errors = tuple(_errors(name, _watts(model, table), measured, hours, seed=seed) for name, model in models.items())
    return Held(name=f"{hits:.0%}", runs=len(table), errors=errors)


def _table(history: OwnHistory, path: Path) -> pd.DataFrame:
    """Its rows, as they are written and read back."""
    run_rows.write([history], path)
    return own_rows.read(path)


@dataclass(frozen=True, kw_only=True)
class _Methods:
    """All that is compared: models, and what rows of the training say of their errors."""

    without: EnergyModel
    trained: EnergyModel
    known: pd.DataFrame

    @staticmethod
    def of(public: pd.DataFrame, both: pd.DataFrame, known: pd.DataFrame, *, seed: int) -> "_Methods":
        without, trained = (_trained(runs, seed=seed) for runs in (public, both))
        return _Methods(without=without, trained=trained, known=known)

    def watts(self, asked: pd.DataFrame) -> dict[str, FloatArray]:
        """Of runs, (N,) by method."""
        without, trained = _watts(self.without, asked), _watts(self.trained, asked)
        return {
            "without": without,
            "without x mean error": without * np.exp(self._errors_log(self.without).mean()),
            "without, live readings": without * self._conditioned(self.without, asked),
            "trained": trained,
            "trained, live readings": trained * self._conditioned(self.trained, asked),
        }

    def _errors_log(self, model: EnergyModel) -> FloatArray:
        return np.asarray(np.log(self.known["gpu_watts"].to_numpy(dtype=np.float64) / _watts(model, self.known)))

    def _conditioned(self, model: EnergyModel, asked: pd.DataFrame) -> FloatArray:
        """What the operator would multiply with, had it read the watts of all training rows."""
        readings = [
            Reading(batch=float(batch), error_log=float(error))
            for batch, error in zip(self.known["batch"], self._errors_log(model), strict=True)
        ]
        profile = estimate.closed_loop_runs(self.known.assign(max_num_seqs=self.known["batch"]))[0].points.profile
        mean, _ = calibration.condition(model.kernel_of(profile), readings, asked["batch"].to_numpy(dtype=np.float64))
        return np.exp(mean)


def _trained(runs: pd.DataFrame, *, seed: int) -> EnergyModel:
    given = fitting.measured(runs)
    return EnergyModel(correction_of(fitting.payload(given, np.arange(len(given.rows)), seed=seed)))


def _watts(model: EnergyModel, table: pd.DataFrame) -> FloatArray:
    """What a model says of runs, (N,)."""
    runs = table.assign(max_num_seqs=table["batch"])
    watts = np.empty(len(runs))
    for part in estimate.closed_loop_runs(runs):
        watts[part.rows] = model.busy_watts([part.points])[0]
    return watts


def _errors(name: str, predicted: FloatArray, measured: FloatArray, hours: FloatArray, *, seed: int) -> Errors:
    relative = 100.0 * (predicted / measured - 1.0)
    _, codes = np.unique(hours, return_inverse=True)
    total, size = np.bincount(codes, weights=np.abs(relative)), np.bincount(codes)
    picks = np.random.default_rng(seed).integers(len(size), size=(_RESAMPLES, len(size)))
    low, high = np.quantile(total[picks].sum(axis=1) / size[picks].sum(axis=1), [0.05, 0.95])
    return Errors(
        name=name,
        mean_absolute=float(np.abs(relative).mean()),
        low=float(low),
        high=float(high),
    )


def bounds_of(history: ReplicaHistory, deployment: Deployment) -> list[Bounds]:
    """The same history under tighter and wider bounds; distances are from the curve of the shipped ones."""

    def cut(factor: float) -> OwnHistory:
        scaled = {name: (factor * spread, factor * drift) for name, (spread, drift) in steady_runs.LEVELS.items()}
        return run_rows.of_histories([history], deployment, per_point=_ALL, bounds=scaled)

    def points(found: OwnHistory) -> tuple[FloatArray, FloatArray]:
        return (
            np.log(np.array([run.batch for run in found.runs])),
            np.array([run.gpu_watts for run in found.runs]),
        )

    curve = np.polynomial.Polynomial.fit(*points(cut(1.0)), deg=3)
    made = []
    total = history.scraped_seconds[-1] - history.scraped_seconds[0]
    for factor in FACTORS:
        found = cut(factor)
        batch_log, watts = points(found)
        made.append(
            Bounds(
                factor=factor,
                runs=len(found.runs),
                used=sum(run.seconds for run in found.runs) / float(total),
                scatter=100.0 * float(np.sqrt(np.mean(np.square(watts / curve(batch_log) - 1.0)))),
            )
        )
    return made


def summary(found: Found) -> str:
    """The main figures in a sentence or two."""
    overall, cards = found.held[0], found.cards
    texts = [f"{each.name} {each.mean_absolute:.1f} % ({each.low:.1f} to {each.high:.1f})" for each in overall.errors]
    return (
        f"A simulated replica of {cards.model} on {cards.accelerator} draws {cards.bias:g} times what the twin's "
        f"tables say. {TRAINING.hours:g} hours of its history gave {found.training_rows} rows. Mean absolute error of "
        f"the watts of {overall.runs} runs of {LATER.hours:g} later hours: {', '.join(texts)}."
    )


def tables(found: Found) -> list[Table]:
    """For people, pages and machines."""
    return [
        Table(
            key="held-out",
            title=f"Watts of later runs, power {found.cards.bias:g} times the twin's ({found.training_rows} own rows)",
            note="Mean absolute error in percent of measured watts, and its 90 % interval by a bootstrap over hours. "
            "Without: trained on public runs alone; times its mean error on own rows; conditioned on them, as on live "
            "readings. Trained: on both; and conditioned on own rows as well.",
            columns=("runs", "number", *(each.name for each in found.held[0].errors)),
            rows=_rows(found.held),
        ),
        Table(
            key="prefix-hits",
            title=f"Watts of later runs by their share of prefix cache hits ({found.cached_rows} own rows with hits)",
            note="As above. Trained without hits: the model above, whose own rows have none; with hits: on the rows of "
            f"a service {CACHED.prefix_hit_ratio:.0%} of whose prompt tokens are in the prefix cache.",
            columns=("prefix hits", "number", *(each.name for each in found.prefix[0].errors)),
            rows=_rows(found.prefix),
        ),
        Table(
            key="bounds",
            title=f"Bounds of a steady window, under traffic that swings every {QUICK.swing_hours:g} h",
            note="scatter: RMS distance of watts from a smooth curve over the batch, in percent",
            columns=("factor on all bounds", "runs", "share of the history", "scatter"),
            rows=tuple((each.factor, each.runs, each.used, each.scatter) for each in found.bounds),
        ),
    ]


def _rows(parts: Sequence[Held]) -> tuple[tuple[Cell, ...], ...]:
    return tuple(
        (
            held.name,
            held.runs,
            *(f"{each.mean_absolute:.1f} ({each.low:.1f} to {each.high:.1f})" for each in held.errors),
        )
        for held in parts
    )
