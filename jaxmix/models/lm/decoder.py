"""Decoder-only transformer language model (Flax NNX inside, pure functions outside).

The module is not called `transformer`, because the package exports a function of that name.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmix.core.types import Array
from jaxmix.models.base import Model
from jaxmix.models.lm.accounting import count_params, flops_per_token
from jaxmix.models.lm.attention import rotary_table
from jaxmix.models.lm.blocks import add_blocks, map_blocks, parameters
from jaxmix.models.lm.cache import build_decoding
from jaxmix.models.lm.config import TransformerConfig
from jaxmix.models.lm.layers import Block, matrix, norm_of, rotated_layers
from jaxmix.models.lm.loss import token_losses
from jaxmix.models.partition import constrain_rows, parameter_partition
from jaxmix.models.precision import check_compute_dtype, compute_dtype

_TABLE_SCALE = 0.02


class Decoder(nnx.Module):
    """Embedding, blocks, final norm; the loss is read out with the embedding table or a matrix of its own.

    Args:
        config: the settings.
        key: typed PRNG key. Block i's parameters are the same whether blocks are stacked or not.
    """

    def __init__(self, config: TransformerConfig, key: Array):
        self.config = config
        table_key, readout_key, blocks_key = jax.random.split(key, 3)
        shape = (config.vocab_size, config.width)
        # Small, so that a token's own row does not dominate the residual stream: tied, it would predict itself.
        self.table = matrix(nnx.Rngs(params=table_key), shape, _TABLE_SCALE)
        if not config.tie_embeddings:
            self.readout = matrix(nnx.Rngs(params=readout_key), shape, _TABLE_SCALE)
        if config.max_positions is not None:
            position_key = jax.random.fold_in(table_key, 1)
            self.position = matrix(nnx.Rngs(params=position_key), (config.max_positions, config.width), _TABLE_SCALE)
        self.final_norm = norm_of(config)
        add_blocks(self, Block, config, blocks_key)

    def embed(self, tokens: Array, positions: Array | None = None) -> Array:
        """Tokens i32[b, t] → [b, t, d]; learned positions are those of the slots unless i32[b, t] are given."""
        # Rounded after it is taken, so that the table's gradient, thousands of rows for a frequent word, is added up in
        # float32: on a GPU a sum of so many bfloat16 stands still.
        x = jnp.take(self.table[...], tokens, axis=0, mode="clip")
        if self.config.max_positions is not None:
            at = jnp.arange(tokens.shape[1])[None] if positions is None else positions
            x = x + jnp.take(self.position[...], at, axis=0, mode="clip")
        return x.astype(compute_dtype(self.config.compute_dtype))

    def read_out(self, x: Array, readout: Array | None = None) -> tuple[Array, Array]:
        """The last hidden states, normalized, and the matrix [v, d] that logits are read out with."""
        if readout is None:
            readout = self.table[...] if self.config.tie_embeddings else self.readout[...]
        if self.config.norm == "layer":
            return self.final_norm.whole(x), readout
        return self.final_norm(x), self.final_norm.fold(readout.T).T

    def rotary(self, length: int) -> tuple[Array, Array]:
        """Of positions 0 … length − 1."""
        config = self.config
        return rotary_table(length, config.rotated_dim, config.rope_base, config.rope_scaling)

    def __call__(self, tokens: Array, targets: Array, readout: Array | None = None) -> tuple[Array, Array]:
        """Tokens and targets i32[b, t] → (loss, log normalizer), both f32[b, t]; `readout` replaces the own one."""
        config = self.config
        x = constrain_rows(self.embed(tokens))
        x, _ = map_blocks(self, Block, config, x, rotated_layers(config), self.rotary(tokens.shape[1]))
        x, readout = self.read_out(x, readout)
        return token_losses(x, readout.astype(x.dtype), targets, chunk=config.positions_per_loss_chunk)


def transformer(config: TransformerConfig) -> Model:
    """Builds the model that `config` describes.

    `params` of the returned model:

    | name | shape |
    |---|---|
    | `table` | [v, d] |
    | `readout` (only if not tied) | [v, d] |
    | `final_norm/scale` | [d] |
    | `block_00/attention/norm/scale`, `block_00/feed_forward/norm/scale` | [d] |
    | `block_00/attention/input` (per group: query heads, key, value), `/output` | [d, g, r + 2, k], [h, k, d] |
    | `block_00/feed_forward/input` (swiglu: gate, up), `/output` | [d, 1 or 2, f], [f, d] |

    Architectures with more parts have `position` [p, d] and beside these `norm/bias`, `input_bias`, `output_bias`,
    `attention/query_norm/scale` and `attention/key_norm/scale`.

    With `scan_layers` there is one `blocks` instead of `block_00`, …, whose arrays have a leading axis of layers.

    Returns:
        A `Model`. Its `apply(params, batch)` reads `tokens` and `targets` i32[b, t] and returns f32[b, t], or with
        `z_loss` > 0 the pair (loss, z_loss · log-normalizer²). Tokens outside the vocabulary are taken as its last
        word: check data where it is made.

    Raises:
        ConfigError: the compute dtype is not available.

    >>> import jax, jax.numpy as jnp
    >>> model = transformer(TransformerConfig(num_layers=1, width=64, vocab_size=16))
    >>> tokens = jnp.array([[1, 2, 3]])
    >>> model.apply(model.init(jax.random.key(0)), {"tokens": tokens, "targets": jnp.array([[2, 3, -1]])}).shape
    (1, 3)
    """
    check_compute_dtype(config.compute_dtype)

    def init(key: Array) -> Any:
        return parameters(Decoder(config, key))

    abstract_key = jax.eval_shape(lambda: jax.random.key(0))
    definition = nnx.graphdef(nnx.eval_shape(lambda key: Decoder(config, key), abstract_key))

    def apply(params: Any, batch: Any) -> Any:
        return apply_readout(None, params, batch)

    def apply_readout(readout: Any, params: Any, batch: Any) -> Any:
        loss, log_normalizer = nnx.merge(definition, params)(batch["tokens"], batch["targets"], readout)
        if config.z_loss == 0:
            return loss
        return loss, config.z_loss * jnp.square(log_normalizer)

    return Model(
        init=init,
        apply=apply,
        partition=parameter_partition(jax.eval_shape(init, abstract_key)),
        num_params=count_params(config),
        flops_per_token=flops_per_token(config),
        config=config,
        readout=lambda params: params["table" if config.tie_embeddings else "readout"],
        apply_readout=apply_readout,
        decoding=build_decoding(config, lambda params: nnx.merge(definition, params)),
    )
