import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_folder() -> Path:
    folder = os.environ.get("WATTKEEPER_DATA")
    if not folder or not (Path(folder) / "kernels").is_dir() or not (Path(folder) / "energy").is_dir():
        pytest.skip("WATTKEEPER_DATA has no kernels/ and energy/ (measured kernels and runs)")
    return Path(folder)
