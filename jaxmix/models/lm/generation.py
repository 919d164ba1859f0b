"""Generation: several completions of every prompt, by one compiled program of static shapes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array, Bool, Float, Int, PRNGKeyArray
from jaxmix.models.base import Model
from jaxmix.models.lm.sampling import Sampling, draw_tokens


class Rollouts(NamedTuple):
    """Attributes:
    tokens: i32[b, g, t], each row up to and including its end, then padding.
    mask: bool[b, g, t], which of them were generated.
    logp: f32[b, g, t], log-probability of each generated token at the policy's temperature, 0 elsewhere.
    """

    tokens: Int[Array, "b g t"]
    mask: Bool[Array, "b g t"]
    logp: Float[Array, "b g t"]


def is_prompt_token(prompts: Int[Array, "b p"], pad_id: int) -> Bool[Array, "b p"]:
    """Which slots of prompts padded on the left are tokens: all from the first that is not padding."""
    return jnp.cumsum(prompts != pad_id, axis=1) > 0


def generate(
    model: Model,
    params: Any,
    key: PRNGKeyArray,
    prompts: Int[Array, "b p"],
    *,
    num_rollouts: int,
    length: int,
    eos_id: int,
    pad_id: int,
    sampling: Sampling | None = None,
) -> Rollouts:
    """Draws `num_rollouts` completions of each prompt. Pure; jit it with everything but params, key, prompts static.

    The prompt is computed once. Then all rows advance together, until each has ended or `length` is reached; rows
    that have ended continue with padding that is masked.

    Args:
        model: with `decoding`.
        params: of the model.
        key: decides all tokens; they do not depend on how the rows lie on devices.
        prompts: padded on the left with `pad_id`.
        num_rollouts: g ≥ 1.
        length: t ≥ 1, the most tokens of a completion, end included.
        eos_id: the token that ends a completion.
        pad_id: fills what follows.
        sampling: see `Sampling`; None: all tokens at temperature 1.

    Raises:
        ConfigError: the model has no `decoding`.

    Example:
        >>> from jaxmix.models import TransformerConfig, transformer
        >>> model = transformer(TransformerConfig(num_layers=1, width=64, vocab_size=16))
        >>> prompts = jnp.array([[0, 0, 7, 3], [5, 6, 7, 3]])
        >>> made = generate(
        ...     model, model.init(jax.random.key(0)), jax.random.key(1), prompts, num_rollouts=3, length=5, eos_id=1,
        ...     pad_id=0,
        ... )
        >>> made.tokens.shape, bool((made.mask | (made.tokens == 0)).all())
        ((2, 3, 5), True)
    """
    if model.decoding is None:
        raise ConfigError(
            "this model cannot generate", where="generate(model)", fix="Build it with jaxmix.models.transformer."
        )
    decoding, sampling = model.decoding, sampling or Sampling()
    rows = prompts.shape[0]
    logits, cache = decoding.prefill(params, prompts, is_prompt_token(prompts, pad_id), num_rollouts, length)
    logits = jnp.broadcast_to(logits[:, None, :], (rows, num_rollouts, logits.shape[-1]))
    token, logp = draw_tokens(jax.random.fold_in(key, 0), logits, sampling)

    shape = (rows, num_rollouts, length)
    write = lambda buffer, values, index: jax.lax.dynamic_update_index_in_dim(buffer, values, index, axis=2)
    made = Rollouts(
        tokens=write(jnp.full(shape, pad_id, jnp.int32), token, 0),
        mask=write(jnp.zeros(shape, bool), jnp.ones_like(token, bool), 0),
        logp=write(jnp.zeros(shape, jnp.float32), logp, 0),
    )

    def goes_on(carry: tuple[Array, Array, Array, Any, Rollouts]) -> Array:
        index, _, is_done, _, _ = carry
        return (index < length) & ~jnp.all(is_done)

    def advance(carry: tuple[Array, Array, Array, Any, Rollouts]) -> tuple[Array, Array, Array, Any, Rollouts]:
        index, token, is_done, cache, made = carry
        logits, cache = decoding.extend(params, token, index - 1, cache)
        token, logp = draw_tokens(jax.random.fold_in(key, index), logits, sampling)
        token = jnp.where(is_done, pad_id, token)
        made = Rollouts(
            tokens=write(made.tokens, token, index),
            mask=write(made.mask, ~is_done, index),
            logp=write(made.logp, jnp.where(is_done, 0.0, logp), index),
        )
        return index + 1, token, is_done | (token == eos_id), cache, made

    return jax.lax.while_loop(goes_on, advance, (jnp.int32(1), token, token == eos_id, cache, made))[-1]
