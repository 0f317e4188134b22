"""Where `wattkeeper fit` takes measurements from: kernel tables and measured serving runs of the data folder."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from wattkeeper.api.model_profile import ProfileProvenance
from wattkeeper.domain.errors import DataFileError, UnknownModelError, WattkeeperError
from wattkeeper.energy import data
from wattkeeper.physics import calibration, catalogue, composition, fitting, host, itl, kernel_tables, kv, roofline
from wattkeeper.physics.architecture import ModelSpec
from wattkeeper.physics.calibration import PairRuns
from wattkeeper.physics.fitting import IterationFit
from wattkeeper.physics.profile import GpuSpec, IterationCoefficients

ML_ENERGY = "ML.ENERGY leaderboard v3 (vLLM 0.11.1)"


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A fit and all that a reader of it needs to know."""

    model: str
    accelerator: str
    gpus: int
    fit: IterationFit
    overhead: host.HostOverhead
    """Added to the fit's d0 and dN."""
    relative_error: float
    """One-sigma, of step time."""
    source: str
    notes: tuple[str, ...] = ()
    end_to_end: bool = False
    """Whole steps of an engine were measured."""
    provenance: ProfileProvenance = ProfileProvenance.FITTED

    def iteration(self) -> IterationCoefficients:
        """Coefficients with the host's part."""
        value = self.fit.value
        return IterationCoefficients(
            d0_seconds=value("d0") + self.overhead.step_seconds,
            dt_seconds_per_token=value("dt"),
            dn_seconds_per_decode=value("dn") + self.overhead.sequence_seconds,
            dkv_seconds_per_kv_token=value("dkv"),
            da_seconds_per_token_squared=value("da"),
        )


def composed(
    folder: Path, model: ModelSpec, gpu: GpuSpec, gpus: int, *, vidur: bool = False
) -> composition.Composition:
    """The model's steps out of measured kernels."""
    linear = composition.vidur_linear(folder, model.name, gpu.name, gpus) if vidur else None
    tables = kernel_tables.KernelTables(folder, gpu.name)
    return composition.Composition(model=model, tables=tables, shards=gpus, linear=linear)


def from_kernels(
    folder: Path, model: ModelSpec, gpu: GpuSpec, gpus: int, *, with_host: bool, vidur: bool = False
) -> Fitted:
    """A fit to steps composed of measured kernels."""
    made = composed(folder, model, gpu, gpus, vidur=vidur)
    found = fitting.fit(made.rows())
    overhead = host.OVERHEAD if with_host else host.NO_OVERHEAD
    parts = list(composition.ESTIMATED_PARTS if gpus > 1 else composition.ESTIMATED_PARTS[:1])
    notes = [f"estimated, not measured: {' and '.join(parts)}"] if not vidur else []
    if with_host:
        notes.append(
            f"host overhead of {overhead.step_seconds * 1e3:.2f} ms per step and "
            f"{overhead.sequence_seconds * 1e6:.0f} us per sequence added (fitted to vLLM 0.11.1)"
        )
    else:
        notes.append("GPU time alone, without the host")
    tables = f"{kernel_tables.AICONFIGURATOR}, vLLM {made.tables.source.version}"
    return Fitted(
        model=model.name,
        accelerator=gpu.name,
        gpus=gpus,
        fit=found,
        overhead=overhead,
        relative_error=float(np.hypot(found.relative_error, host.RELATIVE_ERROR if with_host else 0.0)),
        source=f"{tables} with {composition.VIDUR}" if vidur else tables,
        notes=tuple(notes),
    )


def prior(folder: Path, model: ModelSpec, gpu: GpuSpec, gpus: int) -> tuple[IterationCoefficients, str]:
    """dT, dKV and dA from kernel tables where they can be composed, else from the roofline; and which it was."""
    demand = kv.demand(model, tensor_parallel=gpus)
    estimate = roofline.iteration(model, gpu, shards=gpus, demand=demand)
    if model.experts == 0:
        try:
            found = fitting.fit(composed(folder, model, gpu, gpus).rows())
        except WattkeeperError:
            return estimate, "roofline"
        return found.iteration(estimate), "kernel tables"
    return estimate, "roofline"


def from_latencies(folder: Path, model: ModelSpec, gpu: GpuSpec, gpus: int, *, task: str | None = None) -> Fitted:
    """A fit to ITL curves of ML.ENERGY.

    Raises DataFileError: no such runs. FitError: too few of them.
    """
    every = [pair for pair in pairs(folder) if pair.gpu is gpu and pair.shards == gpus and pair.model.same_work(model)]
    known = calibration.without_host_bound(every)
    chosen = [pair for pair in known if task is None or pair.workload == task]
    if not chosen:
        raise DataFileError(_no_runs(folder, model, gpu, gpus, task, sorted({pair.workload for pair in known})))
    columns = ("batch", "prompt_tokens", "output_tokens", "inter_token_seconds")
    runs = itl.LatencyRuns(**{name: np.concatenate([getattr(pair.runs, name) for pair in chosen]) for name in columns})
    before, kind = prior(folder, model, gpu, gpus)
    found = itl.fit_latencies(runs, before)
    workloads = ", ".join(sorted({pair.workload for pair in chosen}))
    notes = [f"dT and dA are those of the {kind}, dKV is drawn towards it"]
    if len(known) < len(every):
        notes.append("workloads that the host holds up are left out")
    return Fitted(
        model=model.name,
        accelerator=gpu.name,
        gpus=gpus,
        fit=found,
        overhead=host.NO_OVERHEAD,
        relative_error=found.relative_error,
        source=f"{ML_ENERGY}, {workloads}, {found.rows} runs",
        notes=tuple(notes),
        end_to_end=True,
    )


def _no_runs(folder: Path, model: ModelSpec, gpu: GpuSpec, gpus: int, task: str | None, tasks: list[str]) -> str:
    if tasks:
        return f"no runs of {model.name} on {gpus} {gpu.name} with task {task}, only with {', '.join(tasks)}"
    there = sorted({f"{pair.shards} {pair.gpu.name}" for pair in pairs(folder) if pair.model.same_work(model)})
    if there:
        return (
            f"no runs of {model.name} on {gpus} {gpu.name}, only on {', '.join(there)}: choose --accelerator and --tp"
        )
    return f"no runs of {model.name} in {data.ML_ENERGY_V3.name}: use --source kernels or live"


def pairs(folder: Path, report: Callable[[str], None] = lambda _: None) -> list[PairRuns]:
    """Text workloads of ML.ENERGY on models of the catalogue; `report` is told what is left out."""
    every = data.load_ml_energy(folder)
    table = every[every["multimodal"] == 0]
    report(f"{data.ML_ENERGY_V3.name}: {len(every) - len(table)} of {len(every)} runs with images or video left out")
    found = []
    unknown: Counter[str] = Counter()
    for (name, gpu, gpus, task), runs in table.groupby(["model", "gpu", "num_gpus", "task"]):
        try:
            model = catalogue.model(str(name))
        except UnknownModelError:
            unknown[str(name)] += len(runs)
            continue
        found.append(
            PairRuns(
                model=model,
                gpu=catalogue.gpu(str(gpu)),
                shards=int(float(str(gpus))),
                family=str(runs["group_backbone"].iloc[0]),
                workload=str(task),
                runs=_runs(runs),
            )
        )
    for name, number in unknown.items():
        report(f"{data.ML_ENERGY_V3.name}: {number} runs of {name} left out: it is in no catalogue")
    return found


def _runs(frame: pd.DataFrame) -> itl.LatencyRuns:
    names = ("batch", "prompt_tokens", "output_tokens", "inter_token_seconds")
    return itl.LatencyRuns(**{name: frame[name].to_numpy(dtype=np.float64) for name in names})
