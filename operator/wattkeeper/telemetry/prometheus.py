"""The fleet as Prometheus (or Thanos, Mimir, VictoriaMetrics) knows it.

About two dozen instant queries a time, however many services there are. A query that fails costs its own quantity; only
without the ages, queue lengths or completions of the engines is nothing returned, because no decision could rest on it.
"""

import ast
import json
import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from prometheus_api_client.exceptions import PrometheusApiClientException
from prometheus_api_client.prometheus_connect import PrometheusConnect
from requests.auth import AuthBase

from wattkeeper.domain.errors import TelemetryError
from wattkeeper.domain.observation import GpuReading, PodReading
from wattkeeper.telemetry import aliases, assemble, promql
from wattkeeper.telemetry.assemble import Sample
from wattkeeper.telemetry.source import PodKey, Snapshot

_NEEDED = ("age", aliases.RUNNING, aliases.WAITING, aliases.FINISHED)
"""Without these nothing can be said of any pod."""

_SLOW = (
    aliases.PROMPT_LENGTH,
    aliases.OUTPUT_LENGTH,
    aliases.CACHE_INFO,
    aliases.GPU_LIMIT,
    aliases.GPU_USE,
    aliases.GPU_TEMPERATURE,
)
"""Change slowly or decide nothing, and are more than half of all samples: answers are kept for a tenth of the length
window."""

_INTERRUPTED_SECONDS = 300.0
"""What a pod last said is kept this long: as Prometheus by default answers for a series that nothing ended."""

_WARNINGS = re.compile(rb'"warnings":\s*(\[[^\]]*\])')
_STATUS = re.compile(r"HTTP Status Code (\d+) \((.*)\)$", re.DOTALL)
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True, kw_only=True)
class PrometheusSettings:
    """Where Prometheus is and what is asked of it."""

    url: str
    queries: promql.QuerySettings = field(default_factory=promql.QuerySettings)
    timeout_seconds: float = 10.0
    """Of one query; all queries of one collection together get twice this."""
    bearer_token: str | None = field(default=None, repr=False)
    bearer_token_file: Path | None = None
    """Read at every request: projected service account tokens are rotated."""
    ca_file: Path | None = None
    client_cert_file: Path | None = None
    client_key_file: Path | None = None
    insecure_skip_verify: bool = False
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent with every request, such as X-Scope-OrgID."""
    params: Mapping[str, str] = field(default_factory=dict)
    """URL parameters of every request, such as Thanos' partial_response."""
    power_max_age_seconds: float = 90.0
    """Power older than this is left out; GPU exporters collect every 30 s by default."""
    concurrent_queries: int = 4

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise ValueError(f"the URL of Prometheus must begin with http:// or https://, not {self.url!r}")
        if self.bearer_token is not None and self.bearer_token_file is not None:
            raise ValueError("give the bearer token or a file with it, not both")
        if self.timeout_seconds <= 0 or self.concurrent_queries < 1:
            raise ValueError("the timeout must be positive and at least one query must be allowed at a time")


class PrometheusSource:
    """A `MetricsSource` over the HTTP API of Prometheus. Call `close` when done."""

    def __init__(self, settings: PrometheusSettings) -> None:
        self._settings = settings
        self._queries = {**promql.engine_queries(settings.queries), **promql.gpu_queries(settings.queries)}
        self._host = urlsplit(settings.url).hostname or settings.url
        self._warnings = threading.local()
        self._slow: dict[str, tuple[float, list[Sample]]] = {}
        self._seen: dict[PodKey, tuple[float, PodReading]] = {}
        if settings.insecure_skip_verify:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        self._client = PrometheusConnect(
            url=settings.url.rstrip("/"),
            headers=dict(settings.headers),
            session=connect(settings, self._note_warnings),
            # A collection comes again in seconds: only a connection that could not be made is tried a second time.
            retry=urllib3.Retry(total=1, connect=1, read=False, status=0, other=0, backoff_factor=0),
        )
        self._pool = ThreadPoolExecutor(settings.concurrent_queries, thread_name_prefix="wattkeeper-promql")

    def collect(self, now_seconds: float) -> Snapshot:
        """Read the whole fleet. Raises TelemetryError where Prometheus or one of the needed queries fails."""
        until = time.monotonic() + 2 * self._settings.timeout_seconds
        unreachable = threading.Event()
        answers = self._kept(now_seconds)
        futures = {
            name: self._pool.submit(self._ask, query, until, unreachable)
            for name, query in self._queries.items()
            if name not in answers
        }
        failures: dict[str, str] = {}
        warned: dict[str, str] = {}
        for name, future in futures.items():
            try:
                answers[name], warnings = future.result()
                for warning in warnings:
                    warned.setdefault(warning, f"query {name}: Prometheus warns: {warning}")
            except TelemetryError as error:
                failures[name] = str(error)
        self._slow |= {name: (now_seconds, answers[name]) for name in _SLOW if name in futures and name in answers}
        needed = [name for name in _NEEDED if name in failures]
        if needed:
            raise TelemetryError(f"Prometheus at {self._host}, query {needed[0]!r}: {failures[needed[0]]}")
        errors = [*warned.values(), *(f"query {name}: {failure}" for name, failure in failures.items())]

        gpus, gpus_by_pod, odd_gpus = assemble.gpu_readings(
            answers, max_age_seconds=self._settings.power_max_age_seconds
        )
        pods, odd_pods = assemble.pod_readings(answers, gpus_by_pod, prefixes=self._settings.queries.prefixes)
        if not answers["age"]:
            names = " or ".join(
                aliases.full_names(aliases.ENGINE_METRICS[aliases.RUNNING], self._settings.queries.prefixes)
            )
            odd_pods.append(f"Prometheus at {self._host} has no series {names}: is any vLLM pod scraped?")
        pods = self._with_interrupted(pods, gpus_by_pod, now_seconds)
        return Snapshot(time_seconds=now_seconds, pods=pods, errors=(*errors, *odd_pods, *odd_gpus), gpus=gpus)

    def close(self) -> None:
        """Give up connections and threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _with_interrupted(
        self,
        pods: dict[PodKey, PodReading],
        gpus_by_pod: Mapping[PodKey, tuple[GpuReading, ...]],
        now_seconds: float,
    ) -> dict[PodKey, PodReading]:
        """Add what pods last said whose series ended: one failed scrape ends them, and the next one brings them back.

        Their ages grow on, so whoever reads them judges by `max_age_seconds` as of any other pod.
        """
        interrupted = {
            key: replace(
                reading,
                age_seconds=reading.age_seconds + now_seconds - seen_seconds,
                gpus=gpus_by_pod.get(key, ()),
            )
            for key, (seen_seconds, reading) in self._seen.items()
            if key not in pods and 0.0 <= now_seconds - seen_seconds <= _INTERRUPTED_SECONDS
        }
        self._seen = {key: self._seen[key] for key in interrupted} | {
            key: (now_seconds, reading) for key, reading in pods.items()
        }
        return pods | interrupted

    def _kept(self, now_seconds: float) -> dict[str, list[Sample]]:
        """Answers to slow queries that need not be asked again yet."""
        lifetime_seconds = self._settings.queries.length_window_seconds / 10
        return {
            name: samples
            for name, (asked_seconds, samples) in self._slow.items()
            if samples and 0.0 <= now_seconds - asked_seconds < lifetime_seconds
        }

    def _ask(self, query: str, until: float, unreachable: threading.Event) -> tuple[list[Sample], list[str]]:
        """Finite samples of one query and Prometheus' warnings. Raises TelemetryError."""
        timeout = min(self._settings.timeout_seconds, until - time.monotonic())
        if unreachable.is_set():
            raise TelemetryError("not asked: Prometheus cannot be reached")
        if timeout <= 0:
            raise TelemetryError(f"not asked: earlier queries used up {2 * self._settings.timeout_seconds:g} s")
        self._warnings.found = []
        try:
            # The client declares whole seconds, but hands the number to requests, which takes fractions.
            found = self._client.custom_query(query, {"timeout": f"{timeout:.3f}"}, timeout)  # type: ignore[arg-type]
            samples = [sample for element in found if (sample := _sample(element)) is not None]
        except requests.Timeout as error:
            if isinstance(error, requests.ConnectTimeout):
                unreachable.set()
            raise TelemetryError(f"no answer within {timeout:.1f} s") from error
        except requests.exceptions.SSLError as error:
            unreachable.set()
            raise TelemetryError(f"TLS failed ({_brief(error)}): check the CA file and the host name") from error
        except requests.exceptions.JSONDecodeError as error:
            raise TelemetryError("the answer is not JSON: does the URL lead to Prometheus, not to a login?") from error
        except requests.ConnectionError as error:
            cause = getattr(error.args[0] if error.args else None, "reason", None) or error
            if isinstance(cause, urllib3.exceptions.NewConnectionError):
                unreachable.set()  # no connection could be made at all: asking on is useless
            raise TelemetryError(f"no connection ({_brief(cause)}): check the URL and network policies") from error
        except PrometheusApiClientException as error:
            raise TelemetryError(_refusal(str(error))) from error
        except (requests.RequestException, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise TelemetryError(f"unusable answer ({type(error).__name__}: {_brief(error)})") from error
        return samples, self._warnings.found

    def _note_warnings(self, response: requests.Response, *_args: Any, **_kwargs: Any) -> None:
        """Keep what Prometheus (or Thanos: a partial response) warns of; the client returns the data alone."""
        match = _WARNINGS.search(response.content[-4096:])
        if match is not None:
            try:
                self._warnings.found = [str(text) for text in json.loads(match.group(1))]
            except ValueError:
                self._warnings.found = ["a warning that is not JSON"]


def connect(settings: PrometheusSettings, *seen: Callable[..., None]) -> requests.Session:
    """A session with the credentials, certificates and URL parameters of the settings; `seen` gets every response."""
    session = requests.Session()
    session.params = dict(settings.params)
    session.hooks["response"].extend(seen)
    if settings.ca_file is not None:
        session.verify = str(settings.ca_file)
    session.verify = False if settings.insecure_skip_verify else session.verify
    if settings.client_cert_file is not None:
        certificate = str(settings.client_cert_file)
        key = settings.client_key_file
        session.cert = certificate if key is None else (certificate, str(key))
    if settings.bearer_token is not None or settings.bearer_token_file is not None:
        session.auth = _BearerAuth(token=settings.bearer_token, file=settings.bearer_token_file)
    return session


class _BearerAuth(AuthBase):
    """Authorization header; a token file is read at every request."""

    def __init__(self, *, token: str | None, file: Path | None) -> None:
        self._token = token
        self._file = file

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        try:
            token = self._token if self._file is None else self._file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise TelemetryError(f"the bearer token file cannot be read: {error}") from error
        r.headers["Authorization"] = f"Bearer {token}"
        return r


def _sample(element: Mapping[str, Any]) -> Sample | None:
    """One element of a result vector; None where its value is NaN or infinite."""
    seconds, text = element["value"]
    value = float(text)
    if not math.isfinite(value):
        return None
    return Sample(element["metric"], float(seconds), value)


def _refusal(text: str) -> str:
    """Status and Prometheus' own reason, from the text of the client's exception."""
    match = _STATUS.search(text)
    if match is None:
        return _brief(text)
    status = match.group(1)
    try:
        body = ast.literal_eval(match.group(2)).decode("utf-8", errors="replace")
        reason = json.loads(body)["error"]
    except (ValueError, SyntaxError, KeyError, TypeError, AttributeError):
        reason = match.group(2)
    hint = ": check the token and its permissions" if status in ("401", "403") else ""
    return f"HTTP {status} ({_brief(reason)}){hint}"


def _brief(error: object) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
