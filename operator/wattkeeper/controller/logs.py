"""Logs: one JSON object a line for machines, or plain text for people at a terminal."""

import json
import logging
import sys
from datetime import UTC, datetime

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """time, level, logger, message, what was given as `extra`, and the trace of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, tz=UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(
            {name: value for name, value in vars(record).items() if name not in _STANDARD and value is not None}
        )
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(*, as_json: bool, verbose: bool) -> None:
    """Set up logging of the process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter() if as_json else logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    )
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True)
    # What fails to connect is told once by those who wanted it, not by the connection pool for every request.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    for name in ("kopf", "httpx", "httpcore", "leaderelection", "kubernetes", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
