"""`wattkeeper crds`: write the CustomResourceDefinitions."""

from pathlib import Path
from typing import Annotated

import typer

from wattkeeper.api import schema


def crds(
    output: Annotated[Path | None, typer.Option(help="Folder to write to; left out: print to standard output.")] = None,
) -> None:
    """Write the CustomResourceDefinitions, generated from the API types."""
    for name, text in schema.crd_files().items():
        if output is None:
            typer.echo(f"---\n{text}", nl=False)
        else:
            output.mkdir(parents=True, exist_ok=True)
            (output / name).write_text(text)


def register(app: typer.Typer) -> None:
    """Add the sub-command."""
    app.command()(crds)
