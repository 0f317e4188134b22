"""The fleet as its pods and GPU exporters say themselves, for clusters without Prometheus.

Every collection scrapes all targets at the same time through a bounded number of threads; rates come from the scrapes
before (telemetry.counters). A target that does not answer keeps its last reading, with its age.
"""

import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx

from wattkeeper.domain.errors import TelemetryError
from wattkeeper.telemetry import aliases
from wattkeeper.telemetry.pages import PageReadings, ScrapeTarget
from wattkeeper.telemetry.source import Snapshot

_SHOWN_FAILURES = 3


@dataclass(frozen=True, kw_only=True)
class ScrapeSettings:
    """How targets are scraped."""

    timeout_seconds: float = 3.0
    """Of one target; all targets together get `deadline_seconds`."""
    deadline_seconds: float = 10.0
    concurrent_scrapes: int = 16
    rate_window_seconds: float = 60.0
    length_window_seconds: float = 300.0
    prefixes: tuple[str, ...] = aliases.DEFAULT_PREFIXES
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    bearer_token: str | None = field(default=None, repr=False)
    bearer_token_file: Path | None = None
    """Read at every collection."""
    ca_file: Path | None = None
    insecure_skip_verify: bool = False
    power_max_age_seconds: float = 90.0
    max_page_bytes: int = 16 * 2**20
    forget_after_seconds: float = 300.0
    """A target that did not answer for so long has no reading any more."""

    def __post_init__(self) -> None:
        if self.bearer_token is not None and self.bearer_token_file is not None:
            raise ValueError("give the bearer token or a file with it, not both")
        if min(self.timeout_seconds, self.deadline_seconds) <= 0 or self.concurrent_scrapes < 1:
            raise ValueError("timeouts must be positive and at least one scrape must be allowed at a time")


class ScrapeSource:
    """A `MetricsSource` that scrapes `/metrics` pages itself. Call `close` when done.

    `clock` stamps each page (Unix seconds); without it a page counts as taken at the time given to `collect` plus what
    the collection has lasted by then.
    """

    def __init__(self, settings: ScrapeSettings | None = None, *, clock: Callable[[], float] | None = None) -> None:
        self._settings = settings or ScrapeSettings()
        self._clock = clock
        self._targets: tuple[ScrapeTarget, ...] = ()
        self._readings = PageReadings(
            rate_window_seconds=self._settings.rate_window_seconds,
            length_window_seconds=self._settings.length_window_seconds,
            prefixes=self._settings.prefixes,
            power_max_age_seconds=self._settings.power_max_age_seconds,
            forget_after_seconds=self._settings.forget_after_seconds,
        )
        self._client = self._http_client()
        self._pool = ThreadPoolExecutor(self._settings.concurrent_scrapes, thread_name_prefix="wattkeeper-scrape")

    def set_targets(self, targets: Sequence[ScrapeTarget]) -> None:
        """Scrape these from the next collection on; what is known of targets that stay is kept."""
        self._targets = tuple(dict.fromkeys(targets))

    def collect(self, now_seconds: float) -> Snapshot:
        """Scrape all targets once. Raises TelemetryError where there are engines and not one answers."""
        targets = self._targets
        self._readings.keep_only(targets)
        failures: dict[ScrapeTarget, str] = {}
        for target, page in self._pages(targets, now_seconds).items():
            try:
                if isinstance(page, str):
                    raise TelemetryError(page)
                self._readings.take(target, page.text, page.time_seconds)
            except (TelemetryError, ValueError) as error:
                failures[target] = f"{target.url}: {error}"
        engines = [target for target in targets if target.role == "engine"]
        if engines and all(target in failures for target in engines):
            raise TelemetryError(f"none of {len(engines)} engines answered, such as {failures[engines[0]]}")

        errors = list(failures.values())[:_SHOWN_FAILURES]
        if len(failures) > _SHOWN_FAILURES:
            errors.append(f"{len(failures) - _SHOWN_FAILURES} more targets did not answer")
        if not engines:
            errors.append("there is no engine to scrape")
        snapshot = self._readings.snapshot(now_seconds)
        return replace(snapshot, errors=(*errors, *snapshot.errors))

    def close(self) -> None:
        """Give up connections and threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _pages(self, targets: Sequence[ScrapeTarget], now_seconds: float) -> dict[ScrapeTarget, "_Page | str"]:
        """What each target served, or why it did not."""
        headers = self._request_headers()
        began = time.monotonic()

        def stamp() -> float:
            return self._clock() if self._clock is not None else now_seconds + (time.monotonic() - began)

        futures: dict[ScrapeTarget, Future[_Page | str]] = {
            target: self._pool.submit(self._fetch, target.url, headers, stamp) for target in targets
        }
        wait(futures.values(), timeout=self._settings.deadline_seconds)
        pages: dict[ScrapeTarget, _Page | str] = {}
        for target, future in futures.items():
            if future.done():
                pages[target] = future.result()
            else:
                future.cancel()
                pages[target] = f"not reached within the {self._settings.deadline_seconds:g} s of a collection"
        return pages

    def _fetch(self, url: str, headers: Mapping[str, str], stamp: Callable[[], float]) -> "_Page | str":
        limit = self._settings.max_page_bytes
        try:
            with self._client.stream("GET", url, headers=headers) as response:
                if response.status_code != httpx.codes.OK:
                    return f"HTTP {response.status_code}"
                at_seconds = stamp()
                body = bytearray()
                for part in response.iter_bytes():
                    body += part
                    if len(body) > limit:
                        return f"the page is longer than {limit} bytes"
                return _Page(bytes(body).decode("utf-8", errors="replace"), at_seconds)
        except httpx.TimeoutException:
            return f"no answer within {self._settings.timeout_seconds:g} s"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return f"{type(error).__name__}: {error}"

    def _request_headers(self) -> dict[str, str]:
        settings = self._settings
        headers = {"Accept": "text/plain; version=0.0.4", **settings.headers}
        token = settings.bearer_token
        if settings.bearer_token_file is not None:
            try:
                token = settings.bearer_token_file.read_text(encoding="utf-8").strip()
            except OSError as error:
                raise TelemetryError(f"the bearer token file cannot be read: {error}") from error
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return headers

    def _http_client(self) -> httpx.Client:
        settings = self._settings
        verify: bool | ssl.SSLContext = not settings.insecure_skip_verify
        if settings.ca_file is not None and verify:
            verify = ssl.create_default_context(cafile=str(settings.ca_file))
        connections = settings.concurrent_scrapes
        return httpx.Client(
            verify=verify,
            timeout=settings.timeout_seconds,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            trust_env=False,  # pods are reached directly, never through a proxy
        )


@dataclass(frozen=True, slots=True)
class _Page:
    text: str
    time_seconds: float
