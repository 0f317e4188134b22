"""Loaders of public measured serving runs: one tidy table, one row per steady run, units checked.

Columns of the table (`RUN_COLUMNS`); a missing figure is NaN:
`source`; `model`, `parameters` and `activated_parameters` as published with the run, `gpu` (catalogue name),
`num_gpus`, `tensor_parallel`, `data_parallel`, `weight_precision`, `architecture`, `task`;
`max_num_seqs`, `batch` (measured mean), `prompt_tokens`, `prompt_assumed` (True: not published, assumed per task),
`prefix_hit_ratio` (share of the prompt tokens that came from the prefix cache; missing: none),
`output_tokens`, `output_cap_tokens`, `multimodal`; `requests_per_second` and `requests` (of an open run);
`joules_per_token`, `gpu_watts` (mean per GPU), `node_watts`, `inter_token_seconds`, `tokens_per_second`;
`group_curve`, `group_model`, `group_backbone` (all variants of one architecture and size), `group_workload`,
`group_rate`: what must be held out together.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import row_checks, sources
from wattkeeper.energy.row_checks import RefusedRow
from wattkeeper.energy.sources import Place, Source

RUN_COLUMNS = (
    "source", "model", "parameters", "activated_parameters", "gpu", "num_gpus", "tensor_parallel", "data_parallel",
    "weight_precision", "architecture", "task", "max_num_seqs", "batch", "prompt_tokens", "prompt_assumed",
    "prefix_hit_ratio", "output_tokens", "output_cap_tokens", "multimodal",
    "requests_per_second", "requests", "joules_per_token", "gpu_watts", "node_watts", "inter_token_seconds",
    "tokens_per_second", "group_curve", "group_model", "group_backbone", "group_workload", "group_rate",
)  # fmt: skip

ML_ENERGY_V3 = Source(
    name="ml-energy-v3",
    repository="ml-energy/leaderboard",
    commit="0cd52dab897c5d91a45f4d413038f3b8b4251b0f",
    paths=tuple(
        f"public/data/tasks/{task}.json"
        for task in ("gpqa", "image-chat", "lm-arena-chat", "sourcegraph-fim", "video-chat")
    ),
    folder="energy/ml-energy-v3",
    flat_file="llm_v3_flat.csv",
    licence="Apache-2.0 (declared for the same set in ml-energy/data)",
    rows=838,
    sha256="9f0c7931db17c7ba7bbd6404690b1e9fa68f8e644272c4121333550adcb99995",
)

NLR_H100 = Source(
    name="nlr-h100",
    repository="IsabellaLiu99/genai-gpu-power-analysis",
    commit="a451f702e0700b97575c41d7bb6ff6aec0a16e8d",
    paths=("01_aggregated_datasets/inference_online_finite_llama3_70b/metadata.csv",),
    folder="energy/nlr-h100",
    flat_file="inference_online_finite_llama3_70b.csv",
    licence="MIT (re-upload of the data of arXiv:2604.07345)",
    rows=1024,
    sha256="9be1ce9dd5c3a24a453beadf85122cf8a6c743008defecdbfb242f26036dcbad",
)

_ML_ENERGY_GPUS = {"H100": "nvidia-h100-sxm", "B200": "nvidia-b200"}
_ML_ENERGY_NUMBERS = (
    "num_gpus", "tensor_parallel", "max_num_seqs", "avg_batch_size", "avg_output_len", "avg_power_watts",
    "energy_per_token_joules", "median_itl_ms", "output_throughput_tokens_per_sec", "total_params_billions",
    "activated_params_billions",
)  # fmt: skip
_ML_ENERGY_WORDS = ("task", "model_id", "gpu_model", "weight_precision", "architecture")
_MULTIMODAL_TASKS = ("image-chat", "video-chat")

_ASSUMED_PROMPT_TOKENS = {
    "gpqa": 250.0,
    "lm-arena-chat": 150.0,
    "sourcegraph-fim": 1000.0,
    "image-chat": 300.0,
    "video-chat": 1200.0,
}
"""The leaderboard does not publish prompt lengths. Orders of magnitude only: they move the estimated share of prefill.
Those of images and video are what measured iteration times leave room for, in tokens of the language model."""

_VARIANT_WORDS = re.compile(r"^(instruct|thinking|it|vl|omni|coder|chat|fp8|bf16|nvidia|nano|\d{4}|v2|v3\.1|r1|\d+e)$")
_NLR_NUMBERS = (
    "hf-output-len", "request_rate_x", "completed", "total_input_tokens", "total_output_tokens", "duration",
    "output_throughput", "mean_tpot_ms", "mean_power[W]",
)  # fmt: skip
_FAILED = "the run failed (run_completed is False)"
_NLR_GPUS = 4
"""The peak of 2,870 W of node power fits four H100 at their limit and no more; the model needs at least two."""
_NLR_LONG_PROMPT_TOKENS = 150.0
"""The two workloads have 119-120 and 174-175 prompt tokens on average."""


def cached_tokens(table: pd.DataFrame) -> FloatArray:
    """Prompt tokens per request that came from the prefix cache, (N,): no prefill, but attention reads them."""
    if "prefix_hit_ratio" not in table:
        return np.zeros(len(table))
    share = np.nan_to_num(table["prefix_hit_ratio"].to_numpy(dtype=np.float64), nan=0.0)
    return np.asarray(share * table["prompt_tokens"].to_numpy(dtype=np.float64))


def backbone(model: str) -> str:
    """A model's name without what leaves architecture and size alike (tuning, modality, precision, release)."""
    words = re.split(r"[-_]", model.rpartition("/")[2].lower())
    name = "-".join(word for word in words if not _VARIANT_WORDS.match(word))
    return re.sub(r"^llama-3\.\d", "llama-3", name)


def load_ml_energy(folder: Path, *, check: bool = True) -> pd.DataFrame:
    """ML.ENERGY leaderboard v3, language models: closed-loop runs on H100 and B200 with vLLM 0.11.1.

    Power is the sum over GPUs, without the host. Some rows are bound by the host, not by the GPU.
    `check=False` accepts other content than the expected one (units are checked all the same).

    Raises DataFileError: missing, unreadable, changed content, or figures that contradict one another.
    """
    raw, places = sources.read(ML_ENERGY_V3, folder, words=_ML_ENERGY_WORDS, numbers=_ML_ENERGY_NUMBERS)
    if check:
        sources.check_content(ML_ENERGY_V3, raw)
    gpus, task = raw["num_gpus"], raw["task"]
    curve = raw["model_id"] + "|" + task + "|" + raw["gpu_model"] + "|" + _whole(gpus)
    curve += "|" + _whole(raw["tensor_parallel"])
    reasons = [None if gpu in _ML_ENERGY_GPUS else f"unknown GPU {gpu!r}" for gpu in raw["gpu_model"]]
    for position, what in enumerate(task):
        if what not in _ASSUMED_PROMPT_TOKENS:
            reasons[position] = reasons[position] or f"unknown task {what!r}"
    table = pd.DataFrame(
        {
            "source": ML_ENERGY_V3.name,
            "model": raw["model_id"],
            "parameters": raw["total_params_billions"] * 1e9,
            "activated_parameters": raw["activated_params_billions"] * 1e9,
            "gpu": [_ML_ENERGY_GPUS.get(name, name) for name in raw["gpu_model"]],
            "num_gpus": gpus,
            "tensor_parallel": raw["tensor_parallel"],
            "data_parallel": columns(ML_ENERGY_V3, folder, numbers=("data_parallel",))["data_parallel"],
            "weight_precision": raw["weight_precision"],
            "architecture": raw["architecture"],
            "task": task,
            "max_num_seqs": raw["max_num_seqs"],
            "batch": raw["avg_batch_size"],
            "prompt_tokens": task.map(_ASSUMED_PROMPT_TOKENS),
            "prompt_assumed": True,
            "prefix_hit_ratio": np.nan,
            "output_tokens": raw["avg_output_len"],
            "output_cap_tokens": np.nan,
            "multimodal": task.isin(_MULTIMODAL_TASKS).astype(float),
            "requests_per_second": np.nan,
            "requests": np.nan,
            "joules_per_token": raw["energy_per_token_joules"],
            "gpu_watts": raw["avg_power_watts"] / gpus,
            "node_watts": np.nan,
            "inter_token_seconds": raw["median_itl_ms"] / 1e3,
            "tokens_per_second": raw["output_throughput_tokens_per_sec"],
            "group_curve": curve,
            "group_model": raw["model_id"],
            "group_backbone": raw["model_id"].map(backbone),
            "group_workload": task,
            "group_rate": "closed loop",
        }
    )
    return _checked(table, watts=raw["avg_power_watts"], places=places, reasons=reasons)


def load_nlr(folder: Path, *, check: bool = True) -> pd.DataFrame:
    """Llama-3.1-70B on one H100 node with vLLM: finite open runs of 1,000 requests at 19 rates.

    Power is that of the node: CPUs are in it (core power probably twice), and the window holds ramp and drain. Arrivals
    are nearly regular. The `dataset-name` column says `hf` for both workloads; prompt lengths tell them apart. Runs
    that failed have no figures: `failed_runs` names them.

    Raises DataFileError: missing, unreadable, changed content, or figures that contradict one another.
    """
    raw, places, _ = _nlr(folder, numbers=_NLR_NUMBERS)
    if check:
        sources.check_content(NLR_H100, raw)
    watts = raw["mean_power[W]"]
    prompt = raw["total_input_tokens"] / raw["completed"]
    cap = raw["hf-output-len"]
    kind = (prompt > _NLR_LONG_PROMPT_TOKENS).map({True: "long prompts", False: "short prompts"})
    workload = kind + "|" + _whole(cap)
    table = pd.DataFrame(
        {
            "source": NLR_H100.name,
            "model": "meta-llama/Llama-3.1-70B-Instruct",
            "parameters": np.nan,
            "activated_parameters": np.nan,
            "gpu": _ML_ENERGY_GPUS["H100"],
            "num_gpus": float(_NLR_GPUS),
            "tensor_parallel": float(_NLR_GPUS),
            "data_parallel": 1.0,
            "weight_precision": "bfloat16",
            "architecture": "Dense Transformer",
            "task": "nlr-online",
            "max_num_seqs": np.nan,
            "batch": np.nan,
            "prompt_tokens": prompt,
            "prompt_assumed": False,
            "prefix_hit_ratio": np.nan,
            "output_tokens": raw["total_output_tokens"] / raw["completed"],
            "output_cap_tokens": cap,
            "multimodal": 0.0,
            "requests_per_second": raw["request_rate_x"],
            "requests": raw["completed"],
            "joules_per_token": watts / raw["output_throughput"],
            "gpu_watts": np.nan,
            "node_watts": watts,
            "inter_token_seconds": raw["mean_tpot_ms"] / 1e3,
            "tokens_per_second": raw["output_throughput"],
            "group_curve": workload,
            "group_model": "meta-llama/Llama-3.1-70B-Instruct",
            "group_backbone": backbone("meta-llama/Llama-3.1-70B-Instruct"),
            "group_workload": workload,
            "group_rate": _whole(raw["request_rate_x"]),
        }
    )
    watts = raw["total_output_tokens"] / raw["duration"] * table["joules_per_token"]
    return _checked(table, watts=watts, places=places)


def failed_runs(folder: Path) -> tuple[RefusedRow, ...]:
    """The rows of the NLR set that `load_nlr` leaves out because their publishers mark them as failed.

    Raises DataFileError as `load_nlr` does.
    """
    return _nlr(folder, numbers=_NLR_NUMBERS)[2]


def columns(source: Source, folder: Path, *, numbers: tuple[str, ...]) -> pd.DataFrame:
    """Further columns of a source as published, one row per run in the order of its loader; content is not checked.

    Raises DataFileError: missing, unreadable, without these columns, or a figure is none, with the row.
    """
    if source is NLR_H100:
        raw, places, _ = _nlr(folder, numbers=numbers)
    else:
        raw, places = sources.read(source, folder, numbers=numbers)
    reasons: list[str | None] = [None] * len(raw)
    for name in numbers:
        for position in np.flatnonzero(~np.isfinite(raw[name])):
            reasons[position] = reasons[position] or f"{name} is missing or no number"
    _refuse(places, reasons)
    return raw


def _nlr(folder: Path, *, numbers: tuple[str, ...]) -> tuple[pd.DataFrame, list[Place], tuple[RefusedRow, ...]]:
    """Runs that were completed, where they are, and those that were not."""
    raw, places = sources.read(NLR_H100, folder, words=("run_completed",), numbers=numbers)
    said = raw["run_completed"].to_numpy()
    _refuse(
        places,
        [None if word in ("True", "False") else f"run_completed is {word!r}, not True or False" for word in said],
    )
    failed = sources.refused(places, [_FAILED if word == "False" else None for word in said])
    used = np.flatnonzero(said == "True")
    return raw.iloc[used].drop(columns="run_completed").reset_index(drop=True), [places[at] for at in used], failed


def _checked(
    table: pd.DataFrame, *, watts: pd.Series, places: Sequence[Place], reasons: Sequence[str | None] = ()
) -> pd.DataFrame:
    """Refuse figures that are impossible or contradict one another (a wrong unit shows here).

    `watts` is the power by other columns of the file; `reasons` are why rows cannot be used in the first place.
    """
    found = [
        before or after for before, after in zip(reasons or [None] * len(table), row_checks.reasons(table), strict=True)
    ]
    agree = np.isclose(table["joules_per_token"] * table["tokens_per_second"], watts, rtol=0.02)
    for position in np.flatnonzero(~agree):
        found[position] = found[position] or "joules per token, tokens per second, time and watts do not agree"
    _refuse(places, found)
    return table[list(RUN_COLUMNS)]


def _refuse(places: Sequence[Place], reasons: Sequence[str | None]) -> None:
    refused = sources.refused(places, reasons)
    if refused:
        raise row_checks.RefusedRowsError(refused)


def _whole(numbers: pd.Series) -> pd.Series:
    """In words: 8 for 8.0."""
    return numbers.map("{:g}".format)
