"""The GPUs and models that ship with the product, read from YAML beside this module and checked at load.

Each entry of a GPU and of a fitted pair names its source; model architectures are those of the published config.json.
"""

import difflib
import functools
import importlib.resources
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import pydantic
import yaml

from wattkeeper.domain import errors
from wattkeeper.physics import profile


class Attention(Enum):
    """How keys and values are kept."""

    GQA = "gqa"
    """Keys and values per KV head, sharded over tensor parallel ranks (covers MHA and MQA)."""
    MLA = "mla"
    """One compressed latent vector per token and layer, replicated over tensor parallel ranks."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Architecture of one model, as far as time and memory depend on it."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    parameters: float
    activated_parameters: float
    """Parameters that one token uses; equal to `parameters` for a dense model."""
    weight_bytes_per_parameter: float
    max_model_len: int | None
    source: str
    aliases: tuple[str, ...] = ()
    attention: Attention = Attention.GQA
    kv_layers: int = 0
    """Layers whose KV grows with the context; the others keep a short sliding window."""
    kv_latent_dim: int = 0
    """Latent plus rope dimension of MLA; 0 for GQA."""
    experts: int = 0
    experts_per_token: int = 0
    expert_parameters: float = 0.0
    """Parameters inside all routed experts."""

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights."""
        return self.parameters * self.weight_bytes_per_parameter


@dataclass(frozen=True, kw_only=True)
class FittedPair:
    """Coefficients fitted to measurements of a model architecture on an accelerator; None: not fitted."""

    models: tuple[str, ...]
    accelerator: str
    tensor_parallel: int
    d0_ms: float
    dn_ms: float
    dkv_ms: float
    dt_ms: float
    da_ms: float
    prefill_clock_ceiling: float
    static_watts: float | None
    idle_watts: float | None
    e0_joules: float | None
    en_joules: float | None
    ekv_joules: float | None
    et_joules: float | None
    relative_error: float
    source: str


class _GpuEntry(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    name: str
    aliases: tuple[str, ...]
    memory_gb: pydantic.PositiveFloat
    bandwidth_gb_per_second: pydantic.PositiveFloat
    bf16_tflops: pydantic.PositiveFloat
    tdp_watts: pydantic.PositiveFloat
    min_cap_watts: pydantic.PositiveFloat
    max_clock_mhz: pydantic.PositiveFloat
    min_clock_mhz: pydantic.PositiveFloat
    idle_watts: pydantic.PositiveFloat
    source: str

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> "_GpuEntry":
        if not (self.idle_watts < self.tdp_watts and self.min_cap_watts < self.tdp_watts):
            raise ValueError(f"{self.name}: idle and smallest cap must lie below the TDP")
        if self.min_clock_mhz >= self.max_clock_mhz:
            raise ValueError(f"{self.name}: the smallest clock must lie below the largest")
        return self

    def spec(self) -> profile.GpuSpec:
        return profile.GpuSpec(
            name=self.name,
            aliases=self.aliases,
            memory_bytes=self.memory_gb * 1e9,
            bandwidth_bytes_per_second=self.bandwidth_gb_per_second * 1e9,
            bf16_flops=self.bf16_tflops * 1e12,
            tdp_watts=self.tdp_watts,
            min_cap_watts=self.min_cap_watts,
            max_clock_mhz=self.max_clock_mhz,
            min_clock_mhz=self.min_clock_mhz,
            idle_watts=self.idle_watts,
            source=self.source,
        )


class _ModelEntry(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    name: str
    aliases: tuple[str, ...] = ()
    attention: Attention = Attention.GQA
    layers: pydantic.PositiveInt
    kv_layers: int | None = None
    hidden: pydantic.PositiveInt
    heads: pydantic.PositiveInt
    kv_heads: pydantic.PositiveInt
    head_dim: pydantic.PositiveInt
    kv_latent_dim: pydantic.NonNegativeInt = 0
    vocab: pydantic.PositiveInt
    parameters: pydantic.PositiveFloat
    activated_parameters: float | None = None
    experts: pydantic.NonNegativeInt = 0
    experts_per_token: pydantic.NonNegativeInt = 0
    expert_parameters: pydantic.NonNegativeFloat = 0.0
    weight_bytes_per_parameter: pydantic.PositiveFloat = 2.0
    max_model_len: pydantic.PositiveInt

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "_ModelEntry":
        activated = self.activated_parameters if self.activated_parameters is not None else self.parameters
        if activated > self.parameters or self.expert_parameters > self.parameters:
            raise ValueError(f"{self.name}: a part of the parameters exceeds the whole")
        if bool(self.experts) != bool(self.experts_per_token) or bool(self.experts) != bool(self.expert_parameters):
            raise ValueError(f"{self.name}: experts, experts_per_token and expert_parameters go together")
        if (self.attention is Attention.MLA) != bool(self.kv_latent_dim):
            raise ValueError(f"{self.name}: kv_latent_dim goes with attention mla")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.name}: heads must be a multiple of kv_heads")
        return self

    def spec(self) -> ModelSpec:
        values: dict[str, Any] = self.model_dump()
        activated = self.activated_parameters if self.activated_parameters is not None else self.parameters
        values.update(
            parameters=self.parameters * 1e9,
            activated_parameters=activated * 1e9,
            expert_parameters=self.expert_parameters * 1e9,
            kv_layers=self.kv_layers or self.layers,
            source="published config.json",
        )
        return ModelSpec(**values)


def _read(file_name: str) -> Any:
    text = (importlib.resources.files("wattkeeper.physics") / "data" / file_name).read_text(encoding="utf-8")
    return yaml.safe_load(text)


@functools.cache
def gpus() -> tuple[profile.GpuSpec, ...]:
    """All accelerators."""
    return tuple(entry.spec() for entry in pydantic.TypeAdapter(list[_GpuEntry]).validate_python(_read("gpus.yaml")))


@functools.cache
def models() -> tuple[ModelSpec, ...]:
    """All models."""
    entries = pydantic.TypeAdapter(list[_ModelEntry]).validate_python(_read("models.yaml"))
    return tuple(entry.spec() for entry in entries)


@functools.cache
def fitted_pairs() -> tuple[FittedPair, ...]:
    """All (model, accelerator, tensor parallel size) with fitted coefficients."""
    pairs = pydantic.TypeAdapter(tuple[FittedPair, ...]).validate_python(_read("fitted.yaml"))
    for pair in pairs:
        numbers = [value for value in vars(pair).values() if isinstance(value, float)]
        if not all(math.isfinite(value) and value >= 0 for value in numbers):
            raise ValueError(f"fitted.yaml: {pair.models[0]} on {pair.accelerator} has a negative coefficient")
        gpu(pair.accelerator)
        for name in pair.models:
            model(name)
    return pairs


def normalised(name: str) -> str:
    """Lower case with every run of other characters than letters and digits as one dash."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _index(entries: Iterable[profile.GpuSpec | ModelSpec]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in entries:
        for name in (entry.name, *entry.aliases):
            if found.setdefault(normalised(name), entry) is not entry:
                raise ValueError(f"catalogue: {name!r} names two entries")
    return found


@functools.cache
def _gpu_index() -> dict[str, profile.GpuSpec]:
    return _index(gpus())


@functools.cache
def _model_index() -> dict[str, ModelSpec]:
    return _index(models())


def _closest(key: str, index: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(index), n=3, cutoff=0.4)
    return f"; close names: {', '.join(close)}" if close else ""


def gpu(name: str) -> profile.GpuSpec:
    """The accelerator of a catalogue name, a DCGM modelName or a node label value.

    Raises UnknownAcceleratorError, which lists close names.
    """
    key = normalised(name).removesuffix("-shared")
    index = _gpu_index()
    if key not in index:
        raise errors.UnknownAcceleratorError(
            f"accelerator {name!r} is not in the catalogue{_closest(key, index)}. "
            "Set spec.accelerator.type to a known one."
        )
    return index[key]


def model(name: str) -> ModelSpec:
    """The model of a Hugging Face id; the organisation may be left out.

    Raises UnknownModelError, which lists close names.
    """
    key = normalised(name)
    index = _model_index()
    if key in index:
        return index[key]
    if "/" not in name:
        tails = {
            normalised(alias.rpartition("/")[2]): spec for spec in models() for alias in (spec.name, *spec.aliases)
        }
        if key in tails:
            return tails[key]
    raise errors.UnknownModelError(
        f"model {name!r} is not in the catalogue{_closest(key, index)}. "
        "Give its coefficients in a ModelProfile, or use a known model id."
    )
