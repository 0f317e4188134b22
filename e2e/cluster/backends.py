"""Clusters that were not made from the programs of `make tools`: `kind`, and one that already exists."""

from __future__ import annotations

import os
import pathlib
import secrets
import shutil
import subprocess
import tempfile
import types
from typing import Self

from e2e.cluster import base, kwok, processes, tools


class _Foreign(base.Cluster):
    """What both share: a temporary folder, and kwok running beside the cluster where it was built."""

    def __init__(self, *, pods: kwok.PodBehaviour | None = None, pod_cidr: str = "10.64.0.1/16") -> None:
        super().__init__()
        self._pods = pods or kwok.PodBehaviour()
        self._pod_cidr = pod_cidr
        self._running: processes.Processes | None = None

    def __enter__(self) -> Self:
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="wattkeeper-cluster-"))
        self.kubeconfig = self.directory / "admin.kubeconfig"
        self._running = processes.Processes(directory=self.directory)
        try:
            self._connect()
            if not tools.missing(("kwok",)):
                self.simulator = kwok.Kwok(
                    running=self._running,
                    directory=self.directory,
                    kubeconfig=self.kubeconfig,
                    pod_cidr=self._pod_cidr,
                )
                self.simulator.start(self._pods)
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self._leave()

    def _connect(self) -> None:
        raise NotImplementedError

    def _disconnect(self) -> None:
        raise NotImplementedError

    def _leave(self) -> None:
        try:
            self._disconnect()
        finally:
            if self._running is not None:
                self._running.stop()
                self._running = None
            self.simulator = None
            shutil.rmtree(self.directory, ignore_errors=True)


class KindCluster(_Foreign):
    """A new cluster made with `kind` (needs kind and a container runtime), deleted at the end."""

    def _connect(self) -> None:
        if shutil.which("kind") is None:
            raise tools.ToolsMissingError("kind is not in PATH: install it, or use --cluster-backend=local")
        self._name = f"wattkeeper-{secrets.token_hex(3)}"
        create = [
            "kind",
            "create",
            "cluster",
            "--name",
            self._name,
            "--kubeconfig",
            str(self.kubeconfig),
            "--wait=180s",
        ]
        subprocess.run(create, check=True)

    def _disconnect(self) -> None:
        if name := getattr(self, "_name", None):
            subprocess.run(["kind", "delete", "cluster", "--name", name], check=False)


class ExistingCluster(_Foreign):
    """A cluster that is already there, named by a context of the user's kubeconfig.

    Tests create and delete things in it, so the context must be named on purpose; the current one is never taken by
    default. Simulated nodes that were added are removed at the end.
    """

    def __init__(self, *, context: str, pods: kwok.PodBehaviour | None = None, pod_cidr: str = "10.64.0.1/16") -> None:
        super().__init__(pods=pods, pod_cidr=pod_cidr)
        self._context = context

    def _connect(self) -> None:
        command = [tools.find("kubectl", allow_path=True), "config", "view", "--minify", "--flatten", "--raw"]
        command.append(f"--context={self._context}")
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
        if result.returncode != 0:
            raise base.CommandError(command, result)
        self.kubeconfig.touch(mode=0o600)
        self.kubeconfig.write_text(result.stdout)

    def _disconnect(self) -> None:
        if self.simulated_nodes:
            self.kubectl("delete", "nodes", *self.simulated_nodes, "--ignore-not-found", "--wait=false")
