"""Where each number of a serving profile comes from, and how wrong it may be."""

from wattkeeper.physics.catalogue_entries import FittedPair
from wattkeeper.physics.profile import CoefficientSource, Provenance

ITERATION_FIELDS = {
    "d0": "d0_seconds",
    "dt": "dt_seconds_per_token",
    "dn": "dn_seconds_per_decode",
    "dkv": "dkv_seconds_per_kv_token",
    "da": "da_seconds_per_token_squared",
}
_ENERGY_FIELDS = {
    "static_watts": "static_watts",
    "idle_watts": "idle_watts",
    "e0_joules": "e0_joules",
    "en_joules_per_decode": "en_joules",
    "ekv_joules_per_kv_token": "ekv_joules",
    "et_joules_per_prefill_token": "et_joules",
}
ENERGY_ERROR = 0.195
"""Mean error of estimated watts over the 838 runs of ML.ENERGY v3 (the physics column of the energy model's card)."""
FITTED_ENERGY_ERROR = 0.055
"""Largest error of the two fits of watts in the catalogue."""
MIXED_KV_ERROR = 0.1
"""Assumed for models whose layers keep different things: padding of groups, blocks and state types vary with vLLM."""
CAPACITY_ERROR = 0.1
"""Assumed: what activations, graphs and libraries take varies with version and settings."""


def of_profile(
    *, pair: FittedPair | None, relative_error: float, estimate: str, plain_kv: bool
) -> tuple[CoefficientSource, ...]:
    """Provenance of every number: the fit's where there is one, else the estimate's."""
    found = []
    for term, name in ITERATION_FIELDS.items():
        fitted = pair is not None and term not in pair.estimated
        found.append(
            CoefficientSource(
                name=name,
                provenance=Provenance.FITTED if fitted else Provenance.ESTIMATED,
                relative_error=pair.term_errors.get(term, relative_error) if pair and fitted else relative_error,
                source=pair.source if pair and fitted else estimate,
            )
        )
    for name, key in _ENERGY_FIELDS.items():
        fitted = pair is not None and getattr(pair, key) is not None
        found.append(
            CoefficientSource(
                name=name,
                provenance=Provenance.FITTED if fitted else Provenance.ESTIMATED,
                relative_error=FITTED_ENERGY_ERROR if fitted else ENERGY_ERROR,
                source=pair.source if pair and fitted else "share of the power limit, from the two fitted pairs",
            )
        )
    rule = "allocation rule of vLLM"
    for name, error in (("kv_bytes_per_token", 0.0), ("kv_capacity_tokens", CAPACITY_ERROR)):
        found.append(
            CoefficientSource(
                name=name,
                provenance=Provenance.ESTIMATED,
                relative_error=error if plain_kv else max(error, MIXED_KV_ERROR),
                source=rule,
            )
        )
    return tuple(found)
