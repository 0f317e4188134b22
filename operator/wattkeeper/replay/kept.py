"""Finished work that is kept on disk: a run or a trial of tuning per file, found again by all that decides its result.

A file has two lines: a head with the facts that decided the result and the checksum of the second line, the result.
It appears whole or not at all, so that a killed replay leaves what had ended.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import pydantic
import pydantic_core

from wattkeeper.replay.stage import ReplayError

FORMAT = "wattkeeper-kept/1"
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Found(Generic[Result]):
    """What the folder has for some facts."""

    result: Result | None = None
    trouble: str = ""
    """Why a file that is there cannot be used; empty: it can, or there is none."""


@dataclass(frozen=True, kw_only=True)
class Kept(Generic[Result]):
    """Results of one type in a folder. Several processes may use it at once."""

    folder: Path
    adapter: pydantic.TypeAdapter[Result]

    def find(self, title: str, facts: dict[str, Any]) -> Found[Result]:
        """The result of these facts, if it was kept."""
        path = self._path(title, facts)
        try:
            head, _, line = path.read_text(encoding="utf-8").partition("\n")
        except FileNotFoundError:
            return Found()
        except (OSError, UnicodeDecodeError) as error:
            return Found(trouble=f"{path} cannot be read ({error})")
        try:
            told = json.loads(head)
            if not isinstance(told, dict) or told.get("format") != FORMAT:
                return Found(trouble=f"{path} does not begin with a head of format {FORMAT}")
            if told.get("sha256") != _digest(line.rstrip("\n")):
                return Found(trouble=f"{path} is cut off or was changed: its checksum is another")
            return Found(result=self.adapter.validate_json(line))
        except ValueError as error:
            return Found(trouble=f"{path} holds no such result ({str(error).splitlines()[0]})")

    def put(self, title: str, facts: dict[str, Any], result: Result) -> None:
        """Keep a result. Raises ReplayError where the file cannot be written."""
        path = self._path(title, facts)
        line = self.adapter.dump_json(result).decode()
        head = json.dumps({"format": FORMAT, "sha256": _digest(line), "facts": _plain(facts)}, sort_keys=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            part.write_text(f"{head}\n{line}\n", encoding="utf-8")
            part.replace(path)
            for torn in self.folder.glob(f"{path.name}.*.part"):
                torn.unlink(missing_ok=True)
        except OSError as error:
            raise ReplayError(f"a finished run cannot be kept as {path}: {error.strerror}") from error

    def _path(self, title: str, facts: dict[str, Any]) -> Path:
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        return self.folder / f"{name}-{_digest(json.dumps(_plain(facts), sort_keys=True))[:16]}.json"


def prepare(folder: Path, *, must_exist: bool) -> None:
    """Make the folder. Raises ReplayError where that cannot be done, or it must be there and is not."""
    if must_exist and not folder.is_dir():
        raise ReplayError(f"no runs are kept in {folder}: there is no such folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReplayError(f"finished runs cannot be kept in {folder}: {error.strerror}") from error


def _plain(facts: dict[str, Any]) -> Any:
    return pydantic_core.to_jsonable_python(facts)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
