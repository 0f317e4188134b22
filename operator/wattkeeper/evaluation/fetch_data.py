"""Fetching of public data from upstream at the pinned commit, into a data folder, whole or not at all.

Files arrive in a folder of their own beside the data and are read there by the loader that will use them. If their
content is the expected one, the set moves to its place with one rename: of its file, or of the folder that all its
files share. So a process that is killed leaves a set there or not there, never half of it (and perhaps a folder
`.fetch-*`, which may be deleted). Nothing that is there already is overwritten.
"""

import posixpath
import tempfile
from collections.abc import Callable
from pathlib import Path

import requests

from wattkeeper.domain.errors import DataFileError, WattkeeperError
from wattkeeper.evaluation.public_data import Download, PublicData
from wattkeeper.traces.sources import State

RAW_FILES = "https://raw.githubusercontent.com"
"""Serves files of public repositories as owner/repository/commit/path."""
_TIMEOUT_SECONDS = 30.0
_CHUNK_BYTES = 1 << 20
_TARGETS_SHOWN = 5
_MOST_BYTES = 1 << 30
"""Of one file; the largest known one has some tens of MB."""


def fetch(wanted: PublicData, folder: Path, *, base_url: str = RAW_FILES, report: Callable[[str], None]) -> None:
    """Make sure that `folder` holds the expected content.

    Raises DataFileError: it cannot be fetched (says what to copy from where), what came is not the expected content,
    or other content is there already.
    """
    targets = [download.target for download in wanted.downloads]
    if not targets or wanted.convert is not None:
        targets = list(wanted.copies[0])
    shown = ", ".join(targets[:_TARGETS_SHOWN]) + (", ..." if len(targets) > _TARGETS_SHOWN else "")
    by_hand = f"copy it by hand: {wanted.origin} -> {shown} of the data folder"
    found = wanted.check(folder)
    if found.state in (State.AS_EXPECTED, State.UNCHECKED):
        report(f"{wanted.name}: {found.state.value}")
        return
    if found.state is not State.ABSENT:
        raise DataFileError(f"{wanted.name}: {found.message}. Nothing is overwritten: move those files away first")
    if not wanted.downloads:
        raise DataFileError(
            f"{wanted.name}: no program can fetch it (upstream holds it in another form or place); {by_hand}"
        )
    unit = _unit(targets)
    _refuse_occupied(wanted.name, folder / unit)
    try:
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as name:
            staging = Path(name)
            arrived = staging if wanted.convert is None else staging / "upstream"
            for download in wanted.downloads:
                _download(download, arrived, base_url)
            if wanted.convert is not None:
                wanted.convert(arrived, staging)
            _verify(wanted, staging)
            (folder / unit).parent.mkdir(parents=True, exist_ok=True)
            (staging / unit).replace(folder / unit)
    except (requests.RequestException, OSError) as error:
        raise DataFileError(f"{wanted.name}: cannot be fetched ({error}); {by_hand}") from error
    number = len(wanted.downloads)
    report(f"{wanted.name}: fetched {number} file{'s' * (number > 1)}, content as expected")


def _verify(wanted: PublicData, staging: Path) -> None:
    try:
        wanted.read(staging, True)
    except WattkeeperError as error:
        raise DataFileError(f"{wanted.name}: what came is refused and nothing is kept: {error}") from error


def _unit(targets: list[str]) -> str:
    """What moves with one rename: the only file, or the folder that all files share."""
    return targets[0] if len(targets) == 1 else posixpath.commonpath([posixpath.dirname(name) for name in targets])


def _refuse_occupied(name: str, place: Path) -> None:
    """A folder with other files cannot be exchanged as a whole."""
    if place.is_dir() and any(place.iterdir()):
        others = ", ".join(sorted(path.name for path in place.iterdir())[:_TARGETS_SHOWN])
        raise DataFileError(
            f"{name}: {place} holds other files ({others}); the set comes as a whole folder, so move them away first"
        )


def _download(download: Download, staging: Path, base_url: str) -> None:
    target = staging / download.target
    target.parent.mkdir(parents=True, exist_ok=True)
    url = f"{base_url.rstrip('/')}/{download.path}"
    with requests.get(url, stream=True, timeout=_TIMEOUT_SECONDS) as answer, target.open("wb") as file:
        answer.raise_for_status()
        size = 0
        for chunk in answer.iter_content(_CHUNK_BYTES):
            size += len(chunk)
            if size > _MOST_BYTES:
                raise OSError(f"{url} is larger than {_MOST_BYTES >> 20} MiB")
            file.write(chunk)
