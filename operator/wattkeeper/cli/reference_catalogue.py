"""The page of the catalogue: what is in it, where it comes from, and how far its estimates are off."""

from collections.abc import Iterable, Iterator

from wattkeeper.cli import catalogue
from wattkeeper.physics import catalogue as known
from wattkeeper.physics import kv
from wattkeeper.physics.architecture import ModelSpec
from wattkeeper.physics.catalogue_entries import FittedPair
from wattkeeper.physics.profile import GpuSpec

ACCURACY = (
    ("roofline of the data sheet, no fit", 415, 0.495, 0.490, 0.834, 1.049),
    ("roofline with constants of other families", 415, 0.152, 0.203, 0.464, 0.301),
    ("the same, corrected by fits of other families", 415, 0.134, 0.159, 0.329, 0.221),
    ("roofline with constants of other families; all runs", 448, 0.161, 0.230, 0.549, 0.408),
    ("the same, corrected by fits of other families; all runs", 448, 0.145, 0.190, 0.401, 0.356),
    ("kernel tables alone, dense bf16", 120, 0.186, 0.218, 0.430, 0.376),
    ("kernel tables and host of other families, dense bf16", 120, 0.068, 0.085, 0.173, 0.133),
)
"""(estimate, runs, median, mean, p90, root mean square of the log), as `wattkeeper fit constants` prints them."""

_INTRODUCTION = """\
What the operator knows of models and accelerators before it has measured anything. `wattkeeper catalogue` prints the
same, and with `--model`, `--accelerator` and `--tp` every coefficient of that pair with its provenance and error;
`--output json` for programs.

Each number is one of

- **Measured**: of a ModelProfile in your cluster ([how to make one](fit.md)), or a figure of a card that studies
  measured;
- **Fitted**: `wattkeeper fit iteration` fitted it to public measurements, listed [below](#fits);
- **Estimated**: the roofline of the data sheet, with constants fitted across pairs, and corrected by fits of similar
  pairs where there are any near.

The live engine wins over all of them: KV capacity is read from `vllm:cache_config_info` as soon as a pod runs."""

_ACCURACY_TEXT = """\
Every estimate of a step is held against inter-token latencies that ML.ENERGY measured (leaderboard v3, vLLM 0.11.1, 1
to 8 H100 or B200, batch 8 to 256, text workloads). A family (all models of one backbone) is left out of every fit
before its runs are judged: what is judged is what the catalogue does for a model that nobody measured.

    wattkeeper fit constants --data DIR"""

_ACCURACY_NOTES = """\
- Six workloads on one B200 took more than twice as long as another workload of the same model, card and batch, at
  half the power: the host held them up, and no model of a GPU can know. The figures of all runs include them.
- How far a neighbour reaches and how much it counts were chosen on the same families (coarsely: 12 pairs of values),
  so the gain from neighbours is a little flattered. Constants and corrections themselves never saw the family they
  are judged on.
- Mixtures of experts are the worst: a step's time bends with the batch (more experts are read), and the coefficients
  are a line.
- Only H100 and B200 have been held against measurements of whole engines. For A100 and H200 the kernels are measured
  and the host is that of the other cards. For L40S, L4, A10G, MI300X and all RTX cards everything is the data sheet's,
  with the same constants; the error said is that of the other cards and may be larger. Nothing was measured on AMD.
  Beside steps composed of measured kernels, host included, the roofline lies 6 % off in the median on A100 (15 % at the
  90th percentile) and 7 % on H200 (22 %); the same command prints it.
- ML.ENERGY does not publish prompt lengths: they are assumed per workload (150 to 1,000 tokens), and median latencies
  hardly show prefill. dT and dA therefore come from kernel tables, or from the roofline."""

_KV_TEXT = """\
Layers keep different things of a sequence: keys and values of every token (full), one latent vector per token
(latent), the last tokens alone (window, chunks), a state of constant size (state: Mamba or linear attention, in
float32), or nothing of their own (shared). The columns say what one sequence holds on a single GPU with a bf16 cache;
tensor parallelism divides KV heads and states, not latents. vLLM pads kinds to equal numbers of layers, which is in
the numbers."""


def page(note: str) -> str:
    """The text of catalogue.md."""
    lines = [note, "# Catalogue of models and accelerators", "", _INTRODUCTION, "", "## How wrong estimates are", ""]
    lines += [_ACCURACY_TEXT, ""]
    lines += _table(
        ("estimate of step time", "runs", "median error", "mean", "90th percentile", "rms of the log"),
        ((name, str(runs), *(f"{value:.1%}" for value in values)) for name, runs, *values in ACCURACY),
    )
    lines += ["", _ACCURACY_NOTES, "", "## Accelerators", ""]
    lines += [
        "Figures are the data sheet's, but for those in the last two columns. Operations are dense; the link is one "
        "direction.",
        "",
    ]
    head = ("name", "memory", "bandwidth", "bf16", "fp8", "fp4", "link", "power limit", "idle", "measured", "assumed")
    lines += _table(head, map(_gpu, known.gpus()))
    lines += ["", "## Models", "", _KV_TEXT, ""]
    lines += [
        "Facts are those of each published config.json: *config* where a public copy of it was read for this page, "
        "*recalled* where not. Tests hold each parameter count against the architecture. Names that differ by a weight "
        "precision alone (`-FP8`, `-AWQ`, `-GPTQ-Int4`, `-NVFP4`, `-w4a16`) are understood for every model here.",
        "",
    ]
    contexts = tuple(f"KV at {tokens:,}" for tokens in catalogue.CONTEXTS)
    lines += _table(
        ("model", "parameters", "active", "weights", "layers", *contexts, "source"), map(_model, known.models())
    )
    lines += ["", "## Fits", ""]
    lines += [
        "d0 in ms, dN, dT in us, dKV in ns per token; dA is in `wattkeeper catalogue`. The command of each fit is in "
        "`operator/wattkeeper/physics/data/fitted.yaml`. *engine*: whole steps of an engine were measured; *kernels*: "
        "measured kernels were added up, and the host's part with them. Terms in brackets were carried over.",
        "",
    ]
    lines += _table(
        ("model", "accelerator", "GPUs", "d0", "dN", "dT", "dKV", "error", "of"), map(_fit, known.fitted_pairs())
    )
    return "\n".join(lines) + "\n"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _gpu(gpu: GpuSpec) -> tuple[str, ...]:
    rates = (gpu.bf16_flops, gpu.fp8_flops, gpu.fp4_flops)
    return (
        f"`{gpu.name}`",
        f"{gpu.memory_bytes / 1e9:.0f} GB",
        f"{gpu.bandwidth_bytes_per_second / 1e9:,.0f} GB/s",
        *(f"{rate / 1e12:,.0f} TFLOP/s" if rate else "" for rate in rates),
        f"{gpu.link_bytes_per_second / 1e9:.0f} GB/s",
        f"{gpu.tdp_watts:.0f} W",
        f"{gpu.idle_watts:.0f} W",
        ", ".join(gpu.measured).replace("_", " "),
        ", ".join(gpu.assumed).replace("_", " "),
    )


def _model(spec: ModelSpec) -> tuple[str, ...]:
    demand = kv.demand(spec, tensor_parallel=1)
    return (
        f"`{spec.name}`",
        f"{spec.parameters / 1e9:.1f} B",
        f"{spec.activated_parameters / 1e9:.1f} B",
        f"{spec.weight_bytes / 1e9:.0f} GB {spec.precision.value}",
        catalogue.layers(spec),
        *(_bytes(float(demand.sequence_bytes(tokens))) for tokens in catalogue.CONTEXTS),
        "config" if "public copy" in spec.source else "recalled",
    )


def _bytes(value: float) -> str:
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def _fit(pair: FittedPair) -> tuple[str, ...]:
    def shown(term: str, text: str) -> str:
        return f"({text})" if term in pair.estimated else text

    return (
        ", ".join(f"`{name}`" for name in pair.models),
        f"`{pair.accelerator}`",
        str(pair.tensor_parallel),
        shown("d0", f"{pair.d0_ms:.2f}"),
        shown("dn", f"{pair.dn_ms * 1e3:.1f}"),
        shown("dt", f"{pair.dt_ms * 1e3:.1f}"),
        shown("dkv", f"{pair.dkv_ms * 1e6:.1f}"),
        f"{pair.relative_error:.0%}",
        "engine" if pair.end_to_end else "kernels",
    )
