"""The page on policies names all of them, with the defaults that the code has."""

from pathlib import Path

from tests.rivals.test_registry import SETTING
from wattkeeper.rivals.registry import RIVALS

PAGE = (Path(__file__).parents[2] / "docs" / "replay-policies.md").read_text(encoding="utf-8")
DEFAULTS = {"hpa-waiting": "5 requests", "hpa-kv": "0.5", "keda-in-flight": "2 requests"}


def test_every_policy_has_its_row():
    for name in RIVALS:
        assert f"| `{name}` |" in PAGE


def test_documented_defaults():
    for name, text in DEFAULTS.items():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
        assert row.endswith(f"| {text} |")
        assert float(text.split()[0]) == RIVALS[name].defaults(SETTING)["target"]
