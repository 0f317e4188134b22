"""Documents name only what is there: files, anchors, make targets, commands and their options."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer.main
import yaml

from wattkeeper.api.inference_service import InferenceService
from wattkeeper.cli import main

ROOT = Path(__file__).parents[2]
LISTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True, text=True
).stdout.split()
PAGES = [ROOT / name for name in LISTED] or [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("e2e/*.md")]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
TARGETS = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
COMMANDS = typer.main.get_command(main.app).commands
OUTSIDE = ("https://", "http://", "mailto:")


def prose(text: str) -> str:
    """Without code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text: str) -> list[str]:
    """Every command line of the page, with continued lines joined: indented, fenced, and in backquotes."""
    joined = text.replace("\\\n", " ")
    fenced = re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```", joined, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in fenced for line in block.splitlines()]
    lines += re.findall(r"^ {4}(\S.*)$", joined, flags=re.MULTILINE)
    lines += re.findall(r"`([^`\n]+)`", prose(joined))
    return [line.removeprefix("$ ").split(" #")[0].strip() for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if target.startswith(OUTSIDE):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(there), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_make_targets_exist(page):
    for line in commands(page.read_text()):
        if found := re.match(r"make ([a-z-]+)$", line):
            assert found[1] in TARGETS, f"{page.name}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_wattkeeper_commands_and_options_exist(page):
    for line in commands(page.read_text()):
        if not re.match(r"(\.venv/bin/)?wattkeeper [a-z]", line):
            continue
        words = shlex.split(line.removesuffix("&").replace("...", ""))[1:]
        assert words[0] in COMMANDS, f"{page.name}: {line}"
        command = COMMANDS[words.pop(0)]
        while words and hasattr(command, "commands") and not words[0].startswith("-"):
            assert words[0] in command.commands, f"{page.name}: {line}"
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for word in words:
            if word.startswith("-"):
                assert word.split("=")[0] in known, f"{page.name}: {line}: {word}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_inference_services_in_the_text_are_valid(page):
    for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL):
        for document in yaml.safe_load_all(block):
            if isinstance(document, dict) and document.get("kind") == "InferenceService":
                InferenceService.model_validate(document)


def test_every_page_of_docs_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index, page.name


def test_the_changelog_knows_this_version():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert version is not None
    assert f"## [{version[1]}]" in (ROOT / "CHANGELOG.md").read_text()
