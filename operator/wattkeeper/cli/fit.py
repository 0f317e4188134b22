"""`wattkeeper fit`: coefficients of the step model from measurements."""

import itertools
import json
import shlex
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from wattkeeper.cli import fit_live, fit_output, fit_sources
from wattkeeper.cli.errors import explained
from wattkeeper.cli.fit_sources import Fitted
from wattkeeper.domain import data_files
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.physics import calibration, catalogue, host, profiles
from wattkeeper.physics.architecture import Precision
from wattkeeper.physics.calibration import PairRuns, Score
from wattkeeper.physics.fitting import FitError

_commands = typer.Typer(no_args_is_help=True, help="Fit the step model to measurements.")


class Source(StrEnum):
    """Where the measurements come from."""

    KERNELS = "kernels"
    ITL = "itl"
    LIVE = "live"


class Linear(StrEnum):
    """Which tables give the linear layers."""

    AICONFIGURATOR = "aiconfigurator"
    VIDUR = "vidur"


class Output(StrEnum):
    """Form of the result."""

    TABLE = "table"
    YAML = "yaml"
    JSON = "json"
    ENTRY = "entry"


class ConstantsOutput(StrEnum):
    """Form of the constants."""

    TABLE = "table"
    JSON = "json"


_DataFolder = Annotated[
    Path | None, typer.Option("--data", help=f"Folder of measured data; default: ${data_files.DATA_VARIABLE}.")
]


_WAYS = {
    "data sheet": "roofline of the data sheet, no fit",
    "constants": "roofline with constants of other families",
    "neighbours": "the same, corrected by fits of other families",
}


@_commands.callback()
def _fit() -> None:
    """Fit the step model to measurements."""


@_commands.command()
@explained
def iteration(
    source: Annotated[
        Source,
        typer.Option(help="Measured kernels, inter-token latencies of ML.ENERGY, or a live vLLM."),
    ],
    model: Annotated[str, typer.Option(help="Model of the catalogue, as in InferenceService.spec.model.")],
    accelerator: Annotated[str, typer.Option(help="Accelerator of the catalogue.")],
    tp: Annotated[int, typer.Option(min=1, max=64, help="GPUs that work on one step together.")] = 1,
    data: _DataFolder = None,
    linear: Annotated[Linear, typer.Option(help="kernels: tables of the linear layers.")] = Linear.AICONFIGURATOR,
    host_overhead: Annotated[
        bool, typer.Option("--host/--no-host", help="kernels: add the host's part of a step.")
    ] = True,
    task: Annotated[str | None, typer.Option(help="itl: one workload alone, such as lm-arena-chat.")] = None,
    url: Annotated[list[str] | None, typer.Option(help="live: address of a /metrics page; may be repeated.")] = None,
    scrapes: Annotated[
        Path | None, typer.Option(help="live: folder of saved pages of one pod, named by their time in seconds.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=10, help="live: how long to scrape.")] = 600.0,
    every: Annotated[float, typer.Option(min=0.5, help="live: seconds between two scrapes.")] = 5.0,
    output: Annotated[
        Output,
        typer.Option(
            "--output", "-o", help="A table, a ModelProfile for kubectl, JSON, or an entry of the catalogue's fits."
        ),
    ] = Output.TABLE,
    name: Annotated[str | None, typer.Option(help="yaml: name of the ModelProfile.")] = None,
    namespace: Annotated[str | None, typer.Option(help="yaml: its namespace.")] = None,
) -> None:
    """Fit d0, dT, dN, dKV and dA of an iteration: seconds of a step over what the step works on."""
    spec, gpu = catalogue.model(model), catalogue.gpu(accelerator)
    command = f"wattkeeper fit iteration --source {source} --model {shlex.quote(spec.name)} --accelerator {gpu.name}"
    command += f" --tp {tp}"
    if source is Source.LIVE:
        found = _live(spec.name, gpu.name, tp, url or [], scrapes, seconds, every)
    elif source is Source.ITL:
        command += f" --task {task}" if task else ""
        found = fit_sources.from_latencies(data_files.data_folder(data), spec, gpu, tp, task=task)
    else:
        vidur = linear is Linear.VIDUR
        command += (" --linear vidur" if vidur else "") + ("" if host_overhead else " --no-host")
        folder = data_files.data_folder(data)
        found = fit_sources.from_kernels(folder, spec, gpu, tp, with_host=host_overhead, vidur=vidur)
    _show(found, output, command=command, name=name, namespace=namespace)


def _live(
    model: str, accelerator: str, gpus: int, urls: list[str], scrapes: Path | None, seconds: float, every: float
) -> Fitted:
    if bool(urls) == bool(scrapes):
        raise FitError("--source live needs either --url (once per engine) or --scrapes DIR")
    progress = Console(stderr=True)
    if scrapes is not None:
        pages = fit_live.saved(scrapes)
    else:
        progress.print(f"scraping for {seconds:g} s, every {every:g} s", style="dim")
        pages = fit_live.scrape(
            urls, seconds=seconds, every=every, tell=lambda line: progress.print(line, style="yellow")
        )
    known = profiles.serving_profile(
        model=model,
        accelerator=accelerator,
        gpus_per_replica=gpus,
        engine=EngineSettings(tensor_parallel_size=gpus),
    )
    live = fit_live.windows(pages)
    return fit_live.fitted(live, prior=known.iteration, model=model, accelerator=accelerator, gpus=gpus)


def _show(found: Fitted, output: Output, *, command: str, name: str | None, namespace: str | None) -> None:
    if output is Output.YAML:
        typer.echo(fit_output.as_model_profile(found, name=name, namespace=namespace), nl=False)
    elif output is Output.JSON:
        typer.echo(fit_output.as_json(found))
    elif output is Output.ENTRY:
        typer.echo(fit_output.as_entry(found, command), nl=False)
    else:
        console = Console()
        console.print(fit_output.table(found))
        for line in fit_output.summary(found):
            console.print(line, highlight=False, markup=False, soft_wrap=True)


@_commands.command()
@explained
def constants(
    data: _DataFolder = None,
    output: Annotated[ConstantsOutput, typer.Option("--output", "-o", help="Form.")] = ConstantsOutput.TABLE,
) -> None:
    """Fit the roofline's constants and the host's part of a step to ML.ENERGY, and judge them on unseen families."""
    progress = Console(stderr=True)

    def tell(line: str) -> None:
        progress.print(line, style="dim")

    folder = data_files.data_folder(data)
    known = fit_sources.pairs(folder, tell)
    every = calibration.used(known)
    clean = calibration.without_host_bound(every)
    for what, before, after in (
        (f"at batches over {calibration.LARGEST_BATCH:g}", known, every),
        ("of workloads that the host holds up", every, clean),
    ):
        tell(f"left out: {_count(before) - _count(after)} of {_count(before)} runs {what}")
    found = calibration.fit_constants(clean)
    scores: dict[str, Score] = {}
    for part, chosen in (("without workloads that the host holds up", clean), ("all runs", every)):
        judged = calibration.leave_one_out(chosen, tell)
        scores |= {f"{_WAYS[name]}; {part}": score for name, score in judged.items()}
    overhead, with_kernels = _kernels(folder, clean, tell)
    scores |= with_kernels
    for name, score in calibration.against_kernels().items():
        scores[f"roofline, beside fits to kernels and host: {name}"] = score
    if output is ConstantsOutput.JSON:
        document = {
            "constants": vars(found),
            "host": vars(overhead),
            "scores": {name: vars(score) for name, score in scores.items()},
        }
        typer.echo(json.dumps(document, indent=2))
        return
    console = Console()
    shown = Table(title="Constants of the roofline, and the host's part of a step", title_justify="left")
    for heading in ("constant", "value"):
        shown.add_column(heading)
    for name, value in itertools.chain(vars(found).items(), (("host." + k, v) for k, v in vars(overhead).items())):
        shown.add_row(name, f"{value:.3g}")
    console.print(shown)
    console.print(_scores(scores))


def _count(pairs: list[PairRuns]) -> int:
    return sum(len(pair.runs.batch) for pair in pairs)


def _kernels(
    folder: Path, pairs: list[PairRuns], tell: Callable[[str], None]
) -> tuple[host.HostOverhead, dict[str, Score]]:
    """The host's part over composed kernels, and errors with each family left out of its fit."""
    parts = []
    for pair in pairs:
        if pair.model.experts or pair.model.precision is not Precision.BF16:
            continue
        rows = pair.runs.rows()
        try:
            made = fit_sources.composed(folder, pair.model, pair.gpu, pair.shards)
            context = rows.kv_tokens / rows.decode_sequences
            kernels = made.seconds(rows.prefill_tokens, rows.decode_sequences, context)
        except WattkeeperError as error:
            tell(f"without kernels: {pair.model.name} on {pair.shards} {pair.gpu.name}: {error}")
            continue
        parts.append((pair.family, rows.seconds, kernels, rows.decode_sequences))
    family = np.concatenate([np.full(len(each[1]), each[0]) for each in parts])
    measured, kernels, sequences = (np.concatenate([each[k] for each in parts]) for k in (1, 2, 3))
    predicted = np.zeros_like(measured)
    for name in np.unique(family):
        rest, own = family != name, family == name
        unseen = host.fit_host(measured_seconds=measured[rest], kernel_seconds=kernels[rest], sequences=sequences[rest])
        predicted[own] = kernels[own] + unseen.seconds(sequences[own])
    scores = {
        "kernel tables alone, dense bf16": Score.of(kernels, measured),
        "kernel tables and host of other families, dense bf16": Score.of(predicted, measured),
    }
    overhead = host.fit_host(measured_seconds=measured, kernel_seconds=kernels, sequences=sequences)
    return overhead, scores


def _scores(scores: dict[str, Score]) -> Table:
    shown = Table(title="Relative error of step time of families that were not fitted", title_justify="left")
    for heading in ("estimate", "runs", "median", "mean", "p90", "rms of log", "bias"):
        shown.add_column(heading, justify="left" if heading == "estimate" else "right")
    for name, score in scores.items():
        numbers = (score.median, score.mean, score.p90, score.root_mean_square_log, score.bias)
        shown.add_row(name, str(score.runs), *(f"{number:.1%}" for number in numbers))
    return shown


def register(app: typer.Typer) -> None:
    """Add the sub-commands."""
    app.add_typer(_commands, name="fit")
