"""Loaders of public measured serving runs: one tidy table, one row per steady run, units checked.

The files are not shipped: a source says where to get them, under which licence, and the SHA-256 of the content that
this program was written against. The checksum is taken over the values that are used, in a canonical form, so that the
upstream files and a flattened copy of them are equally good.

Columns of the table (`RUN_COLUMNS`); a missing figure is NaN:
`source`; `model`, `parameters` and `activated_parameters` as published with the run, `gpu` (catalogue name),
`num_gpus`, `tensor_parallel`, `data_parallel`, `weight_precision`, `architecture`, `task`;
`max_num_seqs`, `batch` (measured mean), `prompt_tokens`, `prompt_assumed` (True: not published, assumed per task),
`output_tokens`, `output_cap_tokens`, `multimodal`; `requests_per_second` and `requests` (of an open run);
`joules_per_token`, `gpu_watts` (mean per GPU), `node_watts`, `inter_token_seconds`, `tokens_per_second`;
`group_curve`, `group_model`, `group_backbone` (all variants of one architecture and size), `group_workload`,
`group_rate`: what must be held out together.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wattkeeper.domain.errors import ChangedDataError, DataFileError
from wattkeeper.energy import row_checks

RUN_COLUMNS = (
    "source", "model", "parameters", "activated_parameters", "gpu", "num_gpus", "tensor_parallel", "data_parallel",
    "weight_precision", "architecture", "task", "max_num_seqs", "batch", "prompt_tokens", "prompt_assumed",
    "output_tokens", "output_cap_tokens", "multimodal",
    "requests_per_second", "requests", "joules_per_token", "gpu_watts", "node_watts", "inter_token_seconds",
    "tokens_per_second", "group_curve", "group_model", "group_backbone", "group_workload", "group_rate",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a set of measured runs comes from, and what its content must be."""

    name: str
    repository: str
    commit: str
    paths: tuple[str, ...]
    """Inside the repository."""
    folder: str
    """Inside the data folder: where a copy of `paths` (or the flat file) is looked for."""
    flat_file: str
    licence: str
    rows: int
    sha256: str
    """Of the used values in canonical form, see `content_sha256`."""

    @property
    def how_to_get(self) -> str:
        """One sentence for error messages."""
        return (
            f"copy {', '.join(self.paths)} of https://github.com/{self.repository} at commit {self.commit} "
            f"into {self.folder}/ of the data folder"
        )

    def provenance(self) -> dict[str, Any]:
        """For the model card."""
        return {
            "name": self.name,
            "repository": f"https://github.com/{self.repository}",
            "commit": self.commit,
            "paths": list(self.paths),
            "licence": self.licence,
            "rows": self.rows,
            "sha256": self.sha256,
        }


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
_NLR_GPUS = 4
"""The peak of 2,870 W of node power fits four H100 at their limit and no more; the model needs at least two."""
_NLR_LONG_PROMPT_TOKENS = 150.0
"""The two workloads have 119-120 and 174-175 prompt tokens on average."""


def content_sha256(frame: pd.DataFrame) -> str:
    """SHA-256 of the values of a frame: columns and rows sorted, numbers in shortest round-trip form."""
    columns = sorted(frame.columns)
    lines = sorted(
        json.dumps([float(v) if isinstance(v, (int, float, np.number)) else str(v) for v in row])
        for row in frame[columns].itertuples(index=False, name=None)
    )
    return hashlib.sha256("\n".join([json.dumps(columns), *lines]).encode()).hexdigest()


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
    raw = _read(ML_ENERGY_V3, folder, words=_ML_ENERGY_WORDS, numbers=_ML_ENERGY_NUMBERS)
    if check:
        _check_content(ML_ENERGY_V3, raw)
    gpus = raw["num_gpus"]
    task = raw["task"]
    curve = raw["model_id"] + "|" + task + "|" + raw["gpu_model"] + "|" + gpus.astype(int).astype(str)
    curve += "|" + raw["tensor_parallel"].astype(int).astype(str)
    unknown = sorted(set(raw["gpu_model"]) - set(_ML_ENERGY_GPUS)) + sorted(set(task) - set(_ASSUMED_PROMPT_TOKENS))
    if unknown:
        raise DataFileError(f"{ML_ENERGY_V3.name}: unknown GPU or task {', '.join(unknown)}")
    table = pd.DataFrame(
        {
            "source": ML_ENERGY_V3.name,
            "model": raw["model_id"],
            "parameters": raw["total_params_billions"] * 1e9,
            "activated_parameters": raw["activated_params_billions"] * 1e9,
            "gpu": raw["gpu_model"].map(_ML_ENERGY_GPUS),
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
    return _checked(ML_ENERGY_V3, table, watts=raw["avg_power_watts"], rows=range(1, len(raw) + 1))


def load_nlr(folder: Path, *, check: bool = True) -> pd.DataFrame:
    """Llama-3.1-70B on one H100 node with vLLM: finite open runs of 1,000 requests at 19 rates.

    Power is that of the node: CPUs are in it (core power probably twice), and the window holds ramp and drain. Arrivals
    are nearly regular. The `dataset-name` column says `hf` for both workloads; prompt lengths tell them apart.

    Raises DataFileError: missing, unreadable, changed content, or figures that contradict one another.
    """
    raw = _read(NLR_H100, folder, words=("run_completed",), numbers=_NLR_NUMBERS)
    raw = raw[raw["run_completed"] == "True"].drop(columns="run_completed")
    rows = [int(row) + 1 for row in raw.index]
    raw = raw.reset_index(drop=True)
    if check:
        _check_content(NLR_H100, raw)
    watts = raw["mean_power[W]"]
    prompt = raw["total_input_tokens"] / raw["completed"]
    cap = raw["hf-output-len"]
    kind = (prompt > _NLR_LONG_PROMPT_TOKENS).map({True: "long prompts", False: "short prompts"})
    workload = kind + "|" + cap.astype(int).astype(str)
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
            "group_rate": raw["request_rate_x"].astype(int).astype(str),
        }
    )
    watts = raw["total_output_tokens"] / raw["duration"] * table["joules_per_token"]
    return _checked(NLR_H100, table, watts=watts, rows=rows)


def columns(source: Source, folder: Path, *, words: tuple[str, ...] = (), numbers: tuple[str, ...]) -> pd.DataFrame:
    """Further columns of a source as published, one row per run in the order of its loader; content is not checked.

    Raises DataFileError: missing, unreadable, or without these columns.
    """
    if source is not NLR_H100:
        return _read(source, folder, words=words, numbers=numbers)
    raw = _read(source, folder, words=(*words, "run_completed"), numbers=numbers)
    return raw[raw["run_completed"] == "True"].drop(columns="run_completed").reset_index(drop=True)


def _read(source: Source, folder: Path, *, words: tuple[str, ...], numbers: tuple[str, ...]) -> pd.DataFrame:
    """The used columns of a source, from the flat file or from copies of the upstream files."""
    base = folder / source.folder
    flat = base / source.flat_file
    upstream = [base / Path(path).name for path in source.paths]
    try:
        if flat.is_file():
            raw = _read_csv(flat)
        elif all(path.is_file() for path in upstream):
            parts = [_read_json(path) if path.suffix == ".json" else _read_csv(path) for path in upstream]
            raw = pd.concat(parts, ignore_index=True)
        else:
            raise DataFileError(f"{flat} is missing: {source.how_to_get}")
    except (OSError, ValueError, KeyError) as error:
        raise DataFileError(f"{base} cannot be read as {source.name} ({error}): {source.how_to_get}") from error
    lost = [name for name in (*words, *numbers) if name not in raw.columns]
    if lost:
        raise DataFileError(f"{base}: columns {', '.join(lost)} are missing: {source.how_to_get}")
    used = raw[[*words, *numbers]].astype(dict.fromkeys(words, "str"))
    for name in numbers:
        used[name] = np.array([_number(value) for value in raw[name]])
    return used


def _read_csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype="str", keep_default_na=False)


def _number(value: Any) -> float:
    """The float nearest to what is written (a table reader's fast parser may be off by the last bit); NaN if none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return np.nan


def _read_json(path: Path) -> pd.DataFrame:
    frame = pd.DataFrame(json.loads(path.read_text())["configurations"])
    return frame.assign(task=path.stem)


def _check_content(source: Source, raw: pd.DataFrame) -> None:
    found = content_sha256(raw)
    if found != source.sha256:
        raise ChangedDataError(
            f"{source.folder}: the content ({len(raw)} rows, SHA-256 {found}) is not the expected one "
            f"({source.rows} rows, {source.sha256}): {source.how_to_get}"
        )


def _checked(source: Source, table: pd.DataFrame, *, watts: pd.Series, rows: Sequence[int]) -> pd.DataFrame:
    """Refuse figures that are impossible or contradict one another (a wrong unit shows here).

    `watts` is the power by other columns of the file; `rows` are the numbers of the rows in it.
    """
    reasons = row_checks.reasons(table)
    agree = np.isclose(table["joules_per_token"] * table["tokens_per_second"], watts, rtol=0.02)
    for position in np.flatnonzero(~agree):
        reasons[position] = reasons[position] or "joules per token, tokens per second, time and watts do not agree"
    refused = row_checks.refused(source.folder, reasons, rows)
    if refused:
        raise row_checks.RefusedRowsError(refused)
    return table[list(RUN_COLUMNS)]
