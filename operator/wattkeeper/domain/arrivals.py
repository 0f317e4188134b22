"""How requests arrive: burstiness at several time scales, and the counts that were recorded."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Dispersion:
    """Index of dispersion of arrival counts (variance over mean) at several windows; 1 everywhere is Poisson.

    One number is not enough: slowly switching rates look like Poisson within milliseconds and are bursty over minutes,
    batches are as bursty at every window.
    """

    windows_seconds: tuple[float, ...]
    """Ascending and positive, at least one."""
    index: tuple[float, ...]
    """One per window; finite and positive."""

    def __post_init__(self) -> None:
        if not self.windows_seconds or len(self.windows_seconds) != len(self.index):
            raise ValueError("a dispersion needs as many indices as windows, at least one")
        if not all(0.0 < value < math.inf for value in (*self.windows_seconds, *self.index)):
            raise ValueError(f"windows and indices of dispersion must be positive and finite: {self}")
        if any(b <= a for a, b in zip(self.windows_seconds, self.windows_seconds[1:], strict=False)):
            raise ValueError(f"windows of a dispersion must ascend: {self.windows_seconds}")

    def at(self, windows_seconds: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """The index at any windows: linear between the logarithms of known ones, constant beyond them."""
        logs = np.log(np.maximum(np.asarray(windows_seconds, dtype=np.float64), 1e-12))
        return np.asarray(np.exp(np.interp(logs, np.log(self.windows_seconds), np.log(self.index))))

    def thinned(self, share: float) -> "Dispersion":
        """Of a stream that keeps each request with probability `share`: what lies beyond Poisson falls with it."""
        return Dispersion(
            windows_seconds=self.windows_seconds,
            index=tuple(max(1.0 + (value - 1.0) * share, 1e-3) for value in self.index),
        )

    def stretched(self, factor: float) -> "Dispersion":
        """Of the same arrivals with all times multiplied by `factor`."""
        return Dispersion(windows_seconds=tuple(window * factor for window in self.windows_seconds), index=self.index)

    @staticmethod
    def flat(index: float) -> "Dispersion":
        """The same index at every window, as of batches (or of Poisson arrivals, 1)."""
        return Dispersion(windows_seconds=(1.0,), index=(index,))


POISSON = Dispersion.flat(1.0)


@dataclass(frozen=True, kw_only=True)
class ArrivalRecord:
    """Arrivals counted in successive bins without gaps; when within its bin a request came is not known."""

    edges_seconds: tuple[float, ...]
    """Ascending; one more than counts."""
    counts: tuple[float, ...]
    """Requests of the whole service; not negative, not always whole (rates times a window)."""

    def __post_init__(self) -> None:
        if not self.counts or len(self.edges_seconds) != len(self.counts) + 1:
            raise ValueError("a record of arrivals needs one edge more than counts, and a count")
        if any(b <= a for a, b in zip(self.edges_seconds, self.edges_seconds[1:], strict=False)):
            raise ValueError("edges of a record of arrivals must ascend")
        if not all(0.0 <= value < math.inf for value in self.counts):
            raise ValueError("counts of arrivals must be finite and not negative")

    @property
    def span_seconds(self) -> float:
        """From the first edge to the last."""
        return self.edges_seconds[-1] - self.edges_seconds[0]

    @property
    def requests_per_second(self) -> float:
        """Mean rate."""
        return sum(self.counts) / self.span_seconds
