"""What a user's own history is worth: a simulated service whose cards draw more or less than any table says.

A replica of the twin serves hours of uneven traffic, and its power is multiplied by a bias that nothing knows of. What
its exporters would have told Prometheus is cut into rows as `wattkeeper data from-prometheus` does. The first hours
train a model as `wattkeeper train --rows` does; the watts of later runs, partly at loads never seen before, are held
against it. Beside it: the model without own rows; the same times the mean error of the training rows, the simplest
correction there is; and the same conditioned on these rows, as the operator does with live readings. A second table
shows what the bounds of a steady window cost and bring.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.workload import FloatArray, LengthDistribution
from wattkeeper.energy import artefact, calibration, data, estimate, own_rows, train
from wattkeeper.energy.calibration import Reading
from wattkeeper.energy.model import EnergyModel
from wattkeeper.evaluation.rendering import Table
from wattkeeper.telemetry import run_rows, steady_runs
from wattkeeper.telemetry.run_history import GpuHistory, ReplicaHistory
from wattkeeper.telemetry.run_rows import Deployment, OwnHistory
from wattkeeper.traces import generate
from wattkeeper.traces.trace import RateSeries
from wattkeeper.twin import hardware
from wattkeeper.twin.fleet import Fleet, Member, Service
from wattkeeper.twin.ledger import SloTargets
from wattkeeper.twin.nodes import Inventory

STEP_SECONDS, SCRAPES_PER_STEP = 30, 2
TRAIN_HOURS, HELD_HOURS = 8.0, 12.0
_TRAIN_RATES, _HELD_RATES = (2.0, 9.0), (3.0, 16.0)
"""Least and most requests per second of a replica: the later hours go beyond the earlier ones."""
_SWING_HOURS = 4.0
_QUICK_HOURS, _QUICK_SWING_HOURS = 6.0, 1.0
"""Of the history that bounds are tried on: eightfold within half an hour."""
_QUICK_RATES = (2.0, 16.0)
_PROMPT, _OUTPUT = (LengthDistribution.lognormal(mean=mean, coefficient_of_variation=0.8) for mean in (600, 200))
_RESAMPLES = 1000
FACTORS = (0.3, 0.6, 1.0, 1.7, 3.0)
"""On the bounds of steady windows, for the second table; 1: as shipped."""


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Of the predictions for N runs, in percent of the measured watts."""

    name: str
    mean_error: float
    """Signed."""
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

    model: str
    accelerator: str
    bias: float
    training_rows: int
    held: tuple[Held, ...]
    bounds: tuple[Bounds, ...]


def evaluate(
    folder: Path, *, bias: float, model: str, accelerator: str, seed: int, report: Callable[[str], None]
) -> Found:
    """Simulate, train on the first hours and public runs, and hold the rest against it. Raises WattkeeperError."""
    data.load_ml_energy(folder)  # what is missing is told before hours are simulated
    deployment = Deployment(name="team/chat", pods=".+", model=model)
    report(f"simulating {TRAIN_HOURS + HELD_HOURS:g} hours of a replica")
    early, late = (
        simulated(hours, rates, model=model, accelerator=accelerator, bias=bias, seed=seed + index)
        for index, (hours, rates) in enumerate(((TRAIN_HOURS, _TRAIN_RATES), (HELD_HOURS, _HELD_RATES)))
    )
    rows = run_rows.of_histories([early], deployment)
    for line in run_rows.summary(rows):
        report(line)
    held = run_rows.of_histories([late], deployment, per_point=10**6)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "own.csv"
        run_rows.write([rows], path)
        known = own_rows.read(path)
        payload, _ = train.train(folder, own=[path], seed=seed, report=report)
        trained_file = Path(name) / "energy.json"
        trained_file.write_text(artefact.dump(payload), encoding="utf-8")
        trained = EnergyModel.load(trained_file)
        run_rows.write([held], path)
        asked = own_rows.read(path)
    shipped = EnergyModel.load()
    cold = _watts(shipped, asked)
    errors_log = np.log(known["gpu_watts"].to_numpy(dtype=np.float64) / _watts(shipped, known))
    readings = [Reading(batch=batch, error_log=error) for batch, error in zip(known["batch"], errors_log, strict=True)]
    conditioned, _ = calibration.condition(shipped.kernel, readings, asked["batch"].to_numpy(dtype=np.float64))
    predicted = {
        "without own rows": cold,
        "the same x mean error of own rows": cold * np.exp(errors_log.mean()),
        "the same, own rows as live readings": cold * np.exp(conditioned),
        "trained with own rows": _watts(trained, asked),
    }
    hours = np.array([run.start_seconds // 3600.0 for run in held.runs])
    beyond = asked["batch"].to_numpy() > known["batch"].max()
    everything = np.ones(len(asked), dtype=np.bool_)
    kinds = {"all later runs": everything, "batches seen": ~beyond, "larger batches than seen": beyond}
    measured = asked["gpu_watts"].to_numpy(dtype=np.float64)
    quick = simulated(
        _QUICK_HOURS, _QUICK_RATES, model=model, accelerator=accelerator, bias=bias, seed=seed + 2,
        swing_hours=_QUICK_SWING_HOURS,
    )  # fmt: skip
    return Found(
        model=model,
        accelerator=accelerator,
        bias=bias,
        training_rows=len(known),
        held=tuple(
            Held(
                name=kind,
                runs=int(where.sum()),
                errors=tuple(
                    _errors(name, watts[where], measured[where], hours[where], seed=seed)
                    for name, watts in predicted.items()
                ),
            )
            for kind, where in kinds.items()
            if where.any()
        ),
        bounds=tuple(_bounds(quick, deployment)),
    )


def simulated(
    hours: float,
    rates: tuple[float, float],
    *,
    model: str,
    accelerator: str,
    bias: float,
    seed: int,
    swing_hours: float = _SWING_HOURS,
) -> ReplicaHistory:
    """The history of one replica whose traffic swings between two rates, as its exporters would have told it."""
    seconds = hours * 3600.0
    inventory = Inventory()
    inventory.ensure("node", hardware.card(accelerator), 1)
    fleet = Fleet(inventory)
    times = np.linspace(0.0, seconds, int(hours * 12) + 1)
    low, high = rates
    swing = 0.5 - 0.5 * np.cos(2.0 * np.pi * times / (swing_hours * 3600.0))
    trace = generate.generate(
        RateSeries(
            times_seconds=tuple(map(float, times)), requests_per_second=tuple(map(float, low * (high / low) ** swing))
        ),
        prompt=_PROMPT,
        output=_OUTPUT,
        seed=seed,
    )
    key = ("team", "chat-0")
    service = Service(name="chat", slo=SloTargets(ttft_seconds=1.0, tpot_seconds=0.1), arrivals=trace)
    fleet.services["chat"] = service
    engine = hardware.replica_hardware(model=model, accelerator=accelerator, engine=EngineSettings())
    fleet.add_pod("chat", key, node="node", container="vllm", hardware=engine)
    fleet.set_ready("chat", key)
    member = service.members[key]
    steps = int(seconds // STEP_SECONDS)
    engine_rows, gpu_rows = [], []
    for step in range(steps + 1):
        samples = []
        for scrape in range(SCRAPES_PER_STEP):
            fleet.advance(max(0.0, (step - 1 + (scrape + 1) / SCRAPES_PER_STEP) * STEP_SECONDS))
            samples.append(_gpu(member))
        engine_rows.append(_engine(member))
        gpu_rows.append({name: float(np.mean([each[name] for each in samples])) for name in samples[0]})
    engine_table, gpu_table = pd.DataFrame(engine_rows), pd.DataFrame(gpu_rows)
    at = STEP_SECONDS * np.arange(steps + 1, dtype=np.float64)
    gpu = GpuHistory(
        uuid="GPU-0",
        model=hardware.card(accelerator).dcgm_name,
        watts=bias * gpu_table["watts"].to_numpy(),
        clock_mhz=gpu_table["clock_mhz"].to_numpy(),
        limit_watts=gpu_table["limit_watts"].to_numpy(),
        utilisation=gpu_table["utilisation"].to_numpy(),
    )
    return ReplicaHistory(
        namespace=key[0],
        pod=key[1],
        times_seconds=at,
        scraped_seconds=at,
        engine={str(name): engine_table[name].to_numpy(dtype=np.float64) for name in engine_table},
        gpus=(gpu,),
    )


def _engine(member: Member) -> dict[str, float]:
    """What the engine's page says now, by the names of `domain.observation.EngineCounters`."""
    replica, counters = member.replica, member.counters
    if replica is None or counters is None:
        raise ValueError("the replica does not listen yet")
    return {
        "running": float(len(replica.running)),
        "waiting": float(len(replica.waiting)),
        "kv_usage": replica.kv_usage,
        "finished_requests": float(sum(counters.finished.values())),
        "prompt_tokens": float(counters.prompt_tokens),
        "cached_prompt_tokens": float(counters.cached_prompt_tokens),
        "generation_tokens": float(counters.generation_tokens),
        "preemptions": float(counters.preemptions),
        "inter_token_seconds_sum": counters.inter_token_seconds.total,
        "inter_token_count": float(counters.inter_token_seconds.count),
        "iteration_count": float(counters.iteration_tokens.count),
    }


def _gpu(member: Member) -> dict[str, float]:
    sample = member.gpus[0].sample()
    return {
        "watts": sample.power_watts,
        "clock_mhz": sample.sm_clock_mhz,
        "limit_watts": sample.limit_watts,
        "utilisation": sample.utilisation,
    }


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
        mean_error=float(relative.mean()),
        mean_absolute=float(np.abs(relative).mean()),
        low=float(low),
        high=float(high),
    )


def _bounds(history: ReplicaHistory, deployment: Deployment) -> list[Bounds]:
    """The same history under tighter and wider bounds; distances are from the curve of the shipped ones."""

    def cut(factor: float) -> OwnHistory:
        scaled = {name: (factor * spread, factor * drift) for name, (spread, drift) in steady_runs.LEVELS.items()}
        return run_rows.of_histories([history], deployment, per_point=10**6, bounds=scaled)

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
    overall = found.held[0]
    texts = [f"{each.mean_absolute:.1f} % ({each.low:.1f} to {each.high:.1f}) {each.name}" for each in overall.errors]
    return (
        f"A simulated replica of {found.model} on {found.accelerator} draws {found.bias:g} times what the twin's "
        f"tables say. {TRAIN_HOURS:g} hours of its history gave {found.training_rows} rows. Mean absolute error of the "
        f"watts of {overall.runs} runs of {HELD_HOURS:g} later hours: {'; '.join(texts)}."
    )


def tables(found: Found) -> list[Table]:
    """For people, pages and machines."""
    rows = tuple(
        (held.name, held.runs, each.name, each.mean_error, each.mean_absolute, f"{each.low:.1f} to {each.high:.1f}")
        for held in found.held
        for each in held.errors
    )
    return [
        Table(
            key="held-out",
            title=f"Watts of later runs, power {found.bias:g} times the twin's ({found.training_rows} own rows)",
            note="percent of measured watts; 90 % interval of the mean absolute error, by a bootstrap over hours",
            columns=("runs", "number", "model", "mean error", "mean absolute error", "90 %"),
            rows=rows,
        ),
        Table(
            key="bounds",
            title=f"Bounds of a steady window, under traffic that swings every {_QUICK_SWING_HOURS:g} h",
            note="scatter: RMS distance of watts from a smooth curve over the batch, in percent",
            columns=("factor on all bounds", "runs", "share of the history", "scatter"),
            rows=tuple((each.factor, each.runs, each.used, each.scatter) for each in found.bounds),
        ),
    ]
