"""Garbage collection between two passes instead of within one.

What the operator keeps (caches, states) is hundreds of thousands of objects, and a pass makes about as many more: left
alone, the interpreter walks through all of them several times per pass in search of cycles that are not there.
"""

import gc

_THRESHOLDS = (50_000, 20, 20)
"""New objects before the youngest are looked through, and how often that is before older ones are: the interpreter's
defaults are for programs that keep little."""


def tidy() -> None:
    """Collect all cycles now, and take what is alive out of later collections until the next call."""
    gc.set_threshold(*_THRESHOLDS)
    gc.unfreeze()
    gc.collect()
    gc.freeze()
