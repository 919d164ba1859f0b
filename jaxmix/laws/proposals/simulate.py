"""Predicted mean losses of many mixtures at once."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array
from jaxmix.core.validate import Positive, checked
from jaxmix.laws.base import Law, Shape
from jaxmix.laws.checks import metric_shares
from jaxmix.laws.fit import LawFit, compiled, on_host
from jaxmix.laws.proposals.repetition import REPEAT_DECAY, effective_mixture

_BLOCK = 2048


@checked
def simulate(
    fit: LawFit,
    candidates: Any,
    *,
    model_size: Positive,
    tokens: Positive,
    metric_weights: Any = None,
    available_tokens: Any = None,
    repeat_decay: Positive = REPEAT_DECAY,
) -> np.ndarray:
    """Returns the predicted metric-weighted mean loss of many mixtures, float64[c].

    Laws with parameters score all candidates in one jitted call, in blocks that stay in the processor's caches: 10⁶
    mixtures need no more memory than they themselves. Regressors (trees) predict on the host, block by block.

    Args:
        fit: of any law.
        candidates: float[c, m] on the simplex.
        model_size: millions, > 0.
        tokens: billions, > 0.
        metric_weights: [e], ≥ 0, divided by their sum; None: all equal.
        available_tokens: [m], billions: counts repetition in, see `jaxmix.laws.proposals.repetition`.
        repeat_decay: R* of `effective_tokens`.
    """
    mixtures = np.asarray(candidates, np.float64)
    if mixtures.ndim != 2 or mixtures.shape[1] != fit.shape.num_domains or len(mixtures) == 0:
        raise ConfigError(
            f"candidates have shape {mixtures.shape}, and the law was fitted to {fit.shape.num_domains} domains",
            where="simulate(candidates)",
        )
    shares = metric_shares(metric_weights, fit.shape, "simulate(metric_weights)")
    available = None if available_tokens is None else np.asarray(available_tokens, np.float64)
    if available is not None and np.isinf(available).all():
        available = None
    count = -(-len(mixtures) // _BLOCK)
    with on_host():
        if fit.law.build is None:
            scores = []
            for block in np.array_split(mixtures, -(-len(mixtures) // (8 * _BLOCK))):
                worth, amount = block, np.full(len(block), float(tokens))
                if available is not None:
                    found = effective_mixture(jnp.asarray(block), tokens, jnp.asarray(available), repeat_decay)
                    worth, amount = (np.asarray(x) for x in found)
                losses = fit.predict(worth, float(model_size), amount)
                scores.append(np.where(shares > 0, losses, 0.0) @ shares)
            return np.concatenate(scores)
        fill = count * _BLOCK - len(mixtures)
        filled = (
            np.concatenate([mixtures, np.broadcast_to(mixtures[:1], (fill, mixtures.shape[1]))]) if fill else mixtures
        )
        params = {name: jnp.asarray(value, jnp.float64) for name, value in fit.params.items()}
        number = lambda value: jnp.asarray(value, jnp.float64)
        limits = None if available is None else (number(available), number(repeat_decay))
        blocks = jnp.asarray(filled.reshape(count, _BLOCK, -1))
        about = (number(model_size), number(tokens), number(shares))
        return np.asarray(_scores(fit.law, fit.shape, params, blocks, about, limits)).reshape(-1)[: len(mixtures)]


@functools.partial(jax.jit, static_argnames=("law", "shape"))
def _scores(
    law: Law,
    shape: Shape,
    params: dict[str, Array],
    blocks: Array,
    about: tuple[Array, Array, Array],
    limits: tuple[Array, Array] | None,
) -> Array:
    """Scores [blocks, rows] of mixtures [blocks, rows, m]."""
    model_size, tokens, shares = about
    predict = compiled(law, shape).form.predict

    def score(block: Array) -> Array:
        amount = jnp.broadcast_to(tokens, block.shape[:1])
        if limits is not None:
            block, amount = effective_mixture(block, amount, *limits)
        losses = predict(params, block, jnp.broadcast_to(model_size, block.shape[:1]), amount)
        return jnp.sum(jnp.where(shares > 0, losses, 0.0) * shares[None, :], axis=1)

    return jax.lax.map(score, blocks)
