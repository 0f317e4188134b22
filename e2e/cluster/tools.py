"""Where the programs of `make tools` are."""

from __future__ import annotations

import pathlib
import shutil

from e2e import build_tools

CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kwok")


class ToolsMissingError(RuntimeError):
    """A program that the tests run has not been built."""


def folder() -> pathlib.Path:
    """The folder of the built programs."""
    return build_tools.bin_folder()


def find(name: str, *, allow_path: bool = False) -> str:
    """Full path of a built program.

    Raises:
        ToolsMissingError: it was not built (and, with allow_path, PATH has none either).

    """
    built = folder() / name
    if built.exists():
        return str(built)
    if allow_path and (found := shutil.which(name)):
        return found
    raise ToolsMissingError(f"{name} is not in {folder()}: run `make tools`, or name its folder in WATTKEEPER_TOOLS")


def missing(names: tuple[str, ...] = (*CONTROL_PLANE, "prometheus", "helm")) -> list[str]:
    """Which of these programs were not built."""
    return [name for name in names if not (folder() / name).exists()]
