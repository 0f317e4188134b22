"""Kubernetes quantities (`500m`, `2Gi`, `8`) as numbers."""

import re

_FORM = re.compile(r"^([+-]?[0-9.]+)([eE][+-]?[0-9]+)?(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$")
_UNITS = {"": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {f"{unit}i": 1024.0**power for power, unit in enumerate("KMGTPE", start=1)}


def parse(text: str | float) -> float:
    """Return the number behind a quantity; raises ValueError on anything else."""
    match = _FORM.match(str(text).strip())
    if match is None:
        raise ValueError(f"{text!r} is no quantity; expected a number with an optional unit such as m, k, Mi or Gi")
    return float(match[1] + (match[2] or "")) * {**_UNITS, **_BINARY}[match[3] or ""]
