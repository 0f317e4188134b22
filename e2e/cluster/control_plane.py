"""A real control plane on loopback: etcd, kube-apiserver, controller-manager, scheduler, and kwok for the nodes.

Everything lives in one temporary folder and ends with the `with` block. RBAC is on, so that a program can be run with
exactly the rights of its ServiceAccount.
"""

from __future__ import annotations

import collections.abc
import pathlib
import secrets
import shutil
import ssl
import subprocess
import tempfile
import time
import types
import urllib.error
import urllib.request
from typing import Self

import yaml

from e2e.cluster import base, kwok, processes, tools

ATTEMPTS = 3
# The controllers' own limit on requests (20 per second) would cost seconds at the start.
UNTHROTTLED = ("--kube-api-qps=500", "--kube-api-burst=1000")


class ControlPlane(base.Cluster):
    """A context manager that is a running cluster inside its block.

    Args:
        with_kwok: start kwok, so that add_gpu_node works.
        pods: how simulated pods behave; set_pods() changes it later.
        pod_cidr: addresses of simulated pods. A part of 127.0.0.0/8 makes them reachable on Linux, so that a test
            server can listen on the address of "its" pod (Services will not take such addresses).
        apiserver_flags, controller_flags: more flags for these programs.
        directory: an empty folder to use instead of a temporary one; it is kept.
        detached: leave the programs running after this process; `pids` and `directory` are what is needed to end them.

    """

    def __init__(
        self,
        *,
        with_kwok: bool = True,
        pods: kwok.PodBehaviour | None = None,
        pod_cidr: str = "10.64.0.1/16",
        apiserver_flags: collections.abc.Sequence[str] = (),
        controller_flags: collections.abc.Sequence[str] = (),
        directory: pathlib.Path | None = None,
        detached: bool = False,
    ) -> None:
        super().__init__()
        self._with_kwok = with_kwok
        self._pods = pods or kwok.PodBehaviour()
        self._pod_cidr = pod_cidr
        self._apiserver_flags = tuple(apiserver_flags)
        self._controller_flags = tuple(controller_flags)
        self._given_directory = directory
        self._detached = detached
        self._running: processes.Processes | None = None
        self.server = ""
        self.token = ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the running programs by name."""
        return self._running.pids if self._running else {}

    def start(self, *, timeout_seconds: float = 60.0) -> Self:
        """Start everything and wait until the API server is ready and the controllers work.

        Raises:
            tools.ToolsMissingError: programs were not built.
            processes.ProcessExitedError: one of them ended; the message has the end of its log.
            TimeoutError: not ready in time.

        """
        needed = tools.CONTROL_PLANE if self._with_kwok else tuple(set(tools.CONTROL_PLANE) - {"kwok"})
        if absent := tools.missing(needed):
            raise tools.ToolsMissingError(
                f"not built: {', '.join(absent)} (looked in {tools.folder()}); run `make tools`"
            )
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._start_once(timeout_seconds=timeout_seconds)
            except processes.ProcessExitedError as error:
                self.stop()
                if not error.port_taken or attempt == ATTEMPTS:
                    raise
            except BaseException:
                self.stop()
                raise
            else:
                break
        return self

    def stop(self) -> None:
        """End all programs and remove the temporary folder. Safe to call twice."""
        if self._running is not None:
            self._running.stop()
            self._running = None
            self.simulator = None
            if self._given_directory is None:
                shutil.rmtree(self.directory, ignore_errors=True)

    def _start_once(self, *, timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        if self._given_directory is None:
            self.directory = pathlib.Path(tempfile.mkdtemp(prefix="wattkeeper-cluster-"))
        else:
            self.directory = self._given_directory
            self.directory.mkdir(parents=True, exist_ok=True)
        self._running = processes.Processes(directory=self.directory, detached=self._detached)
        self.token = secrets.token_urlsafe(24)
        self.kubeconfig = self.directory / "admin.kubeconfig"
        self._start_api()
        self._wait(self._certificate_written, deadline=deadline, what="the API server's certificate")
        self._write_kubeconfig()
        self._start_controllers()
        self._wait(self._api_ready, deadline=deadline, what="a ready API server")
        self._wait(self._controllers_work, deadline=deadline, what="the controllers' first objects")

    def _start_api(self) -> None:
        running, folder = self._processes, self.directory
        key = folder / "service-accounts.key"
        _make_signing_key(key)
        tokens = folder / "tokens.csv"
        tokens.touch(mode=0o600)
        tokens.write_text(f'{self.token},admin,admin,"system:masters"\n')
        etcd = f"http://127.0.0.1:{processes.free_port()}"
        peer = f"http://127.0.0.1:{processes.free_port()}"
        running.start(
            "etcd",
            tools.find("etcd"),
            f"--data-dir={folder / 'etcd'}",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",  # nothing in it needs to survive
            "--log-level=warn",
        )
        port = processes.free_port()
        self.server = f"https://127.0.0.1:{port}"
        running.start(
            "kube-apiserver",
            tools.find("kube-apiserver"),
            f"--etcd-servers={etcd}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--cert-dir={folder / 'certificates'}",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            f"--token-auth-file={tokens}",
            "--authorization-mode=RBAC",
            "--allow-privileged=true",
            *self._apiserver_flags,
        )

    def _start_controllers(self) -> None:
        running = self._processes
        running.start(
            "kube-controller-manager",
            tools.find("kube-controller-manager"),
            f"--kubeconfig={self.kubeconfig}",
            f"--service-account-private-key-file={self.directory / 'service-accounts.key'}",
            f"--root-ca-file={self._certificate}",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--secure-port=0",
            *UNTHROTTLED,
            *self._controller_flags,
        )
        running.start(
            "kube-scheduler",
            tools.find("kube-scheduler"),
            f"--kubeconfig={self.kubeconfig}",
            "--leader-elect=false",
            "--secure-port=0",
            *UNTHROTTLED,
        )
        if self._with_kwok:
            self.simulator = kwok.Kwok(
                running=running, directory=self.directory, kubeconfig=self.kubeconfig, pod_cidr=self._pod_cidr
            )
            self.simulator.start(self._pods)

    def _write_kubeconfig(self) -> None:
        self.kubeconfig.touch(mode=0o600)
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "local", "cluster": {"server": self.server, "certificate-authority": str(self._certificate)}}
            ],
            "users": [{"name": "admin", "user": {"token": self.token}}],
            "contexts": [{"name": "local", "context": {"cluster": "local", "user": "admin"}}],
            "current-context": "local",
        }
        self.kubeconfig.write_text(yaml.safe_dump(config))

    def _wait(self, probe: collections.abc.Callable[[], bool], *, deadline: float, what: str) -> None:
        def probe_alive() -> bool:
            self._processes.check()
            return probe()

        base.wait_until(
            probe_alive,
            timeout_seconds=deadline - time.monotonic(),
            what=f"{what} ({self.server})",
            interval_seconds=0.05,
        )

    def _certificate_written(self) -> bool:
        return self._certificate.exists() and "END CERTIFICATE" in self._certificate.read_text()

    def _api_ready(self) -> bool:
        return self._http_ok("/readyz")

    def _controllers_work(self) -> bool:
        # Pods are refused until the controller-manager has made the default ServiceAccount of their namespace.
        return self._http_ok("/api/v1/namespaces/default/serviceaccounts/default")

    def _http_ok(self, path: str) -> bool:
        request = urllib.request.Request(self.server + path, headers={"Authorization": f"Bearer {self.token}"})
        context = ssl.create_default_context(cafile=str(self._certificate))
        try:
            with urllib.request.urlopen(request, context=context, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    @property
    def _certificate(self) -> pathlib.Path:
        # Self-signed by the API server at its start; the file holds the authority too.
        return self.directory / "certificates" / "apiserver.crt"

    @property
    def _processes(self) -> processes.Processes:
        if self._running is None:
            raise RuntimeError("the control plane is not running: use it as a context manager or call start()")
        return self._running


def _make_signing_key(path: pathlib.Path) -> None:
    """The key that signs ServiceAccount tokens."""
    if shutil.which("openssl") is None:
        raise tools.ToolsMissingError("openssl is not in PATH; it makes the key that signs ServiceAccount tokens")
    command = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
