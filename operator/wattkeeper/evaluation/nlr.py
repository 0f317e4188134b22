"""TTFT and TPOT of the NLR runs at rates and workloads that no calibration saw.

Whole rates are held out; in two further splits whole workloads, and both sets of prompts in turn. The costs of
`evaluation.finite_run` are calibrated on training cells alone (least squares of the log errors of the four percentiles,
costs kept positive, a start from the catalogue), then the held-out runs are simulated. Baselines get the same training
cells.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import optimize

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy.evaluate import group_folds
from wattkeeper.evaluation import finite_run, measured_result, nlr_baselines, nlr_data
from wattkeeper.evaluation.finite_run import Costs
from wattkeeper.evaluation.measured_result import Evaluation
from wattkeeper.evaluation.nlr_data import TARGETS
from wattkeeper.physics import profiles
from wattkeeper.physics.profile import ServingProfile

NAME = "nlr"
GOAL = 0.10
FULL, LINEAR, COMPUTED = (
    "exact stepper, knee and client",
    "exact stepper, linear step",
    "linear step, prompts not cached",
)
KNOWN = "knee and client, lengths known"
"""Read off the held-out workload's own run at the lowest rate; else from the most similar training workload."""
REPEATS = "repeats of the cell (noise)"
RATES, WORKLOADS, PROMPTS = "unseen rates", "unseen workloads", "unseen prompts"
_GROUPS = {RATES: "rate", WORKLOADS: "workload", PROMPTS: "prompt_set"}
_MOST_FOLDS = {RATES: 5, WORKLOADS: 6, PROMPTS: 2}
_MODEL, _GPU, _GPUS = "meta-llama/Llama-3.1-70B-Instruct", "nvidia-h100-sxm", 4
_CALIBRATED_SHARE = 4
"""Of each workload every fourth training rate is simulated in calibration, shifted from workload to workload."""
_EVALUATIONS = 8
_REACH = 2.5
"""How far the logarithm of a cost may move from its start: a factor of twelve."""
_SEEDS = 3
"""Orders of the answers that a prediction is the mean of."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Which costs are free, and whether prompts were cached."""

    cached: bool = True
    linear: bool = False
    """Only what the product's step form and a front end know: no knee, no extra for mixed steps, no delivery."""


_FULL, _LINEAR, _COMPUTED = Calibration(), Calibration(linear=True), Calibration(linear=True, cached=False)


def evaluate(
    folder: Path, *, seed: int = 0, check: bool = True, tell: Callable[[str], None] = lambda _: None
) -> Evaluation:
    """All methods on both splits; about three minutes of one processor.

    Raises DataFileError: the runs are missing or not the expected ones.
    """
    runs = nlr_data.load_runs(folder, check=check)
    cells = nlr_data.cells_of(runs)
    profile = node_profile()
    frames, costs = [], {}
    for split, column in _GROUPS.items():
        folds = min(cells[column].nunique(), _MOST_FOLDS[split])
        fold = group_folds(cells[column].astype(str), folds=folds, seed=seed)
        for number in range(folds):
            tell(f"{NAME}: {split}, fold {number + 1} of {folds}")
            training, held = cells[fold != number], cells[fold == number]
            full = calibrate(training, profile, _FULL, seed=seed)
            linear = calibrate(training, profile, _LINEAR, seed=seed)
            costs[f"{split} {number + 1}"] = _readable(full)
            predicted = {
                FULL: predict(full, held, training, profile, _FULL, seed=seed),
                LINEAR: predict(linear, held, training, profile, _LINEAR, seed=seed),
            }
            if split == RATES:
                computed = calibrate(training, profile, _COMPUTED, seed=seed)
                predicted[COMPUTED] = predict(computed, held, training, profile, _COMPUTED, seed=seed)
            if split == PROMPTS:
                predicted[KNOWN] = predict(full, held, cells, profile, _FULL, seed=seed)
            spread = [_answers(cell, training) for _, cell in held.iterrows()]
            predicted |= nlr_baselines.stationary(linear, full, held, spread, profile)
            predicted[nlr_baselines.INTERPOLATION] = nlr_baselines.interpolation(held, training)
            frames += [_rows(split, method, held, values) for method, values in predicted.items()]
        if split == RATES:
            frames += _repeats(split, runs, cells)
    rows = pd.concat(frames, ignore_index=True).sort_values("split", kind="stable")
    return Evaluation(
        name=NAME,
        title="NLR, Llama-3.1-70B on four H100",
        goal=GOAL,
        targets=TARGETS,
        rows=rows,
        scores=measured_result.scores(rows, goal=GOAL, seed=seed, parts=("workload",), split=RATES, method=FULL),
        notes=_NOTES,
        parameters=costs,
    )


_NOTES = (
    "One row per rate and workload: the median of nine repeats; 1,000 requests a run, nearly regular arrivals.",
    "Stationary models answer only where the rate is below their capacity; means stand for both percentiles.",
    "Prompts are taken as cached (the same 1,000 prompts are sent in every run); computing them fits much worse.",
)


def node_profile() -> ServingProfile:
    """The catalogue's figures for the measured node: where calibration starts, and its KV memory."""
    engine = EngineSettings(tensor_parallel_size=_GPUS)
    return profiles.serving_profile(model=_MODEL, accelerator=_GPU, gpus_per_replica=_GPUS, engine=engine)


def calibrate(training: pd.DataFrame, profile: ServingProfile, how: Calibration, *, seed: int) -> Costs:
    """The costs that fit the training cells best; deterministic.

    The start is the catalogue's, and round figures for what it does not know.
    """
    iteration = profile.iteration
    half = 0.5 * iteration.decode_seconds_per_sequence
    start = Costs(
        fixed_seconds=iteration.d0_seconds,
        per_decode_seconds=half,
        per_kv_token_seconds=iteration.dkv_seconds_per_kv_token,
        per_prompt_token_seconds=iteration.dt_seconds_per_token,
        client_seconds=5e-3,
        front_end_seconds=2e-4,
        knee_sequences=256.0,
        beyond_knee_seconds=half,
        mixed_seconds=1e-3,
        delivery_seconds=5e-5,
    )
    free = 10
    if how.linear:
        start = replace(
            start,
            per_decode_seconds=2.0 * half,
            beyond_knee_seconds=0.0,
            mixed_seconds=0.0,
            delivery_seconds=0.0,
        )
        free = 6
    chosen = _chosen(training)
    runs = [_run(cell, training, profile, how) for _, cell in chosen.iterrows()]
    measured = chosen[list(TARGETS)].to_numpy(dtype=np.float64)
    fixed = start.array()[free:]

    def miss(logs: FloatArray) -> FloatArray:
        costs = Costs.of(np.concatenate([np.exp(logs), fixed]))
        found = np.array([_percentiles(run, costs, seed=seed) for run in runs])
        return np.asarray(np.clip(np.log(found / measured), -1.0, 1.0).ravel())

    logs = np.log(start.array()[:free])
    found = optimize.least_squares(
        miss,
        logs,
        bounds=(logs - _REACH, logs + _REACH),
        diff_step=np.full(free, 0.02),
        loss="soft_l1",
        f_scale=0.05,
        max_nfev=_EVALUATIONS,
    )
    return Costs.of(np.concatenate([np.exp(found.x), fixed]))


def predict(
    costs: Costs, held: pd.DataFrame, training: pd.DataFrame, profile: ServingProfile, how: Calibration, *, seed: int
) -> FloatArray:
    """Seconds of `TARGETS` for each held-out cell, (N, 4)."""
    runs = [_run(cell, training, profile, how) for _, cell in held.iterrows()]
    return np.array([np.mean([_percentiles(run, costs, seed=seed + k) for k in range(_SEEDS)], axis=0) for run in runs])


def _chosen(training: pd.DataFrame) -> pd.DataFrame:
    """The cells that are simulated in calibration: every rate, for some of the workloads."""
    workload = pd.factorize(training["workload"], sort=True)[0]
    rank = pd.factorize(training["rate"], sort=True)[0]
    return training.iloc[np.flatnonzero((workload + rank) % _CALIBRATED_SHARE == 0)]


def _run(cell: "pd.Series[float]", training: pd.DataFrame, profile: ServingProfile, how: Calibration) -> finite_run.Run:
    return finite_run.Run(
        requests_per_second=cell["rate"],
        prompt_tokens=cell["prompt_tokens"],
        output_tokens=nlr_data.answers(
            _answers(cell, training),
            mean=cell["output_tokens"],
            cap=cell["output_cap_tokens"],
            count=int(cell["requests"]),
        ),
        cached=how.cached,
        kv_blocks=int(profile.kv_capacity_tokens / 16.0),
    )


def _answers(cell: "pd.Series[float]", training: pd.DataFrame) -> FloatArray:
    """Percentiles of answer lengths from the lowest training rate of the workload, or of the most similar one."""
    same = nlr_data.most_similar(cell, training)
    lowest = nlr_data.answer_percentiles(same.iloc[int(same["rate"].to_numpy().argmin())])
    return np.minimum(lowest, cell["output_cap_tokens"])


def _percentiles(run: finite_run.Run, costs: Costs, *, seed: int) -> FloatArray:
    """Seconds of `TARGETS`."""
    seen = finite_run.serve(run, costs, seed=seed)
    return np.concatenate(
        [np.nanpercentile(seen.ttft_seconds, [50.0, 90.0]), np.nanpercentile(seen.tpot_seconds, [50.0, 90.0])]
    )


def _rows(split: str, method: str, held: pd.DataFrame, values: FloatArray) -> pd.DataFrame:
    group = held[_GROUPS[split]].astype(str)
    parts = []
    for column, target in enumerate(TARGETS):
        parts.append(
            measured_result.rows_of(
                split=split,
                method=method,
                target=target,
                group=group.tolist(),
                x=held["rate"].to_numpy(dtype=np.float64),
                measured=held[target].to_numpy(dtype=np.float64),
                predicted=values[:, column],
                parts={"workload": held["workload"].tolist()},
            )
        )
    return pd.concat(parts)


def _repeats(split: str, runs: pd.DataFrame, cells: pd.DataFrame) -> Sequence[pd.DataFrame]:
    """Each single run against the median of its cell: what no prediction of the cell can undercut on single runs."""
    keys = ["workload", "rate"]
    median = runs[keys].merge(cells, on=keys, how="left")
    named = runs.assign(prompt_set=median["prompt_set"])
    return [_rows(split, REPEATS, named, median[list(TARGETS)].to_numpy(dtype=np.float64))]


def _readable(costs: Costs) -> dict[str, float]:
    """Costs with three digits; times in milliseconds."""
    return {
        name.replace("_seconds", "_ms"): float(f"{value * (1e3 if name.endswith('_seconds') else 1.0):.3g}")
        for name, value in asdict(costs).items()
    }
