"""A discovery of three planted topics, end to end, and the labeling of a corpus with what it found."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from jaxmix.cli import main
from jaxmix.core.errors import ConfigError
from jaxmix.core.settings import escape_path
from jaxmix.data.sources.specs import SourceSpec
from jaxmix.workflows.config.load import from_mapping
from jaxmix.workflows.discover.config import discovery_from
from jaxmix.workflows.discover.domains import Domains, open_domains
from jaxmix.workflows.discover.run import _Discovery, run_discovery
from jaxmix.workflows.label.config import label_from
from jaxmix.workflows.label.run import label_shard, label_shards, run_labeling

TOPICS = {
    "garden": "rose soil seed water bloom leaf",
    "harbour": "ship rope tide crew sail anchor",
    "stars": "orbit comet moon lens night sky",
}


def texts_of(topic, n, seed):
    rng = np.random.default_rng(seed)
    own, common = TOPICS[topic].split(), ["the", "a", "of", "and", "was", "in", "it"]
    return [
        " ".join(str(rng.choice(own if rng.random() < 0.6 else common)) for _ in range(int(rng.integers(8, 30))))
        for _ in range(n)
    ]


def write_jsonl(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two sources that both mix all topics, and one file to label; → (folder, topic of every text)."""
    folder = tmp_path_factory.mktemp("corpus")
    topic_of = {}
    for source in ("one", "two"):
        texts = [(t, topic) for topic in TOPICS for t in texts_of(topic, 40, len(topic) + len(source) * 7)]
        topic_of.update(texts)
        order = np.random.default_rng(0).permutation(len(texts))
        write_jsonl(folder / source / "a.jsonl", [texts[i][0] for i in order])
    path = folder / "two" / "a.jsonl"
    path.write_text(path.read_text() + '{"text": "  "}\n{"text": "?!"}\n{"body": "no text"}\n')
    return folder, topic_of


def settings(corpus, **changes):
    return {
        "sources": {"one": {"path": str(corpus / "one")}, "two": {"path": str(corpus / "two" / "*.jsonl")}},
        "encoder": {"name": "builtin", "dim": 6},
        "clusterer": {"name": "gem", "num_clusters": 3, "balance": 10},
        "fit": {"max_iters": 20, "init": "kmeans++"},
        "documents": {"held_out": 0.3},
        "student": {"rule": "gis", "buckets": 4096, "per_cluster": 30, "batch_size": 32, "epochs": 8},
        "taxonomy": {"terms": 4, "documents": 2},
        **changes,
    }


@pytest.fixture(scope="module")
def found(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("found")
    said = []
    config = discovery_from(settings(corpus[0]), file="three.yaml", out=str(out))
    return out, run_discovery(config, command="jaxmix discover three.yaml", say=said.append), said


def topic_of_domain(corpus, out, name):
    """The topics of the documents that were sorted into a domain."""
    texts = [
        t for p in sorted((out / "sources" / name).glob("*.parquet")) for t in pq.read_table(p)["text"].to_pylist()
    ]
    return [corpus[1].get(text, "?") for text in texts]


def test_domains_are_the_topics(corpus, found):
    out, summary, _ = found
    assert summary["documents"]["documents"] == 241, "the blank document is none, the one of signs is"
    assert summary["documents"]["troubles"] == {
        "empty documents": {"count": 1, "first": summary["documents"]["troubles"]["empty documents"]["first"]},
        "records without 'text'": {
            "count": 1, "first": summary["documents"]["troubles"]["records without 'text'"]["first"]
        },
    }  # fmt: skip
    assert summary["embeddings"]["dropped"] == 1
    names = list(summary["sources"]["domains"])
    assert len(names) == 3
    topics = {name: topic_of_domain(corpus, out, name) for name in names}
    assert sum(len(own) for own in topics.values()) == 241, "every document is in one domain"
    majority = {name: max(TOPICS, key=own.count) for name, own in topics.items()}
    assert set(majority.values()) == set(TOPICS)
    assert sum(own.count(majority[name]) for name, own in topics.items()) >= 236
    for cluster in summary["taxonomy"]["clusters"]:
        topic = majority[cluster["name"]]
        assert set(cluster["terms"]) <= set(TOPICS[topic].split())
        assert cluster["name"][3:] == "-".join(cluster["terms"][:3])
        for kind in ("nearest", "representatives"):
            assert [corpus[1][document["text"]] for document in cluster[kind]] == [topic, topic]
        assert cluster["documents"] == sum(own != "?" for own in topics[cluster["name"]])
    student = summary["student"]
    assert student["accuracy"] > 0.9
    assert student["held_out"] == student["documents"] == pytest.approx(72, abs=25)
    assert student["trained_on"] == sum(min(30, n) for n in np.bincount(trainable(out)).tolist())
    page = (out / "report.html").read_text()
    assert all(name in page for name in names)
    assert page.count("<svg") == 2


def trainable(out):
    """Labels of the documents that the student may learn from."""
    labels = np.load(out / "clusters" / "labels.npz")["labels"]
    held = np.concatenate(
        [pq.read_table(p)["held_out"].to_numpy() for p in sorted((out / "documents").glob("*.parquet"))]
    )
    return labels[(labels >= 0) & ~held]


def test_a_second_run_does_nothing_and_other_settings_are_refused(corpus, found, tmp_path):
    out, summary, _ = found
    before = {path: path.read_bytes() for path in out.rglob("*.parquet")}
    said = []
    config = discovery_from(settings(corpus[0]), file="three.yaml", out=str(out))
    again = run_discovery(config, command="again", say=said.append)
    assert [line for line in said if "already done" not in line] == []
    assert {k: v for k, v in again.items() if k != "report"} == {k: v for k, v in summary.items() if k != "report"}
    assert {path: path.read_bytes() for path in out.rglob("*.parquet")} == before
    other = discovery_from(
        settings(corpus[0], clusterer={"name": "gem", "num_clusters": 3, "balance": 11}), file="x.yaml", out=str(out)
    )
    with pytest.raises(ConfigError, match=r"'clusters' was made with other settings.*clusterer"):
        run_discovery(other, command="x", say=said.append)


def test_a_killed_stage_goes_on_to_the_same_bytes(corpus, found, tmp_path, monkeypatch):
    """Stopped in the middle of sorting, after everything before was done."""
    out = tmp_path / "killed"
    shutil.copytree(found[0], out)
    shutil.rmtree(out / "sources")
    for name in ("domains.json", "discovery.json", "sources.yaml"):
        (out / name).unlink()
    config = discovery_from(settings(corpus[0]), file="three.yaml", out=str(out))
    sort = _Discovery._sort

    def stopped(self, folder, domains):
        sort(self, folder, domains)
        path = sorted(folder.rglob("*.parquet"))[-1]
        path.unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(_Discovery, "_sort", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_discovery(config, command="x", say=lambda line: None)
    with pytest.raises(ConfigError, match="no finished discovery"):
        open_domains(out)
    monkeypatch.setattr(_Discovery, "_sort", sort)
    run_discovery(config, command="x", say=lambda line: None)
    for path in sorted(found[0].rglob("*.parquet")):
        assert (out / path.relative_to(found[0])).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_a_store_larger_than_memory_is_streamed(corpus, found, tmp_path):
    """Weighed by words in both, since weights go with the blocks."""
    results = []
    for memory in (2e9, 1):
        fit = {"max_iters": 20, "init": "kmeans++", "weigh_by": "words", "memory": memory}
        config = discovery_from(settings(corpus[0], fit=fit), file="three.yaml", out=str(tmp_path / str(memory)))
        results.append(run_discovery(config, command="x", say=lambda line: None)["clusters"])
    whole, streamed = results
    assert streamed["objective"][-1] == pytest.approx(whole["objective"][-1], rel=1e-5)
    assert streamed["size_entropy"]["words"] == pytest.approx(whole["size_entropy"]["words"], abs=1e-3)
    assert whole["objective"][-1] != pytest.approx(found[1]["clusters"]["objective"][-1], rel=1e-4), "words do weigh"


def test_other_configurations_take_the_folder_as_sources(found, tmp_path):
    out, summary, _ = found
    config = from_mapping({"sources": str(out), "train": {"steps": 1}}, file="t.yaml")
    assert list(config.sources) == list(summary["sources"]["domains"])
    for name, source in config.sources.items():
        assert len(SourceSpec(name=name, path=source.path).files()) == 2
    with pytest.raises(ConfigError, match="no finished discovery"):
        from_mapping({"sources": str(tmp_path), "train": {"steps": 1}}, file="t.yaml")
    moved = tmp_path / "$new"
    shutil.copytree(out, moved)
    shutil.rmtree(moved / "sources" / next(iter(config.sources)))
    again = from_mapping({"sources": escape_path(str(moved)), "train": {"steps": 1}}, file="t.yaml")
    first, *others = [SourceSpec(name=name, path=source.path) for name, source in again.sources.items()]
    assert all(file.is_relative_to(moved) for spec in others for file in spec.files())
    with pytest.raises(ConfigError, match=r"no file at .*new/sources"):
        first.files()


def test_no_file_of_a_discovery_names_its_own_folder_but_as_where_it_was_made(found):
    out, _, _ = found
    texts = [path for path in out.rglob("*") if path.suffix in (".yaml", ".json", ".csv")]
    naming = {path.name for path in texts if str(out) in path.read_text()}
    assert naming <= {"config.yaml", "discovery.json"}


def test_a_namer_is_asked_with_representatives(corpus, found, tmp_path, monkeypatch):
    out = tmp_path / "named"
    shutil.copytree(found[0], out)
    for name in ("taxonomy", "sources"):
        shutil.rmtree(out / name)
    (tmp_path / "my_namer.py").write_text(
        "def name(texts, terms):\n    return f'About {sorted(terms)[0]}: {len(texts)}'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    taxonomy = {"terms": 4, "documents": 2, "namer": "my_namer:name"}
    config = discovery_from(settings(corpus[0], taxonomy=taxonomy), file="three.yaml", out=str(out))
    clusters = run_discovery(config, command="x", say=lambda line: None)["taxonomy"]["clusters"]
    assert clusters[0]["title"] == f"About {sorted(clusters[0]['terms'])[0]}: 2"
    assert clusters[0]["name"] == f"00-about-{sorted(clusters[0]['terms'])[0]}-2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clusterer": {"name": "jem"}}, r"unknown clusterer 'jem'.*clusterer.name.*gem"),
        ({"clusterer": {"name": "gem", "balence": 1}}, r"balence.*balance"),
        ({"fit": {"key": 1}}, r"fit.key"),
        ({"student": {"epoch": 1}}, r"epoch.*epochs"),
        ({"taxonomy": {"namer": "no_such:thing"}}, r"no_such"),
        ({"sources": {}}, "sources is empty"),
    ],
)
def test_wrong_configurations(corpus, changes, message):
    with pytest.raises(ConfigError) as caught:
        discovery_from(settings(corpus[0], **changes), file="three.yaml")
    import re

    assert re.search(message, str(caught.value))


def test_too_few_documents(tmp_path):
    write_jsonl(tmp_path / "few" / "a.jsonl", ["one two", "three four"])
    config = discovery_from(
        {"sources": {"few": {"path": str(tmp_path / "few")}}}, file="x.yaml", out=str(tmp_path / "o")
    )
    with pytest.raises(Exception, match="2 documents are too few for 24 clusters"):
        run_discovery(config, command="x", say=lambda line: None)


# ── labeling ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def web(tmp_path):
    """Files to label: plain, compressed lines beside them, and small text files."""
    import gzip

    texts = [t for topic in TOPICS for t in texts_of(topic, 7, 99)]
    write_jsonl(tmp_path / "web" / "a.jsonl", [*texts, " ", "?!"])
    data = "".join(json.dumps({"text": t}) + "\n" for t in texts[:5]).encode()
    (tmp_path / "web" / "b.jsonl.gz").write_bytes(gzip.compress(data, mtime=0))
    for i, text in enumerate(texts[:3]):
        (tmp_path / "web" / f"{i}.txt").write_text(text)
    return tmp_path / "web", texts


def labeling(found, web, out, **changes):
    mapping = {"domains": str(found[0]), "sources": {"web": {"path": str(web)}}, **changes}
    return label_from(mapping, file="label.yaml", out=str(out))


@pytest.mark.parametrize("method", ["student", "teacher"])
def test_labels_lie_beside_the_documents(found, web, tmp_path, method):
    folder, texts = web
    config = labeling(found, folder, tmp_path / "out", method=method, batch_documents=4)
    summary = run_labeling(config, command="x", say=lambda line: None)
    assert (summary["documents"], summary["shards"]) == (23 + 5 + 3, 3)
    table = pq.read_table(folder / "a.jsonl.labels.parquet")
    assert table.column_names == ["document", "place", "label", "domain", "confidence", "bytes"]
    assert table["document"].to_pylist() == list(range(23))
    domains = open_domains(found[0])
    if method == "student":
        expected, probabilities = domains.student.predict(texts)
        np.testing.assert_array_equal(table["confidence"].to_numpy()[:21], probabilities.max(axis=1))
    else:
        clusterer, state = domains.clusters
        state = jax.tree.map(jnp.asarray, state)
        expected = np.asarray(clusterer.assign(state, jnp.asarray(domains.encoder.encode(texts))).labels)
    assert table["label"].to_pylist()[:22] == [*expected.tolist(), -1]
    assert table["domain"].to_pylist()[:22] == [*(domains.names[label] for label in expected), None]
    assert (table["label"].to_pylist()[22] == -1) == (method == "teacher"), "signs have no vector, but a prior"
    assert table["bytes"].to_pylist()[:21] == [len(text) for text in texts]
    grouped = pq.read_table(folder / "web-00000.labels.parquet")
    assert grouped["place"].to_pylist() == ["0.txt", "1.txt", "2.txt"]
    total = sum(entry["documents"] for entry in summary["domains"].values())
    assert total + summary["unlabeled"] == 31
    files = SourceSpec(name="web", path=str(folder)).files()
    assert not [file for file in files if "labels" in file.name], "labels are no documents"


def test_labeling_again_does_only_what_is_missing(found, web, tmp_path):
    folder, _ = web
    config = labeling(found, folder, tmp_path / "out")
    run_labeling(config, command="x", say=lambda line: None)
    first = {path.name: path.read_bytes() for path in folder.glob("*.labels.parquet")}
    (folder / "a.jsonl.labels.parquet").unlink()
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*.labels.parquet")}
    run_labeling(config, command="x", say=lambda line: None)
    assert {path.name: path.read_bytes() for path in folder.glob("*.labels.parquet")} == first
    assert {path: path.stat().st_mtime_ns for path in times} == times
    write_jsonl(folder / "a.jsonl", ["something else"])
    with pytest.raises(ConfigError, match="labels of other documents or by other models"):
        run_labeling(config, command="x", say=lambda line: None)


def test_a_killed_shard_leaves_nothing(found, web, tmp_path, monkeypatch):
    folder, _ = web
    config = labeling(found, folder, tmp_path / "out", batch_documents=4)
    domains = open_domains(found[0])
    shard = next(s for s in label_shards(config, domains) if s.target.name.startswith("a.jsonl"))
    calls = []

    label = Domains.label

    def dying(self, texts, method):
        calls.append(len(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return label(self, texts, method)

    with monkeypatch.context() as patch:
        patch.setattr(Domains, "label", dying)
        with pytest.raises(KeyboardInterrupt):
            label_shard(shard, domains, method="student", batch_documents=4)
    assert list(folder.glob("*labels*")) == []
    assert label_shard(shard, domains, method="student", batch_documents=4)["documents"] == 23


def test_wrong_labelings(found, web, tmp_path):
    with pytest.raises(ConfigError, match="bundled texts need a folder"):
        label_from({"domains": "x", "sources": "bundled"}, file="l.yaml")
    with pytest.raises(ConfigError, match="no files"):
        label_from({"domains": "x", "sources": {"a": {"hf": "b"}}}, file="l.yaml")
    with pytest.raises(ConfigError, match="no finished discovery"):
        run_labeling(labeling((tmp_path,), web[0], tmp_path), command="x", say=lambda line: None)
    twice = {"one": {"path": str(web[0])}, "two": {"path": str(web[0] / "a.jsonl")}}
    with pytest.raises(ConfigError, match=r"two sources read a.jsonl"):
        run_labeling(labeling(found, web[0], tmp_path, sources=twice), command="x", say=lambda line: None)


def test_the_commands(corpus, found, web, tmp_path, capsys):
    path = tmp_path / "three.yaml"
    path.write_text(yaml.safe_dump(settings(corpus[0])))
    assert main(["discover", str(path), "--out", str(tmp_path / "dry"), "--dry-run", "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)
    assert cost["dim"] == 6
    assert cost["disk_bytes"]["embeddings"] == pytest.approx(cost["sampled_documents"] * 12, abs=12)
    assert not (tmp_path / "dry").exists()
    assert main(["discover", str(path), "--out", str(found[0])]) == 0
    assert "already done" in capsys.readouterr().out
    label = tmp_path / "label.yaml"
    label.write_text(yaml.safe_dump({"domains": str(found[0]), "sources": {"web": {"path": str(web[0])}}}))
    words = ["label", str(label), "--labels", str(tmp_path / "labels"), "--out", str(tmp_path / "o")]
    assert main([*words, "--dry-run"]) == 0
    assert "3 shards, 0 of them labeled" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 31
    assert sorted(p.name for p in (tmp_path / "labels" / "web").iterdir()) == [
        "00000-text.labels.parquet", "00001-a.jsonl.labels.parquet", "00002-b.jsonl.gz.labels.parquet"
    ]  # fmt: skip
