"""Stores of embeddings: rows against NumPy, kills at every write, parts, and folders that do not fit."""

import dataclasses
import json
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.data.embeddings import EmbeddingWriter, open_embedding_store, write_embedding_store

DIM = 7
TEXTS = {
    "news": ["aab", "bcd", "", "gg", "fade"],
    "empty": ["", "zz"],
    "long": [f"{'abcdefg'[i % 7]}{'gfedcba'[i % 5]}a" for i in range(23)],
    "none": [],
    "last": ["cab", "ged"],
}


class Letters(NamedTuple):
    """Counts of the letters a to g, scaled to length 1 unless `scale` says otherwise."""

    identity: str = "letters"
    dim: int = DIM
    scale: float = 1.0

    def encode(self, texts):
        counts = np.array([[text.count(c) for c in "abcdefg"] for text in texts], np.float32).reshape(-1, DIM)
        length = np.linalg.norm(counts, axis=1, keepdims=True)
        return self.scale * counts / np.where(length > 0, length, 1)


def expected():
    rows = np.concatenate([Letters().encode(texts) for texts in TEXTS.values()]).astype(np.float64)
    return rows[np.linalg.norm(rows, axis=1) > 0]


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    write_embedding_store(folder, texts_by_shard=TEXTS, encoder=Letters(), block=3)
    return folder


@pytest.mark.parametrize(("dtype", "error"), [("float16", 2.5e-4), ("bfloat16", 2e-3)])
def test_rows_are_those_of_the_encoder_less_the_empty_ones(tmp_path, dtype, error):
    store = write_embedding_store(tmp_path, texts_by_shard=TEXTS, encoder=Letters(scale=3.0), dtype=dtype, block=4)
    rows = expected()
    assert (len(store), store.dim, store.num_documents) == (len(rows), DIM, sum(map(len, TEXTS.values())))
    assert store.read(0, len(store)).dtype == np.float32
    np.testing.assert_allclose(store.read(0, len(store)), rows, atol=error)
    np.testing.assert_allclose(np.linalg.norm(store.read(0, len(store)), axis=1), 1, atol=1e-6)
    assert store.dropped() == {"news": (2,), "empty": (0, 1)}
    assert (tmp_path / "shard-00000.bin").stat().st_size == 4 * DIM * 2
    store.verify()


def test_every_range_and_block_size_reads_the_same_rows(whole):
    store = open_embedding_store(whole)
    everything = store.read(0, len(store))
    for start in range(len(store) + 1):
        for stop in range(start, len(store) + 1):
            np.testing.assert_array_equal(store.read(start, stop), everything[start:stop])
    for rows in (1, 4, 5, len(store), 100):
        blocks = list(store.blocks(rows))
        np.testing.assert_array_equal(np.concatenate(blocks), everything)
        assert all(len(block) == rows for block in blocks[:-1])
    order = np.random.default_rng(0).permutation(len(store))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).take(order), everything[order])
    assert store.take([]).shape == (0, DIM)
    for call in (lambda: store.read(0, len(store) + 1), lambda: store.read(3, 2), lambda: store.take([-1])):
        with pytest.raises(ConfigError, match="of a store of"):
            call()


def test_rows_know_their_documents(whole):
    store = open_embedding_store(whole)
    shards, numbers = store.documents()
    names, texts = list(TEXTS), []
    for shard, number in zip(shards, numbers, strict=True):
        texts.append(TEXTS[names[shard]][number])
    np.testing.assert_allclose(store.read(0, len(store)), Letters().encode(texts), atol=3e-4)
    some = store.documents([5, 2, 4])
    np.testing.assert_array_equal(np.stack(some), np.stack([shards, numbers])[:, [5, 2, 4]])


class Killed(BaseException):
    pass


def test_a_stop_at_any_replacement_leaves_a_folder_that_goes_on(tmp_path, monkeypatch, whole):
    """Before and after every rename of a run: nothing half-written is readable, and the end is the same bytes."""
    replace, budget = Path.replace, [0]

    def counting(self, target, *, after):
        budget[0] -= 1
        if budget[0] == 0 and not after:
            raise Killed
        replace(self, target)
        if budget[0] == 0:
            raise Killed

    for after in (False, True):
        for stop in range(1, 2 * len(TEXTS) + 3):
            folder = tmp_path / f"{after}-{stop}"
            budget[0] = stop
            monkeypatch.setattr(Path, "replace", lambda self, target, after=after: counting(self, target, after=after))
            with pytest.raises(Killed):
                write_embedding_store(folder, texts_by_shard=TEXTS, encoder=Letters(), block=3)
            monkeypatch.setattr(Path, "replace", replace)
            if not (after and stop == 2 * len(TEXTS) + 2):
                with pytest.raises(RunError, match=r"not whole|no embeddings"):
                    open_embedding_store(folder)
            write_embedding_store(folder, texts_by_shard=TEXTS, encoder=Letters(), block=3)
            assert content(folder) == content(whole)


def test_what_is_done_is_not_embedded_again(tmp_path, whole):
    asked = []

    class Counting(Letters):
        def encode(self, texts):
            asked.extend(texts)
            if "cab" in texts:
                raise OSError("the machine went away")
            return super().encode(texts)

    with pytest.raises(OSError, match="went away"):
        write_embedding_store(tmp_path, texts_by_shard=TEXTS, encoder=Counting(), block=3)
    asked.clear()
    write_embedding_store(tmp_path, texts_by_shard=TEXTS, encoder=Letters(), block=3)
    assert asked == []
    assert content(tmp_path) == content(whole)
    seen = []
    write_embedding_store(tmp_path, texts_by_shard=TEXTS, encoder=Counting(), report=lambda *a: seen.append(a[:2]))
    assert asked == []
    assert seen == [(i, 5) for i in range(1, 6)]


def test_parts_may_be_written_in_any_order_and_shards_be_added(tmp_path, whole):
    lazy = {name: (lambda texts=texts: iter(texts)) for name, texts in TEXTS.items()}
    for part in (2, 0):
        made = write_embedding_store(tmp_path, texts_by_shard=lazy, encoder=Letters(), part=(part, 3), block=3)
        assert made is None
    with pytest.raises(RunError, match="not whole: 3 shards are written"):
        open_embedding_store(tmp_path)
    assert len(write_embedding_store(tmp_path, texts_by_shard=lazy, encoder=Letters(), part=(1, 3), block=3))
    assert content(tmp_path) == content(whole)
    more = write_embedding_store(tmp_path, texts_by_shard={**TEXTS, "more": ["abc"]}, encoder=Letters())
    assert len(more) == len(expected()) + 1
    with pytest.raises(ConfigError, match="more shards than the 5 of these texts, such as 'more'"):
        write_embedding_store(tmp_path, texts_by_shard=TEXTS, encoder=Letters())


PROGRAM = """
import sys, time
sys.path.insert(0, {tests!r})
from test_store import TEXTS, Letters
from jaxmix.data.embeddings import write_embedding_store
class Slow(Letters):
    def encode(self, texts):
        print("block", flush=True)
        time.sleep({pause})
        return super().encode(texts)
write_embedding_store({folder!r}, texts_by_shard=TEXTS, encoder=Slow(), block=3, part=({part}, 2))
"""


def test_processes_side_by_side_and_one_killed(tmp_path, whole):
    def start(part, pause):
        program = PROGRAM.format(tests=str(Path(__file__).parent), folder=str(tmp_path), part=part, pause=pause)
        return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)

    victim, other = start(0, 0.05), start(1, 0)
    for _ in range(5):
        victim.stdout.readline()  # in the middle of the third shard
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    assert other.wait() == 0
    assert list(tmp_path.glob(".*.partial"))
    assert not (tmp_path / "index.json").exists()
    assert not (tmp_path / "shard-00002.bin").exists()
    again = start(0, 0)
    assert again.wait() == 0
    for process in (victim, other, again):
        process.stdout.close()
    assert content(tmp_path) == content(whole)


def test_another_encoder_or_other_texts_are_refused(tmp_path, whole):
    write_embedding_store(tmp_path, texts_by_shard=TEXTS, encoder=Letters(), block=3)
    write = lambda **changes: write_embedding_store(
        tmp_path, **{"texts_by_shard": TEXTS, "encoder": Letters(), "block": 3, **changes}
    )
    with pytest.raises(ConfigError, match="another kind: encoder letters and not others"):
        write(encoder=Letters("others"))
    with pytest.raises(ConfigError, match="another kind: dtype float16 and not bfloat16"):
        write(dtype="bfloat16")
    with pytest.raises(ConfigError, match=r"'long' are not those it was embedded from \(23 documents, then 23\)"):
        write(texts_by_shard={**TEXTS, "long": [*TEXTS["long"][:-1], "b"]})
    with pytest.raises(ConfigError, match="shard 0 was made from 'news', not 'empty'"):
        write(texts_by_shard=dict(sorted(TEXTS.items())))
    with pytest.raises(ConfigError, match="part 2 of 2"):
        write(part=(2, 2))
    with pytest.raises(ConfigError, match="unknown dtype 'float8'"):
        write(dtype="float8")
    with pytest.raises(ConfigError, match="all different: 0 names"):
        write(texts_by_shard={})
    with pytest.raises(ConfigError, match="of the encoder letters, not others"):
        open_embedding_store(tmp_path).check_encoder(Letters("others"))
    open_embedding_store(tmp_path).check_encoder(Letters())
    assert content(tmp_path) == content(whole)


def test_damage_is_named(tmp_path):
    store = write_embedding_store(tmp_path, texts_by_shard=TEXTS, encoder=Letters(), block=3)
    path = tmp_path / store.shards[2].file
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match=r"content of shard-00002\.bin is not"):
        open_embedding_store(tmp_path).verify()
    path.write_bytes(data[:-2])
    with pytest.raises(RunError, match=r"shard-00002\.bin has 320 bytes, not 322"):
        open_embedding_store(tmp_path)
    path.unlink()
    with pytest.raises(RunError, match=r"shard-00002\.bin is missing"):
        open_embedding_store(tmp_path)
    for name in ("shard-00002.json", "index.json"):  # what the message advises
        (tmp_path / name).unlink()
    write_embedding_store(tmp_path, texts_by_shard=TEXTS, encoder=Letters(), block=3).verify()
    index = json.loads((tmp_path / "index.json").read_bytes())
    (tmp_path / "index.json").write_text(json.dumps({**index, "format": 9}))
    with pytest.raises(RunError, match="has format 9, this jaxmix reads 1"):
        open_embedding_store(tmp_path)


def test_rows_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(RunError, match=r"not finite \(news, documents 0 to 2\)"):
        write_embedding_store(tmp_path, texts_by_shard=TEXTS, encoder=Letters(scale=np.nan), block=3)


def test_a_wrong_shape_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"returned \[3, 7\], not \[3, 8\]"):
        write_embedding_store(tmp_path, texts_by_shard=TEXTS, encoder=Letters(dim=8), block=3)
    assert not list(tmp_path.glob("*.bin"))
    assert not list(tmp_path.glob(".*.partial"))


def test_the_writer_takes_shards_in_any_order(tmp_path, whole):
    writer = EmbeddingWriter(tmp_path, sources=tuple(TEXTS), encoder=Letters(), block=3)
    for number in (3, 1, 4, 0):
        entry = writer.write(number, list(TEXTS.values())[number])
        assert writer.is_done(number)
        assert dataclasses.asdict(entry)["documents"] == len(list(TEXTS.values())[number])
    assert not writer.is_done(2)
    assert not writer.finish()
    writer.write(2, iter(TEXTS["long"]))
    assert writer.finish()
    assert content(tmp_path) == content(whole)
