"""`wattkeeper evaluate energy` and `evaluate decisions`: the energy model on what it never saw, and in the loop."""

import json
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from wattkeeper.cli.errors import explained
from wattkeeper.cli.result_options import MeasuredData, Output, Page
from wattkeeper.domain.data_files import DATA_VARIABLE, data_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from wattkeeper.energy.held_out import HeldOut


class Part(StrEnum):
    """Which measured data."""

    RUNS = "runs"
    OPEN = "open"
    CAPS = "caps"
    CLOCKS = "clocks"


@explained
def energy(
    data: MeasuredData = None,
    part: Annotated[
        list[Part] | None,
        typer.Option(
            help="runs: ML.ENERGY's steady runs; open: NLR's runs at a rate; caps: power limits; "
            "clocks: locked clocks. Left out: all."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of folds, readings and trees.")] = 0,
    output: Annotated[Output, typer.Option(help="Form of the result.")] = Output.TABLE,
    page: Page = None,
    pictures: Annotated[Path | None, typer.Option(file_okay=False, help="Folder to draw pictures into.")] = None,
) -> None:
    """Foresee joules, watts and capped throughput of groups never seen, beside all baselines. Takes some minutes."""
    # Imported here: the other commands shall not wait for LightGBM, scipy and matplotlib.
    from wattkeeper.domain import boosting
    from wattkeeper.energy import caps_evaluate, clocks_evaluate, ml_energy_evaluate, nlr_evaluate

    boosting.require()
    _check_places(page, "evaluate energy", pictures)
    folder, progress = data_folder(data), Console(stderr=True)

    def report(line: str) -> None:
        progress.print(line, style="dim", highlight=False)

    parts: dict[Part, Callable[..., list[HeldOut]]] = {
        Part.RUNS: partial(ml_energy_evaluate.held_out, seed=seed),
        Part.OPEN: partial(nlr_evaluate.held_out, seed=seed),
        Part.CAPS: partial(caps_evaluate.held_out, seed=seed),
        Part.CLOCKS: clocks_evaluate.held_out,
    }
    found = [held for name in part or list(Part) for held in parts[name](folder, report=report)]
    if pictures is not None:
        from wattkeeper.evaluation import energy_pictures

        for path in energy_pictures.draw(found, pictures):
            report(f"{path} written")
    _show(found, output=output, page=page, name="evaluate energy")


@explained
def decisions(
    trace: Annotated[
        str | None, typer.Argument(help="Traffic, written as for `replay`. Left out: its made-up morning.")
    ] = None,
    data: Annotated[Path | None, typer.Option(envvar=DATA_VARIABLE, help="Folder of public traces.")] = None,
    scale: Annotated[float | None, typer.Option(min=1e-6, help="Times the rate.")] = None,
    replicas: Annotated[int, typer.Option(min=1, help="At the beginning.")] = 4,
    gpus: Annotated[int, typer.Option(min=1, help="Of the fleet.")] = 6,
    policy: Annotated[str, typer.Option(help="A name of the operator in `replay --list-policies`.")] = "wattkeeper",
    output: Annotated[Output, typer.Option(help="Form of the result.")] = Output.TABLE,
    page: Page = None,
) -> None:
    """Hold the watts of each decision of the operator against what its simulated fleet then drew."""
    from wattkeeper.cli.replay_options import MADE_UP_DAY, MADE_UP_END, MADE_UP_START, ServiceOptions, TrafficOptions
    from wattkeeper.evaluation import decisions as closed_loop
    from wattkeeper.replay.campaign import PLANNERS, PlannerChoices, planner_setup
    from wattkeeper.replay.play import Cell
    from wattkeeper.replay.stage import ReplayError, Stage

    _check_places(page, "evaluate decisions")
    if policy not in PLANNERS:
        raise ReplayError(f"{policy!r} is not the operator; choose one of {', '.join(PLANNERS)}")
    own = trace is None
    traffic = TrafficOptions(
        line=trace or MADE_UP_DAY,
        start=MADE_UP_START if own else None,
        until=MADE_UP_END if own else None,
        scale=scale,
        data=data,
    )
    played = traffic.played()
    facts = ServiceOptions(
        model="meta-llama/Llama-3.1-8B-Instruct", accelerator="nvidia-h100-sxm", tensor_parallel=1, max_num_seqs=None,
        max_num_batched_tokens=None, max_model_len=None, ttft="1s", tpot="50ms", percentile=95.0, min_attainment=0.95,
    ).facts()  # fmt: skip
    stage = Stage(
        model=facts.model, accelerator=facts.accelerator, engine=facts.engine, slo=facts.slo, gpus=gpus,
        replicas=replicas,
    )  # fmt: skip
    setup = planner_setup(stage, policy, PlannerChoices())
    if setup.energy.problem:
        raise ReplayError(f"the trained energy model cannot be evaluated: {setup.energy.problem}")
    watched = closed_loop.watch(Cell(trace=played.of_seed(0), trace_name=played.name, stage=stage), setup)
    found = [closed_loop.held_out(watched, data=f"closed loop, {policy}, {played.name}")]
    _show(found, output=output, page=page, name="evaluate decisions")


def _check_places(page: Path | None, name: str, pictures: Path | None = None) -> None:
    """What shall be written can be, before minutes are spent on it."""
    from wattkeeper.evaluation import rendering

    if page is not None:
        rendering.check_place(page, name=name)
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)


def _show(found: "list[HeldOut]", *, output: Output, page: Path | None, name: str) -> None:
    from wattkeeper.evaluation import energy_scores, rendering

    made = energy_scores.tables(found)
    if page is not None:
        rendering.fill(page, name=name, tables=made, intro=f"Written by `wattkeeper {name}`.")
    if output is Output.JSON:
        typer.echo(json.dumps(energy_scores.to_dict(found), indent=2))
        return
    rendering.show(made)
