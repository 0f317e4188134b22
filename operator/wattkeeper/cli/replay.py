"""`wattkeeper replay`: what each policy would have cost on recorded traffic."""

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from wattkeeper.domain.errors import WattkeeperError

if TYPE_CHECKING:
    from wattkeeper.replay.campaign import Campaign
    from wattkeeper.traces.traffic import Traffic


class Output(enum.StrEnum):
    """What goes to standard output."""

    TEXT = "text"
    JSON = "json"


def replay(
    trace: Annotated[
        Path | None,
        typer.Argument(help="Recorded requests, a rate series, or a history of `traces record`. None: a made-up day."),
    ] = None,
    lengths: Annotated[
        Path | None, typer.Option(help="For a rate series: pairs of lengths, recorded requests, or ServeGen's JSON.")
    ] = None,
    hours: Annotated[str, typer.Option(help="Part that is tested, as FROM:UNTIL in hours; empty: all.")] = "",
    tune_on: Annotated[
        Path | None, typer.Option(help="Traffic to tune the rivals on; left out: the same file.")
    ] = None,
    tune_hours: Annotated[
        str,
        typer.Option(help="Part of it to tune on; left out: the day before the tested part, or the first half."),
    ] = "",
    scale: Annotated[float, typer.Option(min=1e-6, help="Multiply the rate.")] = 1.0,
    gap_cv: Annotated[float, typer.Option(min=0.1, help="Burstiness of arrivals drawn from rates; 1: Poisson.")] = 1.0,
    model: Annotated[str, typer.Option(help="Model that is served.")] = "meta-llama/Llama-3.1-8B-Instruct",
    accelerator: Annotated[str, typer.Option(help="GPU of all nodes.")] = "h100-sxm",
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of the fleet.")] = 16,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="GPUs per replica.")] = 1,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="vLLM's argument, as the service starts.")] = 256,
    max_num_batched_tokens: Annotated[int, typer.Option(min=1, help="vLLM's argument, as the service starts.")] = 2048,
    token_budget: Annotated[
        list[int] | None, typer.Option(help="max_num_batched_tokens that the planner may roll out; repeat for more.")
    ] = None,
    ttft: Annotated[str, typer.Option(help="Target of every request.")] = "1s",
    tpot: Annotated[str, typer.Option(help="Target of every request, mean over its tokens.")] = "50ms",
    goal: Annotated[float, typer.Option(min=0.5, max=0.9999, help="Share of requests to be within both.")] = 0.99,
    start_up: Annotated[str, typer.Option(help="From a new pod to its first request.")] = "90s",
    router: Annotated[
        str, typer.Option(help="least-outstanding, round-robin, least-kv or prefix-aware.")
    ] = "least-outstanding",
    failures_per_day: Annotated[float, typer.Option(min=0.0, help="Pods that die, one in ten with its node.")] = 0.0,
    scrape_interval: Annotated[str, typer.Option(help="Between two scrapes of a pod.")] = "15s",
    scrape_delay: Annotated[str, typer.Option(help="From a scrape until policies see it.")] = "1s",
    lost_pages: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of scrapes that fail.")] = 0.0,
    tick: Annotated[str, typer.Option(help="Between two passes of the planner.")] = "15s",
    replays_per_pass: Annotated[int, typer.Option(min=0, help="Of the planner's own check; 0: without it.")] = 1,
    true_time: Annotated[float, typer.Option(min=0.1, help="True step times over what everybody believes.")] = 1.0,
    true_power: Annotated[float, typer.Option(min=0.1, help="True watts over what everybody believes.")] = 1.0,
    policy: Annotated[list[str] | None, typer.Option(help="Policy to play; repeat for more. Left out: all.")] = None,
    peak_replicas: Annotated[
        int | None, typer.Option(min=1, help="Static fleet; left out: found on the tuning part.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs per policy, with their own draws.")] = 1,
    processes: Annotated[int, typer.Option(min=1, help="Cells played side by side.")] = 1,
    interval: Annotated[str, typer.Option(help="Between two points of the course.")] = "5m",
    title: Annotated[str, typer.Option(help="Of table, pictures and page.")] = "",
    output: Annotated[Output, typer.Option(help="Table or JSON on standard output.")] = Output.TEXT,
    report: Annotated[Path | None, typer.Option(help="Write a page (HTML) to share.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Write PNG pictures into this folder.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the JSON to a file.")] = None,
) -> None:
    """Play recorded traffic against a simulated fleet, once per policy: the real planner and what people run today.

    Rivals (static fleets, HPA, KEDA, a queueing autoscaler on means, a static cap and clock) are tuned by a small
    search on other traffic than is tested. Progress goes to standard error.
    """
    from wattkeeper.api.quantities import parse_duration_seconds as seconds
    from wattkeeper.domain.engine import EngineSettings
    from wattkeeper.domain.plan import LatencyTarget, Slo
    from wattkeeper.replay import campaign as campaigns
    from wattkeeper.replay import page, table
    from wattkeeper.replay import pictures as drawing
    from wattkeeper.replay.play import World
    from wattkeeper.replay.scrape import ScrapeSettings
    from wattkeeper.traces.traffic import Traffic
    from wattkeeper.twin.deployment import Lifecycle

    console = Console(stderr=True)
    try:
        percentile = 100.0 * goal
        world = World(
            model=model,
            accelerator=accelerator,
            slo=Slo(
                ttft=LatencyTarget(percentile=percentile, seconds=seconds(ttft)),
                tpot=LatencyTarget(percentile=percentile, seconds=seconds(tpot)),
                min_attainment=goal,
            ),
            gpus=gpus,
            engine=EngineSettings(
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
                tensor_parallel_size=tensor_parallel,
            ),
            lifecycle=Lifecycle(startup_seconds=seconds(start_up)),
            router=router,
            scrape=ScrapeSettings(
                interval_seconds=seconds(scrape_interval), delay_seconds=seconds(scrape_delay), lost=lost_pages
            ),
            failures_per_day=failures_per_day,
            time_factor=true_time,
            power_factor=true_power,
            interval_seconds=seconds(interval),
        )
        whole = Traffic(path=trace, lengths=lengths, scale=scale, gap_cv=gap_cv)
        tested, tuned = _parts(whole, hours, tune_on, tune_hours)
        asked: Campaign = campaigns.Campaign(
            world=world,
            traffic=tested,
            tuning=tuned,
            policies=tuple(policy) if policy else campaigns.POLICIES,
            seeds=seeds,
            tick_seconds=seconds(tick),
            replays_per_pass=replays_per_pass,
            token_budgets=tuple(token_budget) if token_budget else (1024, 2048, 8192),
            peak_replicas=peak_replicas,
            title=title or f"Replay of {'a made-up day' if trace is None else trace.name}",
        )
        found = campaigns.run(asked, processes=processes, say=lambda text: console.print(text, highlight=False))
        if json_file is not None:
            json_file.write_text(found.to_json(), encoding="utf-8")
        if pictures is not None:
            drawing.draw(found, pictures)
        if report is not None:
            report.write_text(page.html(found, tuple(campaigns.PLANNERS)), encoding="utf-8")
    except (WattkeeperError, ValueError, OSError) as error:
        console.print(f"[red]The replay cannot be done:[/red] {error}", highlight=False)
        raise typer.Exit(1) from error
    if output is Output.JSON:
        typer.echo(found.to_json())
        return
    terminal = Console(width=None if Console().is_terminal else 200)
    terminal.print(table.table(found))
    for line in table.remarks(found, tuple(campaigns.PLANNERS)):
        terminal.print(line, highlight=False)


def _parts(whole: "Traffic", hours: str, tune_on: Path | None, tune_hours: str) -> "tuple[Traffic, Traffic]":
    """The tested part and the tuning part."""
    from dataclasses import replace

    other = whole if tune_on is None else replace(whole, path=tune_on)
    if hours:
        begin, end = _span(hours)
        tested = whole.part(begin, end)
    elif tune_on is None and not tune_hours:
        span = whole.load(seed=0).span_seconds / 3600.0
        return whole.part(span / 2.0, None), whole.part(0.0, span / 2.0)
    else:
        tested = whole
    if tune_hours:
        return tested, other.part(*_span(tune_hours))
    if tune_on is not None:
        return tested, other
    if tested.begin_hours > 0.0:
        return tested, whole.part(max(0.0, tested.begin_hours - 24.0), tested.begin_hours)
    if tested.end_hours is None:
        raise ValueError("say with --tune-hours or --tune-on what the rivals are tuned on")
    return tested, whole.part(tested.end_hours, tested.end_hours + 24.0)


def _span(text: str) -> tuple[float, float | None]:
    begin, colon, end = text.partition(":")
    try:
        if not colon:
            raise ValueError
        return float(begin or 0.0), float(end) if end else None
    except ValueError:
        raise ValueError(f"{text!r} is no part of a trace: write hours as FROM:UNTIL, such as 24:48") from None


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(replay)
