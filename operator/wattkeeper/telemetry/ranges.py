"""Range queries: what Prometheus remembers of the last days, a bounded part at a time.

Each answer is asked for and taken apart before the next, so memory holds one part however long the range is.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import requests

from wattkeeper.domain.errors import TelemetryError
from wattkeeper.telemetry.prometheus import PrometheusSettings, connect

MOST_POINTS = 1000
"""Of one series in one answer; Prometheus refuses more than 11,000."""
_SHOWN_CHARACTERS = 200

Series = tuple[Mapping[str, str], list[tuple[float, float]]]
"""Labels, and (Unix seconds, value) of each point that is there; NaN and infinite values are left out."""


class RangeSource:
    """Asks one Prometheus for ranges. Use it as a context."""

    def __init__(self, settings: PrometheusSettings) -> None:
        self._settings = settings
        self._session = connect(settings)

    def __enter__(self) -> "RangeSource":
        return self

    def __exit__(self, *exc: object) -> None:
        self._session.close()

    def ask(
        self, query: str, *, start_seconds: float, end_seconds: float, step_seconds: float, points: int = MOST_POINTS
    ) -> Iterator[list[Series]]:
        """Answers for successive parts of the range, ends included. Raises TelemetryError."""
        count = math.floor((end_seconds - start_seconds) / step_seconds) + 1
        for first in range(0, count, points):
            last = min(first + points, count) - 1
            yield self._part(
                {
                    "query": query,
                    "start": f"{start_seconds + first * step_seconds:.3f}",
                    "end": f"{start_seconds + last * step_seconds:.3f}",
                    "step": f"{step_seconds:g}",
                    "timeout": f"{self._settings.timeout_seconds:.3f}",
                }
            )

    def _part(self, parameters: dict[str, str]) -> list[Series]:
        url = self._settings.url.rstrip("/")
        try:
            answer = self._session.post(
                f"{url}/api/v1/query_range",
                data=parameters,
                headers=dict(self._settings.headers),
                timeout=self._settings.timeout_seconds,
            )
            body = answer.json()
            if answer.status_code != 200 or body["status"] != "success":
                raise TelemetryError(
                    f"Prometheus at {url} refused a range query: HTTP {answer.status_code} "
                    f"({_brief(body.get('error', body))}): check the token, the selector and --step"
                )
            return [(each["metric"], _points(each["values"])) for each in body["data"]["result"]]
        except requests.exceptions.JSONDecodeError as error:
            raise TelemetryError(
                f"Prometheus at {url}: the answer (HTTP {answer.status_code}) is not JSON: does the URL lead to "
                "Prometheus, not to a login?"
            ) from error
        except requests.Timeout as error:
            raise TelemetryError(
                f"Prometheus at {url}: no answer within {self._settings.timeout_seconds:g} s: raise the timeout or ask "
                "for fewer days"
            ) from error
        except (requests.RequestException, OSError) as error:
            cause = getattr(error.args[0] if error.args else None, "reason", None) or error
            raise TelemetryError(
                f"Prometheus at {url}: no connection ({_brief(cause)}): check the URL and network policies"
            ) from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TelemetryError(
                f"Prometheus at {url}: unusable answer ({type(error).__name__}: {_brief(error)}): is it the API of "
                "Prometheus?"
            ) from error


def _points(values: list[Any]) -> list[tuple[float, float]]:
    points = ((float(seconds), float(text)) for seconds, text in values)
    return [(seconds, value) for seconds, value in points if math.isfinite(value)]


def _brief(error: object) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
