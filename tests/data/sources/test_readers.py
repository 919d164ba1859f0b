"""What files hold besides clean documents: marks, pointers, long lines, numbers, disks that go away."""

import codecs
import errno
import gzip
import json
import os

import numpy as np
import pytest

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.data.sources import readers
from jaxmix.data.sources.readers import Trouble
from jaxmix.data.sources.specs import UNKNOWN_ENDING, SourceSpec


def documents(path, **settings):
    """The texts of a source, and its troubles: kind → count."""
    spec, trouble = SourceSpec("x", path=path, **settings), Trouble()
    trouble.merge(spec.listing()[1])
    texts = [text for unit in spec.units() for _, _, text in spec.texts(unit, trouble)]
    return texts, {kind: entry["count"] for kind, entry in trouble.to_json().items()}


def lines(*texts):
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


@pytest.mark.parametrize("name", ["A.TXT.GZ", "a.txt.gz", "B.TxT"])
def test_the_case_of_an_ending_does_not_matter(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(b"one text") if name.lower().endswith("gz") else b"one text")
    assert documents(tmp_path / name) == (["one text"], {})
    assert documents(tmp_path) == (["one text"], {})


@pytest.mark.parametrize("name", ["A.JSONL.GZ", "a.NDJSON", "a.jsonl"])
def test_a_byte_order_mark_is_no_text(tmp_path, name):
    data = codecs.BOM_UTF8 + lines("one", "two")
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("GZ") else data)
    assert documents(tmp_path / name) == (["one", "two"], {})
    (tmp_path / "b.txt").write_bytes(codecs.BOM_UTF8 + b"three")
    assert documents(tmp_path / "b.txt") == (["three"], {})


@pytest.mark.parametrize(("name", "data"), [("a.txt", "text"), ("a.jsonl", '{"text": "x"}\n')])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_utf_16_and_utf_32_are_named(tmp_path, name, data, encoding):
    (tmp_path / name).write_bytes(f"\ufeff{data}".encode(encoding))
    assert documents(tmp_path / name) == ([], {"files in UTF-16 or UTF-32, which must be saved as UTF-8": 1})


OTHER = "files that are no UTF-8 text, but binary or in another encoding"


@pytest.mark.parametrize(
    ("data", "troubles"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4, {OTHER: 1}),
        (b"\x7fELF" + b"\0\0\0a" * 50, {OTHER: 1}),
        ("Привет, мир".encode("cp1251"), {OTHER: 1}),
        ("utf-16 without a mark".encode("utf-16-le"), {OTHER: 1}),
        ("Ein Übermaß an Größe".encode("latin-1") * 5 + b" in plain words", {OTHER: 1}),
        (
            "Ein Übermaß an Größe, und dazu einige Wörter ohne Umlaute".encode("latin-1"),
            {"documents with invalid UTF-8": 1},
        ),
        ("数学の本 ♥ 😀".encode(), {}),
    ],
)
def test_a_binary_file_is_no_document(tmp_path, data, troubles):
    (tmp_path / "a.bin").write_bytes(data)
    texts, found = documents(tmp_path, format="text")
    assert found == troubles
    assert len(texts) == (OTHER not in troubles)


def test_what_is_lost_behind_damage_is_said(tmp_path):
    texts = [f"{number} {'x' * 1000} {np.random.default_rng(number).bytes(400).hex()}" for number in range(100)]
    packed = gzip.compress(lines(*texts))
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "b.jsonl.gz").write_bytes(packed[:12])
    spec, trouble = SourceSpec("x", path=tmp_path), Trouble()
    found = [text for unit in spec.units() for _, _, text in spec.texts(unit, trouble)]
    assert 0 < len(found) < 100
    assert found == texts[: len(found)]
    troubles = trouble.to_json()
    assert troubles["damaged files, of which the rest is lost"]["first"][0].startswith(
        f"a.jsonl.gz, after {len(found)} documents: "
    )
    assert troubles["unreadable files"]["first"][0].startswith("b.jsonl.gz: ")


def test_what_lies_beside_the_data_is_named_and_not_read(tmp_path):
    for folder in (".", ".ipynb_checkpoints", ".cache"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "part.jsonl").write_bytes(lines("1", "2", "3"))
    for name in ("part2.json", "part3.jsonl.gzip", ".part.jsonl"):
        (tmp_path / name).write_bytes(lines("4"))
    found = {
        "hidden folders": 2,
        "hidden files": 1,
        UNKNOWN_ENDING: 2,
    }
    assert documents(tmp_path) == (["1", "2", "3"], found)


def test_links_are_followed_once(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("a")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "round").symlink_to(tmp_path / "corpus")
    assert documents(tmp_path / "corpus")[0] == ["a"]


def test_a_file_named_twice_is_read_once_and_said(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    twice = (str(tmp_path / "a.txt"), f"{tmp_path}/./a.txt", str(tmp_path))
    assert documents(twice) == (["a"], {"files that were named twice, and are read once": 2})


def test_a_folder_of_code_says_what_to_do(tmp_path):
    for i in range(12):
        (tmp_path / f"{i}.py").write_text("pass")
    with pytest.raises(ConfigError, match=r"has 12 files and none with a known ending, such as 0\.py.*format: text"):
        SourceSpec("code", path=tmp_path).files()
    assert len(documents(tmp_path, format="text")[0]) == 12


def test_a_long_line_is_read_in_one_go(tmp_path):
    text = "x" * 30_000_000
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(text, "short"), 1))
    assert documents(tmp_path / "a.jsonl.gz") == ([text, "short"], {})


def test_a_document_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_DOCUMENT_BYTES", 3_000_000)
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress(b"x" * 40_000_000))
    (tmp_path / "a.txt").write_text("fine")
    data = lines("before", "y" * 7_000_000, "after")
    (tmp_path / "b.jsonl").write_bytes(data)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(data))
    texts, found = documents(tmp_path)
    assert sorted(texts) == ["after", "after", "before", "before", "fine"]
    assert found == {"documents of more than 256 MB, which must be divided": 3}


def test_a_number_that_python_does_not_convert_costs_its_line_alone(tmp_path):
    bad = b'{"text": "x", "id": ' + b"9" * 4301 + b"}\n"
    (tmp_path / "a.jsonl").write_bytes(lines("first") + bad + lines(*map(str, range(1000))))
    texts, found = documents(tmp_path / "a.jsonl")
    assert (len(texts), found) == (1001, {"lines that are not JSON": 1})


def test_a_pointer_is_no_document(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"
    for name in ("a.txt", "b.jsonl"):
        (tmp_path / name).write_bytes(pointer)
    assert documents(tmp_path) == ([], {"Git LFS pointers in place of files": 2})


def test_a_null_field_is_a_missing_one(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": null}\n{"text": 3}\n' + lines("ok"))
    found = {"records without 'text'": 1, "records whose 'text' is no text": 1}
    assert documents(tmp_path / "a.jsonl") == (["ok"], found)


def test_a_name_that_is_no_utf_8_is_shown_escaped(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff.jsonl"
    with open(name, "wb") as file:
        file.write(lines("one") + b"no json\n")
    spec, trouble = SourceSpec("x", path=tmp_path), Trouble()
    assert [text for unit in spec.units() for _, _, text in spec.texts(unit, trouble)] == ["one"]
    assert trouble.to_json()["lines that are not JSON"]["first"][0].startswith("\\xff.jsonl:")
    json.dumps(trouble.to_json()).encode("utf-8")
    assert len(spec.fingerprint()) == 32


def test_two_columns_of_one_name(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="has 2 columns 'text'"):
        documents(tmp_path / "a.parquet")


class Away:
    """A file whose disk fails `failures` times after some bytes."""

    def __init__(self, file, state):
        self._file, self._state = file, state

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)

    def readline(self, *size):
        line = self._file.readline(*size)
        if self._file.tell() > 500 and self._state["failures"]:
            self._state["failures"] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return line


@pytest.mark.parametrize("failures", [2, 99])
def test_a_disk_that_goes_away_loses_nothing(tmp_path, monkeypatch, failures):
    (tmp_path / "a.jsonl").write_bytes(b"no json\n" + lines(*map(str, range(100))))
    state, opened = {"failures": failures}, readers.open_unpacked
    monkeypatch.setattr(readers, "open_unpacked", lambda path: Away(opened(path), state))
    monkeypatch.setattr(readers, "_SECONDS_BETWEEN", 0)
    if failures == 2:  # read again: every document once, every trouble once
        assert documents(tmp_path) == (list(map(str, range(100))), {"lines that are not JSON": 1})
    else:
        with pytest.raises(RunError, match=r"a\.jsonl could not be read: Input/output error.*run the same command"):
            documents(tmp_path)


@pytest.mark.parametrize("seed", range(30))
def test_no_good_document_is_lost_among_bad_lines(tmp_path, seed):
    """Lines of any bytes between good ones: each good one is read, and nothing is raised."""
    rng = np.random.default_rng(seed)
    bad = [b"\xff\xfe", b"{", b'{"text": ', b"[" * 3000, b'"\\ud800"', b"9" * 5000, b"\x00" * 9, b"null", b"\r", b""]
    good, written = [], []
    for i in range(40):
        if rng.random() < 0.5:
            good.append(f"good {i} \u2028 \u00e9")
            written.append(json.dumps({"text": good[-1]}, ensure_ascii=bool(rng.integers(2))).encode())
        else:
            written.append(bad[rng.integers(len(bad))] + rng.bytes(int(rng.integers(8))).replace(b"\n", b""))
    data = b"0\n" + (b"\r\n" if seed % 2 else b"\n").join(written)
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(data))
    assert [text for text in documents(tmp_path)[0] if text.startswith("good")] == good * 2


def test_an_empty_path_is_an_error():
    for path in ("", (), ("a", "")):
        with pytest.raises(ConfigError, match="has an empty path"):
            SourceSpec("x", path=path)


def test_folders_that_cannot_be_listed_are_not_passed_over_in_silence(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "nothing.txt").symlink_to(tmp_path / "gone")
    assert documents(tmp_path) == (["a"], {"links that lead nowhere, and what is no file": 1})
    walk = os.walk

    def failing(folder, error, **settings):
        settings["onerror"](error)
        yield from walk(folder, **settings)

    error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "locked"))
    monkeypatch.setattr(os, "walk", lambda folder, **settings: failing(folder, error, **settings))
    assert documents(tmp_path)[1]["folders without permission"] == 1
    error = OSError(errno.EIO, "Input/output error", str(tmp_path / "away"))
    with pytest.raises(RunError, match=r"the folder cannot be read: Input/output error"):
        documents(tmp_path)


def test_an_array_record_whose_name_is_no_utf_8_is_counted(tmp_path):
    (tmp_path / "\udcff.array_record").write_bytes(b"x")
    assert documents(tmp_path) == ([], {"unreadable files": 1})
