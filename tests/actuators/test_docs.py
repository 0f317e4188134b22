import re
from pathlib import Path

from wattkeeper import actuators

FOLDER = Path(actuators.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "engine-arguments.md"


def test_the_page_lists_every_refusal():
    code = "\n".join(path.read_text() for path in FOLDER.glob("*.py") if path.name != "rollout.py")
    raised = set(re.findall(r'PatchRefusedError\(\s*"([A-Za-z]+)"', code))
    raised |= set(re.findall(r'(?:return|refusal =|else)\s*\(\s*"([A-Z][A-Za-z]+)",', code))
    listed = set(re.findall(r"^\| `([A-Za-z]+)` \|", PAGE.read_text(), flags=re.MULTILINE))
    assert listed == raised
