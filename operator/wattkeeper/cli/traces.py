"""`wattkeeper traces`: known traces, what one looks like, and one's own history from Prometheus."""

import time
from pathlib import Path
from typing import Annotated

import typer

from wattkeeper.cli.errors import explained
from wattkeeper.domain.data_files import DATA_VARIABLE, data_folder
from wattkeeper.domain.errors import WattkeeperError

_Data = Annotated[Path | None, typer.Option(envvar=DATA_VARIABLE, help="Folder of public data.")]


@explained
def list_sources(data: _Data = None) -> None:
    """List public traces: address, licence, and whether they are in --data with the expected content."""
    from wattkeeper.traces import sources

    folder = None if data is None else data_folder(data)
    for source in sources.SOURCES:
        found = "" if folder is None else f"  [{sources.state(source, folder).value}]"
        typer.echo(f"{source.name}{found}\n  {source.address}\n  {source.licence}\n  {', '.join(source.files)}")


@explained
def show(
    trace: Annotated[str, typer.Argument(help="A file, a name that `wattkeeper traces list` prints, or a generator.")],
    data: _Data = None,
    picture: Annotated[Path | None, typer.Option(help="PNG to write.")] = None,
) -> None:
    """Say what traffic looks like: rate, burstiness at several windows, lengths, prefix hits.

    TRACE is WHAT[:OPTION=VALUE,...] as in docs/traces.md, such as requests.csv:from=1h,until=2h or
    poisson:rate=5,for=1h,lengths=512/128. Rates and lengths alone are shown as such.
    """
    from wattkeeper.traces import build, summary
    from wattkeeper.traces.spec import TraceSpec
    from wattkeeper.traces.trace import Lengths, RateSeries

    spec = TraceSpec.parse(trace)
    folder = None if data is None else data_folder(data)
    bare = None if spec.generated or spec.lengths is not None else build.read(spec.what, folder)
    if isinstance(bare, RateSeries | Lengths):
        if picture is not None:
            raise WattkeeperError(f"{trace} holds no requests, so there is no picture of it: leave --picture out")
        if isinstance(bare, RateSeries):
            typer.echo(f"rates only   mean {bare.mean:.4g}/s, peak {bare.peak:.4g}/s, {bare.times_seconds[-1]:.0f} s")
        else:
            mean = f"{bare.prompt_tokens.mean():.1f} and {bare.output_tokens.mean():.1f}"
            typer.echo(f"lengths only {len(bare.prompt_tokens)} pairs, mean prompt and answer {mean} tokens")
            for text in bare.repairs:
                typer.echo(f"repaired     {text}")
        return
    found = build.build(spec, data=folder)
    for line in summary.lines(summary.summarise(found)):
        typer.echo(line)
    if picture is not None:
        summary.draw(found, picture, title=trace if len(trace) < 50 else spec.what)
        typer.echo(f"wrote {picture}", err=True)


@explained
def record(
    prometheus_url: Annotated[str, typer.Option(envvar="PROMETHEUS_URL", help="Prometheus to read.")],
    output: Annotated[Path, typer.Option(help="JSON file to write; `traces show` reads it.")],
    namespace: Annotated[list[str] | None, typer.Option(help="Only these namespaces; repeat for more.")] = None,
    selector: Annotated[
        list[str] | None, typer.Option(help='Label matcher such as model_name="m"; repeat for more.')
    ] = None,
    days: Annotated[float, typer.Option(min=0.001, help="How far back.")] = 7.0,
    window: Annotated[float, typer.Option(min=60.0, help="Seconds of one window; two scrapes at least.")] = 300.0,
    longest: Annotated[int | None, typer.Option(min=1, help="Most tokens of a request (max_model_len).")] = None,
    token_file: Annotated[Path | None, typer.Option(help="Bearer token, read at every request.")] = None,
    ca_file: Annotated[Path | None, typer.Option(help="CA bundle of Prometheus.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one query.")] = 60.0,
) -> None:
    """Record the traffic of the last days from Prometheus: rates and lengths per window, gaps marked."""
    from wattkeeper.telemetry.prometheus import PrometheusSettings
    from wattkeeper.telemetry.promql import QuerySettings
    from wattkeeper.traces import record as recording

    try:
        settings = PrometheusSettings(
            url=prometheus_url,
            queries=QuerySettings(
                rate_window_seconds=window, namespaces=tuple(namespace or ()), matchers=tuple(selector or ())
            ),
            timeout_seconds=timeout,
            bearer_token_file=token_file,
            ca_file=ca_file,
        )
    except ValueError as error:
        raise WattkeeperError(str(error)) from error
    found = recording.record(settings, end_seconds=time.time(), days=days, longest_tokens=longest)
    found.write(output)
    restarts = sum(each.restarts for each in found.windows)
    typer.echo(
        f"wrote {output}: {len(found.windows)} windows of {found.window_seconds:g} s, {found.gaps} of them gaps, "
        f"mean {found.rates().mean:.4g} requests/s, {restarts:.0f} restarts of engines"
    )


def register(app: typer.Typer) -> None:
    """Add the sub-commands."""
    group = typer.Typer(no_args_is_help=True, help="Recorded traffic: known traces, and your own.")
    group.command("list")(list_sources)
    group.command("show")(show)
    group.command("record")(record)
    app.add_typer(group, name="traces")
