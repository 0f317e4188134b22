"""Sources of measured runs: where they come from, how their files are read, and whether they hold the known values.

The files are not shipped: a source says where to get them, under which licence, and the SHA-256 of the content that
this program was written against. The checksum is taken over the values that are used, in a canonical form, so that the
upstream files and a flattened copy of them are equally good.
"""

import hashlib
import json
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wattkeeper.domain.errors import ChangedDataError, DataFileError
from wattkeeper.energy.row_checks import RefusedRow

_PATHS_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a set of measured runs comes from, and what its content must be."""

    name: str
    repository: str
    commit: str
    paths: tuple[str, ...]
    """Inside the repository."""
    folder: str
    """Inside the data folder: where a copy of `paths` (or the flat file) is looked for."""
    flat_file: str
    licence: str
    rows: int
    sha256: str
    """Of the used values in canonical form, see `content_sha256`."""

    @property
    def shown_paths(self) -> str:
        """The paths, or where they lie if they are many."""
        if len(self.paths) <= _PATHS_SHOWN:
            return ", ".join(self.paths)
        return f"{len(self.paths)} files of {posixpath.commonpath(self.paths)}/"

    @property
    def how_to_get(self) -> str:
        """One sentence for error messages."""
        return (
            f"get it with `wattkeeper data fetch {self.name}`, or copy {self.shown_paths} of "
            f"https://github.com/{self.repository} at commit {self.commit} into {self.folder}/ of the data folder "
            "(`wattkeeper data list` says more)"
        )

    def provenance(self) -> dict[str, Any]:
        """For the model card."""
        return {
            "name": self.name,
            "repository": f"https://github.com/{self.repository}",
            "commit": self.commit,
            "paths": list(self.paths),
            "licence": self.licence,
            "rows": self.rows,
            "sha256": self.sha256,
        }


def content_sha256(frame: pd.DataFrame) -> str:
    """SHA-256 of the values of a frame: columns and rows sorted, numbers in shortest round-trip form."""
    columns = sorted(frame.columns)
    lines = sorted(
        json.dumps([float(v) if isinstance(v, (int, float, np.number)) else str(v) for v in row])
        for row in frame[columns].itertuples(index=False, name=None)
    )
    return hashlib.sha256("\n".join([json.dumps(columns), *lines]).encode()).hexdigest()


Place = tuple[str, int]
"""A row: its file in the data folder, and its number (1 = the first after the header)."""


def read(
    source: Source, folder: Path, *, words: tuple[str, ...] = (), numbers: tuple[str, ...]
) -> tuple[pd.DataFrame, list[Place]]:
    """The used columns of a source, from the flat file or from copies of the upstream files; and where each row is.

    A figure that is no number is NaN. Raises DataFileError: missing, unreadable, or without these columns.
    """
    names = [source.flat_file] if (folder / source.folder / source.flat_file).is_file() else []
    names = names or [posixpath.basename(path) for path in source.paths]
    parts: list[pd.DataFrame] = []
    places: list[Place] = []
    for name in names:
        file = f"{source.folder}/{name}"
        raw = _read(source, folder / file)
        lost = [column for column in (*words, *numbers) if column not in raw.columns]
        if lost:
            raise DataFileError(f"{folder / file}: columns {', '.join(lost)} are missing: {source.how_to_get}")
        used = raw[[*words, *numbers]].astype(dict.fromkeys(words, "str"))
        for column in numbers:
            used[column] = np.array([_number(value) for value in raw[column]])
        parts.append(used)
        places += [(file, row) for row in range(1, len(raw) + 1)]
    return pd.concat(parts, ignore_index=True), places


def _read(source: Source, path: Path) -> pd.DataFrame:
    try:
        if path.suffix != ".json":
            return pd.read_csv(path, dtype="str", keep_default_na=False)
        return pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))["configurations"]).assign(task=path.stem)
    except FileNotFoundError as error:
        raise DataFileError(f"{path} is missing: {source.how_to_get}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataFileError(f"{path} cannot be read as {source.name} ({error}): {source.how_to_get}") from error


def _number(value: Any) -> float:
    """The float nearest to what is written (a table reader's fast parser may be off by the last bit); NaN if none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return np.nan


def refused(places: Iterable[Place], reasons: Sequence[str | None]) -> tuple[RefusedRow, ...]:
    """The rows that have a reason."""
    return tuple(
        RefusedRow(file=file, row=row, reason=reason)
        for (file, row), reason in zip(places, reasons, strict=True)
        if reason is not None
    )


def check_content(source: Source, raw: pd.DataFrame) -> None:
    """Raises ChangedDataError: other values than the expected ones."""
    found = content_sha256(raw)
    if found != source.sha256:
        raise ChangedDataError(
            f"{source.folder}: the content ({len(raw)} rows, SHA-256 {found}) is not the expected one "
            f"({source.rows} rows, {source.sha256}): {source.how_to_get}"
        )
