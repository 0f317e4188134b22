"""A history from a Prometheus that keeps counters of simulated pods: rates, lengths, gaps, restarts, bad answers."""

import itertools
import json
import math
import re
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
from typer.testing import CliRunner

from wattkeeper.cli import main
from wattkeeper.domain.errors import TelemetryError
from wattkeeper.telemetry.prometheus import PrometheusSettings
from wattkeeper.telemetry.promql import QuerySettings
from wattkeeper.traces import history
from wattkeeper.traces.record import record
from wattkeeper.traces.trace import TraceError
from wattkeeper.traces.windows import Gaps

WINDOW, SCRAPE = 300, 30
END = 1_700_000_400
BOUNDS = {"100": 0.25, "200": 0.75, "+Inf": 1.0}


class FakePrometheus:
    """Counters of pods at scrapes; answers range queries with rates as Prometheus takes them, resets included."""

    def __init__(self, *, windows=8, rate=2.0, pods=2, reset_at=None, down=(), nan_at=()):
        self.start = END - windows * WINDOW
        self.scrapes = [
            at for at in range(self.start, END + 1, SCRAPE) if not any(self.window(at) == window for window in down)
        ]
        self.reset_at, self.rate, self.pods, self.nan_at = reset_at, rate, pods, nan_at
        self.asked: list[dict[str, str]] = []
        self.answer = self.matrix

    def window(self, at):
        return math.ceil((at - self.start) / WINDOW) - 1

    def counter(self, at, share):
        begun = self.start if self.reset_at is None or at < self.reset_at else self.reset_at
        return self.rate * share * (at - begun)

    def change(self, at, share, resets=False):
        times = [each for each in self.scrapes if at - WINDOW < each <= at]
        if len(times) < 2:
            return None
        values = [self.counter(each, share) for each in times]
        if resets:
            return float(sum(b < a for a, b in itertools.pairwise(values)))
        grown = sum(b - a if b >= a else b for a, b in itertools.pairwise(values))
        return grown / (times[-1] - times[0])

    def matrix(self, form):
        query = form["query"]
        start, end, step = (float(form[name]) for name in ("start", "end", "step"))
        steps = [start + index * step for index in range(round((end - start) / step) + 1)]
        if "rate(" not in query and "resets(" not in query:
            return self.counters(steps)
        if "tokens_bucket" in query:
            parts = {**BOUNDS, "sum": 150.0}
        elif "hits" in query:
            parts = {"": 30.0}
        else:
            parts = {"": 100.0 if "queries" in query else 1.0}
        result = []
        for bound, share in parts.items():
            values = []
            for at in steps:
                found = self.change(at, share, resets="resets(" in query)
                if found is not None:
                    text = "NaN" if self.window(at) in self.nan_at else str(found * self.pods)
                    values.append([at, text])
            if values:
                result.append({"metric": {"le": bound} if bound else {}, "values": values})
        return 200, json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}})

    def counters(self, steps):
        values = [
            [at, str(float(round(self.pods * self.counter(max(known), 1.0))))]
            for at in steps
            if (known := [each for each in self.scrapes if at - WINDOW < each <= at])
        ]
        result = [{"metric": {}, "values": values}] if values else []
        return 200, json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}})

    def __enter__(self):
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                form = dict(urllib.parse.parse_qsl(body))
                fake.asked.append(form)
                status, text = fake.answer(form)
                self.send_response(status)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        queries = QuerySettings(rate_window_seconds=WINDOW, namespaces=("team",), matchers=('model_name="m"',))
        url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.settings = PrometheusSettings(url=url, queries=queries, timeout_seconds=5.0)
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()

    def record(self, windows=8, **more):
        return record(self.settings, end_seconds=END + 17, days=windows * WINDOW / 86400 + 1e-9, **more)


def test_rates_lengths_and_hits_come_back():
    with FakePrometheus() as fake:
        found = fake.record(points=3)
        assert len([form for form in fake.asked if "tokens_bucket" in form["query"]]) == 2 * 3
        assert all('model_name="m"' in form["query"] and "team" in form["query"] for form in fake.asked)
    assert len(found.windows) == 8
    assert found.gaps == 0
    assert found.start_seconds == END - 8 * WINDOW
    for window in found.windows:
        assert window.requests_per_second == pytest.approx(4.0)
        assert window.prompt.mean == pytest.approx(150.0, rel=1e-3)
        assert window.prefix_hit_ratio == pytest.approx(0.3)
        assert window.dispersion == pytest.approx(0.0, abs=0.01)
    trace = found.requests(seed=1)
    assert len(trace) == pytest.approx(4.0 * 8 * WINDOW, rel=0.05)
    assert trace.prompt_tokens.mean() == pytest.approx(150.0, rel=0.05)
    assert list(trace.arrivals()) == list(found.requests(seed=1).arrivals())


def test_gaps_and_nan_are_marked_and_filled_as_asked():
    with FakePrometheus(down=(3, 4), nan_at=(6,)) as fake:
        found = fake.record()
    assert [window.requests_per_second is None for window in found.windows] == [i in (3, 4, 6) for i in range(8)]
    assert found.rates().mean == pytest.approx(4.0)
    empty = found.requests(seed=2, gaps=Gaps.EMPTY)
    assert set(np.unique(empty.times_seconds // WINDOW).astype(int)) == {0, 1, 2, 5, 7}
    assert "3 of 8 windows are gaps" in empty.repairs[0]
    assert len(found.requests(seed=2)) > 1.3 * len(empty)


def test_a_counter_that_begins_anew_is_no_negative_rate():
    with FakePrometheus(reset_at=END - 4 * WINDOW + 90) as fake:
        found = fake.record()
    rates = [window.requests_per_second for window in found.windows]
    assert min(rates) > 3.5
    assert max(rates) < 4.01
    assert [window.restarts for window in found.windows] == [0, 0, 0, 0, 2, 0, 0, 0]
    assert [window.dispersion is None for window in found.windows] == [index == 4 for index in range(8)]


def test_how_bursty_minutes_were_is_recorded(monkeypatch):
    rng = np.random.default_rng(5)
    grown = np.cumsum(10.0 * rng.poisson(6.0, 8 * WINDOW // 60 + 1))
    with FakePrometheus() as fake:
        monkeypatch.setattr(fake, "counter", lambda at, share: share * grown[(at - fake.start) // 60])
        found = fake.record()
    indices = [window.dispersion for window in found.windows]
    # Batches of ten requests on each of two pods: counts vary twenty times as much as Poisson ones.
    assert np.mean(indices) == pytest.approx(20.0, rel=0.5)


def test_files_read_back(tmp_path):
    with FakePrometheus(down=(2,)) as fake:
        found = fake.record()
    path = tmp_path / "history.json"
    found.write(path)
    assert history.read(path) == found
    path.write_text(path.read_text()[:300])
    with pytest.raises(TraceError, match=r"history.json: no JSON .* may be cut off"):
        history.read(path)
    path.write_text('{"format": "x"}')
    with pytest.raises(TraceError, match="expected the format"):
        history.read(path)


EMPTY = (200, '{"status": "success", "data": {"resultType": "matrix", "result": []}}')


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (EMPTY, "knows no finished requests of this selection"),
        ((200, "<html>log in</html>"), "is not JSON: does the URL lead to Prometheus"),
        ((400, '{"status": "error", "error": "exceeded maximum resolution"}'), "HTTP 400 .exceeded maximum resolution"),
        ((200, '{"status": "success"}'), "unusable answer .KeyError"),
        ((200, '{"status": "success", "data": {"result": [{"metric": {}, "values": [1]}]}}'), "unusable answer"),
    ],
)
def test_answers_that_say_nothing(answer, message):
    with FakePrometheus() as fake:
        fake.answer = lambda form: answer
        with pytest.raises(TelemetryError, match=message):
            fake.record()


def test_nobody_answers():
    with FakePrometheus() as fake:
        pass
    with pytest.raises(TelemetryError, match=r"no connection .*check the URL"):
        fake.record()


def test_without_length_histograms_there_are_rates_only():
    with FakePrometheus() as fake:
        fake.answer = lambda form: EMPTY if re.search("tokens_bucket", form["query"]) else fake.matrix(form)
        found = fake.record()
    assert found.rates().peak == pytest.approx(4.0)
    with pytest.raises(TraceError, match="no window has prompt lengths"):
        found.requests(seed=1)


def test_too_short_a_span():
    with FakePrometheus() as fake, pytest.raises(TelemetryError, match="fewer than two windows"):
        fake.record(windows=1)


def test_the_commands_record_show_and_list(tmp_path, monkeypatch):
    path, picture = tmp_path / "history.json", tmp_path / "x.png"
    monkeypatch.setattr("time.time", lambda: END + 17.0)
    with FakePrometheus(down=(2,)) as fake:
        words = ["traces", "record", "--prometheus-url", fake.settings.url, "--output", str(path), "--days", "0.0278"]
        found = CliRunner().invoke(main.app, [*words, "--namespace", "team"])
    assert found.exit_code == 0, found.output
    assert "8 windows of 300 s, 1 of them gaps, mean 4 requests/s" in found.output
    found = CliRunner().invoke(main.app, ["traces", "show", str(path), "--picture", str(picture)])
    assert found.exit_code == 0, found.output
    assert "1 of 8 windows are gaps" in found.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = CliRunner().invoke(main.app, ["traces", "list", "--data", str(tmp_path)])
    assert found.output.count("[absent]") == 13
    assert CliRunner().invoke(main.app, ["traces", "show", "none", "--data", str(tmp_path)]).exit_code == 1
