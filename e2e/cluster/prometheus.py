"""A real Prometheus on loopback for tests."""

from __future__ import annotations

import collections.abc
import json
import math
import pathlib
import shutil
import subprocess
import tempfile
import types
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Self

import yaml

from e2e.cluster import base, processes, tools

ATTEMPTS = 3


class QueryError(RuntimeError):
    """Prometheus refused a query."""


class Prometheus:
    """A context manager that scrapes while its block runs.

    Args:
        scrape_configs: the `scrape_configs` section of prometheus.yml; http_targets, file_targets and static_targets
            write the usual entries.
        scrape_interval: how often targets are read, as a Prometheus duration.
        rules: rule files to load.

    """

    def __init__(
        self,
        scrape_configs: collections.abc.Sequence[dict[str, Any]],
        *,
        scrape_interval: str = "1s",
        rules: collections.abc.Sequence[pathlib.Path] = (),
    ) -> None:
        self._scrape_configs = list(scrape_configs)
        self._scrape_interval = scrape_interval
        self._rules = [str(path.resolve()) for path in rules]
        self._running: processes.Processes | None = None
        self.url = ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.stop()

    def start(self, *, timeout_seconds: float = 30.0) -> Self:
        """Start and wait until queries are answered; raises ToolsMissingError, ProcessExitedError or TimeoutError."""
        program = tools.find("prometheus")
        for attempt in range(1, ATTEMPTS + 1):
            self.directory = pathlib.Path(tempfile.mkdtemp(prefix="wattkeeper-prometheus-"))
            self._running = processes.Processes(directory=self.directory)
            self.url = f"http://127.0.0.1:{processes.free_port()}"
            self._write_config()
            try:
                self._launch(program, timeout_seconds=timeout_seconds)
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

    def _launch(self, program: str, *, timeout_seconds: float) -> None:
        self._processes.start(
            "prometheus",
            program,
            f"--config.file={self.directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address={self.url.removeprefix('http://')}",
            "--web.enable-lifecycle",
            "--scrape.discovery-reload-interval=200ms",  # 5 s would be paid by every test
            "--log.level=warn",
        )
        base.wait_until(self._ready, timeout_seconds=timeout_seconds, what=f"a ready Prometheus at {self.url}")

    @property
    def _processes(self) -> processes.Processes:
        if self._running is None:
            raise RuntimeError("Prometheus is not running: use it as a context manager or call start()")
        return self._running

    def kill(self) -> None:
        """End it at once; its data stay for restart()."""
        self._processes.stop("prometheus")

    def restart(self, *, timeout_seconds: float = 30.0) -> None:
        """Start it again after kill(), with its data and at the same address."""
        self._launch(tools.find("prometheus"), timeout_seconds=timeout_seconds)

    def stop(self) -> None:
        """End it and remove its data. Safe to call twice."""
        if self._running is not None:
            self._running.stop()
            self._running = None
            shutil.rmtree(self.directory, ignore_errors=True)

    def reload(self, scrape_configs: collections.abc.Sequence[dict[str, Any]]) -> None:
        """Take another scrape configuration."""
        self._scrape_configs = list(scrape_configs)
        self._write_config()
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/-/reload", method="POST"), timeout=10).close()

    def query(self, expression: str, *, at: float | None = None) -> list[dict[str, Any]]:
        """The result of an instant query: a list of {"metric": labels, "value": [time, text]}.

        `at` is the Unix time to answer for; left out: now.

        Raises:
            QueryError: with what Prometheus said about the expression.

        """
        asked = {"query": expression} if at is None else {"query": expression, "time": f"{at:.3f}"}
        address = f"{self.url}/api/v1/query?{urllib.parse.urlencode(asked)}"
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return list(json.load(answer)["data"]["result"])
        except urllib.error.HTTPError as error:
            with error:
                raise QueryError(f"`{expression}`: {error.read().decode()}") from error

    def value(self, expression: str, *, at: float | None = None) -> float | None:
        """The single value of an instant query; None when there is no series, an error when there are several."""
        result = self.query(expression, at=at)
        if len(result) > 1:
            raise QueryError(f"`{expression}` gave {len(result)} series where one was asked for")
        return float(result[0]["value"][1]) if result else None

    def wait_for(self, expression: str, *, timeout_seconds: float = 30.0) -> float:
        """Wait until the expression has a value that is a number, and return it; raises TimeoutError."""

        def probe() -> tuple[float] | None:
            value = self.value(expression)
            return None if value is None or math.isnan(value) else (value,)

        return base.wait_until(probe, timeout_seconds=timeout_seconds, what=f"a value of `{expression}`")[0]

    def _write_config(self) -> None:
        config = {
            "global": {"scrape_interval": self._scrape_interval, "evaluation_interval": self._scrape_interval},
            "rule_files": self._rules,
            "scrape_configs": self._scrape_configs,
        }
        (self.directory / "prometheus.yml").write_text(yaml.safe_dump(config))

    def _ready(self) -> bool:
        if self._running is not None:
            self._running.check()
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


def static_targets(
    job: str, *addresses: str, labels: collections.abc.Mapping[str, str] | None = None, metrics_path: str = "/metrics"
) -> dict[str, Any]:
    """A scrape job for fixed `host:port` addresses, with these labels on all their series."""
    group = {"targets": list(addresses), "labels": dict(labels or {})}
    return {"job_name": job, "metrics_path": metrics_path, "static_configs": [group]}


def http_targets(job: str, url: str, *, refresh_interval: str = "1s", **more: Any) -> dict[str, Any]:
    """A scrape job whose targets come from an HTTP service discovery address; `more` are further keys of the job."""
    return {"job_name": job, "http_sd_configs": [{"url": url, "refresh_interval": refresh_interval}], **more}


def file_targets(job: str, path: pathlib.Path, **more: Any) -> dict[str, Any]:
    """A scrape job whose targets come from a JSON or YAML file, read again whenever it changes."""
    return {"job_name": job, "file_sd_configs": [{"files": [str(path)], "refresh_interval": "1s"}], **more}


def check_rules(*paths: pathlib.Path) -> str:
    """What `promtool check rules` says; raises QueryError when a rule is wrong."""
    command = [tools.find("promtool"), "check", "rules", *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise QueryError(result.stdout + result.stderr)
    return result.stdout
