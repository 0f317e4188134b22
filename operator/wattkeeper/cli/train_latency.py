"""`wattkeeper train-latency`: make the file that corrects the latency model, from simulated replicas."""

import os
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from wattkeeper.evaluation import points, runs, training
from wattkeeper.queueing import correction


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command("train-latency")(train_latency)


def train_latency(
    output: Annotated[Path, typer.Option("--output", "-o", help="Model file to write (.json.gz).")],
    points_: Annotated[int, typer.Option("--points", help="Simulated replicas to learn from.", min=200)] = 9000,
    requests: Annotated[int, typer.Option(help="Requests of each.", min=2000)] = 20_000,
    processes: Annotated[int | None, typer.Option(help="Worker processes; default: one per core.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Same seed and number of points give the same file.", min=0)] = 1,
) -> None:
    """Simulate random replicas under random traffic, and learn how far the closed forms of latency are off.

    Needs no data: coefficients, lengths and arrivals are synthetic. Takes about a quarter of a second of one core per
    point of 20,000 requests.
    """
    console = Console(stderr=True)
    asked = points.training_points(points_, seed=seed, requests=requests)
    workers = processes or os.cpu_count() or 1
    done = list(
        track(
            runs.simulate_all(asked, processes=workers),
            total=len(asked),
            description="simulating",
            console=console,
        )
    )
    console.print(f"{len(done)} of {len(asked)} points could run", style="dim")
    kinds = Counter(run.point.arrivals.kind for run in done)
    card = {
        "points": points_,
        "requests_per_point": requests,
        "seed": seed,
        "runs": len(done),
        "arrivals": dict(sorted(kinds.items())),
        "preempting_runs": sum(run.preempted_share > 0.0 for run in done),
        "source": "simulated by wattkeeper.replica.stepper; synthetic coefficients, lengths and arrivals",
    }
    payload = training.fit(
        training.rows(done), card=card, seed=seed, report=lambda line: console.print(line, style="dim")
    )
    correction.write(payload, output)
    console.print(f"wrote {output}", soft_wrap=True)
