"""One self-contained HTML file of a replay, to be sent to somebody."""

import base64
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jinja2

from wattkeeper.replay import pictures, table
from wattkeeper.replay.result import Report

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ report.title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child, td:last-child { text-align: left; }
img { max-width: 100%; } ul { padding-left: 1.2rem; }
</style></head><body>
<h1>{{ report.title }}</h1>
<p>Every policy served the same requests on the same simulated fleet. A request is in the SLO when its time to first
token and its mean time per output token are both within their targets; refused, lost and unfinished requests are not.
Energy is that of the GPUs that a policy held; the fourth column adds the freed ones, left powered on.</p>
<table><tr>{% for each in headings %}<th>{{ each }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for each in row %}<td>{{ each }}</td>{% endfor %}</tr>
{% endfor %}</table>
<ul>{% for each in remarks %}<li>{{ each }}</li>{% endfor %}</ul>
{% for each in images %}<p><img alt="{{ each[0] }}" src="data:image/png;base64,{{ each[1] }}"></p>{% endfor %}
<h2>What was played</h2>
<table>{% for name, value in facts %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}</table>
</body></html>
"""


def html(report: Report, planners: Sequence[str]) -> str:
    """The page, pictures included."""
    with tempfile.TemporaryDirectory(prefix="wattkeeper-replay-") as folder:
        images = [
            (path.stem, base64.b64encode(path.read_bytes()).decode()) for path in pictures.draw(report, Path(folder))
        ]
    facts = [
        (name, _plain(value)) for part in (report.trace, report.fleet, report.settings) for name, value in part.items()
    ]
    template = jinja2.Environment(autoescape=True).from_string(_TEMPLATE)
    return template.render(
        report=report,
        headings=table.HEADINGS,
        rows=[table.cells(row) for row in table.rows(report)],
        remarks=table.remarks(report, planners),
        images=images,
        facts=facts,
    )


def _plain(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.6g}"
