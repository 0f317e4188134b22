"""Runs of steps whose durations grow by the same amount each."""

import math


def least_steps(first: float, increment: float, span: float) -> int:
    """The least number of steps (at least 1) whose durations `first + j increment` add up to `span` or more."""
    if span <= first:
        return 1
    half = increment / 2
    linear = first - half
    steps = max(1, math.ceil(2 * span / (linear + math.sqrt(linear * linear + 4 * half * span))))
    while steps > 1 and (steps - 1) * first + increment * ((steps - 1) * (steps - 2) // 2) >= span:
        steps -= 1
    while steps * first + increment * (steps * (steps - 1) // 2) < span:
        steps += 1
    return steps
