"""Garbage collection between two passes instead of within one.

What the operator keeps (caches, states) is hundreds of thousands of objects, and a pass makes about as many more: left
alone, the interpreter walks through all of them several times per pass in search of cycles that are not there.
"""

import gc


def tidy() -> None:
    """Collect all cycles now, and take what is alive out of later collections until the next call."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
