"""The serving profile of a (model, accelerator, GPUs per replica): measured where known, else an estimate, marked so.

Order of trust: coefficients that the caller gives (a calibrated ModelProfile), then pairs fitted to measurements, then
the roofline. A part that is missing higher up is filled from below, and the notes say which.
"""

import functools
import re
from dataclasses import dataclass, replace

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.errors import UnknownModelError
from wattkeeper.physics import catalogue, coefficients, kv, neighbours, roofline
from wattkeeper.physics.architecture import Cache, CacheGroup, ModelSpec, Precision, precision_in_name
from wattkeeper.physics.catalogue_entries import FittedPair
from wattkeeper.physics.profile import (
    CoefficientSource,
    EnergyCoefficients,
    GpuSpec,
    IterationCoefficients,
    Provenance,
    ServingProfile,
)

_SIZE_IN_NAME = re.compile(r"(?:^|[-_/])(?:(\d+)x)?(\d+(?:\.\d+)?)b(?:-a(\d+(?:\.\d+)?)b)?(?:$|[-_.])", re.IGNORECASE)
_UNKNOWN_SIZE_ERROR = 0.5
NEAR_ERROR = 0.22
"""One-sigma error of step time where estimates lean on fits of similar pairs, see docs/catalogue.md."""
LEAST_NEIGHBOUR_WEIGHT = 0.1
"""A correction that weighs less is not worth mentioning."""


@dataclass(frozen=True, kw_only=True)
class ProfileOverrides:
    """Coefficients that a ModelProfile object carries; None: not given. Units as in `physics.profile`."""

    d0_seconds: float | None = None
    dt_seconds_per_token: float | None = None
    dn_seconds_per_decode: float | None = None
    dkv_seconds_per_kv_token: float | None = None
    da_seconds_per_token_squared: float | None = None
    static_watts: float | None = None
    idle_watts: float | None = None
    e0_joules: float | None = None
    et_joules_per_prefill_token: float | None = None
    en_joules_per_decode: float | None = None
    ekv_joules_per_kv_token: float | None = None
    kv_bytes_per_token: float | None = None
    kv_capacity_tokens: float | None = None
    relative_error: float | None = None
    source: str = "ModelProfile"


@functools.lru_cache(maxsize=4096)
def serving_profile(
    *,
    model: str,
    accelerator: str,
    gpus_per_replica: int,
    engine: EngineSettings,
    overrides: ProfileOverrides | None = None,
    use_fits: bool = True,
) -> ServingProfile:
    """All that is known of one replica of `model` on `gpus_per_replica` GPUs of `accelerator`.

    `engine` tells the parallel sizes and the KV dtype. A model outside the catalogue whose name carries its size
    ("acme/Foo-13B") gets a rougher estimate; else UnknownModelError. Raises UnknownAcceleratorError as well.
    Without `use_fits` the roofline estimates every pair alike, as the training of a correction to it needs.
    """
    if gpus_per_replica < 1:
        raise ValueError(f"gpus_per_replica must be at least 1, not {gpus_per_replica}")
    gpu = catalogue.gpu(accelerator)
    spec, notes, relative_error = _model_spec(model)
    pipeline = engine.pipeline_parallel_size
    data = engine.data_parallel_size
    tensor = max(1, gpus_per_replica // (pipeline * data))
    demand = kv.demand(spec, tensor_parallel=tensor, pipeline_parallel=pipeline, kv_cache_dtype=engine.kv_cache_dtype)
    kv_bytes = demand.bytes_per_token()
    # Stages of a pipeline follow one another, so only tensor parallel ranks shorten a step; data parallel ranks share
    # its work, and on a dense model each reads all weights.
    all_stages = kv.demand(spec, tensor_parallel=tensor, kv_cache_dtype=engine.kv_cache_dtype)
    iteration = roofline.iteration(spec, gpu, shards=tensor, demand=all_stages)
    energy = roofline.energy(spec, gpu, shards=tensor * pipeline, demand=demand)
    capacity = data * kv.roofline_capacity_tokens(
        gpu,
        # vLLM shares routed experts among data parallel ranks; each rank holds all other weights.
        weight_bytes_per_gpu=(spec.weight_bytes - (1.0 - 1.0 / data) * spec.expert_bytes) / (tensor * pipeline),
        kv_bytes_per_token=kv_bytes,
        memory_utilisation=kv.default_memory_utilisation(engine),
    )
    provenance = Provenance.ESTIMATED
    energy_provenance = Provenance.ESTIMATED
    pair = _fitted(spec, gpu, gpus_per_replica=gpus_per_replica, engine=engine) if use_fits else None
    estimate = "roofline of the data sheet"
    if pair is None and use_fits:
        iteration, weight = neighbours.corrected(
            iteration, model=spec, gpu=gpu, shards=tensor, neighbours=neighbours.of_catalogue()
        )
        if weight >= LEAST_NEIGHBOUR_WEIGHT:
            estimate += ", corrected by fits of similar pairs"
            if relative_error <= roofline.RELATIVE_ERROR:  # not where the architecture is a guess
                relative_error += weight * (NEAR_ERROR - relative_error)
    if pair is not None:
        iteration, energy = _with_fit(pair, iteration, energy, kv_factor=kv.dtype_bytes(engine.kv_cache_dtype) / 2.0)
        provenance, relative_error = Provenance.FITTED, pair.relative_error
        notes.append(pair.source)
        if pair.e0_joules is None:
            notes.append("energy coefficients are a roofline estimate")
        else:
            energy_provenance = Provenance.FITTED
    else:
        notes.append(f"{estimate}; one-sigma error of step time {relative_error:.0%}")
    if data > 1:
        iteration = _shared_by(iteration, data)
        energy = _energy_shared_by(energy, data)
        notes.append(f"{data} data parallel ranks taken as one engine with their work shared evenly")
    if capacity == 0.0:
        notes.append("the weights do not fit this many GPUs")
    profile = ServingProfile(
        model=model,
        gpu=gpu,
        gpus_per_replica=gpus_per_replica,
        iteration=iteration,
        energy=energy,
        kv_bytes_per_token=kv_bytes,
        kv_capacity_tokens=capacity,
        max_model_len=engine.max_model_len or spec.max_model_len,
        parameters=spec.parameters,
        activated_parameters=spec.activated_parameters,
        provenance=provenance,
        relative_error=relative_error,
        notes=tuple(notes),
        energy_provenance=energy_provenance,
        weight_bytes=spec.weight_bytes,
        coefficients=coefficients.of_profile(
            pair=pair, relative_error=relative_error, estimate=estimate, plain_kv=demand.plain
        ),
        data_parallel_size=data,
    )
    return profile if overrides is None else _overridden(profile, overrides)


def architecture(name: str) -> ModelSpec:
    """The architecture of a model: the catalogue's, else a guess from the size in its name, else UnknownModelError."""
    return _model_spec(name)[0]


def _model_spec(name: str) -> tuple[ModelSpec, list[str], float]:
    """Architecture, notes and assumed relative error of step time."""
    try:
        return catalogue.model(name), [], roofline.RELATIVE_ERROR
    except UnknownModelError:
        match = _SIZE_IN_NAME.search(name)
        if match is None:
            raise
    copies, size, activated = match.groups()
    billions = float(size) * float(copies or 1)
    if billions <= 0:
        raise UnknownModelError(f"model {name!r} is not in the catalogue and its name gives no usable size")
    spec = _architecture_of_size(name, billions * 1e9, float(activated) * 1e9 if activated else None)
    note = f"architecture guessed from the size in the name ({billions:g} billion parameters)"
    return spec, [note], _UNKNOWN_SIZE_ERROR


def _architecture_of_size(name: str, parameters: float, activated: float | None) -> ModelSpec:
    """A dense grouped-query model of this size: parameters = 12 layers hidden^2 with layers = hidden / 128."""
    hidden = (parameters * 128.0 / 12.0) ** (1.0 / 3.0)
    layers = max(8, round(hidden / 128.0))
    experts = 64 if activated else 0
    return ModelSpec(
        name=name,
        layers=layers,
        hidden=round(hidden),
        heads=max(1, round(hidden / 128.0)),
        kv_heads=8,
        head_dim=128,
        vocab=128_000,
        parameters=parameters,
        activated_parameters=activated or parameters,
        max_model_len=None,
        source="size in the model's name",
        groups=(CacheGroup(cache=Cache.FULL, layers=layers, kv_heads=8, key_dim=128, value_dim=128),),
        precision=precision_in_name(name)[1] or Precision.BF16,
        feed_forward_layers=layers,
        experts=experts,
        experts_per_token=max(1, round(experts * activated / parameters)) if activated else 0,
        expert_parameters=0.93 * parameters if activated else 0.0,
    )


def _fitted(spec: ModelSpec, gpu: GpuSpec, *, gpus_per_replica: int, engine: EngineSettings) -> FittedPair | None:
    if engine.pipeline_parallel_size != 1 or engine.data_parallel_size != 1:
        return None
    for pair in catalogue.fitted_pairs():
        same_gpu = catalogue.gpu(pair.accelerator) is gpu and pair.tensor_parallel == gpus_per_replica
        if same_gpu and any(catalogue.model(name).same_work(spec) for name in pair.models):
            return pair
    return None


def _with_fit(
    pair: FittedPair, iteration: IterationCoefficients, energy: EnergyCoefficients, *, kv_factor: float
) -> tuple[IterationCoefficients, EnergyCoefficients]:
    """Fitted terms in place of the roofline's; `kv_factor` is the KV dtype's size over the bf16 of the fit."""
    fitted = replace(
        iteration,
        d0_seconds=pair.d0_ms * 1e-3,
        dt_seconds_per_token=pair.dt_ms * 1e-3,
        dkv_seconds_per_kv_token=pair.dkv_ms * 1e-3 * kv_factor,
        da_seconds_per_token_squared=pair.da_ms * 1e-3,
        dn_seconds_per_decode=pair.dn_ms * 1e-3,
        prefill_clock_ceiling=pair.prefill_clock_ceiling,
        host_seconds=0.0,
        host_seconds_per_sequence=0.0,
        exchange_seconds_per_token=0.0,
    )
    watts = {
        "static_watts": pair.static_watts,
        "idle_watts": pair.idle_watts,
        "e0_joules": pair.e0_joules,
        "en_joules_per_decode": pair.en_joules,
        "ekv_joules_per_kv_token": None if pair.ekv_joules is None else pair.ekv_joules * kv_factor,
        "et_joules_per_prefill_token": pair.et_joules,
    }
    return fitted, replace(energy, **{name: value for name, value in watts.items() if value is not None})


def _shared_by(iteration: IterationCoefficients, ranks: int) -> IterationCoefficients:
    return replace(
        iteration,
        dt_seconds_per_token=iteration.dt_seconds_per_token / ranks,
        dkv_seconds_per_kv_token=iteration.dkv_seconds_per_kv_token / ranks,
        da_seconds_per_token_squared=iteration.da_seconds_per_token_squared / ranks,
        dn_seconds_per_decode=iteration.decode_seconds_per_sequence / ranks,
        host_seconds_per_sequence=iteration.host_seconds_per_sequence / ranks,
        exchange_seconds_per_token=iteration.exchange_seconds_per_token / ranks,
    )


def _energy_shared_by(energy: EnergyCoefficients, ranks: int) -> EnergyCoefficients:
    return replace(
        energy,
        et_joules_per_prefill_token=energy.et_joules_per_prefill_token / ranks,
        en_joules_per_decode=energy.en_joules_per_decode / ranks,
        ekv_joules_per_kv_token=energy.ekv_joules_per_kv_token / ranks,
    )


def _overridden(profile: ServingProfile, overrides: ProfileOverrides) -> ServingProfile:
    given = {name: value for name, value in vars(overrides).items() if value is not None}
    iteration_names = set(vars(profile.iteration)) & set(given)
    energy_names = set(vars(profile.energy)) & set(given)
    own_names = {"kv_bytes_per_token", "kv_capacity_tokens", "relative_error"} & set(given)
    iteration_values = {name: given[name] for name in iteration_names}
    if "dt_seconds_per_token" in iteration_values:
        # A dT that was fitted for all tokens also prices decode steps, unless those have their own slope.
        iteration_values.setdefault("dn_seconds_per_decode", iteration_values["dt_seconds_per_token"])
    complete = {"d0_seconds", "dt_seconds_per_token", "dkv_seconds_per_kv_token"} <= iteration_names
    complete_energy = {"static_watts", "e0_joules", "en_joules_per_decode"} <= energy_names
    replaced = {*iteration_values, *energy_names, *own_names}
    error = overrides.relative_error if overrides.relative_error is not None else profile.relative_error
    sources = tuple(
        CoefficientSource(name=each.name, provenance=Provenance.MEASURED, relative_error=error, source=overrides.source)
        if each.name in replaced
        else each
        for each in profile.coefficients
    )
    return replace(
        profile,
        iteration=replace(profile.iteration, **iteration_values),
        energy=replace(profile.energy, **{name: given[name] for name in energy_names}),
        provenance=Provenance.MEASURED if complete else profile.provenance,
        energy_provenance=Provenance.MEASURED if complete_energy else profile.energy_provenance,
        notes=(*profile.notes, f"coefficients of {overrides.source}") if given else profile.notes,
        coefficients=sources,
        **{name: given[name] for name in own_names},
    )
