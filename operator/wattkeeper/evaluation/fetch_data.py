"""Fetching of public data from upstream at the pinned commit, into a data folder, whole or not at all.

Files arrive in a folder of their own beside the data, are read there by the loader that will use them, and move to
their place only if their content is the expected one. Nothing that is there already is overwritten.
"""

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
    targets = [download.target for download in wanted.downloads] or list(wanted.copies[0])
    shown = ", ".join(targets[:_TARGETS_SHOWN]) + (", ..." if len(targets) > _TARGETS_SHOWN else "")
    by_hand = f"copy it by hand: {wanted.origin} -> {shown} of the data folder"
    found = wanted.check(folder)
    if found.state in (State.AS_EXPECTED, State.UNCHECKED):
        report(f"{wanted.name}: {found.state.value}")
        return
    if found.state is not State.ABSENT:
        raise DataFileError(f"{wanted.name}: {found.message}. Nothing is overwritten: move those files away first")
    if not wanted.downloads:
        raise DataFileError(f"{wanted.name}: upstream has no file in the form that is read; {by_hand}")
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as name:
        staging = Path(name)
        try:
            for download in wanted.downloads:
                _download(download, staging, base_url)
        except (requests.RequestException, OSError) as error:
            raise DataFileError(f"{wanted.name}: cannot be fetched ({error}); {by_hand}") from error
        try:
            wanted.read(staging, True)
        except WattkeeperError as error:
            raise DataFileError(f"{wanted.name}: what came is refused and nothing is kept: {error}") from error
        for download in wanted.downloads:
            target = folder / download.target
            target.parent.mkdir(parents=True, exist_ok=True)
            (staging / download.target).replace(target)
    report(f"{wanted.name}: fetched {len(wanted.downloads)} files, content as expected")


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
