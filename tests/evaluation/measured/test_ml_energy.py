from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wattkeeper.domain.workload import FloatArray
from wattkeeper.evaluation import closed_loop, ml_energy, ml_energy_data, ml_energy_learned
from wattkeeper.evaluation.closed_loop import Points
from wattkeeper.evaluation.ml_energy_data import Curves

BATCHES = np.array([8.0, 16.0, 32.0, 64.0, 128.0])


def made_up(curves: int = 24) -> Curves:
    """Deployments that the closed form describes exactly, each with its own speed and cost of prompts."""
    rng = np.random.default_rng(5)
    batch = np.tile(BATCHES, curves)
    which = np.repeat(np.arange(curves), len(BATCHES))
    outputs = 400.0
    points = Points(
        decode_seconds=0.01 + 2e-4 * batch,
        prompts_per_step=batch / outputs,
        prompt_seconds=np.full(len(batch), 0.01),
        budget_seconds=np.full(len(batch), 0.5),
    )
    truth = np.column_stack([rng.normal(0.0, 0.3, curves), rng.normal(0.7, 0.3, curves), np.full(curves, np.log(0.04))])
    measured: FloatArray = np.array(
        [closed_loop.latencies(points, row, truth[which[row]]) for row in range(len(batch))]
    )
    table = pd.DataFrame(
        {
            "group_curve": [f"curve {number}" for number in which],
            "group_backbone": [f"backbone {number // 2}" for number in which],
            "gpu": np.where(which % 2 == 0, "nvidia-h100-sxm", "nvidia-b200"),
            "task": "chat",
            "weight_precision": "bfloat16",
            "architecture": "Dense Transformer",
            "max_num_seqs": batch,
            "parameters": 8e9,
            "activated_parameters": 8e9,
            "num_gpus": 1.0,
            "tensor_parallel": 1.0,
            "output_tokens": outputs,
        }
    )
    return Curves(table=table, points=points, measured=measured, fixed_share=0.01 / points.decode_seconds)


@pytest.fixture(scope="module")
def scores() -> dict[tuple[str, str, str], ml_energy.measured_result.Score]:
    patch = pytest.MonkeyPatch()
    patch.setattr(ml_energy_data, "load_curves", lambda folder, check: made_up())
    patch.setattr(ml_energy_learned, "_ROUNDS", 20)
    found = ml_energy.evaluate(Path(), seed=1)
    patch.undo()
    return {(each.split, each.method, each.target): each for each in found.scores if each.part == "all"}


def test_one_run_explains_a_deployment_that_follows_the_closed_form(scores: dict) -> None:
    for target in ("p50", "p95"):
        assert scores[ml_energy.MIDDLE, ml_energy.PHYSICS, target].median < 0.05
        assert scores[ml_energy.COLD, ml_energy.PHYSICS, target].median > 0.10


def test_calibration_runs_are_not_scored(scores: dict) -> None:
    assert scores[ml_energy.COLD, ml_energy.PHYSICS, "p50"].rows == 24 * 5
    assert scores[ml_energy.MIDDLE, ml_energy.PHYSICS, "p50"].rows == 24 * 4
    assert scores[ml_energy.CEILING, ml_energy.NEIGHBOURS, "p50"].rows == 24 * 3


def test_simple_scalings_are_worse(scores: dict) -> None:
    for method in (ml_energy.CONSTANT, ml_energy.ORIGIN):
        assert scores[ml_energy.MIDDLE, method, "p50"].median > 0.2


@pytest.mark.data
def test_measured_runs_are_complete(data_folder: Path) -> None:
    curves = ml_energy_data.load_curves(data_folder)
    assert len(curves.table) == 838
    assert curves.table["group_curve"].nunique() == 114
    assert np.isfinite(curves.measured).all()
    assert (np.diff(curves.measured[:, :4], axis=1) >= 0.0).all()
