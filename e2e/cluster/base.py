"""What tests do with a cluster, whichever back end provides it."""

from __future__ import annotations

import collections.abc
import json
import os
import pathlib
import subprocess
import time
from typing import Any, TypeVar

import yaml

from e2e.cluster import kwok, tools

T = TypeVar("T")


class CommandError(RuntimeError):
    """kubectl or helm failed; `stdout` and `stderr` are what it said."""

    def __init__(self, command: list[str], result: subprocess.CompletedProcess[str]) -> None:
        super().__init__(f"`{' '.join(command)}` ended with {result.returncode}: {result.stderr.strip()}")
        self.stderr = result.stderr
        self.stdout = result.stdout


def wait_until(
    probe: collections.abc.Callable[[], T | None], *, timeout_seconds: float, what: str, interval_seconds: float = 0.1
) -> T:
    """Call probe until it returns something true, and return that.

    Raises:
        TimeoutError: saying `what` did not come, and the last thing seen.

    """
    deadline = time.monotonic() + timeout_seconds
    while not (seen := probe()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_seconds:g} s (last seen: {seen!r})")
        time.sleep(interval_seconds)
    return seen


class Cluster:
    """A running cluster and an administrator's kubeconfig for it. Files made for it lie in `directory`."""

    directory: pathlib.Path
    kubeconfig: pathlib.Path
    simulator: kwok.Kwok | None = None

    def __init__(self) -> None:
        self.simulated_nodes: list[str] = []

    def kubectl(
        self,
        *arguments: str,
        stdin: str | None = None,
        kubeconfig: pathlib.Path | None = None,
        timeout_seconds: float = 120.0,
    ) -> str:
        """Run kubectl as administrator (or with another kubeconfig) and return what it printed.

        Raises:
            CommandError: it failed.

        """
        return self._run("kubectl", *arguments, stdin=stdin, kubeconfig=kubeconfig, timeout_seconds=timeout_seconds)

    def helm(self, *arguments: str, kubeconfig: pathlib.Path | None = None, timeout_seconds: float = 120.0) -> str:
        """Run helm against this cluster and return what it printed; raises CommandError."""
        return self._run("helm", *arguments, stdin=None, kubeconfig=kubeconfig, timeout_seconds=timeout_seconds)

    def get(self, *arguments: str, kubeconfig: pathlib.Path | None = None) -> dict[str, Any]:
        """`kubectl get ... -o json`, parsed."""
        return dict(json.loads(self.kubectl("get", *arguments, "--output=json", kubeconfig=kubeconfig)))

    def apply(self, *things: dict[str, Any] | pathlib.Path | str, namespace: str | None = None) -> str:
        """Apply objects, manifest files (or folders of them) or manifest texts; returns what kubectl printed."""
        where = [f"--namespace={namespace}"] if namespace else []
        printed = []
        for thing in things:
            if isinstance(thing, pathlib.Path):
                printed.append(self.kubectl("apply", *where, f"--filename={thing}"))
            else:
                text = thing if isinstance(thing, str) else yaml.safe_dump(thing)
                printed.append(self.kubectl("apply", *where, "--filename=-", stdin=text))
        return "".join(printed)

    def apply_crds(self, folder: pathlib.Path, *, timeout_seconds: float = 30.0) -> None:
        """Apply all CRDs of a folder and wait until the API server serves them."""
        self.apply(folder)
        files = f"--filename={folder}"
        self.kubectl("wait", "--for=condition=Established", files, f"--timeout={timeout_seconds:g}s")

    def kubeconfig_for(self, *, token: str, name: str) -> pathlib.Path:
        """A kubeconfig for the same API server with another bearer token; `name` names the file."""
        admin = yaml.safe_load(self.kubectl("config", "view", "--minify", "--flatten", "--raw"))
        admin["users"] = [{"name": name, "user": {"token": token}}]
        admin["contexts"][0]["context"]["user"] = name
        path = self.directory / f"{name}.kubeconfig"
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(admin))
        return path

    def service_account_kubeconfig(self, name: str, *, namespace: str, duration_seconds: int = 7200) -> pathlib.Path:
        """A kubeconfig that acts as this ServiceAccount, with a token of the TokenRequest API (600 s or more)."""
        token = self.kubectl(
            "create", "token", name, f"--namespace={namespace}", f"--duration={duration_seconds}s"
        ).strip()
        return self.kubeconfig_for(token=token, name=f"{namespace}-{name}")

    def add_gpu_node(
        self,
        name: str,
        *,
        gpu_product: str,
        count: int,
        labels: collections.abc.Mapping[str, str] | None = None,
        timeout_seconds: float = 30.0,
    ) -> None:
        """Add a simulated node with `count` GPUs and wait until it is Ready.

        gpu_product is the value that GPU feature discovery puts in nvidia.com/gpu.product, such as
        NVIDIA-H100-80GB-HBM3.
        """
        if self.simulator is None:
            raise RuntimeError("this cluster was started without kwok, so it has no simulated nodes")
        self.simulated_nodes.append(name)
        self.apply(kwok.gpu_node(name, gpu_product=gpu_product, count=count, labels=labels or {}))
        self.kubectl("wait", "--for=condition=Ready", f"node/{name}", f"--timeout={timeout_seconds:g}s")

    def set_pods(self, behaviour: kwok.PodBehaviour) -> None:
        """Change how simulated pods behave; those that are not Ready yet follow too."""
        if self.simulator is None:
            raise RuntimeError("this cluster was started without kwok, so it has no simulated pods")
        self.simulator.stop()
        # The next kwok would respect the leases of this one until they run out.
        if self.simulated_nodes:
            where = "--namespace=kube-node-lease"
            self.kubectl("delete", "leases", *self.simulated_nodes, where, "--ignore-not-found")
        self.simulator.start(behaviour)

    def _run(
        self, program: str, *arguments: str, stdin: str | None, kubeconfig: pathlib.Path | None, timeout_seconds: float
    ) -> str:
        command = [tools.find(program, allow_path=True), *arguments]
        result = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_seconds,
            env={**os.environ, "HOME": str(self.directory), "KUBECONFIG": str(kubeconfig or self.kubeconfig)},
        )
        if result.returncode != 0:
            raise CommandError([program, *arguments], result)
        return result.stdout
