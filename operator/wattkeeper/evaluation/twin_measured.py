"""The twin with its own hardware tables beside measured runs: ML.ENERGY in closed loop, NLR as finite open runs.

Nothing is fitted here. The twin's reference replicas were fitted to two of the ML.ENERGY curves (`FITTED`), so these
tell how good a fit is; all else tells what the twin makes of models, sizes and workloads that it was not fitted to.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import data
from wattkeeper.evaluation import measured_result, nlr_data
from wattkeeper.evaluation.measured_result import Score
from wattkeeper.replica.types import IntArray
from wattkeeper.twin import hardware
from wattkeeper.twin.hardware import ReplicaHardware
from wattkeeper.twin.replica import Replica
from wattkeeper.twin.request import Request

GOAL = 0.15
FITTED = ("meta-llama/Llama-3.1-8B-Instruct|1", "meta-llama/Llama-3.1-70B-Instruct|4")
"""Models and GPUs whose lm-arena-chat runs on H100 the twin's step times and joules were fitted to."""
IN, SIBLING, LISTED, NAMED, NLR = (
    "in sample: fitted to these runs",
    "same architecture as a fitted model",
    "other models of the twin's table",
    "models scaled by the size in their name",
    "NLR: fitted model, other machine and workload",
)
ITL, THROUGHPUT, WATTS, JOULES = "ITL p50", "tokens/s", "W per GPU", "J/token"
CLOSED_TARGETS = (ITL, THROUGHPUT, WATTS, JOULES)
VARIED, EQUAL = "answers of varied length", "all answers equally long"
_GPU, _CARD = "nvidia-h100-sxm", "h100-sxm"
_NLR_MODEL, _NLR_GPUS = "meta-llama/Llama-3.1-70B-Instruct", 4
_VARIATION = 0.7
"""Coefficient of variation of prompt and answer lengths, which are not published."""
_MODEL_LEN = 32_768
_LEAST_FINISHED = 100
_MOST_STEPS = 4000
"""Single iterations that the median of inter-token latency is taken over."""
_INSTANT = 1e-9


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Rows of `measured_result.ROW_COLUMNS` with the columns `model`, `bias`; and scores by split."""

    rows: pd.DataFrame
    scores: tuple[Score, ...]
    node_power_share: tuple[float, float]
    """Least and largest share of NLR's measured node power that the twin's GPUs draw."""


@dataclass(frozen=True, kw_only=True)
class Steady:
    """What a replica in closed loop did."""

    itl_seconds: float
    tokens_per_second: float
    gpu_watts: float
    batch: float


def evaluate(
    folder: Path, *, seed: int = 0, check: bool = True, tell: Callable[[str], None] = lambda _: None
) -> Outcome:
    """Both tables; about two minutes of one processor.

    Raises DataFileError: the runs are missing or not the expected ones.
    """
    frames = list(_closed(chosen_runs(data.load_ml_energy(folder, check=check)), seed, tell))
    open_rows, shares = _open(nlr_data.cells_of(nlr_data.load_runs(folder, check=check)), folder, seed, check, tell)
    rows = pd.concat([*frames, open_rows], ignore_index=True)
    rows = rows.assign(bias=rows["predicted"] / rows["measured"] - 1.0)
    return Outcome(
        rows=rows,
        scores=measured_result.scores(rows, goal=GOAL, seed=seed, parts=(), split=IN, method=VARIED),
        node_power_share=shares,
    )


def chosen_runs(table: pd.DataFrame) -> pd.DataFrame:
    """The ML.ENERGY runs that the twin can play: text, dense, bf16, on its H100. With the columns `key` and `split`."""
    fits = (table["gpu"] == _GPU) & (table["architecture"] == "Dense Transformer") & (table["multimodal"] == 0.0)
    fits &= (table["weight_precision"] == "bfloat16") & (table["tensor_parallel"] == table["num_gpus"])
    fits &= table["model"].map(lambda name: name in hardware.models() or bool(re.search(r"\d[bB]\b", name)))
    runs = table[fits].reset_index(drop=True)
    key = runs["model"] + "|" + runs["num_gpus"].astype(int).astype(str)
    return runs.assign(key=key, split=[_split(*pair) for pair in zip(key, runs["model"], strict=True)])


def _split(key: str, model: str) -> str:
    if key in FITTED:
        return IN
    if data.backbone(model) in {data.backbone(each.partition("|")[0]) for each in FITTED}:
        return SIBLING
    return LISTED if model in hardware.models() else NAMED


def _closed(runs: pd.DataFrame, seed: int, tell: Callable[[str], None]) -> Iterator[pd.DataFrame]:
    for method, variation in ((VARIED, _VARIATION), (EQUAL, 0.0)):
        tell(f"ML.ENERGY, {len(runs)} runs in closed loop, {method}")
        found = [_closed_run(run, variation=variation, seed=seed + at) for at, (_, run) in enumerate(runs.iterrows())]
        predicted = {
            ITL: [each.itl_seconds for each in found],
            THROUGHPUT: [each.tokens_per_second for each in found],
            WATTS: [each.gpu_watts for each in found],
            JOULES: [
                each.gpu_watts * gpus / each.tokens_per_second
                for each, gpus in zip(found, runs["num_gpus"], strict=True)
            ],
        }
        measured = {
            ITL: runs["inter_token_seconds"],
            THROUGHPUT: runs["tokens_per_second"],
            WATTS: runs["gpu_watts"],
            JOULES: runs["joules_per_token"],
        }
        for target in CLOSED_TARGETS:
            yield _rows(runs, method, target, measured[target], np.array(predicted[target]))


def _rows(runs: pd.DataFrame, method: str, target: str, measured: pd.Series, predicted: FloatArray) -> pd.DataFrame:
    named = runs["key"].str.rpartition("/")[2] + "|" + runs["task"]
    made = measured_result.rows_of(
        split="",
        method=method,
        target=target,
        group=runs["key"].tolist(),
        x=runs["max_num_seqs"].to_numpy(dtype=np.float64),
        measured=measured.to_numpy(dtype=np.float64),
        predicted=predicted,
        parts={"model": named.tolist()},
    )
    return made.assign(split=runs["split"].tolist())


def _closed_run(run: "pd.Series[float]", *, variation: float, seed: int) -> Steady:
    gpus = int(run["num_gpus"])
    settings = EngineSettings(
        tensor_parallel_size=gpus,
        max_num_seqs=int(run["max_num_seqs"]),
        max_model_len=_MODEL_LEN,
        enable_prefix_caching=False,
    )
    spec = hardware.replica_hardware(model=str(run["model"]), accelerator=_CARD, engine=settings)
    return closed_loop(
        spec,
        prompt_tokens=float(run["prompt_tokens"]),
        output_tokens=float(run["output_tokens"]),
        variation=variation,
        seed=seed,
    )


def closed_loop(
    spec: ReplicaHardware, *, prompt_tokens: float, output_tokens: float, variation: float, seed: int
) -> Steady:
    """A replica whose `max_num_seqs` places are always taken, once it is steady; lengths are means.

    The first requests stand somewhere in the middle of their answers, so that ends do not coincide.
    """
    places = spec.max_num_seqs
    window = max(places, _LEAST_FINISHED)
    count = 3 * places + 2 * window
    rng = np.random.default_rng(seed)
    prompts, outputs = (_lengths(rng, mean, variation, count) for mean in (prompt_tokens, output_tokens))
    outputs[:places] = np.maximum(1, np.rint(outputs[:places] * rng.random(places)))
    replica = Replica(spec, now=0.0)
    pairs = zip(prompts.tolist(), outputs.tolist(), strict=True)
    replica.submit(Request(0.0, prompt, output) for prompt, output in pairs)
    pace = (spec.levels[-1].seconds[0] + spec.levels[-1].seconds[1] * places) * max(1.0, output_tokens / 50.0)
    _run_until_finished(replica, 2 * places, pace)
    began, joules, tokens = replica.now, replica.energy_joules, replica.counters.generation_tokens
    _run_until_finished(replica, 2 * places + window, pace)
    seconds = replica.now - began
    joules, made = replica.energy_joules - joules, replica.counters.generation_tokens - tokens
    steps, weights = _single_steps(replica)
    return Steady(
        itl_seconds=_weighted_median(steps, weights),
        tokens_per_second=made / seconds,
        gpu_watts=joules / seconds,
        batch=float(weights.mean()),
    )


def _lengths(rng: np.random.Generator, mean: float, variation: float, count: int) -> IntArray:
    if variation == 0.0:
        return np.full(count, max(1, round(mean)))
    sigma = np.sqrt(np.log1p(variation**2))
    return np.maximum(1, np.rint(mean * rng.lognormal(-(sigma**2) / 2.0, sigma, count))).astype(np.int64)


def _run_until_finished(replica: Replica, count: int, pace_seconds: float) -> None:
    while sum(replica.counters.finished.values()) < count:
        replica.run(replica.now + pace_seconds)


def _single_steps(replica: Replica) -> tuple[FloatArray, FloatArray]:
    """Seconds of single iterations, and the tokens that each gave."""
    steps: list[float] = []
    weights: list[int] = []
    while len(steps) < _MOST_STEPS and replica.waiting:
        began, tokens = replica.now, replica.counters.generation_tokens
        replica.run(began + _INSTANT)
        steps.append(replica.now - began)
        weights.append(replica.counters.generation_tokens - tokens)
    return np.array(steps), np.array(weights, dtype=np.float64)


def _weighted_median(values: FloatArray, weights: FloatArray) -> float:
    order = np.argsort(values)
    share = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(share, 0.5 * share[-1])])


def _open(
    cells: pd.DataFrame, folder: Path, seed: int, check: bool, tell: Callable[[str], None]
) -> tuple[pd.DataFrame, tuple[float, float]]:
    tell(f"NLR, {len(cells)} finite runs")
    node = data.load_nlr(folder, check=check).groupby(["group_workload", "requests_per_second"])["node_watts"].median()
    settings = EngineSettings(tensor_parallel_size=_NLR_GPUS)
    spec = hardware.replica_hardware(model=_NLR_MODEL, accelerator=_CARD, engine=settings)
    found, shares = [], []
    for at, (_, cell) in enumerate(cells.iterrows()):
        latencies, watts = _open_run(spec, cell, cells, seed=seed + at)
        found.append(latencies)
        shares.append(watts * _NLR_GPUS / float(node[(cell["workload"], cell["rate"])]))
    values = np.array(found)
    parts = [
        measured_result.rows_of(
            split=NLR,
            method=VARIED,
            target=target,
            group=cells["rate"].astype(str).tolist(),
            x=cells["rate"].to_numpy(dtype=np.float64),
            measured=cells[target].to_numpy(dtype=np.float64),
            predicted=values[:, column],
            parts={"model": cells["workload"].tolist()},
        )
        for column, target in enumerate(nlr_data.TARGETS)
    ]
    return pd.concat(parts), (min(shares), max(shares))


def _open_run(
    spec: ReplicaHardware, cell: "pd.Series[float]", cells: pd.DataFrame, *, seed: int
) -> tuple[FloatArray, float]:
    """Seconds of `nlr_data.TARGETS`, (4,), and mean watts per GPU until the last answer."""
    rng = np.random.default_rng(seed)
    same = nlr_data.most_similar(cell, cells)
    lowest = nlr_data.answer_percentiles(same.iloc[int(same["rate"].to_numpy().argmin())])
    cap = float(cell["output_cap_tokens"])
    outputs = nlr_data.answers(
        np.minimum(lowest, cap), mean=float(cell["output_tokens"]), cap=cap, count=int(cell["requests"])
    )
    prompts = _lengths(rng, float(cell["prompt_tokens"]), 0.5, len(outputs)).tolist()
    requests = [
        Request(at / float(cell["rate"]), prompt, output, prompt)
        for at, (prompt, output) in enumerate(zip(prompts, rng.permutation(outputs).tolist(), strict=True))
    ]
    replica = Replica(replace(spec, prefix_caching=True), now=0.0)
    replica.submit(requests)
    while replica.outstanding:
        replica.run(replica.now + 1.0)
    ended = max(request.last_token for request in requests)
    joules = replica.energy_joules - spec.idle_watts * max(0.0, replica.now - ended)
    ttft = [request.ttft_seconds for request in requests]
    tpot = [request.tpot_seconds for request in requests if request.output > 1]
    latencies = np.concatenate([np.percentile(ttft, [50.0, 90.0]), np.percentile(tpot, [50.0, 90.0])])
    return latencies, joules / ended


def biases(rows: pd.DataFrame, targets: Sequence[str]) -> list[tuple[float, float, float]]:
    """Median, least and largest of the signed relative errors, by target; positive: the twin says more."""
    found = []
    for target in targets:
        bias = rows.loc[rows["target"] == target, "bias"]
        found.append((float(bias.median()), float(bias.min()), float(bias.max())))
    return found
