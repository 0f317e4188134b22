"""Quantities and targets as status writes them."""

from wattkeeper.domain.plan import Target


def describe(target: Target) -> str:
    """A target in a few words."""
    words = [f"{target.replicas} replica{'s' if target.replicas != 1 else ''}"]
    if target.power_cap_watts is not None:
        words.append(f"cap {target.power_cap_watts:.0f} W")
    if target.clock_mhz is not None:
        words.append(f"clock {target.clock_mhz:.0f} MHz")
    if target.engine.max_num_batched_tokens is not None:
        words.append(f"{target.engine.max_num_batched_tokens} batched tokens")
    if target.engine.max_num_seqs is not None:
        words.append(f"{target.engine.max_num_seqs} seqs")
    return ", ".join(words)


def duration(seconds: float | None) -> str | None:
    """Seconds above 10 s, else ms; None where there is no finite value."""
    if seconds is None or seconds != seconds or seconds == float("inf"):
        return None
    return (
        f"{seconds:.1f}s"
        if seconds >= 10
        else f"{seconds * 1000:.0f}ms"
        if seconds >= 0.1
        else f"{seconds * 1000:.1f}ms"
    )


def digits(value: float | None) -> float | None:
    """Three significant digits: enough for people, and steady enough not to be rewritten on every tick."""
    if value is None or value != value or value in (float("inf"), float("-inf")):
        return None
    return float(f"{value:.3g}")
