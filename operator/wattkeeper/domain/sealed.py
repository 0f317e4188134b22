"""Model files: JSON with a format name, a version and a checksum, so that a foreign or altered file is refused."""

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

from wattkeeper.domain import whole_file
from wattkeeper.domain.errors import ModelFileError


def dump(body: dict[str, Any], *, file_format: str, version: int) -> str:
    """The file's text; the same body gives the same bytes."""
    document = {"format": file_format, "format_version": version, "sha256": digest(body), "payload": body}
    return json.dumps(document, sort_keys=True, indent=1) + "\n"


def write(path: Path, text: str) -> None:
    """Write the text, as a whole or not at all; compressed (without a time stamp) where the name ends in .gz."""
    data = text.encode()
    whole_file.write(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def load(path: Path, *, what: str, file_format: str, version: int, advice: str) -> tuple[Any, str]:
    """The body of a file and its SHA-256.

    Raises ModelFileError: missing, no JSON, another format, or altered; names the file and says what to do (`advice`).
    """
    try:
        data = path.read_bytes()
        document = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except (gzip.BadGzipFile, EOFError, ValueError) as error:
        raise ModelFileError(f"{what} {path} is truncated or no JSON ({error}): {advice}") from error
    except OSError as error:
        raise ModelFileError(f"{what} {path} cannot be read ({error.strerror}): {advice}") from error
    if not isinstance(document, dict) or document.get("format") != file_format:
        raise ModelFileError(f"{path} is no {file_format} file: {advice}")
    if document.get("format_version") != version:
        found = document.get("format_version")
        raise ModelFileError(f"{what} {path} has format {found}, this program reads {version}: {advice}")
    body = document.get("payload")
    found = digest(body)
    if found != document.get("sha256"):
        raise ModelFileError(f"{what} {path} was altered (its checksum does not match): {advice}")
    return body, found


def digest(body: Any) -> str:
    """SHA-256 of a body in canonical form."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
