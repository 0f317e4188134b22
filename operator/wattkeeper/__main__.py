"""`python -m wattkeeper` is the `wattkeeper` command."""

from wattkeeper.cli.main import app

app(prog_name="wattkeeper")
