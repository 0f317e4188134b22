"""Stacks for end-to-end tests, and nodes that all of them share."""

from __future__ import annotations

import collections.abc
import secrets

import pytest

from e2e import cluster
from e2e.stack import Pace, Stack


@pytest.fixture
def make_stack(control_plane: cluster.Cluster) -> collections.abc.Iterator[collections.abc.Callable[..., Stack]]:
    """Builds stacks with everything installed; they end with the test, and show their logs where it failed."""
    made: list[Stack] = []

    def make(*, pace: Pace | None = None) -> Stack:
        stack = Stack(control_plane, pace=pace)
        made.append(stack)
        stack.install()
        return stack

    yield make
    for stack in made:
        stack.stop()


@pytest.fixture
def unique() -> str:
    """For names that outlive a test for a moment, such as nodes and namespaces.

    Begins with a letter: a label 647e73 is a number to kubectl's YAML.
    """
    return f"m{secrets.token_hex(3)}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> collections.abc.Generator[None]:
    """Put the ends of the processes' logs into the report of a failed test."""
    report = yield
    maker = getattr(item, "funcargs", {}).get("stack")
    if report.failed and isinstance(maker, Stack):
        report.sections.append(("processes", maker.log_tails()))
    return report
