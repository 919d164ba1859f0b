import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pair_models import linear_towers, pairs
from tolerance import float32_tolerance

from jaxmix.core.errors import ConfigError
from jaxmix.train.pairs.gradient_cache import build_contrastive_gradient
from jaxmix.train.run.micro_batches import split_rows

TOWERS = linear_towers()
PARAMS = TOWERS.init(jax.random.key(0))
IMAGES, TOKENS = (jnp.asarray(x) for x in pairs(24)[:2])


def embed(params, images, tokens):
    return TOWERS.embed_image(params, images), TOWERS.embed_text(params, tokens)


def gradient(accumulate, first=None):
    built = build_contrastive_gradient(embed, TOWERS.scale, TOWERS.loss, accumulate=accumulate)
    return jax.jit(built)(PARAMS, IMAGES, TOKENS, first)


def close(found, expected):
    # Pixels and the embedding for the logits, both sides of the batch for the gradient.
    terms = IMAGES[0].size + TOWERS.config.embedding_dim + 2 * len(IMAGES)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=float32_tolerance(y, terms)), found, expected
    )


def loss_in_float64(params):
    """The batch's loss from the definition; `params` as float64 arrays."""

    def unit(x):
        return x / np.sqrt(np.sum(x * x, axis=1, keepdims=True) + 1e-6)

    image = unit((np.asarray(IMAGES) / 127.5 - 1.0).reshape(len(IMAGES), -1) @ params["image"]["kernel"])
    text = unit(
        np.stack([sum(params["text"]["table"][word] for word in row if word > 0) for row in np.asarray(TOKENS)])
    )
    total = 0.0
    for i in range(len(image)):
        for j in range(len(text)):
            logit = np.exp(params["log_temperature"]) * image[i] @ text[j] + params["bias"]
            total += np.logaddexp(0.0, -logit if i == j else logit)
    return total / len(image)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_loss_and_gradient_against_differences(accumulate):
    """Value and directional derivatives against central differences of the definition in float64."""
    value, grads = gradient(accumulate)
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), PARAMS)
    np.testing.assert_allclose(value, loss_in_float64(exact), rtol=1e-5)
    rng = np.random.default_rng(1)
    for _ in range(3):
        way = jax.tree.map(lambda x: rng.standard_normal(x.shape), exact)
        ahead = loss_in_float64(jax.tree.map(lambda x, w: x + 1e-5 * w, exact, way))
        behind = loss_in_float64(jax.tree.map(lambda x, w: x - 1e-5 * w, exact, way))
        slope = sum(
            np.sum(np.asarray(g) * w) for g, w in zip(jax.tree.leaves(grads), jax.tree.leaves(way), strict=True)
        )
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("accumulate", [3])
def test_pieces_give_the_gradient_of_the_whole(accumulate):
    close(gradient(accumulate), gradient(1))


def test_embeddings_from_elsewhere_save_the_first_pass():
    first = embed(PARAMS, IMAGES, TOKENS)
    close(gradient(4, first), gradient(1))
    other = (first[0], -first[1])
    assert abs(float(gradient(4, other)[0]) - float(gradient(1)[0])) > 1e-3  # they are used


def test_the_mean_of_micro_batches_is_another_loss():
    loss = lambda images, tokens: TOWERS.loss(*embed(PARAMS, images, tokens), *TOWERS.scale(PARAMS))
    micros = [loss(split_rows(IMAGES, 4)[i], split_rows(TOKENS, 4)[i]) for i in range(4)]
    assert float(gradient(1)[0]) > 1.5 * float(np.mean(micros))


def test_accumulate_below_one_is_refused():
    with pytest.raises(ConfigError, match="accumulate must be at least 1"):
        build_contrastive_gradient(embed, TOWERS.scale, TOWERS.loss, accumulate=0)
