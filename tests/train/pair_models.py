"""Linear towers with the interface of `jaxmix.models.two_towers`, and pairs that they can learn in a second."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.selection import Selection, SelectionInfo, Selector

SIZE, WORDS, LENGTH = 4, 16, 5


class LinearTowers(NamedTuple):
    init: Any
    embed_image: Any
    embed_text: Any
    scale: Any
    loss: Any
    partition: Any
    num_params: int
    flops_per_image: Any
    flops_per_text: float
    config: Any


class Config(NamedTuple):
    embedding_dim: int
    loss: str = "sigmoid"


def unit(x):
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)


def sigmoid_loss(image, text, temperature, bias):
    logits = temperature * image @ text.T + bias
    sign = 2.0 * jnp.eye(len(logits), dtype=logits.dtype) - 1.0
    return jnp.sum(jax.nn.softplus(-sign * logits)) / len(logits)


def linear_towers(width=8):
    """Images as flat pixels, texts as bags of words, each times a matrix; `patch_size` 2 sees half the resolution."""
    pixels = SIZE * SIZE * 3

    def init(key):
        first, second = jax.random.split(key)
        return {
            "image": {"kernel": jax.random.normal(first, (pixels, width)) / math.sqrt(pixels)},
            "text": {"table": jax.random.normal(second, (WORDS, width)) / math.sqrt(LENGTH)},
            "log_temperature": jnp.float32(math.log(10.0)),
            "bias": jnp.float32(-3.0),
        }

    def embed_image(params, images, *, patch_size=None):
        x = images.astype(jnp.float32) / 127.5 - 1.0
        if patch_size is not None:
            blocks = x.reshape(len(x), SIZE // patch_size, patch_size, SIZE // patch_size, patch_size, 3)
            x = jnp.broadcast_to(blocks.mean((2, 4), keepdims=True), blocks.shape)
        return unit(x.reshape(len(x), -1) @ params["image"]["kernel"])

    def embed_text(params, tokens):
        return unit(jnp.where((tokens > 0)[..., None], params["text"]["table"][tokens], 0.0).sum(1))

    return LinearTowers(
        init=init,
        embed_image=embed_image,
        embed_text=embed_text,
        scale=lambda params: (jnp.exp(params["log_temperature"]), params["bias"]),
        loss=sigmoid_loss,
        partition=None,
        num_params=(pixels + WORDS) * width + 2,
        flops_per_image=lambda patch_size=None: 2.0 * pixels * width / (patch_size or 1) ** 2,
        flops_per_text=2.0 * LENGTH * width,
        config=Config(width),
    )


def pairs(rows, *, corrupted=0.0, noise=0.3, seed=0):
    """Images u8[n, 4, 4, 3] that are noisy sums of their words' patterns, and tokens i32[n, 5]; some captions swapped.

    Returns (images, tokens, is_corrupted).
    """
    patterns = np.random.default_rng(99).standard_normal((WORDS, SIZE, SIZE, 3))
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, WORDS, (rows, LENGTH))
    tokens[:, -1] = 0
    signal = patterns[tokens[:, :-1]].sum(1) + noise * rng.standard_normal((rows, SIZE, SIZE, 3))
    images = np.clip(127.5 + 30.0 * signal, 0, 255).astype(np.uint8)
    is_corrupted = rng.random(rows) < corrupted
    tokens[is_corrupted] = tokens[rng.permutation(np.flatnonzero(is_corrupted))]
    return images, tokens.astype(np.int32), is_corrupted


def flip(key, image):
    """Mirrors half of the images."""
    return jnp.where(jax.random.key_data(key)[-1] % 2 == 0, image, image[:, ::-1])


def learnable(num_select, needs=frozenset({"learner", "reference"})):
    """Draws by the loss of the pair alone, learner's less reference's: independent selection, quick to compile."""

    def select(key, learner, reference, valid=None):
        assert {"learner": learner is not None, "reference": reference is not None} == {
            name: name in needs for name in ("learner", "reference")
        }
        score = jax.random.gumbel(key, valid.shape)
        for sign, model in ((1.0, learner), (-1.0, reference)):
            if model is not None:
                cosine = jnp.sum(model.image * model.text, axis=1)
                score += 10 * sign * jax.nn.softplus(-(model.temperature * cosine + model.bias))
        best, indices = jax.lax.top_k(jnp.where(valid, score, -jnp.inf), num_select)
        mean = jnp.mean(best)
        return Selection(indices, SelectionInfo(jnp.int32(num_select), mean, mean, 0 * mean, best[:1], best[:1], mean))

    return Selector(select, "learnable", num_select, 1, frozenset(needs))
