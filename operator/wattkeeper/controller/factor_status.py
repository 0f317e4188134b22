"""The factors of a service as its status tells them: short, and with every gap named."""

import numpy as np

from wattkeeper.api.factors import FactorRemark, FactorsStatus, UntrainedFactor
from wattkeeper.controller import live_factors
from wattkeeper.controller.entry import Entry
from wattkeeper.controller.live_factors import LiveFactor, Seen
from wattkeeper.controller.text import digits
from wattkeeper.energy import points
from wattkeeper.energy.model import EnergyModel

_TEXT_LIMIT = 1024
_PLAIN = 1e4, 1e7
"""Numbers in between are written out."""


def of_entry(entry: Entry, *, energy: EnergyModel, now_text: str) -> FactorsStatus:
    """Factors of what is in place, and which of them widen the interval of its predicted power."""
    if entry.service.target is None:
        return FactorsStatus()
    state = None
    if entry.standing is not None:
        state = points.of_queries([entry.standing.query])[0].take(np.zeros(1, dtype=np.intp))
    seen = Seen(
        service=entry.service,
        observation=entry.observation,
        readings=entry.readings,
        current=entry.current,
        standing=state,
    )
    known = live_factors.assemble(seen)
    return FactorsStatus(
        time=now_text,
        values={factor.name: _text(factor.value) for factor in known if factor.value is not None},
        remarks=_remarks(known),
        untrained=[]
        if state is None
        else [
            UntrainedFactor(
                name=each.name,
                unit=each.unit,
                value=digits(each.value),
                low=float(f"{each.low:.4g}"),
                high=float(f"{each.high:.4g}"),
            )
            for each in energy.outside(state)[0]
        ],
    )


def _text(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if _PLAIN[0] <= abs(value) < _PLAIN[1] else f"{value:.4g}"


def _remarks(known: tuple[LiveFactor, ...]) -> list[FactorRemark]:
    """Notes, each once with all factors that it is about; those without a value first."""
    names: dict[tuple[bool, str], list[str]] = {}
    for factor in known:
        if factor.note:
            names.setdefault((factor.value is not None, factor.note), []).append(factor.name)
    return [
        FactorRemark(factors=names[key], text=key[1][:_TEXT_LIMIT]) for key in sorted(names, key=lambda key: key[0])
    ]
