"""What the sequences of measured runs did: from the set-up of ML.ENERGY's benchmark, or as in a run without end.

A row of the tidy table (`energy.data`) says how many sequences a run decoded, and mean lengths. How old its sequences
were in the measured window, how many requests began there, and how many of those were new to the engine, is known for
ML.ENERGY from its published set-up (`ml_energy_runs.yaml`) and nothing that was measured. Rows of other sources, and
live states, are in a steady state, and all their requests are new.
"""

import functools
import importlib.resources
import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pandas as pd
import pydantic
import yaml

from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import closed_window, data

_STEADY_VARIATION = 1.0
"""Of answer lengths where nothing is known: that of ML.ENERGY's conversations."""
_GPU_NAMES = {"nvidia-h100-sxm": "H100", "nvidia-b200": "B200"}
_Count = Annotated[int, pydantic.Field(gt=0)]


class _Task(pydantic.BaseModel, extra="forbid", frozen=True):
    requests: _Count
    length_variation: Annotated[float, pydantic.Field(gt=0.0)]
    least_passes: float
    passes: dict[str, dict[int, _Count]]
    prompt_tokens: dict[str, float] = {}

    def requests_of(self, *, model: str, gpu: str, batch: int) -> int:
        """Of a run."""
        fewest = math.ceil(self.least_passes * batch / self.requests)
        return self.requests * self.passes.get(f"{model} {gpu}", {}).get(batch, fewest)


class _SetUp(pydantic.BaseModel, extra="forbid", frozen=True):
    not_cached: tuple[str, ...]
    tasks: dict[str, _Task]


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Of N runs; arrays (N,)."""

    prompt_tokens: FloatArray
    """Computed per request, prefix hits taken off."""
    context_tokens: FloatArray
    """Mean resident tokens of a running sequence."""
    begun_per_token: FloatArray
    """Requests that begin per output token."""
    new_share: FloatArray
    """Of the beginning requests, those whose prompt the engine has not kept from an earlier pass; 0..1."""


@functools.cache
def _set_up() -> _SetUp:
    text = (importlib.resources.files("wattkeeper.energy") / "ml_energy_runs.yaml").read_text(encoding="utf-8")
    return _SetUp.model_validate(yaml.safe_load(text))


def sequences(table: pd.DataFrame) -> Sequences:
    """Of the runs of a tidy table, in its order. Without a column `source` all are in a steady state."""
    prompt, output = (table[name].to_numpy(dtype=np.float64) for name in ("prompt_tokens", "output_tokens"))
    prompt, cached = prompt.copy(), data.cached_tokens(table)
    age = np.full(len(table), closed_window.steady_age(_STEADY_VARIATION))
    begun, new = np.ones(len(table)), np.ones(len(table))
    for index in _of_benchmark(table):
        row = table.iloc[index]
        model, task, batch = str(row["model"]), _set_up().tasks[str(row["task"])], round(float(row["max_num_seqs"]))
        requests = task.requests_of(model=model, gpu=_GPU_NAMES[str(row["gpu"])], batch=batch)
        window = closed_window.window(requests=requests, batch=batch, variation=task.length_variation)
        age[index], begun[index] = window.age, window.begun
        if not model.startswith(_set_up().not_cached):
            new[index] = np.clip((task.requests - batch) / max(requests - batch - 1, 1), 0.0, 1.0)
        prompt[index] = next(
            (value for name, value in task.prompt_tokens.items() if model.startswith(name)), prompt[index]
        )
    return Sequences(
        prompt_tokens=np.maximum(prompt - cached, 1.0),
        context_tokens=prompt + age * output,
        begun_per_token=begun / output,
        new_share=new,
    )


def _of_benchmark(table: pd.DataFrame) -> npt.NDArray[np.intp]:
    if "source" not in table:
        return np.zeros(0, dtype=np.intp)
    known = (
        (table["source"] == data.ML_ENERGY_V3.name)
        & table["task"].isin(_set_up().tasks)
        & table["gpu"].isin(_GPU_NAMES)
    )
    return np.flatnonzero(known)
