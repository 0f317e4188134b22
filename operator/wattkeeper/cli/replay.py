"""`wattkeeper replay`: what it would have saved on one's own traffic, against what people run today."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from wattkeeper.cli.errors import explained
from wattkeeper.domain.data_files import DATA_VARIABLE

_POLICIES = "static-peak,hpa-waiting,keda-in-flight,wattkeeper"


class Output(enum.StrEnum):
    """What goes to standard output."""

    TEXT = "text"
    JSON = "json"


@explained
def replay(
    trace: Annotated[
        str | None,
        typer.Argument(
            help="A file of any known format, a name of `traces list`, or a generator, with options as in "
            "poisson:rate=2,for=1h,lengths=512/128. Left out: a made-up morning of a small service."
        ),
    ] = None,
    prometheus_url: Annotated[
        str | None, typer.Option(help="Play the last --days of your own service, read from here.")
    ] = None,
    days: Annotated[float, typer.Option(min=0.05, help="With --prometheus-url: how far back.")] = 7.0,
    namespace: Annotated[
        list[str] | None, typer.Option(help="With --prometheus-url: only these namespaces; repeat for more.")
    ] = None,
    selector: Annotated[
        list[str] | None, typer.Option(help='With --prometheus-url: label matcher such as model_name="m".')
    ] = None,
    start: Annotated[str | None, typer.Option("--from", help="Where in the trace to begin, such as 24h.")] = None,
    until: Annotated[str | None, typer.Option(help="Where to end.")] = None,
    scale: Annotated[float | None, typer.Option(min=1e-6, help="Times the rate.")] = None,
    lengths: Annotated[
        str | None, typer.Option(help="For rates: lengths of requests, 512/128 or a file or trace with pairs.")
    ] = None,
    tune_on: Annotated[
        str | None,
        typer.Option(help="Traffic, written as TRACE, on which the rivals are sized and tuned; take other days."),
    ] = None,
    evaluations: Annotated[int, typer.Option(min=1, help="Runs for tuning each rival, at most.")] = 20,
    tune_sampled: Annotated[
        int | None, typer.Option(min=1, help="As --sampled, for tuning alone; left out: as --sampled says.")
    ] = None,
    data: Annotated[Path | None, typer.Option(envvar=DATA_VARIABLE, help="Folder of public traces.")] = None,
    service: Annotated[
        Path | None, typer.Option(help="Your InferenceService manifest; needs --workload.", exists=True)
    ] = None,
    workload: Annotated[Path | None, typer.Option(help="Your Deployment manifest.", exists=True)] = None,
    model: Annotated[str, typer.Option(help="Model that is served.")] = "meta-llama/Llama-3.1-8B-Instruct",
    accelerator: Annotated[str, typer.Option(help="GPU of all nodes.")] = "nvidia-h100-sxm",
    tensor_parallel: Annotated[int, typer.Option(min=1, help="GPUs per replica.")] = 1,
    max_num_seqs: Annotated[int | None, typer.Option(min=1, help="vLLM's argument; left out: its default.")] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(min=1, help="The same.")] = None,
    max_model_len: Annotated[int | None, typer.Option(min=1, help="The same.")] = None,
    slo_ttft: Annotated[str, typer.Option(help="Target of the time to first token; none: no goal.")] = "1s",
    slo_tpot: Annotated[str, typer.Option(help="Target of the time per output token; none: no goal.")] = "50ms",
    slo_percentile: Annotated[float, typer.Option(min=50, max=99.9, help="What policies aim at.")] = 95.0,
    min_attainment: Annotated[
        float, typer.Option(min=0.5, max=0.9999, help="Share of all requests that must meet both targets.")
    ] = 0.95,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Of the fleet; left out: those of the peak and a fourth more replicas.")
    ] = None,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="Of one node.")] = 8,
    replicas: Annotated[
        int | None,
        typer.Option(min=1, help="What you run today; left out: the fewest that carry the busiest hour."),
    ] = None,
    startup: Annotated[str, typer.Option(help="From a pod's scheduling to its first request.")] = "90s",
    router: Annotated[
        str, typer.Option(help="least-outstanding, round-robin, least-kv or prefix-aware.")
    ] = "least-outstanding",
    failures_per_day: Annotated[float, typer.Option(min=0.0, help="Pods that die, one in ten with its node.")] = 0.0,
    sampled: Annotated[
        int | None,
        typer.Option(min=1, help="For weeks of large fleets: play so many replicas, the others mirror them."),
    ] = None,
    parked: Annotated[
        bool, typer.Option(help="Count the idle power of GPUs that no replica holds, as yours to pay.")
    ] = True,
    policies: Annotated[str, typer.Option(help="Names with commas, or all; --list-policies tells them.")] = _POLICIES,
    list_policies: Annotated[bool, typer.Option("--list-policies", help="Only say what there is.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each policy, each with draws of its own.")] = 1,
    processes: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = 1,
    tick: Annotated[str, typer.Option(help="Between two passes of the operator; 60s for weeks.")] = "15s",
    check: Annotated[bool, typer.Option(help="The operator's own replays before it takes capacity away.")] = True,
    check_requests: Annotated[int, typer.Option(min=400, help="Counted in each of those; the default is 5000.")] = 5000,
    believe_time: Annotated[
        float, typer.Option(min=0.1, max=10, help="The operator believes so many times its own step times.")
    ] = 1.0,
    believe_power: Annotated[float, typer.Option(min=0.1, max=10, help="The same for watts.")] = 1.0,
    scrape_interval: Annotated[str, typer.Option(help="Between two scrapes of a pod.")] = "15s",
    scrape_delay: Annotated[str, typer.Option(help="From a scrape until a query sees it.")] = "1s",
    lost_scrapes: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of scrapes that fail.")] = 0.0,
    outage: Annotated[
        list[str] | None, typer.Option(help="FROM-UNTIL without any metrics, such as 2h-150m; repeat for more.")
    ] = None,
    interval: Annotated[str, typer.Option(help="Between two points of the recorded course.")] = "60s",
    runs: Annotated[
        Path | None,
        typer.Option(help="Folder in which each finished run is kept, and from which it is taken the next time."),
    ] = None,
    only_kept: Annotated[
        bool, typer.Option("--only-kept", help="Play nothing: report what --runs has, and name what it lacks.")
    ] = False,
    output: Annotated[Output, typer.Option(help="Table or JSON on standard output.")] = Output.TEXT,
    report: Annotated[Path | None, typer.Option(help="Page to write (HTML, one file).")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder to write pictures to.")] = None,
) -> None:
    """Play traffic against a simulated fleet, once per policy: the operator itself, and what people run today.

    Every policy sees the metrics as in life: scraped, late, in histogram buckets. Attainment is per request over all
    requests. Progress goes to standard error.
    """
    from wattkeeper.cli import replay_options as options
    from wattkeeper.cli import replay_output
    from wattkeeper.replay import manifests
    from wattkeeper.replay.campaign import PLANNERS, Campaign, PlannerChoices
    from wattkeeper.replay.sizing import setting
    from wattkeeper.replay.stage import MetricsPath, ReplayError
    from wattkeeper.rivals.registry import RIVALS

    if list_policies:
        for rival in RIVALS.values():
            typer.echo(f"{rival.name:<20} {rival.summary}")
        for name in PLANNERS:
            typer.echo(f"{name:<20} the operator: {_levers(name)}")
        return
    if (service is None) != (workload is None):
        raise ReplayError("--service and --workload belong together: the Deployment has vLLM's arguments")
    if trace is not None and prometheus_url is not None:
        raise ReplayError("give a trace or --prometheus-url, not both")
    with options.scratch() as folder:
        line = trace or options.MADE_UP_DAY
        if trace is None and prometheus_url is None:
            start, until = start or options.MADE_UP_START, until or options.MADE_UP_END
        if prometheus_url is not None:
            line = options.recorded_history(
                prometheus_url, days, list(namespace or ()), list(selector or ()), Path(folder)
            )
        traffic = options.TrafficOptions(line=line, start=start, until=until, scale=scale, lengths=lengths, data=data)
        played = traffic.played()
        first = played.of_seed(0)
        known = first
        if tune_on is not None:
            other = options.TrafficOptions(line=tune_on, scale=scale, lengths=lengths, data=data)
            if other.spec() == traffic.spec():
                raise ReplayError("--tune-on is the traffic that is tested: tune on other days")
            known = other.played().of_seed(0)
        given = manifests.read(service, workload) if service is not None and workload is not None else None
        told = options.ServiceOptions(
            model=model,
            accelerator=accelerator,
            tensor_parallel=tensor_parallel,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=max_model_len,
            ttft=slo_ttft,
            tpot=slo_tpot,
            percentile=slo_percentile,
            min_attainment=min_attainment,
        )
        facts = told.facts() if given is None else manifests.facts(given)
        fleet = options.FleetOptions(
            gpus=gpus,
            gpus_per_node=gpus_per_node,
            replicas=replicas,
            startup=startup,
            router=router,
            failures_per_day=failures_per_day,
            parked_counts=parked,
            sampled=sampled,
        )
        metrics = MetricsPath(
            interval_seconds=options.seconds(scrape_interval),
            offset_step_seconds=options.seconds(scrape_interval) / 6.0,
            delay_seconds=options.seconds(scrape_delay),
            lost_share=lost_scrapes,
            outages=tuple(map(options.outage, outage or ())),
        )
        stage, peak = options.stage(facts, fleet, metrics, known, span_seconds=first.span_seconds, given=given)
        names = tuple(RIVALS) + tuple(PLANNERS) if policies == "all" else tuple(policies.split(","))
        campaign = Campaign(
            stage=stage,
            policies=tuple(name.strip() for name in names),
            seeds=seeds,
            planner=PlannerChoices(
                tick_seconds=options.seconds(tick),
                check=check,
                check_requests=check_requests,
                believe_time=believe_time,
                believe_power=believe_power,
                manifests=given,
            ),
            interval_seconds=options.seconds(interval),
            setting=setting(stage, known, peak_replicas=peak),
            evaluations=evaluations,
            tune_simulated_replicas=tune_sampled,
            kept=runs,
            only_kept=only_kept,
        )
        replay_output.say(f"{played.name}: {len(first):,} requests in {first.span_seconds / 3600.0:.2f} h")
        for repair in first.repairs:
            replay_output.say(f"  put right: {repair}")
        replay_output.say(f"{peak} replicas today, {stage.gpus} GPUs for up to {stage.max_replicas}")
        tuning = None if tune_on is None else (tune_on, known)
        found = replay_output.carry_out(campaign, played, tune_on=tuning, processes=processes)
    replay_output.show(found, as_json=output is Output.JSON, page=report, pictures=pictures)


def _levers(name: str) -> str:
    from wattkeeper.replay.campaign import PLANNERS

    levers = PLANNERS[name]
    parts = [("replicas", levers.replicas), ("power cap", levers.power_cap), ("clock lock", levers.clock)]
    found = [text for text, allowed in parts if allowed]
    return ", ".join([*found, *(["token budget"] if levers.token_budgets else [])])


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(replay)
