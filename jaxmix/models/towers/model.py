"""Two towers, one for images and one for texts, with a common space of unit vectors (SigLIP, CLIP).

The module is not called `two_towers`, because the package exports a function of that name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array
from jaxmix.models.lm.attention import rotary_table
from jaxmix.models.lm.blocks import parameters
from jaxmix.models.lm.layers import matrix
from jaxmix.models.partition import constrain_rows, parameter_partition
from jaxmix.models.precision import check_compute_dtype, compute_dtype
from jaxmix.models.towers.accounting import count_tower_params, flops_per_image, flops_per_text
from jaxmix.models.towers.config import TwoTowersConfig, grid_of
from jaxmix.models.towers.contrastive_loss import sigmoid_loss, softmax_loss
from jaxmix.models.towers.flexi import resize_kernel, resize_positions
from jaxmix.models.towers.layers import Tower

_CHANNELS = 3
_POSITION_SCALE = 0.5
_TABLE_SCALE = 0.02


class TwoTowers(NamedTuple):
    """An image–text model as a bundle of pure functions and what can be said about it without running it.

    Attributes:
        init: `key -> params`, a nested dictionary of float32 arrays with the keys `image`, `text`, `log_temperature`
            and, for the sigmoid loss, `bias`.
        embed_image: `(params, images, *, patch_size=None) -> f32[b, e]`, rows of length 1. Images are u8[b, h, w, 3],
            or float32 of that shape already scaled to [−1, 1] (`images / 127.5 − 1`). `patch_size` is static.
        embed_text: `(params, tokens) -> f32[b, e]`, rows of length 1. Tokens are integers [b, t]; **0 and negative
            numbers are padding**, wherever they stand. A row of nothing but padding becomes zeros.
        scale: `params -> (temperature, bias)`, float32 scalars: logits are temperature · cosine + bias. The
            temperature is the factor itself, exp(log_temperature); the bias of a softmax model is 0.
        loss: `(image, text, temperature, bias, *, block=None) -> scalar`, the mean loss of a batch:
            `sigmoid_loss` or `softmax_loss` as the settings say; see `sharded_loss` for batches on a mesh.
        partition: tree of `PartitionSpec` like the params, over the mesh axes "fsdp" and "tensor".
        num_params: number of parameters of both towers.
        flops_per_image: `(patch_size=None) -> float`, operations of one image's **forward** pass at the configured
            image size. A training step does three times as many.
        flops_per_text: operations of one text's forward pass, padding included.
        config: the settings the model was made from.
    """

    init: Callable[[Any], Any]
    embed_image: Callable[..., Any]
    embed_text: Callable[[Any, Any], Any]
    scale: Callable[[Any], tuple[Array, Array]]
    loss: Callable[..., Array]
    partition: Any
    num_params: int
    flops_per_image: Callable[..., float]
    flops_per_text: float
    config: TwoTowersConfig


class ImageTower(Tower):
    """A vision transformer whose patches can have any size (FlexiViT)."""

    def __init__(self, config: TwoTowersConfig, key: Array):
        patch_key, position_key, trunk_key = jax.random.split(key, 3)
        tower, trunk = config.image, config.image_trunk
        super().__init__(trunk, tower.pool, config.embedding_dim, trunk_key)
        side, grid = tower.stored_patch_size, tower.stored_grid
        shape = (side, side, _CHANNELS, tower.width)
        self.patch_size, self.pixel_mean = tower.patch_size, tower.pixel_mean
        self.patch = matrix(nnx.Rngs(params=patch_key), shape, (side * side * _CHANNELS) ** -0.5)
        self.position = matrix(nnx.Rngs(params=position_key), (grid, grid, tower.width), _POSITION_SCALE)

    def __call__(self, images: Array, patch_size: int | None) -> Array:
        size = self.patch_size if patch_size is None else patch_size
        rows, height, width, channels = images.shape
        down, across = grid_of(height, width, size)
        dtype = compute_dtype(self.trunk.compute_dtype)
        kernel = resize_kernel(self.patch[...], size).astype(dtype)
        position = resize_positions(self.position[...], (down, across)).astype(dtype)
        patches = _scaled(images, self.pixel_mean, dtype).reshape(rows, down, size, across, size, channels)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(rows, down * across, size * size * channels)
        x = jnp.einsum("btf,fd->btd", constrain_rows(patches), kernel.reshape(-1, kernel.shape[-1]))
        return self.embed(x + position.reshape(1, down * across, -1), None, None)


class TextTower(Tower):
    """A transformer that attends in both directions over the tokens that are not padding."""

    def __init__(self, config: TwoTowersConfig, key: Array):
        table_key, trunk_key = jax.random.split(key)
        super().__init__(config.text_trunk, config.text.pool, config.embedding_dim, trunk_key)
        # Small, so that what a rare word learns in a few steps outweighs what it was drawn as; norms even out the rest.
        shape = (config.text.vocab_size, config.text.width)
        self.table = matrix(nnx.Rngs(params=table_key), shape, _TABLE_SCALE)

    def __call__(self, tokens: Array) -> Array:
        tokens = tokens.astype(jnp.int32)
        # Rounded after it is taken, see `Decoder`.
        words = jnp.take(self.table[...], tokens, axis=0, mode="clip").astype(compute_dtype(self.trunk.compute_dtype))
        rotary = rotary_table(tokens.shape[1], self.trunk.size_of_head, self.trunk.rope_base)
        return self.embed(constrain_rows(words), rotary, tokens > 0)


def two_towers(config: TwoTowersConfig) -> TwoTowers:
    """Builds the image–text model that `config` describes.

    `params` of the returned model, beside the blocks (as in `transformer`):

    | name | shape |
    |---|---|
    | `image/patch` | [p, p, 3, d], p = base_patch_size |
    | `image/position` | [g, g, d], g = base_grid |
    | `text/table` | [v, d] |
    | `…/final_norm/scale` | [d] |
    | `…/pool/query`, `/input`, `/output`, `/feed_forward/…` (only pool "attention") | [h, k], [d, h, 2, k], [h, k, d] |
    | `…/projection` | [d, e] |
    | `log_temperature`, `bias` (only loss "sigmoid") | scalars |

    Differs from the papers: RMSNorm instead of LayerNorm and no biases in the layers, as in the package's other
    transformer; rotary instead of learned positions for text, so that no length is built in; positions and patch
    kernel are resized without a low-pass filter; no classification token (mean or attention pooling).

    Raises:
        ConfigError: the compute dtype is not available. Later, from `embed_image`: patches do not fill the images, or
            the arrays are not images or tokens.

    >>> import jax, jax.numpy as jnp
    >>> from jaxmix.models import tower_preset
    >>> towers = two_towers(tower_preset("towers-tiny"))
    >>> params = towers.init(jax.random.key(0))
    >>> image = towers.embed_image(params, jnp.zeros((2, 32, 32, 3), jnp.uint8), patch_size=8)
    >>> text = towers.embed_text(params, jnp.array([[97, 98, 0], [99, 0, 0]]))
    >>> towers.loss(image, text, *towers.scale(params)).shape
    ()

    References:
        Zhai et al., "Sigmoid Loss for Language Image Pre-Training", arXiv 2303.15343 (t = 10, bias = −10).
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020.
        Beyer et al., "FlexiViT: One Model for All Patch Sizes", arXiv 2212.08013.
    """
    check_compute_dtype(config.compute_dtype)

    def init(key: Array) -> Any:
        image_key, text_key = jax.random.split(key)
        params = {
            "image": parameters(ImageTower(config, image_key)),
            "text": parameters(TextTower(config, text_key)),
            "log_temperature": jnp.asarray(math.log(config.initial_temperature), jnp.float32),
        }
        if config.loss == "sigmoid":
            params["bias"] = jnp.asarray(config.bias, jnp.float32)
        return params

    abstract_key = jax.eval_shape(lambda: jax.random.key(0))
    image_definition = nnx.graphdef(nnx.eval_shape(lambda key: ImageTower(config, key), abstract_key))
    text_definition = nnx.graphdef(nnx.eval_shape(lambda key: TextTower(config, key), abstract_key))

    def embed_image(params: Any, images: Array, *, patch_size: int | None = None) -> Array:
        if images.ndim != 4 or images.shape[3] != _CHANNELS or images.dtype not in (jnp.uint8, jnp.float32):
            raise ConfigError(
                f"images must be uint8 or float32 [b, h, w, {_CHANNELS}], got {images.dtype}{list(images.shape)}",
                where="images",
                fix="Floats must lie in [-1, 1].",
            )
        return nnx.merge(image_definition, params["image"])(images, patch_size)

    def embed_text(params: Any, tokens: Array) -> Array:
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ConfigError(
                f"tokens must be integers [b, t], got {tokens.dtype}{list(tokens.shape)}",
                where="tokens",
                fix="Make them with jaxmix.models.caption_tokens.",
            )
        return nnx.merge(text_definition, params["text"])(tokens)

    def scale(params: Any) -> tuple[Array, Array]:
        temperature = jnp.exp(params["log_temperature"])
        return temperature, params["bias"] if config.loss == "sigmoid" else jnp.zeros_like(temperature)

    return TwoTowers(
        init=init,
        embed_image=embed_image,
        embed_text=embed_text,
        scale=scale,
        loss=sigmoid_loss if config.loss == "sigmoid" else softmax_loss,
        partition=parameter_partition(jax.eval_shape(init, abstract_key)),
        num_params=count_tower_params(config),
        flops_per_image=lambda patch_size=None: flops_per_image(config, patch_size),
        flops_per_text=flops_per_text(config),
        config=config,
    )


def _scaled(images: Array, mean: float, dtype: Any) -> Array:
    """uint8 → [−1, 1]; floats are taken to lie there already. Then less the mean."""
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 127.5 - 1.0
    return (images - mean).astype(dtype)
