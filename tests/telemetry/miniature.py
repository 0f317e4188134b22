"""A Prometheus in miniature: stores scraped pages, and answers range queries of the PromQL that this product writes.

Selectors with label matchers and look-back, ranges, `rate`, `avg_over_time`, `timestamp`, `label_replace`,
`max|min|sum by`, and `or [on]`. Everything is a dict of label sets to values on the grid of times, NaN where absent.
"""

import json
import re
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

LOOK_BACK_SECONDS = 300.0
_LINE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')
_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[a-zA-Z_:][\w:]*|=~|!~|!=|=|\d+s|[\d.]+|[(){}\[\],])')


class Miniature:
    """Use it as a context: `url` is where it answers."""

    def __init__(self):
        self.series = {}
        self.asked = []
        self.answer = None
        """Instead of what was stored: (status, body) for each form."""

    def scrape(self, at, page, target):
        """Store a page; labels of the target win, and what they hide becomes exported_*."""
        for line in page.splitlines():
            match = None if line.startswith("#") else _LINE.match(line)
            if match is None:
                continue
            labels = {"__name__": match[1]}
            for name, value in _LABEL.findall(match[2] or ""):
                labels[f"exported_{name}" if name in target else name] = value
            times, values = self.series.setdefault(frozenset((labels | target).items()), ([], []))
            times.append(at)
            values.append(float(match[3]))

    def range(self, query, start, end, step):
        times = start + step * np.arange(round((end - start) / step) + 1)
        return times, _Evaluation(self.series, times).query(query)

    def __enter__(self):
        store = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                form = dict(urllib.parse.parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
                store.asked.append(form)
                status, body = store.answer(form) if store.answer is not None else store.matrix(form)
                payload = body.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()

    def matrix(self, form):
        start, end, step = (float(form[name]) for name in ("start", "end", "step"))
        times, found = self.range(form["query"], start, end, step)
        result = [
            {
                "metric": dict(labels),
                "values": [[float(at), repr(float(v))] for at, v in zip(times, values, strict=True) if v == v],
            }
            for labels, values in found.items()
        ]
        data = {"resultType": "matrix", "result": [each for each in result if each["values"]]}
        return 200, json.dumps({"status": "success", "data": data})


class _Evaluation:
    def __init__(self, series, times):
        self.series, self.times = series, times

    def query(self, text):
        self.tokens, end = [], 0
        while end < len(text.rstrip()):
            match = _TOKEN.match(text, end)
            assert match, text[end:]
            self.tokens.append(match[1])
            end = match.end()
        self.at = 0
        found = self.union()
        assert self.at == len(self.tokens), self.tokens[self.at :]
        return found

    def peek(self):
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self, *expected):
        token = self.tokens[self.at]
        assert not expected or token in expected, (token, expected)
        self.at += 1
        return token

    def names(self):
        self.take("(")
        found = []
        while self.peek() != ")":
            found.append(self.take())
            if self.peek() == ",":
                self.take()
        self.take(")")
        return found

    def union(self):
        left = self.term()
        while self.peek() == "or":
            self.take()
            on = None
            if self.peek() == "on":
                self.take()
                on = self.names()
            right = self.term()

            def key(labels, on=on):
                kept = {k: v for k, v in labels if (k != "__name__" if on is None else k in on)}
                return frozenset(kept.items())

            there = {}
            for labels, values in left.items():
                there[key(labels)] = there.get(key(labels), False) | np.isfinite(values)
            for labels, values in right.items():
                new = np.where(there.get(key(labels), False), np.nan, values)
                left[labels] = np.where(np.isnan(left[labels]), new, left[labels]) if labels in left else new
        return left

    def term(self):
        token = self.peek()
        if token == "(":
            self.take()
            found = self.union()
            self.take(")")
            return found
        if token in ("max", "min", "sum"):
            return self.aggregate(self.take())
        if token in ("rate", "avg_over_time", "timestamp"):
            return self.function(self.take())
        if token == "label_replace":
            self.take()
            self.take("(")
            found = self.union()
            words = []
            while self.peek() == ",":
                self.take()
                words.append(self.take().strip('"'))
            self.take(")")
            name, value, *_ = words
            return {frozenset({**dict(labels), name: value}.items()): values for labels, values in found.items()}
        found = {}
        for labels, (times, values) in self.selector()[0]:
            index = np.searchsorted(times, self.times, side="right") - 1
            fresh = (index >= 0) & (self.times - np.take(times, np.maximum(index, 0)) < LOOK_BACK_SECONDS)
            found[labels] = np.where(fresh, np.take(values, np.maximum(index, 0)), np.nan)
        return found

    def aggregate(self, how):
        self.take("by")
        by = self.names()
        self.take("(")
        groups = {}
        for labels, values in self.union().items():
            groups.setdefault(frozenset((k, v) for k, v in labels if k in by), []).append(values)
        self.take(")")
        function = {"max": np.fmax, "min": np.fmin}.get(how)
        if function is not None:
            return {labels: function.reduce(parts) for labels, parts in groups.items()}
        return {
            labels: np.where(np.isnan(parts).all(axis=0), np.nan, np.nansum(parts, axis=0))
            for labels, parts in groups.items()
        }

    def function(self, name):
        self.take("(")
        found = {}
        series, window = self.selector()
        for labels, (times, values) in series:
            bare = frozenset((k, v) for k, v in labels if k != "__name__")
            times, values = np.array(times), np.array(values)
            out = np.full(len(self.times), np.nan)
            first = np.searchsorted(times, self.times - (window or LOOK_BACK_SECONDS), side="right")
            last = np.searchsorted(times, self.times, side="right")
            for index, (low, high) in enumerate(zip(first, last, strict=True)):
                if name == "timestamp" and high > low:
                    out[index] = times[high - 1]
                elif name == "avg_over_time" and high > low:
                    out[index] = values[low:high].mean()
                elif name == "rate" and high > low + 1:
                    change = np.diff(values[low:high])
                    grown = np.where(change < 0, values[low + 1 : high], change).sum()
                    out[index] = grown / (times[high - 1] - times[low])
            found[bare] = np.where(np.isnan(found[bare]), out, found[bare]) if bare in found else out
        self.take(")")
        return found

    def selector(self):
        matchers = []
        if self.peek() != "{":
            matchers.append(("__name__", "=", self.take()))
        if self.peek() == "{":
            self.take()
            while self.peek() != "}":
                name, how, value = self.take(), self.take(), json.loads(self.take())
                matchers.append((name, how, value))
                if self.peek() == ",":
                    self.take()
            self.take("}")
        window = None
        if self.peek() == "[":
            self.take()
            window = float(self.take().rstrip("s"))
            self.take("]")
        return [each for each in self.series.items() if self.matches(dict(each[0]), matchers)], window

    @staticmethod
    def matches(labels, matchers):
        for name, how, value in matchers:
            there = labels.get(name, "")
            hit = re.fullmatch(value, there) is not None if "~" in how else there == value
            if hit is how.startswith("!"):
                return False
        return True
