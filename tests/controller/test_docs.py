"""The page on failures knows every reason that the operator gives, and no other."""

import pathlib
import re

from wattkeeper.domain.observation import MetricsState
from wattkeeper.domain.plan import Binding, PlanReason
from wattkeeper.energy.model import NO_LIBRARY, NO_MODEL

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "failure-modes.md").read_text()
SOURCES = [
    path.read_text()
    for room in ("controller", "actuators")
    for path in (ROOT / "operator" / "wattkeeper" / room).glob("*.py")
]
GIVEN = {NO_LIBRARY, NO_MODEL} | {word for text in SOURCES for word in re.findall(r'reason="([A-Z]\w+)"', text)}
QUIET = {"Free", "Enforced", "NoCap"}
"""All is well."""


def test_every_reason_that_means_trouble_is_explained():
    assert {reason for reason in GIVEN - QUIET if f"`{reason}`" not in PAGE} == set()


def test_no_reason_is_made_up():
    known = "".join(SOURCES)
    computed = {f"Metrics{state.value}" for state in MetricsState} | {item.value for item in (*Binding, *PlanReason)}
    named = {
        word
        for line in PAGE.splitlines()
        if line.startswith("| ")
        for word in re.findall(r"(?:False|True|Unknown|reason|or|,|is what binds:) `([A-Z][a-zA-Z]+)`", line)
    }
    kinds = {"Recommend", "OnDelete", "RollingUpdate", "QueueGrowing"}
    assert {word for word in named - computed - kinds - GIVEN if f'"{word}"' not in known} == set()
