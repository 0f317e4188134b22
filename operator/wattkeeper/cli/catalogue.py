"""`wattkeeper catalogue`: what is known of a model on an accelerator, and where each number comes from."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from wattkeeper.cli.errors import explained
from wattkeeper.cli.result_options import Output
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.errors import UnknownModelError
from wattkeeper.physics import catalogue as known
from wattkeeper.physics import kv, profiles, roofline
from wattkeeper.physics.architecture import Cache, ModelSpec
from wattkeeper.physics.coefficients import ITERATION_FIELDS
from wattkeeper.physics.profile import GpuSpec, ServingProfile

CONTEXTS = (1024, 8192, 65536)
_KINDS = {
    Cache.FULL: "full",
    Cache.LATENT: "latent",
    Cache.SLIDING: "window of {window}",
    Cache.CHUNKED: "chunks of {window}",
    Cache.STATE: "state",
    Cache.SHARED: "shared",
}


@explained
def catalogue(
    model: Annotated[str | None, typer.Option(help="Model; left out: all of them, in short.")] = None,
    accelerator: Annotated[str | None, typer.Option(help="Accelerator; left out: all of them, in short.")] = None,
    tp: Annotated[int, typer.Option(min=1, max=64, help="GPUs that work on one step together.")] = 1,
    kv_cache_dtype: Annotated[str | None, typer.Option(help="As --kv-cache-dtype of vLLM.")] = None,
    output: Annotated[Output, typer.Option("--output", "-o", help="Form.")] = Output.TABLE,
) -> None:
    """Show models, accelerators, and for a pair of them every coefficient with its provenance and error."""
    console = Console()
    if model is not None and accelerator is not None:
        engine = EngineSettings(tensor_parallel_size=tp, kv_cache_dtype=kv_cache_dtype)
        profile = profiles.serving_profile(model=model, accelerator=accelerator, gpus_per_replica=tp, engine=engine)
        document = pair(profile, tp=tp, kv_cache_dtype=kv_cache_dtype)
        if output is Output.TABLE:
            _print_pair(console, document)
            return
    else:
        chosen_models = [known.model(model)] if model else list(known.models())
        chosen_gpus = [known.gpu(accelerator)] if accelerator else list(known.gpus())
        document = {
            "models": [model_facts(spec) for spec in chosen_models],
            "accelerators": [gpu_facts(gpu) for gpu in chosen_gpus],
        }
        if output is Output.TABLE:
            for title, rows in document.items():
                console.print(_table(title, rows))
            return
    typer.echo(json.dumps(document, indent=2))


def layers(spec: ModelSpec) -> str:
    """Layers by what they keep of a sequence, in words."""
    return ", ".join(f"{group.layers} {_KINDS[group.cache].format(window=group.window)}" for group in spec.groups)


def model_facts(spec: ModelSpec) -> dict[str, Any]:
    """A model in short. Memory is that of the whole model, on one GPU."""
    demand = kv.demand(spec, tensor_parallel=1)
    return {
        "name": spec.name,
        "parameters": spec.parameters,
        "activated_parameters": spec.activated_parameters,
        "precision": spec.precision.value,
        "weight_bytes": round(spec.weight_bytes),
        "layers": layers(spec),
        "kv_bytes_per_sequence": {str(tokens): round(float(demand.sequence_bytes(tokens))) for tokens in CONTEXTS},
        "source": spec.source,
    }


def gpu_facts(gpu: GpuSpec) -> dict[str, Any]:
    """An accelerator in short."""
    return {
        "name": gpu.name,
        "memory_bytes": gpu.memory_bytes,
        "bandwidth_bytes_per_second": gpu.bandwidth_bytes_per_second,
        "bf16_flops": gpu.bf16_flops,
        "link_bytes_per_second": gpu.link_bytes_per_second,
        "tdp_watts": gpu.tdp_watts,
        "measured": list(gpu.measured),
        "assumed": list(gpu.assumed),
        "source": gpu.source,
    }


def pair(profile: ServingProfile, *, tp: int, kv_cache_dtype: str | None) -> dict[str, Any]:
    """Every number of a profile with its provenance; KV memory over contexts; what a step consists of."""
    values = {**vars(profile.iteration), **vars(profile.energy), **vars(profile)}
    values[ITERATION_FIELDS["dn"]] = profile.iteration.decode_seconds_per_sequence
    document: dict[str, Any] = {
        "model": profile.model,
        "accelerator": profile.gpu.name,
        "gpus": profile.gpus_per_replica,
        "provenance": profile.provenance.value,
        "relative_error": profile.relative_error,
        "coefficients": [
            {
                "name": each.name,
                "value": values[each.name],
                "provenance": each.provenance.value,
                "relative_error": each.relative_error,
                "source": each.source,
            }
            for each in profile.coefficients
        ],
        "notes": list(profile.notes),
    }
    try:
        spec = known.model(profile.model)
    except UnknownModelError:
        return document
    demand = kv.demand(spec, tensor_parallel=tp, kv_cache_dtype=kv_cache_dtype)
    engine = EngineSettings(tensor_parallel_size=tp, kv_cache_dtype=kv_cache_dtype)
    document["kv"] = [
        {
            "context_tokens": tokens,
            "bytes_per_sequence_and_gpu": round(float(demand.sequence_bytes(tokens))),
            "capacity_tokens": round(
                kv.capacity_tokens(profile, engine, None, context=demand, context_tokens=float(tokens))
            ),
        }
        for tokens in CONTEXTS
    ]
    document["estimated_step_milliseconds"] = _parts(spec, profile.gpu, tp, demand)
    return document


def _parts(spec: ModelSpec, gpu: GpuSpec, tp: int, demand: kv.KvDemand) -> dict[str, dict[str, float]]:
    """What the roofline makes of a decode step at 1,024 tokens of context, by batch."""
    found = {}
    for batch in (1, 32, 256):
        work = roofline.work(
            spec, gpu, shards=tp, demand=demand, sequences=float(batch), context_tokens=float(CONTEXTS[0])
        )
        seconds = dict(zip(roofline.WORK_TERMS, (work * roofline.CONSTANTS.vector())[0].tolist(), strict=True))
        seconds["exchange"] = roofline.exchange_seconds(spec, gpu, shards=tp) * batch
        found[str(batch)] = {name.removesuffix("_seconds"): round(value * 1e3, 3) for name, value in seconds.items()}
    return found


def _print_pair(console: Console, document: dict[str, Any]) -> None:
    head = f"{document['model']} on {document['gpus']} {document['accelerator']}: {document['provenance']}, "
    head += f"one-sigma error of step time {document['relative_error']:.0%}"
    console.print(head, highlight=False, soft_wrap=True)
    rows = [
        {
            "coefficient": each["name"],
            "value": f"{each['value']:.4g}",
            "provenance": each["provenance"],
            "error": f"{each['relative_error']:.0%}",
        }
        for each in document["coefficients"]
    ]
    console.print(_table("coefficients, SI units", rows))
    if "kv" in document:
        console.print(_table("KV memory", document["kv"]))
        parts = document["estimated_step_milliseconds"]
        rows = [{"part": name, **{f"batch {b}": str(parts[b][name]) for b in parts}} for name in parts["1"]]
        console.print(_table("milliseconds of a decode step, estimated", rows))
    for line in document["notes"]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    shown = Table(title=title, title_justify="left")
    for heading in rows[0]:
        shown.add_column(heading.replace("_", " "))
    for row in rows:
        shown.add_row(*(_cell(value) for value in row.values()))
    return shown


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_cell(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def register(app: typer.Typer) -> None:
    """Add the sub-command."""
    app.command()(catalogue)
