"""Parameters and floating-point operations of two towers, counted from their settings alone."""

from __future__ import annotations

from jaxmix.models.lm.accounting import block_matrices
from jaxmix.models.lm.config import TransformerConfig
from jaxmix.models.towers.config import TwoTowersConfig, grid_of

_CHANNELS = 3


def count_tower_params(config: TwoTowersConfig) -> int:
    """Number of parameters of both towers, temperature and bias included."""
    image, text = config.image, config.text
    patch = image.stored_patch_size**2 * _CHANNELS * image.width
    first = patch + image.stored_grid**2 * image.width + text.vocab_size * text.width
    towers = sum(
        trunk.num_layers * (block_matrices(trunk) + 2 * trunk.width)
        + trunk.width
        + (_pool_params(trunk) if tower.pool == "attention" else 0)
        + trunk.width * config.embedding_dim
        for tower, trunk in ((image, config.image_trunk), (text, config.text_trunk))
    )
    return first + towers + (2 if config.loss == "sigmoid" else 1)


def flops_per_image(config: TwoTowersConfig, patch_size: int | None = None) -> float:
    """Operations of one image's forward pass, multiply and add counted apart; training takes three times as many.

        2 · [ s² · 3 · d · t  +  t · L · (2·d·h·k + 2·d·g·k + (1 + i)·d·f)  +  2 · L · t² · h · k  +  pool  +  d · e ]

    with s = patch size, t = (image_size / s)² tokens and the letters of `flops_per_token`; attention looks in both
    directions, hence t² and no half. Left out: norms, activations, softmax, and the resize of the patch kernel, which
    is done once per batch.

    Args:
        config: the settings.
        patch_size: s; None: the configured one.

    Raises:
        ConfigError: the patches do not fill the image.
    """
    image = config.image
    size = image.patch_size if patch_size is None else patch_size
    down, across = grid_of(image.image_size, image.image_size, size)
    tokens = down * across
    patches = size * size * _CHANNELS * image.width * tokens
    return float(2 * (patches + _tower_products(config.image_trunk, image.pool, tokens, config.embedding_dim)))


def flops_per_text(config: TwoTowersConfig, length: int | None = None) -> float:
    """The same for one text of `length` tokens (None: the configured length); padding is computed like any token."""
    tokens = config.text.length if length is None else length
    return float(2 * _tower_products(config.text_trunk, config.text.pool, tokens, config.embedding_dim))


def _tower_products(trunk: TransformerConfig, pool: str, tokens: int, embedding_dim: int) -> int:
    heads = trunk.query_heads * trunk.size_of_head
    blocks = trunk.num_layers * (tokens * block_matrices(trunk) + 2 * tokens**2 * heads)
    products = blocks + trunk.width * embedding_dim
    if pool == "attention":
        products += 2 * tokens * (trunk.width + 1) * heads + trunk.width * heads + _feed_forward_params(trunk)
    return products


def _feed_forward_params(trunk: TransformerConfig) -> int:
    return (1 + trunk.mlp_inputs) * trunk.width * trunk.hidden_units


def _pool_params(trunk: TransformerConfig) -> int:
    heads = trunk.query_heads * trunk.size_of_head
    return heads + 3 * trunk.width * heads + _feed_forward_params(trunk) + trunk.width
