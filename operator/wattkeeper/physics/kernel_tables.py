"""Measured latencies of single kernels: tables of matrix products, attention and routed experts per accelerator.

The files are not shipped. `SOURCES` says which are read and where they come from; all are Apache-2.0 or MIT and lie in
`kernels/` of the data folder. Latencies are milliseconds at the card's default clocks and power limit.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import interpolate

from wattkeeper.domain.errors import DataFileError
from wattkeeper.domain.workload import FloatArray
from wattkeeper.physics import catalogue, kernel_checks

AICONFIGURATOR = "aiconfigurator kernel tables (ai-dynamo/aiconfigurator, Apache-2.0)"
TIMES_PATTERN = "kernels/aiconfigurator-vllm/{gpu}__{kind}__vllm__{version}__{name}_perf.parquet"
POWERS_PATTERN = "kernels/aiconfigurator-power/{gpu}/{kind}/vllm/{version}/{name}_perf.parquet"


@dataclass(frozen=True, kw_only=True)
class TableSource:
    """Where the tables of one accelerator are."""

    accelerator: str
    """Catalogue name."""
    gpu: str
    version: str
    """Of vLLM."""
    pattern: str
    experts: tuple[str, str, str] | None = None
    """(gpu, version, pattern) of the table of routed experts."""


_H200_EXPERTS = ("h200_sxm", "0.22.0", POWERS_PATTERN)
SOURCES = (
    TableSource(accelerator="nvidia-a100-sxm", gpu="a100_sxm", version="0.14.0", pattern=TIMES_PATTERN),
    TableSource(accelerator="nvidia-h100-sxm", gpu="h100_sxm", version="0.24.0", pattern=TIMES_PATTERN),
    TableSource(
        accelerator="nvidia-h200-sxm", gpu="h200_sxm", version="0.24.0", pattern=TIMES_PATTERN, experts=_H200_EXPERTS
    ),
    TableSource(
        accelerator="nvidia-b200",
        gpu="b200_sxm",
        version="0.22.0",
        pattern=POWERS_PATTERN,
        experts=("b200_sxm", "0.22.0", POWERS_PATTERN),
    ),
)


def scan(path: Path, accelerator: str) -> tuple[pd.DataFrame, dict[int, str]]:
    """A table as it is, and why which of its rows (by position) cannot be used.

    Raises DataFileError: missing, unreadable, or another kind of table.
    """
    try:
        frame = pd.read_parquet(path)
    except FileNotFoundError:
        raise DataFileError(
            f"{path} is missing: `wattkeeper data fetch aiconfigurator-times aiconfigurator-power` gets the tables of "
            f"{AICONFIGURATOR}"
        ) from None
    except (OSError, ValueError) as error:
        raise DataFileError(f"{path} cannot be read as a kernel table ({error}): copy it anew") from error
    if "latency" not in frame.columns:
        raise DataFileError(f"{path}: column latency is missing: it is another kind of table")
    return frame, kernel_checks.reasons(frame, catalogue.gpu(accelerator))


@functools.lru_cache(maxsize=32)
def _read(path: Path, accelerator: str) -> pd.DataFrame:
    frame, wrong = scan(path, accelerator)
    if wrong:
        raise DataFileError(f"{kernel_checks.first(path, wrong)}: copy the table anew")
    return frame


def _frame(path: Path, accelerator: str, columns: tuple[str, ...]) -> pd.DataFrame:
    frame = _read(path, accelerator)
    lost = [name for name in columns if name not in frame.columns]
    if lost:
        raise DataFileError(f"{path}: columns {', '.join(lost)} are missing: it is another kind of table")
    return frame


class KernelTables:
    """Seconds of kernels on one accelerator, interpolated in the logarithm of size and latency.

    Raises DataFileError: unknown accelerator, missing or foreign file, or no measurement of a shape.
    """

    def __init__(self, folder: Path, accelerator: str) -> None:
        source = next((each for each in SOURCES if each.accelerator == accelerator), None)
        if source is None:
            known = ", ".join(each.accelerator for each in SOURCES)
            raise DataFileError(f"no kernel tables of {accelerator}, only of {known}: use --source itl or live")
        self.source = source
        self._folder = folder

    def _path(self, kind: str, name: str) -> Path:
        gpu, version, pattern = self.source.gpu, self.source.version, self.source.pattern
        if kind == "moe":
            if self.source.experts is None:
                raise DataFileError(
                    f"there is no table of routed experts for {self.source.accelerator}: mixtures can be composed on "
                    "nvidia-h200-sxm and nvidia-b200; use --source itl here"
                )
            gpu, version, pattern = self.source.experts
        return self._folder / pattern.format(gpu=gpu, kind=kind, version=version, name=name)

    def matrix_product(self, rows: FloatArray, *, columns: int, inner: int, dtype: str = "bfloat16") -> FloatArray:
        """Seconds of (rows x inner) @ (inner x columns); shape of `rows`."""
        return np.asarray(self._products(dtype)(_points(rows, columns, inner)))

    @functools.lru_cache(maxsize=8)  # noqa: B019 - one object per command
    def _products(self, dtype: str) -> Any:
        frame = _frame(self._path("gemm", "gemm"), self.source.accelerator, ("gemm_dtype", "m", "n", "k"))
        chosen = frame[frame["gemm_dtype"] == dtype]
        if chosen.empty:
            known = ", ".join(sorted(frame["gemm_dtype"].unique()))
            raise DataFileError(f"no matrix products in {dtype} on {self.source.accelerator}, only in {known}")
        return _log_grid(chosen, ("m", "n", "k"))

    def decode_attention(
        self, sequences: FloatArray, context_tokens: FloatArray, *, heads: int, kv_heads: int, head_dim: int,
        window: int = 0,
    ) -> FloatArray:  # fmt: skip
        """Seconds of one layer's attention for sequences that each read `context_tokens`."""
        table, parts = self._attention("generation_attention", heads, kv_heads, head_dim, window)
        return np.asarray(table(_points(sequences * parts, np.maximum(context_tokens, 2.0))))

    def prefill_attention(
        self, tokens: FloatArray, *, heads: int, kv_heads: int, head_dim: int, window: int = 0
    ) -> FloatArray:
        """Seconds of one layer's attention over a prompt of `tokens` without history."""
        table, parts = self._attention("context_attention", heads, kv_heads, head_dim, window)
        return np.asarray(table(_points(np.full_like(tokens, parts), tokens)))

    @functools.lru_cache(maxsize=64)  # noqa: B019 - one object per command
    def _attention(self, name: str, heads: int, kv_heads: int, head_dim: int, window: int) -> tuple[Any, int]:
        """(interpolator over batch and context, by how much the batch is larger there).

        Heads that were not measured together are taken as that many more sequences with fewer heads: the same work.
        """
        path = self._path("attention", name)
        columns = ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim")
        frame = _frame(path, self.source.accelerator, columns)
        chosen = frame[(frame["head_dim"] == head_dim) & (frame["kv_cache_dtype"] == "bfloat16")]
        if "window_size" in chosen.columns:
            chosen = chosen[chosen["window_size"] == window]
        elif window:
            chosen = chosen[:0]
        for parts in (1, 2, 4, 8, 16):
            if heads % parts or kv_heads % parts:
                break
            same = (chosen["num_heads"] == heads // parts) & (chosen["num_key_value_heads"] == kv_heads // parts)
            if same.any():
                exact = chosen[same]
                exact = exact.assign(context=exact["isl"] + exact["step"])
                return _log_grid(exact, ("batch_size", "context")), parts
        kind = f"{heads} heads, {kv_heads} KV heads of {head_dim}" + (f", window {window}" if window else "")
        raise DataFileError(
            f"{path.name} of {self.source.accelerator} has no attention with {kind} per GPU: choose another --tp, "
            "or use --source itl"
        )

    def experts(
        self, tokens: FloatArray, *, hidden: int, intermediate: int, experts: int, per_token: int, shards: int,
        dtype: str = "bfloat16",
    ) -> FloatArray:  # fmt: skip
        """Seconds of one layer's routed experts, on GPUs that share each expert (tensor parallel)."""
        path = self._path("moe", "moe")
        columns = ("moe_dtype", "num_tokens", "hidden_size", "inter_size", "topk", "num_experts")
        frame = _frame(path, self.source.accelerator, columns)
        chosen = frame[
            (frame["moe_dtype"] == dtype)
            & (frame["hidden_size"] == hidden)
            & (frame["inter_size"] == intermediate)
            & (frame["topk"] == per_token)
            & (frame["num_experts"] == experts)
            & (frame["moe_tp_size"] == shards)
            & (frame["moe_ep_size"] == 1)
            & (frame["distribution"] == _DISTRIBUTION)
        ]
        if chosen.empty:
            raise DataFileError(
                f"{path.name} of {self.source.accelerator} has no {dtype} experts of {experts} x {intermediate} over "
                f"hidden {hidden}, {per_token} per token, on {shards} GPUs: choose another --tp, or use --source itl"
            )
        return np.asarray(_log_grid(chosen, ("num_tokens",))(_points(tokens)))


_DISTRIBUTION = "power_law_1.2"
"""How unevenly tokens choose experts in the table."""


def _points(*columns: Any) -> FloatArray:
    sizes = np.stack(np.broadcast_arrays(*(np.asarray(each, dtype=np.float64) for each in columns)), axis=-1)
    return np.asarray(np.log(sizes))


def _log_grid(frame: pd.DataFrame, names: tuple[str, ...]) -> Any:
    """Interpolator of ln(seconds) over ln(size): takes ln(sizes) of shape (..., len(names)), gives seconds."""
    best = frame.groupby(list(names))["latency"].median().reset_index()
    axes = [np.sort(best[name].unique()).astype(np.float64) for name in names]
    grid = np.full([len(axis) for axis in axes], np.nan)
    values = [best[name].to_numpy(np.float64) for name in names]
    place = tuple(np.searchsorted(axis, value) for axis, value in zip(axes, values, strict=True))
    grid[place] = np.log(best["latency"].to_numpy(np.float64) * 1e-3)
    logs = [np.log(axis) for axis in axes]
    missing = np.isnan(grid)
    if missing.any():
        mesh = np.stack(np.meshgrid(*logs, indexing="ij"), axis=-1)
        near = interpolate.NearestNDInterpolator(mesh[~missing], np.arange(int((~missing).sum())))
        index = near(mesh[missing]).astype(int)
        # Sizes that were not measured did not fit the card: there, latency goes with the work.
        work = (mesh[missing] - mesh[~missing][index]).sum(axis=-1)
        grid[missing] = grid[~missing][index] + work
    found = interpolate.RegularGridInterpolator(logs, grid, bounds_error=False, fill_value=None)
    low, high = np.array([axis[0] for axis in logs]), np.array([axis[-1] for axis in logs])

    def seconds(points: FloatArray) -> FloatArray:
        # Beyond the largest size measured, latency grows in proportion to it.
        inside = np.clip(points, low, high)
        return np.asarray(np.exp(found(inside) + np.maximum(points - high, 0.0).sum(axis=-1)))

    return seconds
