"""BERT and RoBERTa as text encoders: post-norm transformers with learned positions and biases.

Letters: b rows, t tokens, d width, h heads, k size of a head, f hidden units, l layers, v words, p positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array, Bool, Float, Int
from jaxmix.core.validate import check_choice, check_count, check_number
from jaxmix.models.lm.attention import full_attention
from jaxmix.models.lm.blocks import parameters
from jaxmix.models.lm.layers import matrix
from jaxmix.models.partition import constrain_rows
from jaxmix.models.precision import check_compute_dtype, compute_dtype, wide_dtype

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
}
_SCALE = 0.02


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes of an encoder; the names of Hugging Face's `config.json` in brackets.

    Attributes:
        vocab_size: v (`vocab_size`).
        width: d (`hidden_size`).
        num_layers: l (`num_hidden_layers`).
        num_heads: h, divides d (`num_attention_heads`).
        mlp_width: f (`intermediate_size`).
        max_positions: p, the longest text in tokens (`max_position_embeddings`, less RoBERTa's unused first ones).
        activation: a key of `ACTIVATIONS` (`hidden_act`).
        norm_epsilon: of the layer norms (`layer_norm_eps`).
        compute_dtype: of products and activations: "float32", "bfloat16", "float64", or "auto" (bfloat16 on GPU and
            TPU). Norms, softmax and pooling are float32 at least.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    max_positions: int = 512
    activation: str = "gelu"
    norm_epsilon: float = 1e-12
    compute_dtype: str = "float32"

    def __post_init__(self) -> None:
        for field in ("vocab_size", "width", "num_layers", "num_heads", "mlp_width", "max_positions"):
            check_count("BertConfig", field, getattr(self, field))
        check_number("BertConfig", "norm_epsilon", self.norm_epsilon, 0.0)
        check_choice("BertConfig", "activation", self.activation, tuple(ACTIVATIONS))
        check_choice("BertConfig", "compute_dtype", self.compute_dtype, ("auto", "bfloat16", "float32", "float64"))
        if self.width % self.num_heads:
            raise ConfigError(f"{self.num_heads} heads do not divide a width of {self.width}", where="BertConfig")


class Bert(NamedTuple):
    """An encoder as a bundle of pure functions.

    Attributes:
        init: `key -> params`, a nested dictionary of float32 arrays, see `bert`.
        apply: `(params, tokens i32[b, t], valid bool[b, t]) -> f32[b, t, d]`, the last layer's output.
        num_params: number of parameters.
        flops: `length -> float`, operations of one text of that many tokens, padding included.
        config: the settings.
    """

    init: Callable[[Any], Any]
    apply: Callable[[Any, Any, Any], Any]
    num_params: int
    flops: Callable[[int], float]
    config: BertConfig


class _LayerNorm(nnx.Module):
    """(x − mean) / √(variance + ε) · scale + bias, computed in float32."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))


class _Block(nnx.Module):
    def __init__(self, config: BertConfig, key: Array):
        rngs = nnx.Rngs(params=key)
        width, heads, size, hidden = config.width, config.num_heads, config.width // config.num_heads, config.mlp_width
        self.attention_input = matrix(rngs, (width, 3, heads, size), _SCALE)
        self.attention_input_bias = nnx.Param(jnp.zeros((3, heads, size), jnp.float32))
        self.attention_output = matrix(rngs, (heads, size, width), _SCALE)
        self.attention_output_bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.attention_norm = _LayerNorm(width)
        self.mlp_input = matrix(rngs, (width, hidden), _SCALE)
        self.mlp_input_bias = nnx.Param(jnp.zeros((hidden,), jnp.float32))
        self.mlp_output = matrix(rngs, (hidden, width), _SCALE)
        self.mlp_output_bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.mlp_norm = _LayerNorm(width)


class _Encoder(nnx.Module):
    def __init__(self, config: BertConfig, key: Array):
        table_key, position_key, blocks_key = jax.random.split(key, 3)
        self.table = matrix(nnx.Rngs(params=table_key), (config.vocab_size, config.width), _SCALE)
        self.position = matrix(nnx.Rngs(params=position_key), (config.max_positions, config.width), _SCALE)
        self.norm = _LayerNorm(config.width)
        stacked = jax.vmap(lambda k: parameters(_Block(config, k)))(jax.random.split(blocks_key, config.num_layers))
        definition = nnx.graphdef(nnx.eval_shape(lambda: _Block(config, jax.random.key(0))))
        self.blocks = nnx.merge(definition, stacked)


def bert(config: BertConfig) -> Bert:
    """Builds the encoder that `config` describes.

        x ← norm(table[token] + position);  per layer  x ← norm(x + attention(x)),  x ← norm(x + W₂ act(W₁ x + b₁) + b₂)

    `params` of the returned model:

    | name | shape |
    |---|---|
    | `table` | [v, d] |
    | `position` (the embedding of segment 0 is added to it: texts here have one segment) | [p, d] |
    | `norm/scale`, `norm/bias` | [d] |
    | `blocks/attention_input` (query, key, value), `…_bias` | [l, d, 3, h, k], [l, 3, h, k] |
    | `blocks/attention_output`, `…_bias` | [l, h, k, d], [l, d] |
    | `blocks/mlp_input`, `…_bias`, `blocks/mlp_output`, `…_bias` | [l, d, f], [l, f], [l, f, d], [l, d] |
    | `blocks/attention_norm/scale`, `/bias`, `blocks/mlp_norm/scale`, `/bias` | [l, d] |

    Padding must stand behind the text. On a mesh rows are split over data and fsdp; the parameters, small for this
    family, are whole on every device. Layers run as one compiled loop: a length costs little time to compile.

    Raises:
        ConfigError: the compute dtype is not available; from `apply`, more tokens than positions.

    >>> import jax, jax.numpy as jnp
    >>> model = bert(BertConfig(vocab_size=9, width=8, num_layers=2, num_heads=2, mlp_width=16, max_positions=4))
    >>> tokens = jnp.array([[1, 2, 3]])
    >>> params = jax.eval_shape(model.init, jax.random.key(0))
    >>> jax.eval_shape(model.apply, params, tokens, tokens > 0).shape
    (1, 3, 8)

    References:
        Devlin et al., "BERT", arXiv 1810.04805. Liu et al., "RoBERTa", arXiv 1907.11692. Wang et al., "MiniLM",
        arXiv 2002.10957.
    """
    check_compute_dtype(config.compute_dtype)

    def init(key: Array) -> Any:
        return parameters(_Encoder(config, key))

    def apply(params: Any, tokens: Int[Array, "b t"], valid: Bool[Array, "b t"]) -> Float[Array, "b t d"]:
        length = tokens.shape[1]
        if length > config.max_positions:
            raise ConfigError(f"{length} tokens, but the encoder has {config.max_positions} positions", where="tokens")
        dtype = compute_dtype(config.compute_dtype)
        # What is called float32 shall be: GPUs and TPUs would round the factors of a product otherwise.
        with jax.default_matmul_precision("default" if dtype == jnp.bfloat16 else "highest"):
            x = (
                jnp.take(params["table"], tokens.astype(jnp.int32), axis=0, mode="clip")
                + params["position"][None, :length]
            )
            x = constrain_rows(_normed(x.astype(dtype), params["norm"], config))
            run = lambda x, block: (constrain_rows(_layer(x, block, valid, config)), None)
            x, _ = jax.lax.scan(run, x, params["blocks"])
        return x.astype(wide_dtype(dtype))

    shapes = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
    kernels = config.width * (4 * config.width + 2 * config.mlp_width)
    return Bert(
        init=init,
        apply=apply,
        num_params=sum(leaf.size for leaf in jax.tree.leaves(shapes)),
        flops=lambda length: 2.0 * config.num_layers * length * (kernels + 2 * length * config.width),
        config=config,
    )


def pooled(hidden: Float[Array, "b t d"], valid: Bool[Array, "b t"], pooling: str) -> Float[Array, "b d"]:
    """The mean of the valid positions ("mean") or the first position ("cls"), as rows of length 1.

    A row with no valid position becomes zeros.
    """
    if pooling == "cls":
        rows = jnp.where(valid[:, :1], hidden[:, 0], 0.0)
    else:
        rows = jnp.sum(jnp.where(valid[:, :, None], hidden, 0.0), axis=1)
    # The mean differs from the sum by a factor that the division by the length takes out.
    length = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows / jnp.where(length > 0, length, 1.0)


def _layer(x: Array, block: Any, valid: Array, config: BertConfig) -> Array:
    weight = lambda name: block[name].astype(x.dtype)
    bias = lambda name: weight(name)[None, None]
    joint = jnp.einsum("btd,djhk->btjhk", x, weight("attention_input")) + bias("attention_input_bias")
    mixed = full_attention(joint[:, :, 0], joint[:, :, 1], joint[:, :, 2], valid)
    attended = jnp.einsum("bthk,hkd->btd", mixed, weight("attention_output")) + bias("attention_output_bias")
    x = _normed(x + attended, block["attention_norm"], config)
    inner = ACTIVATIONS[config.activation](jnp.einsum("btd,df->btf", x, weight("mlp_input")) + bias("mlp_input_bias"))
    return _normed(
        x + jnp.einsum("btf,fd->btd", inner, weight("mlp_output")) + bias("mlp_output_bias"),
        block["mlp_norm"],
        config,
    )


def _normed(x: Array, norm: Any, config: BertConfig) -> Array:
    wide = x.astype(wide_dtype(x.dtype))
    centered = wide - jnp.mean(wide, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=-1, keepdims=True) + config.norm_epsilon)
    scale, bias = (norm[name].astype(wide.dtype)[None, None] for name in ("scale", "bias"))
    return (centered * inverse * scale + bias).astype(x.dtype)
