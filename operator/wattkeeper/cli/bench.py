"""`wattkeeper bench`: how the operator itself behaves at a size, and how fast its simulators are."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from wattkeeper.cli import bench_page, bench_twin, bench_vidur
from wattkeeper.cli.errors import explained
from wattkeeper.cli.result_options import Output

_commands = typer.Typer(no_args_is_help=True, help="Measure the operator itself.")


@_commands.callback()
def _bench() -> None:
    """Measure the operator itself."""


@_commands.command()
@explained
def scale(
    services: Annotated[int, typer.Option(min=1, help="InferenceServices to make.")] = 1000,
    pods: Annotated[int, typer.Option(min=1, help="Pods per service at the start.")] = 2,
    passes: Annotated[int, typer.Option(min=1, help="Passes of the loop to measure once it is steady.")] = 20,
    tick: Annotated[float, typer.Option(min=0.1, help="Seconds between two passes.")] = 15.0,
    core: Annotated[int | None, typer.Option(min=0, help="Processor that the operator must stay on.")] = None,
    kubeconfig: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            help="A throw-away cluster with kwok, such as `make cluster` leaves; left out: an API server in memory, "
            "for small fleets.",
        ),
    ] = None,
    replay_workers: Annotated[int, typer.Option(min=0, help="Processes that replay, as of `wattkeeper run`.")] = 1,
    output: Annotated[Output, typer.Option(help="Form of the result.")] = Output.TABLE,
) -> None:
    """Make a fleet of simulated pods, run the operator over it, and say what a pass takes."""
    # Imported here: the other commands shall not wait for the embedded API.
    from wattkeeper.bench import scale as benchmark

    progress = Console(stderr=True)
    settings = benchmark.ScaleSettings(
        services=services,
        pods_per_service=pods,
        passes=passes,
        tick_seconds=tick,
        core=core,
        kubeconfig=kubeconfig,
        replay_workers=replay_workers,
    )
    found = benchmark.run(settings, tell=lambda line: progress.print(line, highlight=False))
    if output is Output.JSON:
        typer.echo(found.dump())
        return
    console = Console()
    console.print(found.table())
    for line in found.lines():
        console.print(line, highlight=False, soft_wrap=True)


@_commands.command()
@explained
def energy(
    services: Annotated[int, typer.Option(min=1, help="Services of the fleet.")] = 1000,
    candidates: Annotated[int, typer.Option(min=1, help="Short-listed candidates of each.")] = 200,
    repeats: Annotated[int, typer.Option(min=1, help="Passes to time.")] = 9,
    output: Annotated[Output, typer.Option(help="Form of the result.")] = Output.TABLE,
) -> None:
    """Say what the energy predictions of a fleet's pass cost, and how large the model file is."""
    # Imported here: the other commands shall not wait for LightGBM.
    from wattkeeper.bench import energy as benchmark

    progress = Console(stderr=True)
    found = benchmark.run(
        services=services,
        candidates=candidates,
        repeats=repeats,
        tell=lambda line: progress.print(line, highlight=False, style="dim"),
    )
    if output is Output.JSON:
        typer.echo(json.dumps(found.to_dict()))
        return
    Console().print(found.line(), highlight=False, soft_wrap=True)
    within = found.median_seconds <= benchmark.GOAL_SECONDS and found.model_bytes <= benchmark.GOAL_BYTES
    if (services, candidates) == (1000, 200):
        goal = f"{benchmark.GOAL_SECONDS:g} s and {benchmark.GOAL_BYTES / 1e6:g} MB"
        Console().print(f"goal ({goal}): {'met' if within else 'missed'}", highlight=False)


@_commands.command()
@explained
def queries(
    pods: Annotated[int, typer.Option(min=2, help="Pods of the fleet.")] = 2000,
    output: Annotated[Output, typer.Option(help="Form of the result.")] = Output.TABLE,
) -> None:
    """Say what collecting from Prometheus costs: the same pods as one service, and two to a service."""
    from wattkeeper.bench import queries as benchmark

    costs = [
        benchmark.measure(services=1, pods_per_service=pods),
        benchmark.measure(services=pods // 2, pods_per_service=2),
    ]
    if output is Output.JSON:
        typer.echo(json.dumps([dataclasses.asdict(cost) for cost in costs], indent=2))
    else:
        Console().print(benchmark.table(costs))


@_commands.command()
@explained
def replays(
    seeds: Annotated[int, typer.Option(min=1, help="Replays of each kind of candidate.")] = 5,
    output: Annotated[Output, typer.Option(help="Form of the result.")] = Output.TABLE,
) -> None:
    """Say what replaying a candidate costs, and how exact its percentiles are."""
    from wattkeeper.bench import replays as benchmark

    costs = benchmark.measure(seeds=seeds)
    if output is Output.JSON:
        typer.echo(json.dumps([dataclasses.asdict(cost) for cost in costs], indent=2))
    else:
        Console().print(benchmark.table(costs))


@_commands.command()
@explained
def sla(
    rounds: Annotated[int, typer.Option(min=1, help="Each figure is the best of so many rounds.")] = 5,
    output: Annotated[Output, typer.Option(help="Form of the result.")] = Output.TABLE,
) -> None:
    """Say what the SLA check costs per candidate and per pass over a fleet, and how fast the exact stepper is."""
    from wattkeeper.bench import sla as benchmark

    costs, speeds = benchmark.measure(rounds=rounds), benchmark.stepper_speed()
    if output is Output.JSON:
        found = {
            "check": [dataclasses.asdict(cost) for cost in costs],
            "stepper": [dataclasses.asdict(speed) for speed in speeds],
        }
        typer.echo(json.dumps(found, indent=2))
    else:
        Console().print(benchmark.table(costs))
        Console().print(benchmark.speed_table(speeds))


_commands.command()(bench_vidur.vidur)
_commands.command()(bench_twin.twin)
_commands.command()(bench_page.page)


@_commands.command()
@explained
def policies(
    rounds: Annotated[int, typer.Option(min=1, help="Each figure is the best of so many rounds.")] = 2,
    requests: Annotated[int, typer.Option(min=40, help="Requests of a run.")] = 200,
    output: Annotated[Output, typer.Option(help="Form of the result.")] = Output.TABLE,
) -> None:
    """Say what simulating each scheduling policy costs, with macro-steps and iteration by iteration."""
    from wattkeeper.bench import policies as benchmark

    speeds = benchmark.measure(requests=requests, rounds=rounds)
    if output is Output.JSON:
        typer.echo(json.dumps([dataclasses.asdict(speed) for speed in speeds], indent=2))
    else:
        Console().print(benchmark.table(speeds))


def register(app: typer.Typer) -> None:
    """Add the sub-command."""
    app.add_typer(_commands, name="bench")
