"""Files that are there as a whole or not at all."""

import pytest

from wattkeeper.domain import whole_file


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "model.json"
    path.write_text("old")
    whole_file.write(path, b"new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_is_stopped_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "model.json"
    path.write_text("old")

    def torn(self, data):
        with self.open("wb") as file:
            file.write(data[:1])
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.write_bytes", torn)
    with pytest.raises(KeyboardInterrupt):
        whole_file.write(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_is_checked_before_it_is_needed(tmp_path):
    whole_file.check_writable(tmp_path / "made" / "model.json")
    assert (tmp_path / "made").is_dir() and not (tmp_path / "made" / "model.json").exists()
    with pytest.raises(IsADirectoryError, match="not a file"):
        whole_file.check_writable(tmp_path / "made")
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        whole_file.check_writable(tmp_path / "file" / "model.json")
