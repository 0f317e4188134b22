"""What `wattkeeper replay` does with what was asked, and what it shows: progress, tables, pages, notes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from wattkeeper.cli.replay_options import scratch
from wattkeeper.replay import all_runs, html, table
from wattkeeper.replay import campaign as campaigns
from wattkeeper.replay import pictures as drawing
from wattkeeper.replay.all_runs import Tuning
from wattkeeper.replay.campaign import Campaign, Played
from wattkeeper.replay.one_run import Outcome
from wattkeeper.replay.result import ReplayReport
from wattkeeper.replay.stage import ReplayError
from wattkeeper.traces.trace import Trace


def carry_out(campaign: Campaign, played: Played, *, tune_on: tuple[str, Trace] | None, processes: int) -> ReplayReport:
    """Tune, play and report; progress goes to standard error.

    Raises ReplayError where nothing was to be played and none of it is kept.
    """
    tuned: Tuning | None = None
    if tune_on is not None:
        name, other = tune_on
        tuned = all_runs.tune(campaign, other, name, processes=processes, say=say)
    with _progress(len(campaign.policies) * campaign.seeds) as shown:
        found = all_runs.runs(campaign, played, tuned=tuned, processes=processes, done=shown.done, say=shown.say)
    if not found.runs:
        raise ReplayError(f"of these runs none is kept in {campaign.kept}: replay them without --only-kept first")
    choices, path = campaign.planner, campaign.stage.metrics
    settings = {
        "tick_seconds": choices.tick_seconds,
        "check": choices.check,
        "check_requests": choices.check_requests,
        "believe_time": choices.believe_time,
        "believe_power": choices.believe_power,
        "scrape_interval_seconds": path.interval_seconds,
        "scrape_delay_seconds": path.delay_seconds,
        "lost_scrapes": path.lost_share,
        "outages": len(path.outages),
        "sampled": campaign.stage.simulated_replicas,
        "failures": len(campaign.stage.failures),
        "seeds": campaign.seeds,
        "tuned_on": "" if tuned is None else tuned.name,
    }
    return campaigns.report(
        campaign,
        found.runs,
        campaigns.trace_facts(played.name, played.of_seed(0)),
        settings=settings,
        notes=tuple(_notes(campaign, tuned, found.missing)),
    )


def _notes(campaign: Campaign, tuned: Tuning | None, missing: Sequence[str]) -> Iterator[str]:
    """What a reader must know."""
    if missing:
        yield f"Not played yet, and therefore not here: {', '.join(missing)}."
    if tuned is None:
        yield (
            "Rivals run with their documented defaults, and fixed fleets are sized on the replayed traffic itself: "
            "tune them on other days with --tune-on."
        )
    else:
        sampled = campaign.tune_simulated_replicas
        mode = "" if sampled is None else f" with {sampled} simulated of replicas that are alike"
        yield f"Rivals were sized and tuned on {tuned.name}{mode}; the operator was not tuned."
        for name, found in tuned.tuned.items():
            yield f"{name}: {found.text()}"
    choices = campaign.planner
    operated = any(name in campaigns.PLANNERS for name in campaign.policies)
    if operated and (problem := campaigns.energy_model().problem):
        yield f"Physics alone foresaw the operator's watts, with wide intervals and latency margins: {problem}."
    if not choices.check:
        yield "The operator ran without its replay stage: the analytic check decided alone."
    if choices.believe_time != 1.0 or choices.believe_power != 1.0:
        yield (
            f"The operator was made to believe {choices.believe_time:g} times its own step times and "
            f"{choices.believe_power:g} times its own watts; the simulated engines are as always."
        )
    if campaign.stage.simulated_replicas is not None:
        yield (
            f"Of replicas that are alike {campaign.stage.simulated_replicas} were simulated and the others mirror "
            "them: `wattkeeper bench twin` measures the error of that."
        )
    if campaign.stage.parked_counts:
        yield "Idle power of GPUs that no replica holds is counted, for every policy."


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """Where progress goes."""

    say: Callable[[str], None]
    done: Callable[[Outcome], None]


@contextmanager
def _progress(total: int) -> Iterator[_Shown]:
    """A bar on a terminal, and a line for every run that ends."""
    console = Console(stderr=True)
    columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=total)

        def write(text: str) -> None:
            bar.console.print(text, highlight=False, markup=False, soft_wrap=True)

        def done(outcome: Outcome) -> None:
            bar.advance(task)
            run = outcome.run
            if run is None:
                return
            share = run.requests.attainment
            attained = "no requests" if share is None else f"{100 * share:.2f} % in SLO"
            verb, took = ("kept", "took") if outcome.kept else ("played", "")
            text = f"{verb} {run.policy}, seed {run.seed}: {run.energy.total_kwh:.2f} kWh, {attained}, "
            write(text + f"{took} {run.wall_seconds:.0f} s".lstrip())
            for note in (*run.repairs, *run.remarks):
                at = f"first at {note.first_seconds / 3600.0:.2f} h"
                write(f"  {run.policy}: {note.text} ({note.count} times, {at})")

        yield _Shown(say=write, done=done)


def show(found: ReplayReport, *, as_json: bool, page: Path | None, pictures: Path | None) -> None:
    """The table with its notes, or JSON, to standard output; page and pictures to where they are asked for."""
    if pictures is not None or page is not None:
        with scratch() as folder:
            drawn = drawing.draw(found, Path(folder) if pictures is None else pictures)
            if page is not None:
                html.write(found, pictures=drawn, path=page)
                say(f"wrote {page}")
        if pictures is not None:
            say(f"wrote {len(drawn)} pictures to {pictures}")
    if as_json:
        typer.echo(found.to_json())
        return
    typer.echo(table.text(found))
    for line in (*html.headline(found), *found.notes):
        typer.echo(line)


def say(text: str) -> None:
    """A line to standard error."""
    typer.echo(text, err=True)
