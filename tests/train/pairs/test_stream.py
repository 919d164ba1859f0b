import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.train.pairs.embedding_cache import EmbeddingCache
from jaxmix.train.pairs.retrieval import recall
from jaxmix.train.pairs.stream import PairPool, PairStream, augment_rows, random_shift

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
POOL = PairPool(IMAGES, RNG.integers(1, 9, (10, 3)).astype(np.int32), np.arange(10, dtype=np.int32))


def test_every_row_is_drawn_once_an_epoch():
    stream = PairStream(POOL, num_candidates=4, seed=1)
    drawn = np.concatenate([stream.rows(step) for step in range(5)])  # two epochs
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10].tolist() != drawn[10:].tolist()
    np.testing.assert_array_equal(PairStream(POOL, num_candidates=4, seed=1).rows(3), stream.rows(3))
    assert PairStream(POOL, num_candidates=4, seed=2).rows(0).tolist() != stream.rows(0).tolist()


def test_a_row_beside_itself_is_not_valid():
    stream = PairStream(POOL, num_candidates=9, num_select=2, seed=0)
    seen = 0
    for step in range(10):
        batch = stream.batch(step)
        kept = batch["row"][batch["valid"]]
        assert len(set(kept.tolist())) == len(kept)
        assert set(kept.tolist()) == set(batch["row"].tolist())
        np.testing.assert_array_equal(batch["images"], IMAGES[batch["row"]])
        np.testing.assert_array_equal(batch["group"], batch["row"])
        seen += (~batch["valid"]).sum()
    assert seen > 0
    short = PairStream(POOL, num_candidates=9, num_select=8, seed=0)
    with pytest.raises(RunError, match="different rows, 8 are to be selected"):
        list(map(short.batch, range(10)))


def test_processes_share_a_super_batch():
    cache = EmbeddingCache(*(RNG.standard_normal((2, 10, 5)).astype(np.float32)), 10.0, 0.0)
    stream = PairStream(POOL, num_candidates=8, seed=0, reference=cache)
    whole = stream.batch(3)
    np.testing.assert_array_equal(whole["reference_text"], cache.text[whole["row"]])
    parts = [stream.batch(3, shard=(index, 4)) for index in range(4)]
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), values)
    with pytest.raises(ConfigError, match="cannot be divided over 3 processes"):
        stream.batch(0, shard=(0, 3))


def test_an_image_looks_the_same_among_many_and_few():
    key, step = jax.random.key(5), jnp.int32(7)
    rows = jnp.array([3, 8, 1, 9, 0])
    images = jnp.asarray(IMAGES)[rows]
    augment = random_shift(2)
    many = augment_rows(augment, key, step, images, rows)
    few = jax.jit(lambda: augment_rows(augment, key, step, images[jnp.array([3, 1])], rows[jnp.array([3, 1])]))()
    np.testing.assert_array_equal(few, many[jnp.array([3, 1])])
    later = augment_rows(augment, key, step + 1, images, rows)
    assert (np.asarray(later) != np.asarray(many)).any()
    assert augment_rows(None, key, step, images, rows) is images


def test_shift_moves_and_fills():
    """Every result is a window of the image on a white ground."""
    image = jnp.asarray(IMAGES[0])
    ground = np.pad(IMAGES[0], ((1, 1), (1, 1), (0, 0)), constant_values=255)
    windows = {ground[i : i + 4, j : j + 4].tobytes() for i in range(3) for j in range(3)}
    found = {np.asarray(random_shift(1)(jax.random.key(seed), image)).tobytes() for seed in range(60)}
    assert found == windows
    with pytest.raises(ConfigError, match="pixels must be at least 0"):
        random_shift(-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_candidates": 11}, "from 1 to the pool's 10 pairs"),
        ({"num_candidates": 0}, "from 1 to the pool's 10 pairs"),
        ({"pool": POOL._replace(tokens=POOL.tokens[:9])}, "10 images and 9 captions"),
        ({"reference": EmbeddingCache(np.zeros((9, 2)), np.zeros((9, 2)), 1.0, 0.0)}, "cache has 9 rows"),
    ],
)
def test_sizes_that_do_not_fit_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        PairStream(**{"pool": POOL, "num_candidates": 4, "seed": 0, **options})


def test_recall_against_a_sorted_list():
    image, text = RNG.standard_normal((2, 30, 4))
    found = recall(image, text, at=(1, 5), block=7)
    for name, queries, others in (("image_to_text", image, text), ("text_to_image", text, image)):
        for k in (1, 5):
            hits = sum(i in sorted(range(30), key=lambda j: -(queries[i] @ others[j]))[:k] for i in range(30))
            assert found[f"{name}@{k}"] == pytest.approx(hits / 30)
    assert found["recall@5"] == pytest.approx((found["image_to_text@5"] + found["text_to_image@5"]) / 2)


def test_collapsed_embeddings_find_nothing():
    assert recall(np.ones((20, 3)), np.ones((20, 3)), at=(1, 10)) == dict.fromkeys(
        [f"{name}@{k}" for k in (1, 10) for name in ("recall", "image_to_text", "text_to_image")], 0.0
    )
    with pytest.raises(ConfigError, match="k must be from 1 to 20"):
        recall(np.ones((20, 3)), np.ones((20, 3)), at=(21,))
