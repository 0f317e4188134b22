"""What a pass of the fleet loop costs, step by step: for the operator's own metrics and for benchmarks."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from wattkeeper.controller.metrics import OperatorMetrics


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One finished pass."""

    seconds: float
    """Wall time."""
    cpu_seconds: float
    """Processor time of the loop's thread."""
    steps: dict[str, float]
    """Wall seconds by step."""
    failed: bool = False


@dataclass(kw_only=True)
class Stopwatch:
    """Times the passes of one loop; used by its thread alone."""

    metrics: OperatorMetrics
    _steps: dict[str, float] = field(default_factory=dict)
    _began: tuple[float, float] = (0.0, 0.0)

    def start(self) -> None:
        """A pass begins."""
        self._steps, self._began = {}, (time.perf_counter(), time.thread_time())

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Around one step."""
        began = time.perf_counter()
        yield
        took = time.perf_counter() - began
        self._steps[name] = self._steps.get(name, 0.0) + took
        self.metrics.step_seconds.labels(name).inc(took)

    def finish(self, *, failed: bool) -> Pass:
        """The pass ended."""
        wall, cpu = self._began
        found = Pass(
            seconds=time.perf_counter() - wall,
            cpu_seconds=time.thread_time() - cpu,
            steps=dict(self._steps),
            failed=failed,
        )
        self.metrics.tick_seconds.observe(found.seconds)
        return found
