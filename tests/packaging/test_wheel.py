"""The wheel carries everything that the package reads at run time, and no more than the package."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "operator" / "wattkeeper"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_every_file_of_the_package_is_in(wheel):
    wanted = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = set(wheel.namelist())
    assert wanted - packed == set()
    data = {Path(name).suffix for name in wanted} - {".py"}
    assert {".yaml", ".tsv", ".gz", ".j2", ".typed"} <= data
    assert {name.split("/")[0] for name in packed} == {"wattkeeper", next(iter(_info(packed)))}


def _info(names):
    return {name.split("/")[0] for name in names if ".dist-info/" in name}


def test_metadata_tells_what_it_is(wheel):
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    text = wheel.read(name).decode()
    assert "License-Expression: Apache-2.0" in text
    assert "Requires-Python: >=3.11" in text
    assert "Requires-Dist: kopf" in text
    assert "# Wattkeeper" in text
    (scripts,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "wattkeeper = wattkeeper.cli.main:app" in wheel.read(scripts).decode()
