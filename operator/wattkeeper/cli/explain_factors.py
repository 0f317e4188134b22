"""`wattkeeper explain --factors`: every factor of energy of a live service, as the operator saw it last.

Values and reasons come from the status; what a factor is comes from the schema, its trained range from the model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from wattkeeper.api.factors import FactorsStatus, UntrainedFactor
from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.energy import factor_schema
from wattkeeper.energy.factor_kinds import Dimension
from wattkeeper.energy.factor_schema import Listed
from wattkeeper.energy.model import EnergyModel
from wattkeeper.energy.trained_range import Untrained

_HEADINGS = ("factor", "value", "unit", "source", "known", "trained on")
_WORD = "name"
"""Unit of factors whose value is a word."""
_SLACK = 1e-3
"""Relative: values in the status are rounded."""
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Told:
    """One factor with all that is known of it."""

    listed: Listed
    value: str | None
    note: str
    trained: tuple[float, float] | None
    """None: no model learns from it."""
    widens: bool
    """True where it widens the interval of the predicted power."""

    @property
    def number(self) -> float | str | None:
        """The value as a number, unless it is a word."""
        if self.value is None or self.listed.unit == _WORD:
            return self.value
        try:
            return float(self.value)
        except ValueError:
            return self.value

    @property
    def outside(self) -> bool:
        """True where the value is not among those that training saw."""
        number = self.number
        if self.trained is None or not isinstance(number, float):
            return False
        slack = _SLACK * abs(number)
        return not self.trained[0] - slack <= number <= self.trained[1] + slack


def told(status: FactorsStatus, energy: EnergyModel) -> list[Told]:
    """All factors of the schema. Raises WattkeeperError: the status has none."""
    if not status.time:
        raise WattkeeperError(
            "the status tells no factors yet: wait until the operator (of this version) has looked at the service, "
            "and see condition TargetResolved"
        )
    notes: dict[str, list[str]] = {}
    for remark in status.remarks:
        for name in remark.factors:
            notes.setdefault(name, []).append(remark.text)
    ranges, widening = energy.trained_ranges(), {each.name for each in status.untrained}
    found = []
    for listed in factor_schema.everything():
        value = status.values.get(listed.name)
        unknown = "" if value is not None else "the status does not tell it: the operator is of another version"
        found.append(
            Told(
                listed=listed,
                value=value,
                note="; ".join(notes.get(listed.name, [])) or unknown,
                trained=ranges.get(listed.name),
                widens=listed.name in widening,
            )
        )
    return found


def facts(status: FactorsStatus, found: list[Told], energy: EnergyModel) -> dict[str, Any]:
    """For programs."""
    return {
        "time": status.time,
        "energyModel": energy.version,
        "list": [
            {
                "name": each.listed.name,
                "dimension": each.listed.dimension.value,
                "value": each.number,
                "unit": each.listed.unit,
                "source": each.listed.source.value,
                "knownBeforeActing": each.listed.before_acting,
                "acts": each.listed.acts,
                "note": each.note,
                "trained": None if each.trained is None else {"low": each.trained[0], "high": each.trained[1]},
                "outsideTrained": each.outside,
                "widensInterval": each.widens,
            }
            for each in found
        ],
    }


def lines(status: FactorsStatus, found: list[Told], energy: EnergyModel) -> Iterator[str]:
    """For people: a table per dimension, then why factors have no value, then what values rest on."""
    yield f"  factors:       of what is in place, seen at {status.time}; ranges of {energy.version}"
    shown = [each for each in found if each.value is not None]
    rows = {each.listed.name: _row(each) for each in shown}
    table = [_HEADINGS, *rows.values()]
    widths = [max(len(row[column]) for row in table) for column in range(len(_HEADINGS))]
    yield f"    {_padded(_HEADINGS, widths)}"
    for dimension in Dimension:
        yield f"    {dimension.value}"
        for each in shown:
            if each.listed.dimension is dimension:
                yield f"    {_padded(rows[each.listed.name], widths)}"
    if any(each.outside for each in shown) and not status.untrained:
        yield "    outside without effect: energy was measured, or no model file is in use"
    for heading, known in (("not known", False), ("notes", True)):
        texts: dict[str, list[str]] = {}
        for each in found:
            if each.note and (each.value is not None) is known:
                texts.setdefault(each.note, []).append(each.listed.name)
        if texts:
            yield f"    {heading}"
            yield from (f"      {', '.join(names)}: {text}" for text, names in texts.items())


def _row(each: Told) -> tuple[str, ...]:
    listed, trained = each.listed, ""
    if each.trained is not None:
        trained = f"{_number(each.trained[0])} to {_number(each.trained[1])}"
        trained += ", outside" if each.outside else ""
    unit = "" if listed.unit in ("1", _WORD) else listed.unit
    known = "before acting" if listed.before_acting else "after acting"
    return f"  {listed.name}", each.value or "", unit, listed.source.value, known, trained


def _padded(row: tuple[str, ...], widths: list[int]) -> str:
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def uncertain(untrained: Sequence[UntrainedFactor | Untrained]) -> str:
    """Which factors widen the interval of predicted power, in a few words; empty: none."""
    if not untrained:
        return ""
    parts = [_outside(each) for each in untrained[:_SHOWN]]
    more = len(untrained) - _SHOWN
    parts += [f"{more} more, see --output json"] if more > 0 else []
    return f"the energy model saw nothing like {'; '.join(parts)}"


def untrained_facts(untrained: Sequence[UntrainedFactor | Untrained]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {"name": each.name, "unit": each.unit, "value": each.value, "low": each.low, "high": each.high}
        for each in untrained
    ]


def _outside(each: UntrainedFactor | Untrained) -> str:
    unit = "" if each.unit == "1" else f" {each.unit}"
    here = "which is not known" if each.value is None else f"{_number(each.value)}{unit}"
    return f"{each.name} {here} (trained on {_number(each.low)} to {_number(each.high)})"


def _number(value: float) -> str:
    """Three digits, and all of a number of up to seven."""
    return f"{value:.0f}" if 999.5 <= abs(value) < 1e7 else f"{value:.3g}"
