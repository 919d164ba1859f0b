"""Corpora into stores: raw sources, prepared folders, parts, and what is said meanwhile."""

import json

import numpy as np
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.data.embeddings import open_embedding_store
from jaxmix.data.prepared.prepare import prepare_corpus
from jaxmix.data.sources.specs import SourceSpec
from jaxmix.data.tokenizers import byte_tokenizer
from jaxmix.models.encoders.load import load_encoder
from jaxmix.workflows.discover.embed import embed_corpus

DOCUMENTS = {
    "birds": [f"a {['wren', 'robin', 'owl'][i % 3]} sang on branch {i % 7}" for i in range(40)],
    "boats": ["", *(f"the {['sloop', 'ketch', 'yawl'][i % 3]} passed mark {i % 5}" for i in range(30)), " "],
}


def specs(tmp_path):
    path = tmp_path / "boats.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in DOCUMENTS["boats"]) + "\n")
    return {
        "birds": SourceSpec(name="birds", documents=DOCUMENTS["birds"]),
        "boats": SourceSpec(name="boats", path=str(path)),
    }


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("builtin", sample=[text for texts in DOCUMENTS.values() for text in texts], dim=6)


def test_raw_sources_become_a_store_with_its_encoder(tmp_path, capsys, encoder):
    assert embed_corpus(specs(tmp_path), tmp_path / "out", encoder=encoder, part=(1, 2)) is None
    store = embed_corpus(specs(tmp_path), tmp_path / "out", encoder=encoder, part=(0, 2))
    kept = [text for texts in DOCUMENTS.values() for text in texts if text.strip()]
    np.testing.assert_allclose(store.read(0, len(store)), encoder.encode(kept), atol=5e-4)
    assert [shard.source for shard in store.shards] == ["birds-00000", "boats-00000"]
    assert store.dropped() == {"boats-00000": (0, 31)}
    store.check_encoder(load_encoder(tmp_path / "out" / "encoder"))
    said = capsys.readouterr().err
    assert "embed: 1/1 shards, 40 documents" in said
    assert "embed: boats-00000: 2 of 32 documents have nothing to encode: 0, 31" in said


def test_a_prepared_folder_gives_the_same_rows(tmp_path, capsys, encoder):
    prepare_corpus(specs(tmp_path), tmp_path / "prepared", tokenizer=byte_tokenizer(), validation_fraction=0.2)
    embed_corpus(tmp_path / "prepared", tmp_path / "out", encoder=encoder, show_progress=False)
    store = open_embedding_store(tmp_path / "out")
    assert capsys.readouterr().err == ""
    known = encoder.encode([text for texts in DOCUMENTS.values() for text in texts if text.strip()])
    nearest = np.max(store.read(0, len(store)) @ known.T, axis=1)
    np.testing.assert_allclose(nearest, 1, atol=1e-5)
    assert 0.5 * len(known) < len(store) < len(known)

    class Other(type(byte_tokenizer())):
        fingerprint = "other"

    with pytest.raises(ConfigError, match="prepared with the tokenizer bytes-1, not other"):
        embed_corpus(tmp_path / "prepared", tmp_path / "out", encoder=encoder, tokenizer=Other())
    with pytest.raises(ConfigError, match="no sources to embed"):
        embed_corpus({}, tmp_path / "out", encoder=encoder)
