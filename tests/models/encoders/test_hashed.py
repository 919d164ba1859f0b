"""The built-in encoder against a dense TF-IDF and NumPy's own SVD in float64."""

import collections
import itertools
import json

import numpy as np
import pytest

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.data.embeddings import TextEncoder
from jaxmix.models.encoders.hashed import fit_hashed_encoder
from jaxmix.models.encoders.load import load_encoder

TOPICS = ("ship sea sail mast crew wind port", "goal match team ball win coach", "flour egg sugar bake oven cake")


def corpus(count=60, seed=0):
    """Texts of a few words of one topic and some of all."""
    rng = np.random.default_rng(seed)
    shared = ["the", "a", "of", "and", "to", "in"]
    topics = rng.integers(0, len(TOPICS), count)
    words = [[*rng.choice(TOPICS[t].split(), 8), *rng.choice(shared, 6)] for t in topics]
    return [" ".join(rng.permutation(row)) for row in words], topics


def grams(text):
    words = text.split()
    return collections.Counter([*words, *itertools.pairwise(words)])


def oracle(sample, texts, dim):
    """Rows in the space of the exact SVD; only inner products between them have a meaning."""
    counts = [grams(text) for text in sample]
    documents = collections.Counter(gram for count in counts for gram in count)
    known = {gram: i for i, gram in enumerate(g for g in documents if documents[g] >= 2)}

    def weighted(count):
        row = np.zeros(len(known))
        for gram, number in count.items():
            if gram in known:
                row[known[gram]] = (1 + np.log(number)) * (1 + np.log((1 + len(sample)) / (1 + documents[gram])))
        return row / (np.linalg.norm(row) or 1)

    right = np.linalg.svd(np.stack([weighted(count) for count in counts]))[2][:dim]
    rows = np.stack([weighted(grams(text)) for text in texts]) @ right.T
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


@pytest.mark.parametrize("dim", [3, 44])
def test_inner_products_are_those_of_the_exact_svd(dim):
    sample, _ = corpus()
    texts = [*sample[:20], *corpus(seed=1)[0][:20], "", "unheard words", "ship ship ship unheard"]
    encoder = fit_hashed_encoder(sample, dim=dim, power_iterations=8)
    rows, expected = encoder.encode(texts), oracle(sample, texts, dim)
    assert (rows.dtype, rows.shape, encoder.dim) == (np.float32, (len(texts), dim), dim)
    assert isinstance(encoder, TextEncoder)
    np.testing.assert_allclose(rows @ rows.T, expected @ expected.T, atol=2e-4)
    np.testing.assert_array_equal(rows[40:42], 0)


def test_topics_lie_apart():
    sample, topics = corpus()
    rows = fit_hashed_encoder(sample, dim=4).encode(sample)
    cosines, is_same = rows @ rows.T, topics[:, None] == topics[None]
    assert cosines[is_same].mean() > cosines[~is_same].mean() + 0.4


def test_the_same_sample_gives_the_same_encoder_and_files_bring_it_back(tmp_path):
    sample, _ = corpus()
    encoder, again = (fit_hashed_encoder(sample, dim=5) for _ in range(2))
    assert encoder.identity == again.identity
    others = [{"dim": 4}, {"seed": 1}, {"orders": (1,)}, {"max_words": 3}, {"max_features": 10}, {"buckets": 99}]
    identities = {fit_hashed_encoder(sample, **{"dim": 5, **change}).identity for change in others}
    assert len(identities | {encoder.identity, fit_hashed_encoder(sample[1:], dim=5).identity}) == len(others) + 2
    encoder.save(tmp_path)
    loaded = load_encoder(tmp_path)
    assert (loaded.identity, loaded.about, loaded.dim) == (encoder.identity, encoder.about, 5)
    np.testing.assert_array_equal(loaded.encode(sample), encoder.encode(sample))
    np.testing.assert_array_equal(loaded.encode(sample[7:9]), encoder.encode(sample)[7:9])
    with pytest.raises(ConfigError, match="takes no options, got dim"):
        load_encoder(tmp_path, dim=3)
    plain = json.loads((tmp_path / "encoder.json").read_text())
    plain["settings"]["max_words"] = 3
    (tmp_path / "encoder.json").write_text(json.dumps(plain))
    with pytest.raises(RunError, match="not what was written"):
        load_encoder(tmp_path)
    (tmp_path / "encoder.npz").unlink()
    with pytest.raises(RunError, match="cannot be read"):
        load_encoder(tmp_path)


def test_arguments_are_checked():
    sample, _ = corpus(8)
    assert load_encoder("builtin", sample=sample, dim=2).identity == fit_hashed_encoder(sample, dim=2).identity
    assert fit_hashed_encoder(sample, dim=500).dim <= 8
    with pytest.raises(ConfigError, match="fitted to a sample"):
        load_encoder("builtin")
    with pytest.raises(ConfigError, match="no word occurs in two of the 2 texts"):
        fit_hashed_encoder(["one", "two"])
    with pytest.raises(ConfigError, match="dim must be a whole number"):
        fit_hashed_encoder(sample, dim=0)
    with pytest.raises(ConfigError, match="power_iterations must be"):
        fit_hashed_encoder(sample, power_iterations=-1)
