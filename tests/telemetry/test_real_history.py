"""A real Prometheus with a backfilled history gives the same rows as the one in miniature."""

import subprocess
import time

import pandas as pd
import pytest

from e2e.cluster import prometheus as real
from e2e.cluster import tools
from tests.telemetry.twin_history import EPOCH, record
from wattkeeper.telemetry import run_rows
from wattkeeper.telemetry.prometheus import PrometheusSettings
from wattkeeper.telemetry.promql import QuerySettings
from wattkeeper.telemetry.run_history import HistorySpan
from wattkeeper.telemetry.run_rows import Deployment

pytestmark = pytest.mark.cluster

CHAT = Deployment(name="team/chat", namespace="team", pods="chat-[0-9]")


def open_metrics(store, later):
    """Every stored sample, so many seconds later than it was."""
    by_name = {}
    for labels, points in store.series.items():
        named = dict(labels)
        by_name.setdefault(named.pop("__name__"), []).append((named, points))
    for name, series in sorted(by_name.items()):
        yield f"# TYPE {name} unknown"
        for named, (times, values) in series:
            text = ",".join(f'{label}="{value}"' for label, value in sorted(named.items()))
            yield from (f"{name}{{{text}}} {value} {at + later}" for at, value in zip(times, values, strict=True))
    yield "# EOF"


def rows(url, start, seconds):
    # Two prefixes, as the command asks for.
    settings = PrometheusSettings(url=url, queries=QuerySettings(prefixes=("vllm:", "kserve_vllm:")))
    span = HistorySpan(start_seconds=start, end_seconds=start + seconds)
    return run_rows.collect(settings, span, CHAT).rows()


def test_the_same_rows(tmp_path):
    recorded = record(((0, 16.0), (1800, 16.0)), fault="scale=0.9@60")
    later = int(time.time()) // 30 * 30 - EPOCH % 30 - 7200 - EPOCH
    page = tmp_path / "history.txt"
    page.write_text("\n".join(open_metrics(recorded.store, later)) + "\n")
    with real.Prometheus([]) as running:
        running.kill()
        command = [
            tools.find("promtool"),
            "tsdb",
            "create-blocks-from",
            "openmetrics",
            page,
            running.directory / "data",
        ]
        subprocess.run(command, check=True, capture_output=True)
        running.restart()
        found = rows(running.url, EPOCH + later, recorded.seconds)
    with recorded.store as store:
        expected = rows(store.url, EPOCH, recorded.seconds)
    assert len(found) >= 3
    pd.testing.assert_frame_equal(found, expected)
