"""Public tables of measured kernels as sets with address, licence, checksum and unit checks.

They are no steady runs: a row is one kernel of one shape, so none has a place in the table of runs. `wattkeeper fit`
composes steps of a model from the times (`physics.kernel_tables`, `physics.composition`), and
`evaluation.kernel_watts` holds the roofline's watts against those tables that have power.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from wattkeeper.domain.errors import ChangedDataError
from wattkeeper.energy.row_checks import RefusedRow, RefusedRowsError
from wattkeeper.energy.sources import Source
from wattkeeper.physics import composition, kernel_tables

_COMMIT = "095f58a51c4ca8e61b66ec108d86f223f8d559ce"
_UPSTREAM = "aic-core/src/aiconfigurator_core/systems/data/{gpu}/{kind}/vllm/{version}/{name}_perf.parquet"
_KINDS = (("gemm", "gemm"), ("attention", "context_attention"), ("attention", "generation_attention"))
_EXPERTS = (("moe", "moe"),)


@dataclass(frozen=True, kw_only=True)
class Table:
    """One file of a set."""

    file: str
    """In the data folder."""
    accelerator: str | None
    """Catalogue name; None: a file of Vidur, whose unit checks need no card."""
    kind: str
    """What was measured: a name of `aiconfigurator`, or `layers`."""


@dataclass(frozen=True, kw_only=True)
class KernelSet:
    """Tables that come together."""

    source: Source
    tables: tuple[Table, ...]
    """In the order of `source.paths`."""


def _aiconfigurator(
    name: str, pattern: str, cards: tuple[tuple[str, str, str], ...], kinds: tuple[tuple[str, str], ...],
    *, rows: int, sha256: str,
) -> KernelSet:  # fmt: skip
    """`cards`: (catalogue name, what the files call it, version of vLLM)."""
    all_of = [
        (card, {"gpu": gpu, "version": version, "kind": kind, "name": table})
        for card, gpu, version in cards
        for kind, table in kinds
    ]
    return KernelSet(
        source=Source(
            name=name,
            repository="ai-dynamo/aiconfigurator",
            commit=_COMMIT,
            paths=tuple(_UPSTREAM.format(**words) for _, words in all_of),
            folder=pattern.partition("/{")[0],
            flat_file="",
            licence="Apache-2.0",
            rows=rows,
            sha256=sha256,
        ),
        tables=tuple(
            Table(file=pattern.format(**words), accelerator=card, kind=words["name"]) for card, words in all_of
        ),
    )


TIMES = _aiconfigurator(
    "aiconfigurator-times",
    kernel_tables.TIMES_PATTERN,
    (
        ("nvidia-a100-sxm", "a100_sxm", "0.14.0"),
        ("nvidia-h100-sxm", "h100_sxm", "0.24.0"),
        ("nvidia-h200-sxm", "h200_sxm", "0.24.0"),
    ),
    _KINDS,
    rows=460533,
    sha256="6297dd4c022bfa86ce2e9d053598611ccc0d477fdad65134af0935776d7ef6f7",
)
POWERS = _aiconfigurator(
    "aiconfigurator-power",
    kernel_tables.POWERS_PATTERN,
    (("nvidia-h200-sxm", "h200_sxm", "0.22.0"), ("nvidia-b200", "b200_sxm", "0.22.0")),
    (*_KINDS, *_EXPERTS),
    rows=427115,
    sha256="87c723a8c305d39a171fea05334ec8192e3529e9a4fd4de0768cba1a632c081d",
)
_VIDUR_PATHS = {
    "mlp_a100_Llama-2-7b-hf.csv": "a100/meta-llama/Llama-2-7b-hf/mlp.csv",
    "mlp_a100_Meta-Llama-3-8B.csv": "a100/meta-llama/Meta-Llama-3-8B/mlp.csv",
    "mlp_h100_Llama-2-7b-hf.csv": "h100/meta-llama/Llama-2-7b-hf/mlp.csv",
}
LAYERS = KernelSet(
    source=Source(
        name="vidur-layers",
        repository="microsoft/vidur",
        commit="7d47513363ec447a741ac5e47241580b47724fbf",
        paths=tuple(f"data/profiling/compute/{path}" for path in _VIDUR_PATHS.values()),
        folder="kernels/vidur-mlp",
        flat_file="",
        licence="MIT",
        rows=3912,
        sha256="07fd30f78cdf146ac9b44b9015a74751870595212d10fd9c526a213088db9a46",
    ),
    tables=tuple(Table(file=f"kernels/vidur-mlp/{name}", accelerator=None, kind="layers") for name in _VIDUR_PATHS),
)
ALL = (TIMES, POWERS, LAYERS)


def load(wanted: KernelSet, folder: Path, *, check: bool = True) -> list[pd.DataFrame]:
    """All tables of a set as published, in the order of `tables`; `check=False` accepts other content.

    Raises DataFileError: a file is missing, unreadable or of another kind. ChangedDataError: other content.
    RefusedRowsError: impossible rows.
    """
    source, digest = wanted.source, hashlib.sha256()
    frames: list[pd.DataFrame] = []
    refused: list[RefusedRow] = []
    for table in wanted.tables:
        frame, wrong = _scanned(table, folder)
        refused += [RefusedRow(file=table.file, row=at + 1, reason=reason) for at, reason in wrong.items()]
        frames.append(frame)
        for part in _parts(table.file, frame):
            digest.update(part)
    found = digest.hexdigest()
    if check and found != source.sha256:
        rows = sum(map(len, frames))
        raise ChangedDataError(
            f"{source.folder}: the content ({rows} rows, SHA-256 {found}) is not the expected one ({source.rows} rows, "
            f"{source.sha256}): {source.how_to_get}"
        )
    if refused:
        raise RefusedRowsError(refused)
    return frames


def _scanned(table: Table, folder: Path) -> tuple[pd.DataFrame, dict[int, str]]:
    if table.accelerator is None:
        return composition.scan_vidur(folder / table.file)
    return kernel_tables.scan(folder / table.file, table.accelerator)


def _parts(name: str, frame: pd.DataFrame) -> Iterator[bytes]:
    """What is hashed of a table: its name and, column by column, numbers as little-endian doubles, words as UTF-8."""
    yield f"{name}{frame.shape}".encode()
    for column in sorted(frame.columns):
        values = frame[column]
        yield column.encode()
        if pd.api.types.is_numeric_dtype(values):
            yield values.to_numpy(dtype=np.dtype("<f8")).tobytes()
        else:
            yield "\n".join(map(str, values)).encode()
