"""The `wattkeeper` command: one sub-command per module of this room."""

from typing import Annotated

import typer

import wattkeeper
from wattkeeper.cli import (
    bench,
    calibrate,
    catalogue,
    crds,
    data,
    demo,
    evaluate,
    explain,
    fit,
    reference,
    replay,
    reproduce,
    run,
    traces,
    train,
    train_latency,
    twin,
)

app = typer.Typer(no_args_is_help=True, add_completion=False, help=wattkeeper.__doc__, pretty_exceptions_enable=False)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"wattkeeper {wattkeeper.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Keep LLM inference fleets at the lowest energy that still meets their latency SLO."""


bench.register(app)
calibrate.register(app)
catalogue.register(app)
crds.register(app)
data.register(app)
demo.register(app)
evaluate.register(app)
explain.register(app)
fit.register(app)
reference.register(app)
replay.register(app)
reproduce.register(app)
run.register(app)
traces.register(app)
train.register(app)
train_latency.register(app)
twin.register(app)

if __name__ == "__main__":
    app()
