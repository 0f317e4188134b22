"""Forms of a fit: a table for people, JSON, a ModelProfile for kubectl, an entry for the catalogue."""

import json
import re
from typing import Any

import yaml
from rich.table import Table

from wattkeeper.api.base import GROUP, VERSION
from wattkeeper.api.model_profile import IterationProfile, ModelProfileSpec
from wattkeeper.cli.fit_sources import Fitted
from wattkeeper.physics import catalogue
from wattkeeper.physics.catalogue_entries import TERMS

LEAST_ERROR = 0.03
"""Of an entry: a fit to few runs looks better than it is on the next workload."""
_UNITS = {
    "d0": ("ms per step", 1e3),
    "dt": ("us per prompt token", 1e6),
    "dn": ("us per decode", 1e6),
    "dkv": ("ns per KV token read", 1e9),
    "da": ("ns per 1000 pairs of positions in prefill", 1e12),
}


def table(fitted: Fitted) -> Table:
    """Terms with their standard errors; the quality of the fit below."""
    found = fitted.fit
    title = f"{fitted.model} on {fitted.gpus} {fitted.accelerator}: seconds of an iteration"
    shown = Table(title=title, title_justify="left")
    for heading in ("term", "value", "unit", "error", "origin"):
        shown.add_column(heading, justify="right" if heading in ("value", "error") else "left")
    for name in TERMS:
        unit, scale = _UNITS[name]
        term = found.terms[name]
        origin = "held" if not term.fitted else ("fitted, drawn" if term.pulled else "fitted")
        error = "" if term.standard_error is None else f"{term.standard_error:.1%}"
        shown.add_row(name, f"{term.value * scale:.4g}", unit, error, origin)
    if fitted.overhead.step_seconds or fitted.overhead.sequence_seconds:
        shown.add_row("host", f"{fitted.overhead.step_seconds * 1e3:.3g}", "ms per step", "", "added to d0")
        sequence = f"{fitted.overhead.sequence_seconds * 1e6:.3g}"
        shown.add_row("host", sequence, "us per decode", "", "added to dn")
    return shown


def summary(fitted: Fitted) -> list[str]:
    """Lines that say how good the fit is and what it rests on."""
    found = fitted.fit
    return [
        f"rows {found.rows}   MAPE {found.mape:.1%}   median {found.median_error:.1%}   p90 {found.p90_error:.1%}   "
        f"largest {found.largest_error:.1%}   R2 {found.r_squared:.4f}   condition {found.condition:.1f}",
        f"one-sigma error of step time {fitted.relative_error:.1%}",
        f"source: {fitted.source}",
        *fitted.notes,
    ]


def as_json(fitted: Fitted) -> str:
    """Everything, in seconds."""
    found = fitted.fit
    terms = {
        name: {
            "seconds": term.value,
            "relative_standard_error": term.standard_error,
            "fitted": term.fitted,
            "drawn_to_prior": term.pulled,
        }
        for name, term in found.terms.items()
    }
    quality = {
        name: getattr(found, name)
        for name in ("rows", "mape", "median_error", "p90_error", "largest_error", "r_squared", "condition")
    }
    document = {
        "model": fitted.model,
        "accelerator": fitted.accelerator,
        "gpus": fitted.gpus,
        "terms": terms,
        "host": vars(fitted.overhead),
        "quality": quality,
        "relative_error": fitted.relative_error,
        "source": fitted.source,
        "notes": list(fitted.notes),
    }
    return json.dumps(document, indent=2)


def as_model_profile(fitted: Fitted, *, name: str | None, namespace: str | None) -> str:
    """A ModelProfile that `kubectl apply -f -` takes."""
    iteration = fitted.iteration()
    decode = iteration.decode_seconds_per_sequence
    spec = ModelProfileSpec(
        model=fitted.model,
        accelerator=fitted.accelerator,
        gpus_per_replica=fitted.gpus,
        iteration=IterationProfile(
            d0_ms=_round(iteration.d0_seconds * 1e3),
            dt_ms_per_token=_round(iteration.dt_seconds_per_token * 1e3),
            dn_ms_per_decode=_round(decode * 1e3),
            dkv_ms_per_kilo_token=_round(iteration.dkv_seconds_per_kv_token * 1e6),
            da_ms_per_mega_token_squared=_round(iteration.da_seconds_per_token_squared * 1e9),
        ),
        provenance=fitted.provenance,
        relative_error=_round(min(fitted.relative_error, 2.0)),
    )
    metadata: dict[str, Any] = {"name": name or _object_name(fitted)}
    if namespace is not None:
        metadata["namespace"] = namespace
    metadata["annotations"] = {f"{GROUP}/source": fitted.source}
    document = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "ModelProfile",
        "metadata": metadata,
        "spec": spec.model_dump(mode="json", by_alias=True, exclude_none=True),
    }
    return yaml.safe_dump(document, sort_keys=False)


def as_entry(fitted: Fitted, command: str) -> str:
    """An entry of the catalogue's fitted.yaml."""
    iteration, terms = fitted.iteration(), fitted.fit.terms
    values = {
        "d0_ms": iteration.d0_seconds,
        "dn_ms": iteration.decode_seconds_per_sequence,
        "dkv_ms": iteration.dkv_seconds_per_kv_token,
        "dt_ms": iteration.dt_seconds_per_token,
        "da_ms": iteration.da_seconds_per_token_squared,
    }
    entry: dict[str, Any] = {
        "models": [fitted.model],
        "accelerator": fitted.accelerator,
        "tensor_parallel": fitted.gpus,
        **{name: _round(value * 1e3) for name, value in values.items()},
        "prefill_clock_ceiling": _prefill_clock_ceiling(fitted.accelerator),
        "relative_error": _round(max(fitted.relative_error, LEAST_ERROR), 2),
        "term_errors": {
            name: _round(term.standard_error, 2) for name, term in terms.items() if term.standard_error is not None
        },
        "estimated": [name for name, term in terms.items() if not term.fitted],
        "end_to_end": fitted.end_to_end,
        "source": "; ".join([f"{command}: {fitted.source}", *fitted.notes, f"MAPE {fitted.fit.mape:.1%}"]),
    }
    return yaml.safe_dump([entry], sort_keys=False, width=120, default_flow_style=None)


def _prefill_clock_ceiling(accelerator: str) -> float:
    """That of the other fits on this card: it is the card's, not the model's."""
    same = (pair.prefill_clock_ceiling for pair in catalogue.fitted_pairs() if pair.accelerator == accelerator)
    return next(same, 1.0)


def _object_name(fitted: Fitted) -> str:
    """A name that Kubernetes takes: lower case, dashes, at most 63 characters."""
    tail = fitted.model.rpartition("/")[2]
    words = f"{tail}-{fitted.accelerator}-x{fitted.gpus}".lower()
    return re.sub(r"[^a-z0-9]+", "-", words)[:63].strip("-")


def _round(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")
