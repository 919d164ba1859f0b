import gzip
import hashlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxmix.core.errors import ConfigError, EnvironmentProblem, RunError
from jaxmix.data import MixtureStream, SourceSpec, byte_tokenizer, open_prepared, prepare_corpus
from jaxmix.data.lock import locked
from jaxmix.data.prepared.store import PreparedSource, read_index
from jaxmix.data.sources import specs
from jaxmix.data.sources.specs import UNKNOWN_ENDING

TEXTS = ["The first document.", "Ein zweites, mit Umlauten: äöü.", "三つ目。", "last"]
END = 0xFF


def texts_of(folder, name="a"):
    """Everything that was stored of a domain, both splits, sorted."""
    found = []
    for split in ("train", "validation"):
        source = open_prepared(folder, split)[name]
        for i in range(len(source)):
            tokens = source[i]
            assert tokens[-1] == END
            found.append(bytes(tokens[:-1].astype(np.uint8)).decode())
    return sorted(found)


def prepare(sources, out, **options):
    specs = {n: s if isinstance(s, SourceSpec) else SourceSpec(name=n, path=s) for n, s in sources.items()}
    return prepare_corpus(specs, out, tokenizer=byte_tokenizer(), **options)


def write_text(folder):
    for i, text in enumerate(TEXTS):
        (folder / f"{i}.txt").write_text(text, encoding="utf-8")


def write_jsonl(folder):
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS[:2]), encoding="utf-8")
    with gzip.open(folder / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(json.dumps({"text": t}, ensure_ascii=False) for t in TEXTS[2:]))


def write_zst(folder):
    data = "".join(json.dumps({"text": t}) + "\n" for t in TEXTS).encode()
    with pa.output_stream(str(folder / "a.jsonl.zst"), compression="zstd") as file:
        file.write(data)


def write_parquet(folder):
    pq.write_table(pa.table({"text": TEXTS, "other": range(4)}), folder / "a.parquet", row_group_size=2)


def write_array_record(folder):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(folder / "a.array_record"), "group_size:1")
    for text in TEXTS:
        writer.write(text.encode())
    writer.close()


@pytest.mark.parametrize("write", [write_text, write_jsonl, write_zst, write_parquet, write_array_record])
def test_every_format_gives_the_same_documents(tmp_path, write):
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder)
    summary = prepare({"a": folder}, tmp_path / "out")
    assert texts_of(tmp_path / "out") == sorted(TEXTS)
    assert summary.troubles() == {}
    assert summary.index["domains"]["a"]["documents"] == 4
    assert summary.index["domains"]["a"]["tokens"] == sum(len(t.encode()) + 1 for t in TEXTS)


def test_texts_in_memory_and_other_fields(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"body": "hello"}) + "\n")
    sources = {
        "a": SourceSpec(name="a", documents=TEXTS),
        "b": SourceSpec(name="b", path=str(tmp_path / "*.jsonl"), text_field="body"),
    }
    prepare(sources, tmp_path / "out")
    assert texts_of(tmp_path / "out", "a") == sorted(TEXTS)
    assert texts_of(tmp_path / "out", "b") == ["hello"]


def test_hugging_face_datasets(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "in"))
    prepare({"a": SourceSpec(name="a", hf=str(tmp_path / "in"))}, tmp_path / "out")
    assert texts_of(tmp_path / "out") == sorted(TEXTS)


def test_without_the_extra_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(EnvironmentProblem, match=r"jaxmix\[hf\]"):
        prepare({"a": SourceSpec(name="a", hf="some/thing")}, tmp_path / "out")


def test_all_troubles_are_counted_and_named(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.txt").write_text("good")
    (folder / "invalid.txt").write_bytes(b"caf\xe9 au lait")
    (folder / "nul.txt").write_bytes(b"a\0b, and so on")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "blank.txt").write_bytes(b" \n ")
    (folder / "broken.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": "x" * 5000}).encode())[:-20])
    (folder / "lines.jsonl").write_text('{"text": "one"}\nnot json\n{"other": 1}\n{"text": 7}\n\n')
    (folder / "bad.parquet").write_bytes(b"PAR1 nothing")
    summary = prepare({"a": folder}, tmp_path / "out")
    troubles = summary.troubles()["a"]
    assert {kind: entry["count"] for kind, entry in troubles.items()} == {
        "documents with NUL bytes, which were taken out": 1,
        "documents with invalid UTF-8": 1,
        "empty documents": 1,
        "empty files": 1,
        "lines that are not JSON": 1,
        "records whose 'text' is not text": 1,
        "records without 'text'": 1,
        "unreadable files": 2,
    }
    assert troubles["documents with invalid UTF-8"]["first"] == ["invalid.txt"]
    assert {place.split(":")[0] for place in troubles["unreadable files"]["first"]} == {
        "broken.jsonl.gz",
        "bad.parquet",
    }
    assert texts_of(tmp_path / "out") == sorted(["good", "caf\ufffd au lait", "ab, and so on", "one"])


def test_a_file_without_permission_is_named(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.txt").write_text("good")
    (folder / "locked.txt").write_text("secret")
    (folder / "locked.txt").chmod(0)
    if os.access(folder / "locked.txt", os.R_OK):
        pytest.skip("this user may read every file")
    assert prepare({"a": folder}, tmp_path / "out").troubles()["a"]["unreadable files"]["count"] == 1


def test_a_line_of_ten_megabytes_becomes_pieces(tmp_path):
    text = "abcdefghij" * 1_000_000
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}) + "\n" + json.dumps({"text": "short"}) + "\n")
    prepare({"a": tmp_path / "a.jsonl"}, tmp_path / "out")
    train, held_out = open_prepared(tmp_path / "out")["a"], open_prepared(tmp_path / "out", "validation")["a"]
    assert train.num_tokens + held_out.num_tokens == 10_000_001 + 6
    assert max(train.doc_lengths) <= 16_384 + 1
    assert train.num_documents + held_out.num_documents == 2
    assert len(held_out) > 0


def digest(folder):
    files = sorted(p for p in Path(folder).rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def many_files(folder, count=300):
    rng = random.Random(0)
    folder.mkdir()
    for i in range(count):
        lines = [json.dumps({"text": "word " * rng.randrange(1, 200) + str(rng.random())}) for _ in range(40)]
        (folder / f"{i:03}.jsonl").write_text("\n".join(lines))
    return folder


SCRIPT = """
import sys
from jaxmix.data import SourceSpec, byte_tokenizer, prepare_corpus
prepare_corpus({"a": SourceSpec(name="a", path=sys.argv[1])}, sys.argv[2], tokenizer=byte_tokenizer(), workers=2)
"""


def test_killed_and_continued_is_byte_identical_for_any_number_of_workers(tmp_path):
    folder = many_files(tmp_path / "in")
    prepare({"a": folder}, tmp_path / "one", workers=1)
    expected = digest(tmp_path / "one")
    prepare({"a": folder}, tmp_path / "four", workers=4)
    assert digest(tmp_path / "four") == expected

    rng, out, kills = random.Random(1), tmp_path / "killed", 0
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(out)])
        while process.poll() is None and not (out / "plan.json").exists():
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.25))
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills >= 3
    prepare({"a": folder}, out)
    for left in out.rglob(".*.partial"):
        left.unlink()  # of the unit that was being written
    assert digest(out) == expected


def test_a_ready_folder_is_used_again_and_a_changed_source_noticed(tmp_path):
    folder = many_files(tmp_path / "in", 3)
    assert not prepare({"a": folder}, tmp_path / "out").was_ready
    assert prepare({"a": folder}, tmp_path / "out").was_ready
    with pytest.raises(ConfigError, match=r"validation_fraction 0\.05, now it is 0\.1"):
        prepare({"a": folder}, tmp_path / "out", validation_fraction=0.1)
    path = folder / "001.jsonl"
    path.write_text(path.read_text().replace("word", "wort", 1))
    again = prepare({"a": folder}, tmp_path / "out")
    assert (again.was_ready, again.changed) == (False, ("a",))
    assert len(list((tmp_path / "out" / "a").iterdir())) == 2  # the old files stay for those who read them
    assert any("wort" in text for text in texts_of(tmp_path / "out"))


def test_one_source_added_or_mended_leaves_the_others_as_they_are(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(
            json.dumps({"body": name}) + "\n" + json.dumps({"body": name * 2}) + "\n"
        )
    spec = lambda name, field="body": SourceSpec(name, path=tmp_path / f"{name}.jsonl", text_field=field)
    with pytest.raises(RunError, match=r"source 'b' has no document: records without 'bdy': 2 \(b.*mean 'body'"):
        prepare({"a": spec("a"), "b": spec("b", "bdy")}, tmp_path / "out")
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "a").rglob("*.array_record")}
    summary = prepare({"a": spec("a"), "b": spec("b")}, tmp_path / "out")
    assert texts_of(tmp_path / "out", "b") == ["b", "bb"]
    assert summary.changed == ()  # b was never ready before
    (tmp_path / "c.txt").write_text("c")
    prepare({"c": SourceSpec("c", path=tmp_path / "c.txt"), "a": spec("a"), "b": spec("b")}, tmp_path / "out")
    assert list(open_prepared(tmp_path / "out")) == ["c", "a", "b"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "a").rglob("*.array_record")} == finished


def test_what_was_passed_over_is_in_the_summary(tmp_path):
    (tmp_path / "in" / ".cache").mkdir(parents=True)
    (tmp_path / "in" / "a.txt").write_text("a")
    (tmp_path / "in" / "b.json").write_text("[]")
    troubles = prepare({"a": tmp_path / "in"}, tmp_path / "out").troubles()["a"]
    assert troubles == {
        UNKNOWN_ENDING: {"count": 1, "first": ["b.json"]},
        "hidden folders": {"count": 1, "first": [".cache"]},
    }


def test_a_source_around_the_prepared_folder_stays_as_it_is(tmp_path):
    write_text(tmp_path)
    for is_ready in (False, True):
        summary = prepare({"a": tmp_path}, tmp_path / "prepared" / "x")
        assert (summary.was_ready, summary.index["domains"]["a"]["documents"]) == (is_ready, 4)


def test_a_document_is_in_one_split_with_all_its_pieces(tmp_path):
    texts = [f"{i} " + "abcdefgh" * 700 for i in range(60)]
    specs = {"a": SourceSpec(name="a", documents=texts)}
    prepare_corpus(specs, tmp_path, tokenizer=byte_tokenizer(), validation_fraction=0.3, max_record_tokens=512)
    stored = []
    for split in ("train", "validation"):
        source = open_prepared(tmp_path, split)["a"]
        whole = b"".join(bytes(source[i].astype(np.uint8)) for i in range(len(source)))
        stored.append({part.decode() for part in whole.split(bytes([END])) if part})
    assert stored[0] | stored[1] == set(texts)
    assert not stored[0] & stored[1]
    assert 5 < len(stored[1]) < 40


def test_of_an_only_document_the_end_is_held_out(tmp_path):
    text = "".join(f"{i} " for i in range(40_000))
    summary = prepare({"a": SourceSpec(name="a", documents=[text])}, tmp_path)
    train, held_out = open_prepared(tmp_path)["a"], open_prepared(tmp_path, "validation")["a"]
    stored = [bytes(source[i].astype(np.uint8)) for source in (train, held_out) for i in range(len(source))]
    assert b"".join(stored)[:-1].decode() == text
    assert (len(held_out), held_out.num_tokens) == (1, round(0.05 * (len(text) + 1)))
    assert held_out.is_continued.all()
    assert summary.troubles()["a"]["document alone in its source, of which the end is held out"]["count"] == 1
    assert prepare({"a": SourceSpec(name="a", documents=[text])}, tmp_path).was_ready


def test_ready_data_are_shared_and_may_be_read_only(tmp_path):
    documents = {"a": SourceSpec(name="a", documents=TEXTS)}
    prepare(documents, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    with locked(tmp_path / "out", "prepares data"):
        assert prepare(documents, tmp_path / "out").was_ready
    assert {path: path.stat().st_mtime_ns for path in before if path != tmp_path / "out"} == {
        path: time for path, time in before.items() if path != tmp_path / "out"
    }


def test_a_kill_while_the_plan_is_written_does_not_stand_in_the_way(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".plan.json.7-x.partial").write_text("{")
    prepare({"a": SourceSpec(name="a", documents=TEXTS)}, tmp_path / "out")
    assert not list((tmp_path / "out").rglob(".*"))


def test_a_source_that_changes_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    path, real = tmp_path / "a.txt", SourceSpec.decoded
    path.write_text("before")

    def changing(self, unit, trouble):
        path.write_text("after!")
        yield from real(self, unit, trouble)

    monkeypatch.setattr(SourceSpec, "decoded", changing)
    with pytest.raises(RunError, match="source 'a' changed while it was read"):
        prepare({"a": path}, tmp_path / "out")
    monkeypatch.undo()
    path.write_text("before")
    prepare({"a": path}, tmp_path / "out")
    assert texts_of(tmp_path / "out") == ["before"]


def test_files_are_listed_once_and_what_appears_later_waits(tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    write_text(folder)
    listed, read = [], SourceSpec.read
    below = specs._below
    monkeypatch.setattr(specs, "_below", lambda *given: listed.append(given) or below(*given))

    def reading(spec, unit, trouble):
        (folder / "late.txt").write_text("late")
        yield from read(spec, unit, trouble)

    monkeypatch.setattr(SourceSpec, "read", reading)
    prepare({"a": folder}, tmp_path / "out")
    assert len(listed) == 1
    assert texts_of(tmp_path / "out") == sorted(TEXTS)
    assert prepare({"a": folder}, tmp_path / "out").changed == ("a",)
    assert "late" in texts_of(tmp_path / "out")


def test_two_processes_do_not_prepare_one_folder(tmp_path):
    with locked(tmp_path / "out", "prepares data"), pytest.raises(ConfigError, match="prepares data here since"):
        prepare({"a": SourceSpec(name="a", documents=TEXTS)}, tmp_path / "out")
    prepare({"a": SourceSpec(name="a", documents=TEXTS)}, tmp_path / "out")


def test_small_files_share_shards(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(200):
        (folder / f"{i:03}.jsonl").write_text(json.dumps({"text": f"{i} " + "x" * 12_000}) + "\n" * (i % 2))
    (folder / "100.jsonl").write_text("")
    summary = prepare({"a": folder}, tmp_path / "out")
    assert len(summary.index["domains"]["a"]["splits"]["train"]["shards"]) == 2
    assert [text.split(" ")[0] for text in texts_of(tmp_path / "out")] == sorted(str(i) for i in range(200) if i != 100)
    assert summary.troubles()["a"] == {"empty files": {"count": 1, "first": ["100.jsonl"]}}


def test_more_files_than_a_process_may_open(tmp_path, monkeypatch):
    """Sixteen files of which three may be open: every record is read, in any order, by several threads."""
    monkeypatch.setattr("jaxmix.data.prepared.prepare._MERGED_BYTES", 1)
    prepare({"a": many_files(tmp_path / "in", 16)}, tmp_path / "out")
    index = read_index(tmp_path / "out")["domains"]["a"]
    home, shards = tmp_path / "out" / "a" / index["folder"], index["splits"]["train"]["shards"]
    assert len(shards) == 16
    few, all_open = (PreparedSource(home, "a", "uint16", shards, most_open=n) for n in (3, 256))
    order = np.random.default_rng(0).permutation(len(few)).tolist()
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(few.read, [order[i::4] for i in range(4)]))
    assert len(few._readers) <= 3
    for i, part in enumerate(parts):
        for one, other in zip(part, all_open.read(order[i::4]), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="is not empty"):
        prepare({"a": SourceSpec(name="a", documents=TEXTS)}, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("place", ["/proc/x", "thesis.tex", "thesis.tex/x"])
def test_a_folder_that_cannot_be_made_is_named_by_its_key(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    Path("thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=rf"{place}'? (cannot be written: .*|is a file) \(data\.prepared\)"):
        prepare({"a": SourceSpec(name="a", documents=TEXTS)}, place)


def held_out(folder):
    source = open_prepared(folder, "validation")["a"]
    return {source[i].tobytes() for i in range(len(source))}


def test_the_split_goes_by_content(tmp_path):
    texts = [f"document number {i}" for i in range(400)]
    prepare({"a": SourceSpec(name="a", documents=texts)}, tmp_path / "1", validation_fraction=0.1)
    shuffled = [*texts[200:], "and one more", *texts[:200]]
    prepare({"a": SourceSpec(name="a", documents=shuffled)}, tmp_path / "2", validation_fraction=0.1)
    one, two = held_out(tmp_path / "1"), held_out(tmp_path / "2")
    assert 20 <= len(one) <= 60
    assert one <= two
    assert len(two - one) <= 1


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("fraction", [1e-9, 0.5])
def test_both_splits_have_a_record(tmp_path, count, fraction):
    texts = [f"text {i}" for i in range(count)]
    prepare({"a": SourceSpec(name="a", documents=texts)}, tmp_path, validation_fraction=fraction)
    assert len(open_prepared(tmp_path)["a"]) >= 1
    assert len(open_prepared(tmp_path, "validation")["a"]) >= 1
    assert texts_of(tmp_path) == sorted(texts)
    assert prepare({"a": SourceSpec(name="a", documents=texts)}, tmp_path, validation_fraction=fraction).was_ready


def test_a_store_reads_in_any_order_and_travels(tmp_path):
    folder = many_files(tmp_path / "in", 4)
    prepare({"a": folder}, tmp_path / "out")
    source = open_prepared(tmp_path / "out")["a"]
    everything = source.read(range(len(source)))
    assert [len(d) for d in everything] == source.doc_lengths.tolist()
    order = np.random.default_rng(0).permutation(len(source))[:50]
    for index, tokens in zip(order, source.read(order.tolist()), strict=True):
        np.testing.assert_array_equal(tokens, everything[index])
    other = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(other[7], everything[7])
    source.close()
    np.testing.assert_array_equal(source[-1], everything[-1])
    with pytest.raises(IndexError):
        source[len(source)]
    with MixtureStream({"a": source}, batch_size=4, seq_len=16, seed=0) as stream:
        assert next(stream)["tokens"].shape == (4, 16)


def test_damage_is_told_on_opening(tmp_path):
    prepare({"a": SourceSpec(name="a", documents=TEXTS)}, tmp_path)
    shard = next((tmp_path / "a").rglob("train-*.array_record"))
    data = shard.read_bytes()
    shard.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    open_prepared(tmp_path)  # of the same size
    with pytest.raises(RunError, match=r"has the checksum .* the index says"):
        open_prepared(tmp_path, verify=True)
    shard.write_bytes(data)
    open_prepared(tmp_path, verify=True)
    lengths = shard.with_suffix(".npy")
    table = np.load(lengths)
    np.save(lengths, table[::-1])
    with pytest.raises(RunError, match=r"train-00000.npy has the checksum"):
        open_prepared(tmp_path)
    np.save(lengths, table)
    index = tmp_path / "index.json"
    content = index.read_text()
    index.write_text(content.replace('"documents": 4', '"documents": 5'))
    with pytest.raises(RunError, match=r"was altered.*finished work is kept"):
        read_index(tmp_path)
    assert not prepare({"a": SourceSpec(name="a", documents=TEXTS)}, tmp_path).was_ready
    assert index.read_text() == content
    shard.write_bytes(data[:-1])
    with pytest.raises(RunError, match="the index says"):
        open_prepared(tmp_path)
    shard.unlink()
    with pytest.raises(RunError, match="is missing"):
        open_prepared(tmp_path)
    with pytest.raises(ConfigError, match="no prepared data"):
        read_index(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({}, "does not say"),
        ({"path": "x", "tfds": "y"}, "path and tfds"),
        ({"path": "x", "format": "jsnl"}, "jsonl"),
    ],
)
def test_wrong_sources_are_named(mapping, message):
    with pytest.raises(ConfigError, match=message):
        SourceSpec("a", **mapping)


def test_a_source_without_files_is_an_error_before_anything_is_made(tmp_path):
    with pytest.raises(ConfigError, match="no file at"):
        prepare({"a": tmp_path / "nothing"}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
