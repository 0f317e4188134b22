"""Options that commands with tables as result share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from wattkeeper.domain.data_files import DATA_VARIABLE

MeasuredData = Annotated[Path | None, typer.Option(envvar=DATA_VARIABLE, help="Folder of measured data, needed.")]
Page = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="Markdown page whose part about this command is written anew."),
]


class Output(StrEnum):
    """Form of the result."""

    TABLE = "table"
    JSON = "json"


class PageOutput(StrEnum):
    """Form of the result, of commands that also print their part of a page."""

    TABLE = "table"
    JSON = "json"
    MARKDOWN = "markdown"
