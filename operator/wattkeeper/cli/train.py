"""`wattkeeper train`: make the energy model file from public measured runs, and one's own."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from wattkeeper.cli import own_history
from wattkeeper.cli.errors import explained
from wattkeeper.domain import boosting, data_files, whole_file
from wattkeeper.energy import train as training
from wattkeeper.energy.evaluate import SplitResult


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command("train")(train)


@explained
def train(
    output: Annotated[Path, typer.Option("--output", "-o", help="Model file to write; its card goes beside it.")],
    data_folder: Annotated[
        Path | None, typer.Option("--data", help=f"Folder of measured data; default: ${data_files.DATA_VARIABLE}.")
    ] = None,
    rows: Annotated[
        list[Path] | None,
        typer.Option(help="CSV of your own steady runs (docs/data.md), to join the public ones; repeat for more."),
    ] = None,
    from_prometheus: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Join steady runs out of your own Prometheus; they are kept beside the model, see "
            "`wattkeeper data from-prometheus`.",
        ),
    ] = None,
    service: own_history.Services = None,
    status: own_history.Status = None,
    kubeconfig: Annotated[
        str | None, typer.Option(envvar="KUBECONFIG", help="Left out: the pod's ServiceAccount.")
    ] = None,
    namespace: own_history.Namespace = None,
    pods: own_history.Pods = None,
    model: own_history.Model = None,
    gpu: own_history.Gpu = None,
    gpus: own_history.Gpus = None,
    precision: own_history.Precision = None,
    since: own_history.Since = "7d",
    until: own_history.Until = "0h",
    token_file: own_history.TokenFile = None,
    ca_file: own_history.CaFile = None,
    seed: Annotated[int, typer.Option(help="Same data and seed give the same bytes.", min=0)] = 0,
) -> None:
    """Train the energy model on public measured runs, and show how accurate it is on runs it has not seen."""
    console = Console(stderr=True)
    own = list(rows or ())
    boosting.require()
    whole_file.check_writable(output)
    if from_prometheus is not None:
        said = own_history.Said(model=model, gpu=gpu, gpus=gpus, precision=precision)
        own_file = output.with_name(f"{output.stem}.own-rows.csv")
        own_history.collect(
            own_history.settings_of(from_prometheus, token_file=token_file, ca_file=ca_file),
            own_history.span(since, until),
            own_history.of_services(service, said, status=status, kubeconfig=kubeconfig, context=None)
            if service
            else own_history.of_pods(namespace, pods, said),
            own_file,
            tell=lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True),
        )
        own.append(own_file)
    payload, results = training.train(
        data_files.data_folder(data_folder),
        own=own,
        seed=seed,
        report=lambda line: console.print(line, style="dim"),
    )
    training.write(payload, output)
    Console().print(_table(results))
    console.print(f"wrote {output} and {output.with_name('MODEL_CARD.md')}", soft_wrap=True)


def _table(results: list[SplitResult]) -> Table:
    """One row for each method, so that it fits a narrow terminal."""
    table = Table(title="Watts per GPU of runs not seen: 100 - MAPE in percent (90 % interval)")
    table.add_column("method")
    for result in results:
        table.add_column(result.split, justify="right")
    for name in results[0].scores:
        scores = (result.scores[name] for result in results)
        table.add_row(name, *(f"{each.value:.1f} ({each.low:.0f} to {each.high:.0f})" for each in scores))
    return table
