"""Errors that a user can act on become one line on standard error and exit code 1, not a trace."""

import functools
from collections.abc import Callable
from typing import ParamSpec

import typer

from wattkeeper.domain.errors import WattkeeperError

_P = ParamSpec("_P")


def explained(command: Callable[_P, None]) -> Callable[_P, None]:
    """Wrap a sub-command."""

    @functools.wraps(command)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except WattkeeperError as error:
            typer.echo(f"wattkeeper: {error}", err=True)
            raise typer.Exit(1) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            typer.echo(f"wattkeeper: {_told(error)}", err=True)
            raise typer.Exit(1) from error

    return wrapped


def _told(error: OSError) -> str:
    if error.filename is None or error.strerror is None:
        return str(error)
    return f"{error.filename} cannot be read or written ({error.strerror}): check the path and its permissions"
