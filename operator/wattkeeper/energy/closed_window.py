"""What the measured window of a closed-loop run holds.

A benchmark sends N requests at once to an engine that runs B at a time. Its window opens when B have begun, and closes
when N - B - 1 have finished, so that all B slots are busy throughout. Unless N is many times B, the window is no steady
state: all of the first B begin together, contexts are short at first, short answers end before long ones. How old the
running sequences are, and how many begin per token, follows from N, B and the spread of answer lengths alone, for each
step gives every sequence one token.

Lengths are gamma distributed; the order is drawn anew a few times, from fixed seeds.
"""

import functools
import heapq
from dataclasses import dataclass

import numpy as np
from scipy import stats

_ORDERS = 6


@dataclass(frozen=True, kw_only=True)
class Window:
    """Means over the tokens of a window, in units of the mean answer length."""

    age: float
    """Tokens that a running sequence has made so far, over the mean length."""
    begun: float
    """Requests that begin per token, times the mean length: 1 in a long run."""


def steady_age(variation: float) -> float:
    """`Window.age` in a run without end: a longer answer is met more often, E(L^2) / (2 E(L)^2) (inspection paradox).

    `variation` is the standard deviation of answer lengths over their mean.
    """
    return (1.0 + variation**2) / 2.0


@functools.cache
def window(*, requests: int, batch: int, variation: float) -> Window:
    """Of a run of `requests` on `batch` slots; lengths vary by `variation` (standard deviation over mean).

    Raises ValueError: fewer requests than slots, or a number that is not above zero.
    """
    if not 0 < batch <= requests or variation <= 0.0:
        raise ValueError(f"no window: {requests} requests, {batch} slots, variation {variation}")
    shape = 1.0 / variation**2
    lengths = stats.gamma.ppf((np.arange(requests) + 0.5) / requests, shape) / shape
    lengths /= lengths.mean()
    drawn = [_run(np.random.default_rng(seed).permutation(lengths).tolist(), batch) for seed in range(_ORDERS)]
    age, begun = np.mean(drawn, axis=0)
    return Window(age=float(age), begun=float(begun))


def _run(lengths: list[float], batch: int) -> tuple[float, float]:
    """(age, begun) of one order of requests."""
    begins = [0.0] * batch
    ends = lengths[:batch]
    running = list(ends)
    heapq.heapify(running)
    now = 0.0
    for _ in range(max(len(lengths) - batch - 1, 1)):
        now = heapq.heappop(running)
        if len(begins) < len(lengths):
            ends.append(now + lengths[len(begins)])
            heapq.heappush(running, ends[-1])
            begins.append(now)
    made = np.minimum(ends, now) - np.array(begins)
    return float(np.square(made).sum() / 2.0 / made.sum()), float((len(begins) - batch) / made.sum())
