"""Settings of a decoder-only transformer, checked on construction."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxmix.core.errors import ConfigError
from jaxmix.core.settings import check_fields, setting

Activation = Literal["swiglu", "relu2", "gelu", "gelu_exact"]
ComputeDtype = Literal["auto", "bfloat16", "float32", "float64"]
Remat = Literal["none", "dots", "block"]

_DEFAULT_HEAD_DIM = 64
_SCAN_FROM_LAYERS = 16
_LARGE_VOCABULARY = 8192
_POSITIONS_PER_LOSS_CHUNK = 128


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's rotary frequencies for rows longer than those of the first training (Llama 3 report, section 3.4.2).

    A frequency that turns more than `high_frequency_factor` times within `original_length` stays, one that turns less
    than `low_frequency_factor` times is divided by `factor`, and those between are interpolated.

    Attributes:
        factor: ≥ 1.
        low_frequency_factor, high_frequency_factor: turns, > 0, the second above the first.
        original_length: tokens, ≥ 1.
    """

    factor: float = setting(at_least=1)
    low_frequency_factor: float = setting(1.0, above=0)
    high_frequency_factor: float = setting(4.0, above=0)
    original_length: int = setting(8192, at_least=1)

    def __post_init__(self) -> None:
        check_fields(self, "model", "rope_scaling.")
        if self.high_frequency_factor <= self.low_frequency_factor:
            raise ConfigError(
                f"high_frequency_factor must be above low_frequency_factor, got {self.high_frequency_factor} and "
                f"{self.low_frequency_factor}",
                where="model.rope_scaling",
            )


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Settings of `jaxmix.models.transformer`. Every value is plain, so that a config file can hold it.

    The defaults are those of a model trained from scratch. Those from `attention_bias` to `max_positions` are there for
    published architectures; see `jaxmix.models.checkpoints`.

    Attributes:
        num_layers: blocks, ≥ 1.
        width: size of the residual stream, d.
        vocab_size: v; tokens and targets are below it.
        num_heads: query heads. None: width / head_dim.
        num_kv_heads: key and value heads, a divisor of num_heads (grouped-query attention). None: num_heads.
        head_dim: size of a head, even (rotary positions turn pairs). None: width / num_heads, or 64 if num_heads
            is None too.
        mlp_width: hidden units of the feed-forward part. None: 4 · width; for "swiglu" 8/3 · width rounded up to a
            multiple of 64.
        activation: "relu2" (max(x, 0)², the fastest on CPU), "gelu" (tanh form), "gelu_exact" or "swiglu" (two input
            matrices).
        tie_embeddings: read the logits out with the embedding table instead of a matrix of their own.
        z_loss: factor of the regularizer (log Σ exp logits)², ≥ 0; 0 leaves it out.
        seq_len: tokens per row that `flops_per_token` assumes. `apply` takes rows of any length.
        rope_base: base of the rotary frequencies, > 0.
        norm_epsilon: added to the mean square (the variance, with `norm: layer`), > 0.
        attention_bias: which products around an attention have biases: "none", "input" (query, key, value), "all".
        mlp_bias: the feed-forward part has biases.
        norm: "rms", or "layer": the mean is taken away, and there is a bias.
        norm_after: x + norm(f(x)) in place of x + f(norm(x)).
        parallel_residual: x + attention(norm(x)) + feed_forward(norm(x)), two norms of the same x.
        query_key_norm: RMSNorm of queries and keys before they are rotated: "none", "head" (over each head) or "all"
            (over all heads of a token).
        rotary_share: part of every head that is rotated, the first dimensions; > 0 and ≤ 1.
        rope_scaling: see `RopeScaling`; None: none.
        unrotated_every: every so many-th block has no positions (SmolLM3), ≥ 2; None: all have.
        window: a token sees itself and window − 1 tokens before it, ≥ 1; None: all before it.
        max_positions: learned positions, added to the embedding, for rows of at most so many tokens; None: rotary ones.
        compute_dtype: of matrix products and activations. "auto": bfloat16 on GPU and TPU, float32 on CPU, where
            bfloat16 is emulated and slower. Parameters, norms, softmax and loss are float32 whatever it is
            ("float64", with JAX's x64 mode on, raises those too).
        attention: "dot_product" (`jax.nn.dot_product_attention`: cuDNN on GPU in bfloat16, XLA otherwise),
            "blocked" (query blocks that never compute what lies above the diagonal), or "auto": blocked on CPU.
        attention_block: queries per block of "blocked", ≥ 1; long rows use larger blocks (16 of them at most).
        remat: what the backward pass computes again instead of storing. "none": nothing; "dots": all but matrix
            products with parameters; "block": everything inside a block, which stores one activation per block.
        scan_layers: run the blocks as one compiled loop over stacked parameters: compiles in a time that does not
            grow with depth, but runs slower and keeps copies (on an H100 a step of 14 layers took 1.3 times as
            long and 1.8 times the memory). None: from 16 layers on.
        loss_chunk: positions of a row whose logits exist at a time; 0: all. The backward pass computes them again.
            None: 128 for vocabularies of 8,192 and more, else all.

    Raises:
        ConfigError: a value is out of range, or two do not fit each other.
    """

    num_layers: int = setting(at_least=1)
    width: int = setting(at_least=1)
    vocab_size: int = setting(256, at_least=1)
    num_heads: int | None = setting(None, at_least=1)
    num_kv_heads: int | None = setting(None, at_least=1)
    head_dim: int | None = setting(None, at_least=1)
    mlp_width: int | None = setting(None, at_least=1)
    activation: Activation = "relu2"
    tie_embeddings: bool = True
    z_loss: float = setting(0.0, at_least=0)
    seq_len: int = setting(256, at_least=1)
    rope_base: float = setting(10_000.0, above=0)
    norm_epsilon: float = setting(1e-6, above=0)
    attention_bias: Literal["none", "input", "all"] = "none"
    mlp_bias: bool = False
    norm: Literal["rms", "layer"] = "rms"
    norm_after: bool = False
    parallel_residual: bool = False
    query_key_norm: Literal["none", "head", "all"] = "none"
    rotary_share: float = setting(1.0, above=0, at_most=1)
    rope_scaling: RopeScaling | None = None
    unrotated_every: int | None = setting(None, at_least=2)
    window: int | None = setting(None, at_least=1)
    max_positions: int | None = setting(None, at_least=1)
    compute_dtype: ComputeDtype = "auto"
    attention: Literal["auto", "blocked", "dot_product"] = "auto"
    attention_block: int = setting(64, at_least=1)
    remat: Remat = "none"
    scan_layers: bool | None = None
    loss_chunk: int | None = setting(None, at_least=0)

    def __post_init__(self) -> None:
        check_fields(self, "model")
        if self.num_heads is not None and self.head_dim is None and self.width % self.num_heads:
            raise ConfigError(
                f"{self.num_heads} heads do not divide the width {self.width}",
                where="model.num_heads",
                fix="Choose a divisor of width, or set head_dim too.",
            )
        if self.num_heads is None and self.width % (self.head_dim or _DEFAULT_HEAD_DIM):
            raise ConfigError(
                f"heads of {self.head_dim or _DEFAULT_HEAD_DIM} do not divide the width {self.width}",
                where="model.width",
                fix="Choose a multiple of head_dim (64 if unset), or set num_heads.",
            )
        if self.rotated_dim % 2:
            raise ConfigError(
                f"rotary positions turn a part of every head of even size, got {self.rotated_dim}",
                where="model.head_dim",
                fix="Choose an even head_dim, or num_heads with width / num_heads even.",
            )
        if self.norm_after and self.parallel_residual:
            raise ConfigError("norm_after and parallel_residual exclude each other", where="model.norm_after")
        if self.query_heads % self.key_heads:
            raise ConfigError(
                f"{self.key_heads} key-value heads do not divide {self.query_heads} heads",
                where="model.num_kv_heads",
                fix="Choose a divisor of num_heads.",
            )

    @property
    def size_of_head(self) -> int:
        """head_dim with its default worked out."""
        if self.head_dim is not None:
            return self.head_dim
        return _DEFAULT_HEAD_DIM if self.num_heads is None else self.width // self.num_heads

    @property
    def rotated_dim(self) -> int:
        """Dimensions of a head that rotary positions turn; 0 with learned positions."""
        return 0 if self.max_positions is not None else int(self.rotary_share * self.size_of_head)

    @property
    def query_heads(self) -> int:
        """num_heads with its default worked out."""
        return self.width // self.size_of_head if self.num_heads is None else self.num_heads

    @property
    def key_heads(self) -> int:
        """num_kv_heads with its default worked out."""
        return self.query_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def hidden_units(self) -> int:
        """mlp_width with its default worked out."""
        if self.mlp_width is not None:
            return self.mlp_width
        return -(-8 * self.width // (3 * 64)) * 64 if self.activation == "swiglu" else 4 * self.width

    @property
    def mlp_inputs(self) -> int:
        """Input matrices of the feed-forward part: 2 for the gated activation, else 1."""
        return 2 if self.activation == "swiglu" else 1

    @property
    def is_scanned(self) -> bool:
        """scan_layers with its default worked out."""
        return self.num_layers >= _SCAN_FROM_LAYERS if self.scan_layers is None else self.scan_layers

    @property
    def positions_per_loss_chunk(self) -> int:
        """loss_chunk with its default worked out; 0 means all positions at once."""
        if self.loss_chunk is not None:
            return self.loss_chunk
        return _POSITIONS_PER_LOSS_CHUNK if self.vocab_size >= _LARGE_VOCABULARY else 0
