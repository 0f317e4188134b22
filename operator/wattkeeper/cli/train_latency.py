"""`wattkeeper train-latency`: make the file that corrects the latency model, from simulated replicas."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from wattkeeper.cli.errors import explained
from wattkeeper.domain import boosting
from wattkeeper.evaluation import points, runs, training
from wattkeeper.queueing import correction


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command("train-latency")(train_latency)


@explained
def train_latency(
    output: Annotated[Path, typer.Option("--output", "-o", help="Model file to write (.json.gz).")],
    points_: Annotated[int, typer.Option("--points", help="Simulated replicas to learn from.", min=200)] = 6000,
    requests: Annotated[int, typer.Option(help="Requests of each.", min=2000)] = 20_000,
    processes: Annotated[int | None, typer.Option(help="Worker processes; default: one per core.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Same seed and number of points give the same file.", min=0)] = 1,
) -> None:
    """Simulate random replicas under random traffic, and learn how far the closed forms of latency are off.

    Needs no data: coefficients, lengths and arrivals are synthetic. Takes about half a second of one core per
    point of 20,000 requests.
    """
    boosting.require()
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
    card: dict[str, Any] = {
        "points": points_,
        "requests_per_point": requests,
        "seed": seed,
        "runs": len(done),
        "arrivals": dict(sorted(kinds.items())),
        "preempting_runs": sum(run.preempted_share > 0.0 for run in done),
        "source": "simulated by wattkeeper.replica.stepper; synthetic coefficients, lengths and arrivals",
    }
    rows = training.rows(done)
    found = training.scores(rows, seed=seed)
    card["errors"] = [asdict(score) for score in found]
    correction.write(training.fit(rows, card=card, seed=seed), output)
    Console().print(_table(found))
    console.print(f"wrote {output}", soft_wrap=True)


def _table(found: Sequence[training.Score]) -> Table:
    table = Table(title="relative error of p95 on held-out runs, load up to 0.82: median / 90th percentile in percent")
    for heading in ("arrivals", "runs", "TTFT", "TPOT", "TTFT, kind unseen", "TPOT, kind unseen"):
        table.add_column(heading)
    for score in found:
        cells = (score.ttft, score.tpot, score.ttft_kind_unseen, score.tpot_kind_unseen)
        table.add_row(
            score.kind, str(score.runs), *(f"{100 * median:.1f} / {100 * ninth:.0f}" for median, ninth in cells)
        )
    return table
