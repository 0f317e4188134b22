"""A ModelProfile as the models take it."""

from wattkeeper.api.model_profile import ModelProfileSpec
from wattkeeper.domain.errors import UnknownAcceleratorError
from wattkeeper.physics import catalogue, profiles


def canonical(accelerator: str) -> str:
    """The catalogue's name, so that an alias in one object fits the name in another."""
    try:
        return catalogue.gpu(accelerator).name
    except UnknownAcceleratorError:
        return accelerator


def of_profile(name: str, spec: ModelProfileSpec) -> profiles.ProfileOverrides:
    """What the ModelProfile `name` says, in SI units."""
    iteration: dict[str, float | None] = {}
    if spec.iteration is not None:
        decode_ms = spec.iteration.dn_ms_per_decode
        iteration = {
            "d0_seconds": spec.iteration.d0_ms / 1e3,
            "dt_seconds_per_token": spec.iteration.dt_ms_per_token / 1e3,
            "dn_seconds_per_decode": None if decode_ms is None else decode_ms / 1e3,
            "dkv_seconds_per_kv_token": spec.iteration.dkv_ms_per_kilo_token / 1e6,
            "da_seconds_per_token_squared": spec.iteration.da_ms_per_mega_token_squared / 1e9,
        }
    power: dict[str, float] = {}
    if spec.power is not None:
        power = {
            "static_watts": spec.power.static_watts,
            "idle_watts": spec.power.idle_watts,
            "e0_joules": spec.power.step_joules,
            "et_joules_per_prefill_token": spec.power.joules_per_prefill_token,
            "en_joules_per_decode": spec.power.joules_per_decode_step,
            "ekv_joules_per_kv_token": spec.power.joules_per_mega_kv_token / 1e6,
        }
    return profiles.ProfileOverrides(
        **iteration,
        **power,
        kv_bytes_per_token=spec.kv_bytes_per_token,
        relative_error=spec.relative_error,
        source=f"ModelProfile {name} ({spec.provenance.value})",
    )
