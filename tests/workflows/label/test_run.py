"""Labeling in this process: every label against an oracle, the summary's sums, and what is in the way.

Nothing here needs JAX: the student is made by hand, and its logits are 9 times the share of each of three words.
"""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from jaxmix.core.errors import ConfigError, EnvironmentProblem, RunError
from jaxmix.models.student.features import hash_texts
from jaxmix.models.student.model import Student, StudentConfig
from jaxmix.workflows.label.config import load_labeling
from jaxmix.workflows.label.run import describe_labeling, run_labeling
from jaxmix.workflows.provenance import write_json

WORDS = ("rock", "fish", "star")
A = ["rock rock fish", "star", "", "fish fish fish star", "  \n", "unknown words", "straße fish"]
B = ["rock", "rock star star"]


def oracle(text):
    """Label and confidence of the student by hand; −1 and 0 of blank texts."""
    words = text.split()
    if not words:
        return -1, 0.0
    scores = [math.exp(9 * words.count(word) / len(words)) for word in WORDS]
    return int(np.argmax(scores)), max(scores) / sum(scores)


def write_jsonl(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.fixture
def corpus(tmp_path):
    ids, _ = hash_texts(list(WORDS), buckets=4096, orders=(1,), seed=0, max_words=512)
    order = np.argsort(ids)
    table = 9 * np.eye(3, dtype=np.float32)[order]
    student = Student(StudentConfig(3, buckets=4096, orders=(1,)), ids[order], table, None, np.zeros(3, np.float32))
    student.save(tmp_path / "domains" / "student" / "model")
    identities = {"encoder": "none", "clusters": "none", "student": student.identity}
    write_json(tmp_path / "domains" / "domains.json", {"format": 1, "names": list(WORDS), "identities": identities})
    write_jsonl(tmp_path / "web" / "a.jsonl", A)
    write_jsonl(tmp_path / "web" / "b.jsonl", B)
    return tmp_path


def configured(folder, **changes):
    mapping = {
        "domains": str(folder / "domains"),
        "sources": {"web": {"path": str(folder / "web")}},
        "batch_documents": 2,
        **changes,
    }
    (folder / "label.yaml").write_text(yaml.safe_dump(mapping))
    return load_labeling(str(folder / "label.yaml"), out=str(folder / "out"))


def run(folder, **changes):
    said = []
    return run_labeling(configured(folder, **changes), command="jaxmix label", say=said.append), said


def test_labels_are_those_of_the_oracle(corpus):
    run(corpus)
    for name, texts in (("a", A), ("b", B)):
        table = pq.read_table(corpus / "web" / f"{name}.jsonl.labels.parquet").to_pydict()
        labels, confidences = zip(*map(oracle, texts), strict=True)
        assert table["label"] == list(labels)
        assert table["domain"] == [None if label < 0 else WORDS[label] for label in labels]
        np.testing.assert_allclose(table["confidence"], confidences, rtol=1e-6)  # a softmax of three in float32
        assert table["bytes"] == [len(text.encode()) for text in texts]
        assert table["document"] == list(range(len(texts)))
        assert len(set(table["place"])) == len(texts)
        assert all(f"{name}.jsonl" in place for place in table["place"])


def test_the_summary_adds_up(corpus):
    summary, said = run(corpus)
    texts = [*A, *B]
    for index, word in enumerate(WORDS):
        mine = [text for text in texts if oracle(text)[0] == index]
        assert summary["domains"][word] == {"documents": len(mine), "bytes": sum(len(t.encode()) for t in mine)}
    assert summary["documents"] == len(texts)
    assert summary["unlabeled"] == 2
    assert summary["bytes"] == sum(len(text.encode()) for text in texts)
    assert summary["shards"] == 2
    assert said == ["2 shards, 0 already labeled", "1 of 2 shards", "2 of 2 shards"]
    written = json.loads((corpus / "out" / "labels.json").read_text())
    assert {key: written[key] for key in summary} == summary
    assert [path.rsplit("/", 1)[-1] for path in written["files"]] == [
        "a.jsonl.labels.parquet",
        "b.jsonl.labels.parquet",
    ]
    assert written["failed"] == {}
    assert written["command"] == "jaxmix label"


def test_labels_do_not_depend_on_how_many_documents_are_labeled_at_a_time(corpus):
    run(corpus)
    alone = pq.read_table(corpus / "web" / "a.jsonl.labels.parquet")
    (corpus / "web" / "a.jsonl.labels.parquet").unlink()
    run(corpus, batch_documents=1000)
    assert pq.read_table(corpus / "web" / "a.jsonl.labels.parquet").equals(alone)


def test_a_folder_for_the_labels_keeps_the_corpus_as_it_is(corpus):
    run(corpus, labels=str(corpus / "labels"))
    assert sorted(path.name for path in (corpus / "web").iterdir()) == ["a.jsonl", "b.jsonl"]
    assert sorted(
        path.relative_to(corpus / "labels").as_posix() for path in (corpus / "labels").rglob("*.parquet")
    ) == [
        "web/00000-a.jsonl.labels.parquet",
        "web/00001-b.jsonl.labels.parquet",
    ]


def test_only_what_is_missing_is_announced_and_done(corpus):
    run(corpus)
    (corpus / "web" / "b.jsonl.labels.parquet").unlink()
    about = describe_labeling(configured(corpus))
    assert (about["shards"], about["labeled"]) == (2, 1)
    assert about["input_bytes"] == (corpus / "web" / "b.jsonl").stat().st_size
    assert about["domains"] == list(WORDS)
    assert about["first"].endswith("a.jsonl.labels.parquet")
    assert run(corpus)[1] == ["2 shards, 1 already labeled", "1 of 1 shards"]
    assert run(corpus)[1] == ["2 shards, 2 already labeled"]


def test_what_cannot_be_read_is_counted(corpus):
    with (corpus / "web" / "b.jsonl").open("a") as file:
        file.write("no JSON\n")
    summary, _ = run(corpus)
    assert summary["documents"] == len(A) + len(B)
    assert "b.jsonl" in json.dumps(summary["troubles"])


def test_a_file_of_two_sources_is_refused_before_anything_is_written(corpus):
    web = {"path": str(corpus / "web")}
    with pytest.raises(ConfigError, match=r"two sources read a\.jsonl"):
        run(corpus, sources={"one": web, "two": web})
    assert list(corpus.rglob("*.parquet")) == []


def test_labels_by_another_student_are_in_the_way(corpus):
    run(corpus)
    about = json.loads((corpus / "domains" / "domains.json").read_text())
    about["identities"]["student"] = "another"
    write_json(corpus / "domains" / "domains.json", about)
    with pytest.raises(ConfigError, match="by other models"):
        run(corpus)


def test_shards_that_an_engine_could_not_label_are_named_and_the_others_counted(corpus, monkeypatch):
    run(corpus)
    (corpus / "web" / "b.jsonl.labels.parquet").unlink()
    seen = []

    def failing(waiting, config, say):
        seen.extend(shard.name for shard in waiting)
        return {shard.name: "the disk is full" for shard in waiting}

    monkeypatch.setattr("jaxmix.workflows.label.run.label_on_ray", failing)
    with pytest.raises(RunError, match="1 of 2 shards could not be labeled, such as web-00001: the disk is full"):
        run(corpus, engine="ray")
    assert seen == ["web-00001"]
    written = json.loads((corpus / "out" / "labels.json").read_text())
    assert (written["documents"], written["shards"]) == (len(A), 1)
    assert written["failed"] == {"web-00001": "the disk is full"}


def test_the_engine_ray_without_ray_says_what_to_install(corpus, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(EnvironmentProblem, match="not installed") as caught:
        run(corpus, engine="ray")
    assert "jaxmix[ray]" in str(caught.value)
