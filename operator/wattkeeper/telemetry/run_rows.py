"""A service's history in Prometheus as rows of the table of measured runs (`energy.own_rows`), thinned and written.

An operating point that is held for a day teaches no more than its first hours. Runs of one deployment are sorted into
cells of alike operating points: a quarter of a doubling of the batch wide, half a doubling of prompt, of its computed
part and of answer length.
Of each cell at most `per_point` runs are kept, spread evenly over time, so that several days and replicas have a say.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from wattkeeper.domain.errors import DataFileError, TelemetryError, UnknownAcceleratorError
from wattkeeper.energy import own_rows
from wattkeeper.energy.row_checks import RefusedRow
from wattkeeper.physics import catalogue, profiles
from wattkeeper.physics.architecture import Precision
from wattkeeper.physics.profile import GpuSpec
from wattkeeper.telemetry import run_history, steady_runs
from wattkeeper.telemetry.prometheus import PrometheusSettings
from wattkeeper.telemetry.run_history import HistorySpan, ReplicaHistory
from wattkeeper.telemetry.steady_runs import LeftOutStretch, Reason, SteadyRun

PER_POINT = 6
_BATCH_CELLS, _LENGTH_CELLS = 4.0, 2.0
"""Per doubling."""
_DIGITS = 6
_MUCH = 0.2
"""Share of a history from which a reason deserves a hint."""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """Which pods are meant and what they run; None: taken from the series."""

    name: str
    """Of the workload in the rows (`task`): what is held out together."""
    pods: str
    """Regular expression that matches whole names of pods."""
    namespace: str | None = None
    model: str | None = None
    gpu: str | None = None
    """In the catalogue, or as DCGM calls it."""
    gpus: int | None = None
    """Per replica."""
    precision: str | None = None
    """Of the weights; else what the model's name says."""
    engine_matchers: tuple[str, ...] = ()
    """Of the engines' series alone."""


@dataclass(frozen=True, kw_only=True)
class OwnHistory:
    """Rows of one deployment, and what became of everything else."""

    deployment: Deployment
    replicas: int
    model: str
    gpu: GpuSpec
    gpus: int
    engines: int
    """Data-parallel ranks of a replica."""
    precision: str
    history_seconds: float
    """Of all replicas, between their first and last scrapes."""
    runs: tuple[SteadyRun, ...]
    """Kept, in order of time."""
    thinned: int
    """Runs of operating points that are there often enough."""
    left_out: tuple[LeftOutStretch, ...]

    def rows(self) -> pd.DataFrame:
        """One row per kept run, in columns of `energy.data.RUN_COLUMNS`, numbers rounded."""
        columns = {
            "source": "own",
            "model": self.model,
            "gpu": self.gpu.name,
            "num_gpus": self.gpus,
            "tensor_parallel": self.gpus // self.engines,
            "data_parallel": self.engines,
            "weight_precision": self.precision,
            "task": self.deployment.name,
            "batch": [run.batch for run in self.runs],
            "prompt_tokens": [run.prompt_tokens for run in self.runs],
            "prefix_hit_ratio": [run.hit_ratio for run in self.runs],
            "output_tokens": [run.output_tokens for run in self.runs],
            "requests_per_second": [run.requests_per_second for run in self.runs],
            "tokens_per_second": [run.tokens_per_second for run in self.runs],
            "inter_token_seconds": [run.inter_token_seconds for run in self.runs],
            "gpu_watts": [run.gpu_watts for run in self.runs],
            "group_rate": [f"{float(f'{run.requests_per_second:.1g}'):g}" for run in self.runs],
        }
        table = pd.DataFrame(columns, index=range(len(self.runs)))
        for name in table.select_dtypes("float").columns:
            table[name] = [float(f"{value:.{_DIGITS}g}") for value in table[name]]
        return table


def collect(
    settings: PrometheusSettings,
    span: HistorySpan,
    deployment: Deployment,
    *,
    per_point: int = PER_POINT,
) -> OwnHistory:
    """Read, cut and thin one deployment's history.

    Raises TelemetryError: Prometheus fails or lacks series, or the series do not tell, or tell differently, what the
    deployment runs on. UnknownAcceleratorError, UnknownModelError: not in the catalogue.
    """
    queries = settings.queries
    if deployment.namespace is not None:
        queries = replace(queries, namespaces=(deployment.namespace,))
    found = run_history.read(
        replace(settings, queries=queries), span, pods=deployment.pods, engine_matchers=deployment.engine_matchers
    )
    return of_histories(found, deployment, per_point=per_point)


def of_histories(
    histories: Sequence[ReplicaHistory],
    deployment: Deployment,
    *,
    per_point: int = PER_POINT,
    bounds: steady_runs.Bounds = steady_runs.LEVELS,
) -> OwnHistory:
    """Cut and thin what was read; raises as `collect` does."""
    gpu, gpus = _gpu(histories, deployment), _gpus(histories, deployment)
    engines, model = _engines(histories, deployment, gpus), _model(histories, deployment)
    parts = [steady_runs.runs_of(history, gpu=gpu, gpus=gpus, bounds=bounds) for history in histories]
    runs = sorted((run for part in parts for run in part.runs), key=lambda run: (run.start_seconds, run.pod))
    kept = thinned(runs, per_point)
    left_out = tuple(stretch for part in parts for stretch in part.left_out)
    return OwnHistory(
        deployment=deployment,
        replicas=len(histories),
        model=model,
        gpu=gpu,
        gpus=gpus,
        engines=engines,
        precision=deployment.precision or _precision(model),
        history_seconds=sum(run.seconds for run in runs) + sum(stretch.seconds for stretch in left_out),
        runs=tuple(kept),
        thinned=len(runs) - len(kept),
        left_out=left_out,
    )


def thinned(runs: Sequence[SteadyRun], per_point: int) -> list[SteadyRun]:
    """At most `per_point` runs of each cell, evenly spread over time; in the order of `runs`."""
    cells: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, run in enumerate(runs):
        cells[_cell(run)].append(index)
    kept: set[int] = set()
    for members in cells.values():
        picks = np.linspace(0, len(members) - 1, min(per_point, len(members)))
        kept |= {members[round(pick)] for pick in picks}
    return [run for index, run in enumerate(runs) if index in kept]


def _cell(run: SteadyRun) -> tuple[int, ...]:
    lengths = (run.prompt_tokens, run.computed_tokens, run.output_tokens)
    sizes = ((run.batch, _BATCH_CELLS), *((length, _LENGTH_CELLS) for length in lengths))
    return tuple(math.floor(math.log2(value) * per_doubling) for value, per_doubling in sizes)


def write(histories: Sequence[OwnHistory], path: Path) -> tuple[int, tuple[RefusedRow, ...]]:
    """Write the rows that `train --rows` takes to a CSV file; how many they are, and impossible ones, left out.

    Raises TelemetryError: no row is left. DataFileError: the file cannot be written.
    """
    table = pd.concat([each.rows() for each in histories], ignore_index=True)
    if table.empty:
        raise TelemetryError(_no_rows(histories))
    try:
        table.to_csv(path, index=False)
        _, refused = own_rows.scan(path)
        bad = [row.row - 1 for row in refused]
        if bad:
            table.drop(index=bad).to_csv(path, index=False)
    except OSError as error:
        raise DataFileError(f"{path} cannot be written: {error.strerror}") from error
    if len(bad) == len(table):
        path.unlink()
        raise TelemetryError(f"none of {len(table)} runs is possible, the first for: {refused[0].reason}")
    return len(table) - len(bad), refused


def summary(found: OwnHistory) -> Iterator[str]:
    """What a history gave, as lines for people."""
    name = found.deployment.name
    where = f"{found.model} ({found.precision}) on {found.gpus} x {found.gpu.name}"
    plural = "s" if found.replicas != 1 else ""
    yield f"{name}: {found.replicas} replica{plural} of {where}, {_hours(found.history_seconds)} of history"
    if found.runs:
        batch, watts = ([getattr(run, field) for run in found.runs] for field in ("batch", "gpu_watts"))
        used = sum(run.seconds for run in found.runs)
        yield (
            f"  {len(found.runs)} runs kept ({_hours(used)}): batch {min(batch):.1f} to {max(batch):.1f}, "
            f"{min(watts):.0f} to {max(watts):.0f} W per GPU"
        )
    if found.thinned:
        yield f"  {found.thinned} runs more of operating points that are there often enough"
    for reason, seconds, stretches in left_out_by_reason(found.left_out):
        word = "stretch" if stretches == 1 else "stretches"
        yield f"  left out: {_hours(seconds):>8} in {stretches:>4} {word}: {reason.value}"
        if reason is Reason.NO_WATTS and seconds > _MUCH * found.history_seconds:
            yield "    are GPUs scraped more rarely than --step? Then raise it; else see docs/metrics-read.md"


def left_out_by_reason(stretches: Iterable[LeftOutStretch]) -> list[tuple[Reason, float, int]]:
    """(reason, seconds, number of stretches), the longest first."""
    seconds: defaultdict[Reason, float] = defaultdict(float)
    count: defaultdict[Reason, int] = defaultdict(int)
    for stretch in stretches:
        seconds[stretch.reason] += stretch.seconds
        count[stretch.reason] += 1
    return sorted(((reason, seconds[reason], count[reason]) for reason in seconds), key=lambda item: -item[1])


def _gpu(histories: Sequence[ReplicaHistory], deployment: Deployment) -> GpuSpec:
    """The one card that all replicas run on."""
    seen = {gpu.model: history.pod for history in histories for gpu in history.gpus if gpu.model}
    specs = {}
    for model, pod in seen.items():
        try:
            specs[catalogue.gpu(model).name] = (model, pod)
        except UnknownAcceleratorError as error:
            if deployment.gpu is None:
                raise UnknownAcceleratorError(f"{pod}: {error} Or say which card it is with --gpu.") from error
    if len(specs) > 1:
        shown = ", ".join(f"{model} ({pod})" for model, pod in sorted(specs.values()))
        raise TelemetryError(
            f"{deployment.name} runs on different GPUs: {shown}. One row set has one kind of card: choose the pods of "
            "each with --pods, in one call per card"
        )
    if deployment.gpu is None:
        if not specs:
            raise TelemetryError(f"the series of {deployment.name} do not name the GPU model: give --gpu")
        return catalogue.gpu(next(iter(specs)))
    wanted = catalogue.gpu(deployment.gpu)
    if specs and wanted.name not in specs:
        model, pod = next(iter(specs.values()))
        raise TelemetryError(f"{deployment.name} was said to run on {wanted.name}, but {pod} has {model}")
    return wanted


def _gpus(histories: Sequence[ReplicaHistory], deployment: Deployment) -> int:
    """Cards per replica: as said, else as seen together at a time."""
    seen = {
        history.pod: int(max(np.isfinite(np.vstack([gpu.watts for gpu in history.gpus])).sum(axis=0)))
        for history in histories
        if history.gpus
    }
    counts = set(seen.values()) - {0}
    if deployment.gpus is not None:
        if counts and deployment.gpus not in counts:
            pod, count = next(iter(sorted(seen.items())))
            raise TelemetryError(
                f"{deployment.name} was said to have {deployment.gpus} GPUs per replica, but {pod} has watts of {count}"
            )
        return deployment.gpus
    if len(counts) == 1:
        return counts.pop()
    if not counts:
        raise TelemetryError(f"the series of {deployment.name} do not tell how many GPUs a replica has: give --gpus")
    shown = ", ".join(f"{pod}: {count}" for pod, count in sorted(seen.items())[:6])
    raise TelemetryError(
        f"replicas of {deployment.name} have different numbers of GPUs ({shown}): give --gpus, and the others are left "
        "out, or choose pods with --pods"
    )


def _engines(histories: Sequence[ReplicaHistory], deployment: Deployment, gpus: int) -> int:
    """Data-parallel ranks of each replica."""
    counts = {history.engines: history.pod for history in histories}
    shown = ", ".join(f"{pod}: {count}" for count, pod in sorted(counts.items()))
    if len(counts) > 1:
        raise TelemetryError(
            f"replicas of {deployment.name} have different numbers of engines ({shown}): choose pods with --pods"
        )
    engines = next(iter(counts))
    if gpus % engines:
        raise TelemetryError(
            f"replicas of {deployment.name} have {engines} engines on {gpus} GPUs ({shown}): are all GPUs of a pod "
            "shown? Say how many there are with --gpus"
        )
    return engines


def _model(histories: Sequence[ReplicaHistory], deployment: Deployment) -> str:
    """The model: as said, else as served."""
    if deployment.model is not None:
        return deployment.model
    served = sorted({name for history in histories for name in history.model_names})
    if len(served) == 1:
        return served[0]
    said = f"the engines of {deployment.name} serve {', '.join(served) or 'a model without a name'}"
    raise TelemetryError(f"{said}: say which model runs with --model")


def _precision(model: str) -> str:
    """As public runs write it."""
    precision = profiles.architecture(model).precision
    return "bfloat16" if precision is Precision.BF16 else precision.value


def _no_rows(histories: Sequence[OwnHistory]) -> str:
    reasons = left_out_by_reason(stretch for each in histories for stretch in each.left_out)
    shown = "; ".join(f"{reason.value}: {_hours(seconds)}" for reason, seconds, _ in reasons[:4])
    total = sum(each.history_seconds for each in histories)
    return f"no steady run in {_hours(total)} of history ({shown or 'no engine was scraped twice'})"


def _hours(seconds: float) -> str:
    if seconds >= 3600.0:
        return f"{seconds / 3600.0:.1f} h"
    return f"{seconds / 60.0:.0f} min" if seconds >= 60.0 else f"{seconds:.0f} s"
