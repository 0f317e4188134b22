"""Public traces, where the data folder has them: the content is the one that this program was written against."""

import os
from pathlib import Path

import pytest

from wattkeeper.traces import sources

CHECKED = [source for source in sources.SOURCES if source.sha256 is not None]


@pytest.mark.data
@pytest.mark.parametrize("source", CHECKED, ids=lambda source: source.name)
def test_content(source):
    folder = Path(os.environ.get("WATTKEEPER_DATA") or "/nonexistent")
    if sources.state(source, folder) is sources.State.ABSENT:
        pytest.skip(f"WATTKEEPER_DATA has no {source.files[0]}")
    assert sources.content_sha256(sources.load(source, folder)) == source.sha256
