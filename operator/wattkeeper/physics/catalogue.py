"""The GPUs and models that ship with the product, read from YAML beside this module and checked at load.

Each entry of a GPU and of a fitted pair names its source; model architectures are those of the published config.json.
"""

import difflib
import functools
import importlib.resources
import math
import re
from collections.abc import Iterable
from typing import Any

import pydantic
import yaml

from wattkeeper.domain import errors
from wattkeeper.physics import profile
from wattkeeper.physics.architecture import ModelSpec, precision_in_name
from wattkeeper.physics.catalogue_entries import TERMS, FittedPair, GpuEntry, ModelEntry


def _read(file_name: str) -> Any:
    text = (importlib.resources.files("wattkeeper.physics") / "data" / file_name).read_text(encoding="utf-8")
    return yaml.safe_load(text)


@functools.cache
def gpus() -> tuple[profile.GpuSpec, ...]:
    """All accelerators."""
    return tuple(entry.spec() for entry in pydantic.TypeAdapter(list[GpuEntry]).validate_python(_read("gpus.yaml")))


@functools.cache
def models() -> tuple[ModelSpec, ...]:
    """All models."""
    entries = pydantic.TypeAdapter(list[ModelEntry]).validate_python(_read("models.yaml"))
    return tuple(spec for entry in entries for spec in entry.specs())


@functools.cache
def fitted_pairs() -> tuple[FittedPair, ...]:
    """All (model, accelerator, tensor parallel size) with fitted coefficients."""
    pairs = pydantic.TypeAdapter(tuple[FittedPair, ...]).validate_python(_read("fitted.yaml"))
    for pair in pairs:
        numbers = [value for value in vars(pair).values() if isinstance(value, float)]
        if not all(math.isfinite(value) and value >= 0 for value in numbers):
            raise ValueError(f"fitted.yaml: {pair.models[0]} on {pair.accelerator} has a negative coefficient")
        if not {*pair.estimated, *pair.term_errors} <= set(TERMS):
            raise ValueError(f"fitted.yaml: {pair.models[0]} on {pair.accelerator}: terms are {', '.join(TERMS)}")
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


@functools.cache
def _tail_index() -> dict[str, ModelSpec]:
    return {normalised(name.rpartition("/")[2]): spec for spec in models() for name in (spec.name, *spec.aliases)}


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

    A name that differs from a known one by a weight precision ("...-FP8", "-AWQ", "-GPTQ-Int4", "-NVFP4", "-w4a16")
    and by the organisation alone is that model with its linear layers in that precision.
    Raises UnknownModelError, which lists close names.
    """
    key = normalised(name)
    index = _model_index()
    if key in index:
        return index[key]
    if "/" not in name and key in _tail_index():
        return _tail_index()[key]
    plain, precision = precision_in_name(name)
    if precision is not None:
        base = index.get(normalised(plain)) or _tail_index().get(normalised(plain.rpartition("/")[2]))
        if base is not None:
            return base.quantised(name, precision)
    raise errors.UnknownModelError(
        f"model {name!r} is not in the catalogue{_closest(key, index)}. "
        "Give its coefficients in a ModelProfile, or use a known model id."
    )
