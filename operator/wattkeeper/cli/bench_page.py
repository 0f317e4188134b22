"""`wattkeeper bench page`: a page of measured replays, from the commands that stand in it."""

import contextlib
import io
import shutil
from pathlib import Path
from typing import Annotated

import click
import typer

from wattkeeper.bench import measured_page
from wattkeeper.bench.measured_page import Block
from wattkeeper.cli import replay as replay_command
from wattkeeper.cli.errors import explained
from wattkeeper.domain.errors import DataFileError


@explained
def page(
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Page with marked blocks of commands.")],
    runs: Annotated[Path, typer.Option(help="Folder in which finished runs are kept, as of `wattkeeper replay`.")],
    only: Annotated[
        list[str] | None, typer.Option(help="Only this block, by its name; may be given several times.")
    ] = None,
    only_kept: Annotated[bool, typer.Option("--only-kept", help="Play nothing: write what is kept.")] = False,
    policies: Annotated[
        str | None, typer.Option(help="Only play and keep these policies of each command; the page is left as it is.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = 1,
) -> None:
    """Replay what the commands of a page say, and put tables and pictures below each of them.

    Pictures go to the folder `images` beside the page. What has been played before is taken from --runs.
    """
    from wattkeeper.cli.replay_options import scratch
    from wattkeeper.replay import markdown
    from wattkeeper.replay.result import ReplayReport

    text = path.read_text(encoding="utf-8")
    blocks = measured_page.blocks(text, page=str(path))
    if unknown := sorted(set(only or ()) - {block.name for block in blocks}):
        raise DataFileError(f"{path} has no block {', '.join(unknown)}; it has {', '.join(b.name for b in blocks)}")

    extra = ["--runs", str(runs), "--processes", str(processes), *(["--only-kept"] if only_kept else [])]

    def answer(block: Block, folder: Path) -> str:
        reports: list[ReplayReport] = []
        for number, command in enumerate(block.commands):
            drawn = ["--pictures", str(folder / f"{block.name}-{number}")] if block.pictures else []
            reports.append(ReplayReport.from_json(_replayed([*command, *extra, *drawn, "--output", "json"])))
        if len(reports) > 1:
            return markdown.comparison(dict(zip(block.labels(), reports, strict=True)), policy="wattkeeper")
        pictures = [f"![{_ALT[kind]}](images/{_image(path, folder, block, kind)})" for kind in block.pictures]
        return "\n\n".join([markdown.section(reports[0]), *pictures])

    with scratch() as folder:
        for block in blocks:
            if only and block.name not in only:
                continue
            typer.echo(f"== {block.name}", err=True)
            if policies is not None:
                for command in block.commands:
                    _replayed([*command, *extra, "--policies", policies, "--output", "json"])
                continue
            text = measured_page.filled(text, {block.name: answer(block, Path(folder))})
            path.write_text(text, encoding="utf-8")


_ALT = {
    "time": "Power, replicas, limits and latencies over time",
    "plane": "Energy and share of requests within the SLO",
    "latency": "Distributions of TTFT and TPOT",
}


def _image(page: Path, folder: Path, block: Block, kind: str) -> str:
    """Copy the picture of a kind beside the page; its name there."""
    found = sorted((folder / f"{block.name}-0").glob(f"*-{kind}.png"))
    if kind not in _ALT or not found:
        raise DataFileError(f"block {block.name}: there is no picture {kind!r}; there are {', '.join(_ALT)}")
    name = f"replay-{block.name}-{kind}.png"
    images = page.parent / "images"
    images.mkdir(exist_ok=True)
    shutil.copyfile(found[0], images / name)
    return name


def _replayed(arguments: list[str]) -> str:
    """What `wattkeeper replay` writes to standard output."""
    app = typer.Typer()
    replay_command.register(app)
    caught = io.StringIO()
    with contextlib.redirect_stdout(caught):
        try:
            failed = typer.main.get_command(app).main(arguments, standalone_mode=False)
        except click.ClickException as error:
            raise DataFileError(f"wattkeeper replay {' '.join(arguments)}: {error.format_message()}") from error
    if failed:
        raise typer.Exit(int(failed))
    return caught.getvalue()
