import pytest
from typer.testing import CliRunner

from wattkeeper.bench import measured_page
from wattkeeper.cli.main import app
from wattkeeper.domain.errors import DataFileError

COMMAND = (
    "wattkeeper replay poisson:rate=3,for=12m,lengths=600~1/120~0.8 --tick 30s --no-check --replicas 2 \\\n"
    "  --policies static-peak,wattkeeper"
)
PAGE = f"""# Title

```bash
wattkeeper replay --list-policies
```

```bash
{COMMAND}
```

<!-- measured one plane -->
old
<!-- end -->

Words.

```bash
{COMMAND}
{COMMAND} --believe-power 1.15 --lost-scrapes 0.1
```

<!-- measured beliefs -->
<!-- end -->

Last words.
"""


def test_blocks_are_found_with_their_commands():
    one, beliefs = measured_page.blocks(PAGE, page="page.md")
    assert (one.name, one.pictures, len(one.commands)) == ("one", ("plane",), 1)
    assert one.commands[0][:3] == ("poisson:rate=3,for=12m,lengths=600~1/120~0.8", "--tick", "30s")
    assert beliefs.labels() == ("none of these", "--believe-power 1.15, --lost-scrapes 0.1")


def test_only_what_lies_between_the_marks_changes():
    filled = measured_page.filled(PAGE, {"one": "NEW"})
    assert filled == PAGE.replace("\nold\n", "\n\nNEW\n\n")
    assert measured_page.filled(filled, {"one": "NEW"}) == filled


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("# Nothing\n", "0 marks"),
        (PAGE.replace("<!-- end -->", "", 1), "2 marks"),
        (PAGE.replace("measured beliefs", "measured one"), "a name of its own"),
        (PAGE.replace("\n" + COMMAND, "\nwattkeeper twin", 1), "no `wattkeeper replay`"),
    ],
)
def test_a_page_that_cannot_be_filled_is_refused(text, what):
    with pytest.raises(DataFileError, match=what):
        measured_page.blocks(text, page="page.md")


def page(*arguments: str):
    return CliRunner().invoke(app, ["bench", "page", *arguments])


def test_a_page_is_filled_and_the_second_time_from_what_is_kept(tmp_path):
    path, runs = tmp_path / "page.md", tmp_path / "runs"
    path.write_text(PAGE, encoding="utf-8")
    rivals = page(str(path), "--runs", str(runs), "--policies", "static-peak", "--only", "one")
    assert rivals.exit_code == 0, rivals.output
    assert path.read_text(encoding="utf-8") == PAGE
    assert len(list(runs.iterdir())) == 1
    done = page(str(path), "--runs", str(runs))
    assert done.exit_code == 0, done.output
    text = path.read_text(encoding="utf-8")
    assert "old" not in text
    assert "Last words." in text
    assert "| static-peak |" in text
    assert "| --believe-power 1.15, --lost-scrapes 0.1 |" in text
    assert "![Energy and share of requests within the SLO](images/replay-one-plane.png)" in text
    assert (tmp_path / "images" / "replay-one-plane.png").stat().st_size > 10_000
    again = page(str(path), "--runs", str(runs), "--only-kept")
    assert again.exit_code == 0, again.output
    assert path.read_text(encoding="utf-8") == text
    assert "played" not in again.stderr


def test_what_cannot_be_done_is_one_line(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(PAGE.replace("static-peak,wattkeeper", "nobody"), encoding="utf-8")
    for arguments, what in [
        (["--only", "two"], "has no block two; it has one, beliefs"),
        ([], "there is no policy 'nobody'"),
    ]:
        done = page(str(path), "--runs", str(tmp_path / "runs"), *arguments)
        assert done.exit_code == 1, arguments
        assert what in done.stderr, arguments
        assert "Traceback" not in done.output
