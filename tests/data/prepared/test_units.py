import json

import pytest

from jaxmix.core.errors import RunError
from jaxmix.data import SourceSpec, byte_tokenizer, prepare_corpus
from jaxmix.data.prepared.store import read_index, verify_prepared

SOURCE = {"a": SourceSpec("a", documents=["one text", "another text", "a third one"])}


@pytest.fixture
def prepared(tmp_path):
    prepare_corpus(SOURCE, tmp_path, tokenizer=byte_tokenizer())
    return tmp_path


def changed(record, *keys, value):
    inner = record
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return json.dumps(record)


DAMAGE = [
    lambda record: json.dumps(record)[:-30],
    lambda record: "",
    lambda record: "[]",
    lambda record: "[" * 100_000,
    lambda record: "1" * 5000,
    lambda record: changed(record, "documents", value="3"),
    lambda record: changed(record, "splits", "train", value=None),
    lambda record: changed(record, "splits", "train", "tokens", value=10**400),
    lambda record: changed(record, "splits", "train", "bytes", value=float("inf")),
    lambda record: changed(record, "splits", "train", "checksum", value=7),
    lambda record: changed(record, "moved", value=[]),
    lambda record: changed(record, "troubles", value={"kind": 1}),
    lambda record: changed(record, "hash_range", value=[1, 2]),
    lambda record: changed(record, "documents", value=record["documents"] + 1),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_is_named_with_what_to_do(prepared, damage):
    index = (prepared / "index.json").read_text()
    (path,) = prepared.rglob("unit-*.json")
    path.write_text(damage(json.loads(path.read_text())))
    (prepared / "index.json").unlink()
    with pytest.raises(RunError, match=r"unit-00000.json is no.*/a/.*Delete it and run the same command again"):
        prepare_corpus(SOURCE, prepared, tokenizer=byte_tokenizer())
    path.unlink()
    prepare_corpus(SOURCE, prepared, tokenizer=byte_tokenizer())
    assert (prepared / "index.json").read_text() == index


@pytest.mark.parametrize("content", ["", "[]", "7", '{"settings": ', "[" * 100_000, '{"x": 1' + "0" * 5000 + "}"])
def test_a_damaged_index_or_plan_is_named_with_what_to_do(prepared, content):
    index, plan = prepared / "index.json", prepared / "plan.json"
    whole = index.read_text()
    plan.write_text(content)
    assert prepare_corpus(SOURCE, prepared, tokenizer=byte_tokenizer()).was_ready, "the index has the settings too"
    index.write_text(content)
    with pytest.raises(RunError, match=r"index\.json is .*run jaxmix prepare; finished work is kept"):
        read_index(prepared)
    index.unlink()
    with pytest.raises(RunError, match=r"plan\.json (is not JSON|has no settings).*Remove the folder"):
        prepare_corpus(SOURCE, prepared, tokenizer=byte_tokenizer())
    plan.unlink()
    index.write_text(whole)
    assert prepare_corpus(SOURCE, prepared, tokenizer=byte_tokenizer()).was_ready


def test_all_damage_is_found_by_source(prepared):
    assert verify_prepared(prepared) == {"a": []}
    shard, table = next(prepared.rglob("train-*.array_record")), next(prepared.rglob("validation-*.npy"))
    data = shard.read_bytes()
    shard.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    table.unlink()
    first, second = verify_prepared(prepared)["a"]
    assert first.startswith(f"{shard} has the checksum")
    assert second.startswith(f"{table} is missing")


@pytest.mark.parametrize("file", ["train-00000.array_record", "train-00000.npy", "unit-00000.sketches.npy"])
@pytest.mark.parametrize("damage", ["altered", "missing"])
def test_damaged_parts_are_done_again_when_the_index_is_made_again(prepared, file, damage):
    (path,) = prepared.rglob(file)
    whole, index = path.read_bytes(), prepared / "index.json"
    sums = index.read_text()
    index.unlink()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(whole[:-4] + b"oops")
    prepare_corpus(SOURCE, prepared, tokenizer=byte_tokenizer())
    assert (path.read_bytes(), index.read_text()) == (whole, sums)
