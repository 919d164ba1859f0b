"""Files replaced as a whole."""

import os

import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.data.files import check_apart, check_folder_name, replaced, write_whole


def test_text_and_bytes_come_back_and_nothing_else_stays(tmp_path):
    path = tmp_path / "new" / "a.json"
    for content in ("é\n", b"\x00\xff"):
        write_whole(path, content)
        assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode("utf-8"))
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_whole(path, "old")

    def full(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a.json"
    with replaced(path) as first, replaced(path) as second:
        first.write(b"first")
        second.write(b"second")
    assert path.read_bytes() == b"first"  # the last to end


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".git", "a/b", "a\\b", " a", "a\n", "x" * 201, "ü" * 101, "\udcff", "index.json"]
)
def test_a_name_that_is_no_folder_is_refused(name):
    with pytest.raises(ConfigError, match=r"cannot be the name of a source \(here\)"):
        check_folder_name(name, "a source", where="here")


def test_usual_names_are_taken_unless_a_file_system_may_confuse_them():
    names = ["web", "c++", "数学", "ünïcode", "a b", "x" * 200, "ü" * 100]
    for name in names:
        check_folder_name(name, "a source", where="here")
    check_apart(names, "sources", where="here")
    for twins in (["Web", "web"], ["\u00fc", "u\u0308"], ["STRASSE", "straße"]):
        with pytest.raises(ConfigError, match="differ in case or accents"):
            check_apart(twins, "sources", where="here")
