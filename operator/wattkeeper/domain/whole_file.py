"""Files that are there as a whole or not at all: a command that is stopped while it writes leaves what was there."""

import errno
import os
from pathlib import Path


def write(path: Path, data: bytes) -> None:
    """Write beside the file, then move into its place. Raises OSError: the folder or the file cannot be written."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def check_writable(path: Path) -> None:
    """Make the folder of a file to come, before hours are spent on what it shall hold.

    Raises OSError: the folder cannot be made or written, or `path` is a folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, not a file", str(path))
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, "folder is not writable", str(path.parent))
