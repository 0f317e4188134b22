"""Which code a result depends on, as one hash: the modules that a program's starting points reach by their imports.

So a kept run stands while only code changes that it never used: runs of rivals outlive a change of the planner.
Comments, layout and docstrings do not count. Data that a module loads from the package counts for its whole room.
"""

import ast
import functools
import hashlib
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import wattkeeper

_PACKAGE = "wattkeeper"
_ROOT = Path(wattkeeper.__file__).parent
_LIBRARIES = ("numpy", "scipy", "lightgbm")
_NO_DATA = frozenset({".py", ".pyc", ".j2", ".md", ".typed"})


@functools.cache
def of_modules(*starts: str) -> str:
    """Hex digest of all that these modules of the package can reach, of Python and of the numeric libraries."""
    found = _reached(starts)
    rooms = {path.relative_to(_ROOT).parts[0] for path in found.values() if "resources" in path.read_text("utf-8")}
    digest = hashlib.sha256(f"python {sys.version_info.major}.{sys.version_info.minor}".encode())
    for library in _LIBRARIES:
        digest.update(f"{library} {_version(library)}".encode())
    for name in sorted(found):
        digest.update(f"{name}\n{_meaning(found[name])}".encode())
    for path in sorted(_data(rooms)):
        digest.update(path.relative_to(_ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "missing"


def _reached(starts: tuple[str, ...]) -> dict[str, Path]:
    """Modules of the package by name, those imported in functions and for types included."""
    found: dict[str, Path] = {}
    waiting = list(starts)
    while waiting:
        name = waiting.pop()
        path = _path(name)
        if path is None or name in found:
            continue
        found[name] = path
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def _path(name: str) -> Path | None:
    """The file of a module of this package; None: another package's, or no module but a name in one."""
    package, *parts = name.split(".")
    if package != _PACKAGE or not parts:
        return None
    folder = _ROOT.joinpath(*parts)
    return next((path for path in (folder.with_suffix(".py"), folder / "__init__.py") if path.is_file()), None)


def _meaning(path: Path) -> str:
    """The code without comments, layout and docstrings."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [each for each in node.body if not _is_text(each)]
    return ast.dump(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _data(rooms: set[str]) -> Iterator[Path]:
    for room in rooms:
        for path in (_ROOT / room).rglob("*"):
            if path.is_file() and path.suffix not in _NO_DATA and "__pycache__" not in path.parts:
                yield path
