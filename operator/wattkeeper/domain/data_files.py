"""Where measured data lies that the product can read but does not ship."""

import os
from pathlib import Path

from wattkeeper.domain.errors import DataFileError

DATA_VARIABLE = "WATTKEEPER_DATA"
"""Environment variable that names the folder of measured data."""


def data_folder(given: Path | None) -> Path:
    """The folder of measured data: `given`, else the environment variable.

    Raises DataFileError: neither is set, or it is no folder.
    """
    folder = given or (Path(os.environ[DATA_VARIABLE]) if os.environ.get(DATA_VARIABLE) else None)
    if folder is None:
        raise DataFileError(f"no data folder: pass --data DIR or set {DATA_VARIABLE}")
    if not folder.is_dir():
        raise DataFileError(f"the data folder {folder} does not exist: pass --data DIR or set {DATA_VARIABLE}")
    return folder
