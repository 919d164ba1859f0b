"""What files hold besides clean documents: marks, pointers, long lines, numbers, disks that go away."""

import codecs
import errno
import gzip
import json
import os
import shutil
import zlib

import numpy as np
import pytest

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.data import byte_tokenizer, prepare_corpus
from jaxmix.data.sources import readers
from jaxmix.data.sources.readers import Trouble, trouble_lines
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


OTHER = "files that are not UTF-8 text, but binary or in another encoding"


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
        f"a.jsonl.gz, after document {len(found)}: "
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
    with pytest.raises(ConfigError, match=r"has files of unknown endings alone: 12, such as 0\.py.*format: text"):
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


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_what_comes_before_the_damage_of_an_archive_is_kept(tmp_path, ending):
    import pyarrow as pa

    data = lines(*(f"{i} {i**9}" for i in range(1000)))
    packed = gzip.compress(data) if ending == "gz" else pa.compress(data, codec="zstd", asbytes=True)
    extra = lines("late")
    whole = packed + (gzip.compress(extra) if ending == "gz" else pa.compress(extra, codec="zstd", asbytes=True))
    (tmp_path / f"a.jsonl.{ending}").write_bytes(whole[:-4])
    texts, found = documents(tmp_path)
    assert texts[:1000] == [f"{i} {i**9}" for i in range(1000)]
    assert found == {"damaged files, of which the rest is lost": 1}


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_text_with_damage_behind_it_is_kept_and_counted(tmp_path, ending):
    import pyarrow as pa

    text = "one document, " * 1000
    packed = gzip.compress(text.encode()) if ending == "gz" else pa.compress(text.encode(), codec="zstd", asbytes=True)
    (tmp_path / f"a.txt.{ending}").write_bytes(packed + b"garbage")
    assert documents(tmp_path) == ([text], {"damaged files, of which the rest is lost": 1})


@pytest.mark.parametrize("tail", [b"\xef\xbf\xbd", b"\\ufffd", b"\\uFFFD", b""])
def test_invalid_utf_8_is_counted_beside_a_real_replacement_character(tmp_path, tail):
    good = b'{"text": "a ' + "\ufffd".encode() + b'"}\n{"text": "b \\ufffd"}\n'
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "caf\xe9 ' + tail + b'"}\n' + good)
    assert documents(tmp_path)[1] == {"documents with invalid UTF-8": 1}


def test_files_of_no_records_are_counted_as_empty(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from array_record.python.array_record_module import ArrayRecordWriter

    table = pa.table({"text": ["fine"]})
    pq.write_table(table, tmp_path / "good.parquet")
    pq.write_table(table[:0], tmp_path / "no_rows.parquet")
    pq.ParquetWriter(tmp_path / "no_groups.parquet", table.schema).close()
    ArrayRecordWriter(str(tmp_path / "none.array_record"), "group_size:1").close()
    assert documents(tmp_path) == (["fine"], {"empty files": 3})


def test_control_characters_of_a_name_are_escaped(tmp_path):
    for name in ("\x1b[31mred.jsonl", "line\nfeed.jsonl", "\u202eback.jsonl"):
        (tmp_path / name).write_text("no json")
    trouble, spec = Trouble(), SourceSpec("x", path=tmp_path)
    assert [text for unit in spec.units() for text in spec.texts(unit, trouble)] == []
    places = trouble.to_json()["lines that are not JSON"]["first"]
    assert places == [f"{name}.jsonl:byte 0" for name in (r"\x1b[31mred", r"line\nfeed", r"\u202eback")]
    (line,) = trouble_lines(trouble.to_json())
    assert line == f"lines that are not JSON: 3 ({', '.join(places)})"
    trouble.add("lines that are not JSON", *"abc")
    assert trouble_lines(trouble.to_json())[0].endswith("a, b, …)")


def test_every_row_of_a_column_without_text_is_counted(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": [1, 2, None]}), tmp_path / "a.parquet")
    assert documents(tmp_path) == ([], {"records whose 'text' is not text": 2, "records without 'text'": 1})


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
    found = {"records without 'text'": 1, "records whose 'text' is not text": 1}
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
    with pytest.raises(RunError, match="has 2 columns 'text'"):
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


LOST = [  # lines without a document, each of which is counted once
    b"{", b'{"text": ', b"[" * 3000, b'{"a": ' * 3000, b'"\\ud800"', b"9" * 5000, b"\0" * 9, b"null", b"true", b"[]",
    b"{}", b'[{"text": "x"}]', b'{"text": null}', b'{"text": 3}', b'{"text": true}', b'{"text": ["x"]}', b"text",
    b'{"text": {"text": "x"}}', b'{"Text": "x"}', b'{"text": ""}', b'{"text": " \\n\\u2028\\u00a0"}', b"\xff\xfe{",
    b"{'text': 'x'}", b'{"text": "x",}', b"\xc2\xa0", b'{"text": "x"} {"text": "y"}', b'{"text": "x\ty"}',
    b'{"text": "x", "id": ' + b"9" * 4301 + b"}", codecs.BOM_UTF8 * 2 + b'{"text": "x"}', b'{"text": "x"}\0',
    b"version https://git-lfs.github.com/spec/v1", b"\x1f\x8b\x08",
]  # fmt: skip
CHANGED = {b"\xff": "\ufffd", b"\\ud800": "\ufffd" * 3, b"\xed\xa0\x80": "\ufffd" * 3, b"\xc3": "\ufffd"}
BLANK = [b"", b" ", b"\r", b"\t \r", b"\x0c"]
MARKS = [
    "", "\u2028", "\u0085", "\x1c", "\ufeff", "\r", "\n", "\0", "\\", '"', "\u00e9", "\U0001f600", "<|endoftext|>",
    "\ufffd",
]  # fmt: skip
BESIDE = [{"id": 10**4000}, {"x": float("nan")}, {"x": [[[[{}]]]] * 9}, {"text ": "y"}, {"": None}, {"TEXT": 1e308}, {}]


def some_text(rng, i):
    return f"good {i} {MARKS[rng.integers(len(MARKS))]} {MARKS[rng.integers(len(MARKS))]} end"


def some_line(rng, i):
    """A line of JSON lines, the text that is read from it or None, and how often it must be counted."""
    kind = rng.integers(8)
    if kind < 4:
        text = some_text(rng, i)
        record = {**BESIDE[rng.integers(len(BESIDE))], "text": text}
        line = json.dumps(record, ensure_ascii=bool(rng.integers(2))).encode()
        return b'{"text": 1, ' + line[1:] if rng.random() < 0.1 else line, text, 0  # of a key twice the last one counts
    if kind < 6:
        return LOST[rng.integers(len(LOST))], None, 1
    if kind == 6:
        raw = list(CHANGED)[rng.integers(len(CHANGED))]
        return b'{"text": "good %d ' % i + raw + b'"}', f"good {i} {CHANGED[raw]}", 1
    return BLANK[rng.integers(len(BLANK))], None, 0


def gzipped(rng, data):
    """The data packed by gzip, perhaps in two members or damaged, and how much of it comes before the damage."""
    cut = int(rng.integers(len(data)))  # several members, as `cat a.gz b.gz` makes them
    parts = [data[:cut], data[cut:]] if rng.integers(2) else [data]
    packed, kind = b"".join(gzip.compress(part, int(rng.integers(10))) for part in parts), rng.integers(4)
    if kind == 0:
        packed = packed[: int(rng.integers(20, len(packed)))]
    elif kind == 1:
        return packed + [b"no gzip", b"\x1f\x8b\x08"][rng.integers(2)], len(data)
    whole, rest = 0, packed
    while rest:
        member = zlib.decompressobj(31)
        whole += len(member.decompress(rest))
        if not member.eof:
            return packed, whole
        rest = member.unused_data
    return packed, None


def zstd(rng, data):
    """As `gzipped`. What comes before a cut is what a reader of single bytes gets."""
    import pyarrow as pa

    cut = int(rng.integers(len(data)))
    parts = [data[:cut], data[cut:]] if rng.integers(2) else [data]
    packed = b"".join(pa.compress(part, codec="zstd", asbytes=True) for part in parts)
    if rng.random() < 0.7:
        return packed, None
    packed, whole = packed[: int(rng.integers(10, len(packed)))], 0
    with pa.input_stream(pa.py_buffer(packed), compression="zstd") as file:
        try:
            while file.read(1):
                whole += 1
        except OSError:
            return packed, whole
    return packed, None  # cut between two frames: the damage cannot be seen


def a_jsonl_file(rng, folder):
    """Writes a file of JSON lines; returns the texts in it and how much of it must be counted."""
    lines = [(b'{"text": "good first"}', "good first", 0), *(some_line(rng, i) for i in range(DOCUMENTS))]
    end = [b"\n", b"\r\n"][rng.integers(2)]
    mark = [b"", codecs.BOM_UTF8][rng.integers(2)]
    data = mark + b"".join(line + end for line, _, _ in lines)
    name = ["a.jsonl", "a.NDJSON", "a.jsonl.gz", "a.json.GZ", "a.jsonl.zst", "A.JSON.ZST"][rng.integers(6)]
    whole = None
    if name.lower().endswith(".gz"):
        packed, whole = gzipped(rng, data)
    elif name.lower().endswith(".zst"):
        packed, whole = zstd(rng, data)
    else:
        packed = data
    (folder / name).write_bytes(packed)
    if whole is not None:  # only lines that end before the damage are whole
        lines = lines[: data[:whole].count(b"\n")]
    return [text for _, text, _ in lines if text], sum(counted for _, _, counted in lines) + (whole is not None)


def a_parquet_file(rng, folder):
    """As `a_jsonl_file`: a column of one of several types, with nulls and empty texts, in several groups of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string())]
    kind += [pa.string_view(), pa.int64(), pa.list_(pa.string()), pa.struct([("a", pa.string())])]
    kind = kind[rng.integers(len(kind))]
    values = [[some_text(rng, i), None, "", " \u2028"][rng.choice(4, p=[0.7, 0.1, 0.1, 0.1])] for i in range(DOCUMENTS)]
    texts, counted = [v for v in values if v and v.strip()], sum(not v or not v.strip() for v in values)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        values = [None if v is None else v.encode() for v in values]
        values += [b"good \xff", b"\xff\xfe"]
        texts, counted = [*texts, "good \ufffd", "\ufffd" * 2], counted + 2
    elif pa.types.is_int64(kind) or pa.types.is_nested(kind):
        texts, counted = [], len(values)
        wrong = 7 if pa.types.is_int64(kind) else ["x"] if pa.types.is_list(kind) else {"a": "x"}
        values = [None if v is None else wrong for v in values]
    table = pa.table({"id": range(len(values)), "text": pa.array(values, kind)})
    pq.write_table(table, folder / "a.parquet", row_group_size=int(rng.integers(1, DOCUMENTS)))
    return texts, counted


def a_record_file(rng, folder):
    """As `a_jsonl_file`: ArrayRecord, whose records are the texts; cut off, nothing of it can be read."""
    from array_record.python.array_record_module import ArrayRecordWriter

    values = [
        [some_text(rng, i).encode(), b"", b" \n", b"good \xff"][rng.choice(4, p=[0.7, 0.1, 0.1, 0.1])]
        for i in range(33)
    ]
    path = folder / "a.array_record"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for value in values:
        writer.write(value)
    writer.close()
    if rng.random() < 0.3:
        path.write_bytes(path.read_bytes()[:-100])
        return [], 1
    texts = [value.decode("utf-8", "replace") for value in values if value.strip()]
    return texts, sum(not value.strip() or b"\xff" in value for value in values)


def a_text_file(rng, folder):
    """As `a_jsonl_file`: a document that is a whole file, or a file that is none."""
    text = some_text(rng, 0)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"
    data, texts, counted = [
        (text.encode(), [text], 0),
        (codecs.BOM_UTF8 + text.encode(), [text], 0),
        (b"good \xff\r\nend", ["good \ufffd\r\nend"], 1),
        (text.encode("utf-16"), [], 1),
        (pointer, [], 1),
        (b"", [], 1),
        (b" \n\r\n", [], 1),
        (codecs.BOM_UTF8, [], 1),
    ][rng.integers(8)]
    name = ["a.txt", "A.MD", "a.text", "a.txt.gz", "a.TXT.ZST"][rng.integers(5)]
    if name.lower().endswith((".gz", ".zst")):
        packed, whole = (gzipped if name.lower().endswith(".gz") else zstd)(rng, data or b"\n")
        if whole is not None:  # read as a file of what comes before the damage, which is counted too
            (folder / "whole").mkdir()
            (folder / "whole" / "a.txt").write_bytes((data or b"\n")[:whole])
            texts, found = documents(folder / "whole")
            counted = 1 + sum(found.values()) if whole else 1
            shutil.rmtree(folder / "whole")
        data = packed
    (folder / name).write_bytes(data)
    return texts, counted


def no_such_file(rng, folder):
    """As `a_jsonl_file`: bytes that are not what the ending says, a pointer, or nothing."""
    name = ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.txt.gz", "a.txt.zst", "a.array_record"]
    name = name[rng.integers(len(name))]
    data = [b"", b"\xff" * 40, b"version https://git-lfs.github.com/spec/v1\noid sha256:1", b"PAR1" * 9, b"\0" * 70_000]
    data = data[rng.integers(5)]
    (folder / name).write_bytes(data)
    return [], 1


DOCUMENTS = 40
MAKERS = [a_jsonl_file] * 5 + [a_parquet_file] * 2 + [a_record_file, a_text_file, no_such_file]


@pytest.mark.parametrize(
    "seed", [seed if seed < 30 else pytest.param(seed, marks=pytest.mark.slow) for seed in range(300)]
)
def test_no_good_document_is_lost_and_every_bad_one_counted(tmp_path, monkeypatch, seed):
    """About 33 documents, good and bad, in files of every format: the texts are those written, the rest is counted."""
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(readers, "_UNIT_BYTES", int(rng.choice([100, 999, 10_000])))
    monkeypatch.setattr(readers, "_CHUNK_BYTES", int(rng.choice([1, 50, 1 << 20])))
    expected, counted = MAKERS[seed % len(MAKERS)](rng, tmp_path)
    texts, found = documents(tmp_path)
    assert texts == expected
    assert sum(found.values()) == counted, found


def test_prepare_counts_what_the_readers_count(tmp_path):
    expected, counted = {}, {}
    for seed in range(len(MAKERS)):
        folder = tmp_path / f"source{seed}"
        folder.mkdir()
        texts, count = MAKERS[seed](np.random.default_rng(seed), folder)
        if texts:
            expected[folder.name], counted[folder.name] = len(texts), count + sum("\0" in text for text in texts)
    sources = {name: SourceSpec(name, path=tmp_path / name) for name in expected}
    index = prepare_corpus(sources, tmp_path / "prepared", tokenizer=byte_tokenizer(), validation_fraction=0.5).index
    assert {name: entry["documents"] for name, entry in index["domains"].items()} == expected
    troubles = {
        name: sum(kind["count"] for kind in entry["troubles"].values()) for name, entry in index["domains"].items()
    }
    assert troubles == counted


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
