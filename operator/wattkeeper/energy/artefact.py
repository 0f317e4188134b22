"""The trained file: one JSON document with everything the model needs, guarded by a checksum of its payload.

Boosters are kept in LightGBM's own text format, all else as numbers (no pickles: a model file cannot run code). Keys
are sorted, so that the same training gives the same bytes; compressed where its name ends in .gz.
"""

import importlib.resources
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from wattkeeper.domain import sealed
from wattkeeper.domain.errors import ModelFileError

FORMAT = "wattkeeper-energy-model"
FORMAT_VERSION = 2
SHIPPED = "energy-v2.json.gz"
_RETRAIN = "use the file that ships with the package, or make one with `wattkeeper train`"


@dataclass(frozen=True, kw_only=True)
class Payload:
    """What was learned. Logarithms are natural; factor limits are in the scale of each factor."""

    factors: tuple[str, ...]
    factor_low: tuple[float, ...]
    """Smallest value of each factor in training: outside, the correction fades."""
    factor_high: tuple[float, ...]
    residual_low: float
    """Smallest ln(measured / estimated) of training: no correction goes below."""
    residual_high: float
    half_width: dict[str, float]
    """Of the 90 % intervals on held-out groups: multiples of the model's spread for `known_model`, `known_backbone`
    and `new_backbone`, and the logarithm for `physics`."""
    reference_watts: tuple[float, ...]
    """Physical estimates of fixed states at training: the correction fits this estimate only."""
    deployments: tuple[dict[str, Any], ...]
    """`correction.Deployment`s of the training rows, as plain numbers."""
    learned: dict[str, Any]
    """The model, see `energy.learned_file`."""
    card: dict[str, Any]
    """Data, split, errors, licences: what a user must know of the file."""


def shipped_path() -> Path:
    """The model file inside the package."""
    return Path(str(importlib.resources.files("wattkeeper.energy") / "artefacts" / SHIPPED))


def dump(payload: Payload) -> str:
    """The file's text."""
    return sealed.dump(asdict(payload), file_format=FORMAT, version=FORMAT_VERSION)


def load(path: Path) -> tuple[Payload, str]:
    """The payload of a file and its SHA-256.

    Raises ModelFileError: missing, no JSON, another format, altered, or incomplete; names the file and what to do.
    """
    body, digest = sealed.load(path, what="energy model", file_format=FORMAT, version=FORMAT_VERSION, advice=_RETRAIN)
    try:
        return _payload(body), digest
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"energy model {path} is incomplete ({error}): {_RETRAIN}") from error


def _payload(body: Any) -> Payload:
    names = {field.name for field in fields(Payload)}
    if not isinstance(body, dict) or set(body) != names:
        raise ValueError("its parts are not the expected ones")
    payload = Payload(
        factors=tuple(map(str, body["factors"])),
        factor_low=tuple(map(float, body["factor_low"])),
        factor_high=tuple(map(float, body["factor_high"])),
        residual_low=float(body["residual_low"]),
        residual_high=float(body["residual_high"]),
        half_width={str(name): float(value) for name, value in body["half_width"].items()},
        reference_watts=tuple(map(float, body["reference_watts"])),
        deployments=tuple(map(dict, body["deployments"])),
        learned=dict(body["learned"]),
        card=dict(body["card"]),
    )
    if {len(payload.factor_low), len(payload.factor_high)} != {len(payload.factors)}:
        raise ValueError("factor limits are missing")
    numbers = [*payload.factor_low, *payload.factor_high, payload.residual_low, payload.residual_high]
    numbers += [payload.half_width[name] for name in ("known_model", "known_backbone", "new_backbone", "physics")]
    if not all(map(math.isfinite, numbers)) or payload.residual_low > payload.residual_high:
        raise ValueError("limits are not finite or reversed")
    return payload
