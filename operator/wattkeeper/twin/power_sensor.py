"""What the power exporters of simulated GPUs show instead of the truth, to try what a consumer makes of it."""

import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.twin.exposition import GpuSample


class PowerFaultKind(enum.StrEnum):
    """How watts are wrong."""

    SCALE = "scale"
    """Times a factor: a bias, or every GPU counted twice."""
    STUCK = "stuck"
    """Each GPU keeps showing what it drew when the fault began."""
    ZERO = "zero"
    NAN = "nan"
    NEGATIVE = "negative"
    MISSING = "missing"
    """The first GPU of each node that a pod holds has no series."""


@dataclass(frozen=True, kw_only=True)
class PowerFault:
    """A fault, and when it begins."""

    kind: PowerFaultKind
    factor: float = 1.0
    """Of `SCALE`."""
    after_seconds: float = 0.0
    """Simulated seconds after the beginning of the traffic."""

    @staticmethod
    def parse(text: str) -> "PowerFault":
        """From `KIND[=FACTOR][@SECONDS]`, for example `scale=1.25` or `stuck@600`.

        Raises WattkeeperError: not of this form, or a factor where none belongs.
        """
        what, at, after = text.partition("@")
        name, equals, factor = what.partition("=")
        try:
            kind = PowerFaultKind(name)
            fault = PowerFault(
                kind=kind, factor=float(factor) if equals else 1.0, after_seconds=float(after) if at else 0.0
            )
        except ValueError:
            kinds = ", ".join(kind.value for kind in PowerFaultKind)
            raise WattkeeperError(
                f"{text!r} is no power fault: write KIND[=FACTOR][@SECONDS] with one of {kinds}, for example scale=1.25"
            ) from None
        numbers = (fault.factor, fault.after_seconds)
        if (kind is PowerFaultKind.SCALE) != bool(equals) or not all(map(math.isfinite, numbers)) or min(numbers) < 0.0:
            raise WattkeeperError(
                f"{text!r}: scale, and nothing else, takes a factor, of at least 0; @SECONDS is at least 0, too"
            )
        return fault


class PowerSensor:
    """What the exporters show under a fault; None: the truth. Set `fault` at any time."""

    def __init__(self, fault: PowerFault | None = None) -> None:
        self._fault = fault
        self._frozen: dict[str, float] = {}

    @property
    def fault(self) -> PowerFault | None:
        """What is wrong."""
        return self._fault

    @fault.setter
    def fault(self, fault: PowerFault | None) -> None:
        self._fault = fault
        self._frozen.clear()

    def shown(self, gpus: Iterable[GpuSample], *, traffic_seconds: float) -> list[GpuSample]:
        """The GPUs of one node as its exporter shows them."""
        fault = self._fault
        if fault is None or traffic_seconds < fault.after_seconds:
            return list(gpus)
        shown = [replace(gpu, power_watts=self._watts(gpu, fault)) for gpu in gpus]
        if fault.kind is PowerFaultKind.MISSING:
            held = next((gpu for gpu in shown if gpu.pod is not None), None)
            return [gpu for gpu in shown if gpu is not held]
        return shown

    def _watts(self, gpu: GpuSample, fault: PowerFault) -> float:
        match fault.kind:
            case PowerFaultKind.SCALE:
                return fault.factor * gpu.power_watts
            case PowerFaultKind.STUCK:
                return self._frozen.setdefault(gpu.uuid, gpu.power_watts)
            case PowerFaultKind.ZERO:
                return 0.0
            case PowerFaultKind.NAN:
                return math.nan
            case PowerFaultKind.NEGATIVE:
                return -gpu.power_watts
            case PowerFaultKind.MISSING:
                return gpu.power_watts
