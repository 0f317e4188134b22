"""Measured watts of single kernels beside what the roofline's energy shares say of them. Nothing is fitted to them.

The roofline (`physics.roofline`) gives a step joules for what it reads, computes and waits for, as shares of the power
limit that two pairs of model and card share. aiconfigurator measured kernels with their watts on H200 and B200 at the
full limit, so that each share can be looked at alone. A kernel's time is taken as measured: what of it is neither
reading at the data sheet's rate nor computing at the fitted one is waiting. Kernels are grouped by what most of their
time goes to, as the data sheet says; L2 caches may hold what a repeated kernel reads, so that some read faster.

The baselines are the rated power, and the mean share of the limit and a log-linear regression of the other card's
kernels of the same kind and group.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy.held_out import HeldOut
from wattkeeper.evaluation import kernel_data
from wattkeeper.physics import catalogue, roofline
from wattkeeper.physics.profile import GpuSpec

DATA, TARGET = "measured kernels", "W"
PHYSICS, HARDWARE, MEAN, LOG_LINEAR = "physics", "hardware", "mean share", "log-linear"
_KINDS = {
    "gemm": "matrix products",
    "generation_attention": "attention of decode",
    "context_attention": "attention of prefill",
    "moe": "routed experts",
}
READS, COMPUTES, WAITS = "reading", "computing", "waiting"
_WEIGHT_BYTES = {"bfloat16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "nvfp4": 0.5625, "int4_wo": 0.5}
"""Per value; nvfp4 with one 8-bit scale per 16 values."""
_DISTRIBUTION = "balanced"
"""Of tokens over experts, so that the experts touched are known."""
_MOST = 0.5
"""Share of the measured time from which a kernel is said to read or compute."""
_RIDGE = 1e-3
_LEAST = 1e-4
"""Smaller shares of time are taken as this in logarithms."""


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Kernels of one kind on one card; arrays are (N,)."""

    gpu: GpuSpec
    kind: str
    seconds: FloatArray
    watts: FloatArray
    reading_seconds: FloatArray
    """Of weights or KV at the data sheet's bandwidth, times the roofline's constant."""
    computing_seconds: FloatArray
    """At the data sheet's rate, times the roofline's constant; of attention, at its share."""
    charged_seconds: FloatArray
    """Of computing that the roofline gives joules to: it gives none to the attention of prefill and of decode."""
    shape: npt.NDArray[np.str_]
    """Kernels of one shape differ in tokens only."""

    def group(self) -> npt.NDArray[np.str_]:
        """What most of the time goes to."""
        most = np.where(self.reading_seconds > self.computing_seconds, READS, COMPUTES)
        longest = np.maximum(self.reading_seconds, self.computing_seconds)
        return np.where(longest < _MOST * self.seconds, WAITS, most)

    def where(self, mask: npt.NDArray[np.bool_]) -> "Kernels":
        """Some of them."""
        names = ("seconds", "watts", "reading_seconds", "computing_seconds", "charged_seconds", "shape")
        return Kernels(gpu=self.gpu, kind=self.kind, **{name: getattr(self, name)[mask] for name in names})


def physics_watts(kernels: Kernels) -> FloatArray:
    """Floor, reading, computing and waiting as `roofline.energy` charges them, at most the limit of the card."""
    limit = kernels.gpu.tdp_watts
    idle = kernels.gpu.idle_watts + min(roofline.CONTEXT_WATTS, roofline.CONTEXT_SHARE * limit)
    floor = max(roofline.STATIC_POWER_SHARE * limit, idle)
    waiting = np.maximum(kernels.seconds - kernels.reading_seconds - kernels.computing_seconds, 0.0)
    joules = (
        roofline.WEIGHT_READ_POWER_SHARE * limit * kernels.reading_seconds
        + roofline.OVERHEAD_POWER_SHARE * limit * waiting
        + (roofline.COMPUTE_POWER_SHARE * limit - floor) * kernels.charged_seconds
    )
    return np.minimum(floor + joules / kernels.seconds, limit)


def load(folder: Path, *, report: Callable[[str], None] = lambda _: None) -> list[Kernels]:
    """All kernels with watts; `report` is told what is left out.

    Raises DataFileError: a table is missing or not the expected one.
    """
    found = []
    frames = kernel_data.load(kernel_data.POWERS, folder)
    for table, frame in zip(kernel_data.POWERS.tables, frames, strict=True):
        if table.accelerator is None:
            continue
        used = frame
        if table.kind == "moe":
            used = frame[frame["distribution"] == _DISTRIBUTION]
            report(
                f"{table.accelerator}: {len(frame) - len(used)} of {len(frame)} kernels of routed experts left out, "
                f"whose tokens do not choose them evenly"
            )
        found.append(_kernels(used, catalogue.gpu(table.accelerator), table.kind))
    return found


def held_out(folder: Path, *, report: Callable[[str], None]) -> list[HeldOut]:
    """Every kind and group of kernels, on both cards. Raises DataFileError as `load` does."""
    report("kernels with watts")
    loaded = load(folder, report=report)
    return [
        found for kind in _KINDS for found in _of_kind([each for each in loaded if each.kind == kind], report=report)
    ]


def _of_kind(cards: list[Kernels], *, report: Callable[[str], None]) -> Iterator[HeldOut]:
    for group in (READS, COMPUTES, WAITS):
        chosen = [each.where(each.group() == group) for each in cards]
        some = [each for each in chosen if len(each.seconds)]
        if len(some) > 1:
            yield _held(some, group)
        for alone in some if len(some) == 1 else ():
            name = f"{alone.gpu.name}: {len(alone.seconds)} kernels of {_KINDS[alone.kind]}, {group}"
            report(f"{name}, left out: the other card has none to compare with")


def _held(cards: list[Kernels], group: str) -> HeldOut:
    """`cards`: two, each of which the other's regression and mean are for."""
    others = cards[::-1]
    limits = [each.gpu.tdp_watts for each in cards]
    predicted = {
        PHYSICS: [physics_watts(each) for each in cards],
        LOG_LINEAR: [_log_linear(train, test) for train, test in zip(others, cards, strict=True)],
        MEAN: [
            np.full(len(test.seconds), (train.watts / train.gpu.tdp_watts).mean() * test.gpu.tdp_watts)
            for train, test in zip(others, cards, strict=True)
        ],
        HARDWARE: [np.full(len(each.seconds), limit) for each, limit in zip(cards, limits, strict=True)],
    }
    shapes = [np.char.add(f"{each.gpu.name} ", each.shape) for each in cards]
    return HeldOut(
        data=DATA,
        target=TARGET,
        split=f"{_KINDS[cards[0].kind]}, {group}",
        groups=np.concatenate(shapes),
        fold=np.repeat(np.arange(len(cards)), [len(each.seconds) for each in cards]),
        measured=np.concatenate([each.watts for each in cards]),
        predicted={name: np.concatenate(values) for name, values in predicted.items()},
        notes=tuple(
            f"{each.gpu.name}: measured {_spread(each.watts / limit)} of the limit, physics "
            f"{np.median(own / limit):.2f}"
            for each, own, limit in zip(cards, predicted[PHYSICS], limits, strict=True)
        ),
    )


def _spread(shares: FloatArray) -> str:
    low, middle, high = np.quantile(shares, [0.1, 0.5, 0.9])
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def _log_linear(train: Kernels, test: Kernels) -> FloatArray:
    """Share of the limit over time, reading and computing, all in logarithms."""
    columns = _logs(train)
    target = np.log(train.watts / train.gpu.tdp_watts)
    normal = columns.T @ columns + _RIDGE * len(columns) * np.diag([0.0, *np.ones(columns.shape[1] - 1)])
    weights = np.linalg.solve(normal, columns.T @ target)
    return np.asarray(np.exp(_logs(test) @ weights) * test.gpu.tdp_watts)


def _logs(kernels: Kernels) -> FloatArray:
    parts = (kernels.reading_seconds, kernels.computing_seconds)
    shares = [np.log(np.maximum(each / kernels.seconds, _LEAST)) for each in parts]
    return np.column_stack([np.ones_like(kernels.seconds), np.log(kernels.seconds * 1e6), *shares])


def _kernels(frame: pd.DataFrame, gpu: GpuSpec, kind: str) -> Kernels:
    """What a table says, and its work at the data sheet's figures."""
    work = {"gemm": _products, "moe": _experts}.get(kind, _attention)
    read_bytes, operations, rate, shape = work(frame, gpu)
    constants = roofline.CONSTANTS
    read = {"gemm": constants.dense_read, "moe": constants.expert_read}.get(kind, constants.kv_read)
    attention = kind not in ("gemm", "moe")
    scale = 1.0 / roofline.ATTENTION_COMPUTE_SHARE if attention else constants.compute
    computing = scale * operations / rate
    return Kernels(
        gpu=gpu,
        kind=kind,
        seconds=frame["latency"].to_numpy(dtype=np.float64) * 1e-3,
        watts=frame["power"].to_numpy(dtype=np.float64),
        reading_seconds=read * read_bytes / gpu.bandwidth_bytes_per_second,
        computing_seconds=computing,
        charged_seconds=np.zeros_like(computing) if attention else computing,
        shape=shape,
    )


_Work = tuple[FloatArray, FloatArray, FloatArray, npt.NDArray[np.str_]]
"""Bytes of weights or KV, operations, operations per second of the data sheet, and the shape; (N,) each."""


def _products(frame: pd.DataFrame, gpu: GpuSpec) -> _Work:
    rows, columns, inner = (frame[name].to_numpy(dtype=np.float64) for name in ("m", "n", "k"))
    kinds = frame["gemm_dtype"]
    return (
        columns * inner * _bytes(kinds),
        2.0 * rows * columns * inner,
        _rates(kinds, gpu),
        _named(frame, "gemm_dtype", "n", "k"),
    )


def _experts(frame: pd.DataFrame, gpu: GpuSpec) -> _Work:
    """Three matrices per expert, of which balanced tokens touch as many as they choose."""
    names = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")
    tokens, hidden, inner, chosen, experts, split, parallel = (frame[name].to_numpy(dtype=np.float64) for name in names)
    values = 3.0 * hidden * inner / split
    touched = experts * (1.0 - (1.0 - chosen / experts) ** tokens) / parallel
    kinds = frame["moe_dtype"]
    shape = _named(frame, "moe_dtype", *names[1:])
    return touched * values * _bytes(kinds), 2.0 * tokens * chosen * values / parallel, _rates(kinds, gpu), shape


def _attention(frame: pd.DataFrame, gpu: GpuSpec) -> _Work:
    """Decode reads KV of the context; a prompt computes half of all pairs, and reads what it has just written."""
    names = ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim", "window_size")
    batch, new, before, heads, kv_heads, dim, window = (frame[name].to_numpy(dtype=np.float64) for name in names)
    seen = np.where(window > 0, np.minimum(new + before, window), new + before)
    pairs = new * np.where(new > 1, np.where(window > 0, np.minimum(new / 2.0, window), new / 2.0), seen)
    width = np.where(frame["kv_cache_dtype"] == "fp8", 1.0, 2.0)
    read = batch * seen * kv_heads * dim * 2.0 * width
    rate = np.full(len(frame), gpu.bf16_flops)
    return read, 4.0 * batch * pairs * heads * dim, rate, _named(frame, "kv_cache_dtype", *names[3:])


def _bytes(kinds: pd.Series) -> FloatArray:
    return np.array([_WEIGHT_BYTES[str(kind)] for kind in kinds])


def _rates(kinds: pd.Series, gpu: GpuSpec) -> FloatArray:
    eight = gpu.fp8_flops or gpu.bf16_flops
    rates = {"bfloat16": gpu.bf16_flops, "int4_wo": gpu.bf16_flops, "nvfp4": gpu.fp4_flops or eight}
    return np.array([rates.get(str(kind), eight) for kind in kinds])


def _named(frame: pd.DataFrame, *columns: str) -> npt.NDArray[np.str_]:
    """One name per combination of values."""
    return frame.groupby(list(columns), sort=False).ngroup().to_numpy().astype(np.str_)
