"""Scores of language-model examples: losses of sequences, masks over tokens, sums by domain.

Lin et al.: "Rho-1: Not all tokens are what you need", arXiv 2404.07965. Bal, Ahmad et al.: "ESLM: Risk-averse
selective language modeling for efficient pretraining", arXiv 2505.19893.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmix.core.errors import ConfigError
from jaxmix.core.segment import sum_by_domain
from jaxmix.core.types import Array, Bool, DomainVector, Float, Int
from jaxmix.core.validate import check_choice
from jaxmix.selection.base import SCORES, compute_dtype, learner_less_reference, needed_losses

REDUCTIONS = ("mean", "sum", "top")


class DomainSums(NamedTuple):
    """Sums of one step by domain, named as in the mixers' `Feedback`: `Feedback(**sums._asdict())`.

    Attributes:
        loss_sum: f32[m], summed loss of the learner.
        reference_loss_sum: f32[m], summed loss of the reference over the same tokens.
        clipped_excess_sum: f32[m], `Σ max(learner − reference, 0)`, token by token.
        token_count: f32[m], number of tokens in them.
    """

    loss_sum: DomainVector
    reference_loss_sum: DomainVector
    clipped_excess_sum: DomainVector
    token_count: DomainVector


def sequence_loss(losses: Array, valid: Array, *, reduce: str = "mean", top: float = 0.2) -> Float[Array, " c"]:
    r"""One loss per sequence from the losses of its tokens.

        mean   (1/T_i) Σ_t m_it ℓ_it          T_i = Σ_t m_it
        sum    Σ_t m_it ℓ_it
        top    mean of the ⌈top · T_i⌉ largest of the valid ℓ_it

    Without the division by length, long documents win. For the top fraction of the *differences* pass
    `learner − reference` as the losses, and zeros as the reference's scores.

    Args:
        losses: f[c, t], nats per token; may hold anything where not valid.
        valid: bool[c, t], which tokens count.
        reduce: one of the three.
        top: fraction in (0, 1], of "top".

    Returns:
        f[c]; 0 for a sequence without valid tokens.

    Raises:
        ConfigError: unknown reduction, fraction out of range, shapes that differ.

    Example:
        >>> losses, valid = jnp.array([[1.0, 3.0, 9.0]]), jnp.array([[True, True, False]])
        >>> [sequence_loss(losses, valid, reduce=r, top=0.5).tolist() for r in ("mean", "sum", "top")]
        [[2.0], [4.0], [3.0]]
    """
    check_choice("sequence_loss", "reduce", reduce, REDUCTIONS)
    _check_fraction("sequence_loss", "top", top)
    _check_shapes("sequence_loss", losses=losses, valid=valid)
    losses = losses.astype(compute_dtype(losses))
    length = jnp.sum(valid.astype(jnp.int32), axis=1)
    if reduce == "top":
        ordered = -jnp.sort(jnp.where(valid, -losses, jnp.inf), axis=1)
        length = _ceil_share(top, length)
        counted = jnp.arange(losses.shape[1])[None, :] < length[:, None]
        total = jnp.sum(jnp.where(counted, ordered, 0.0), axis=1)
    else:
        total = jnp.sum(jnp.where(valid, losses, 0.0), axis=1)
    return total if reduce == "sum" else total / jnp.maximum(length, 1).astype(total.dtype)


def token_mask(
    learner_loss: Array | None,
    reference_loss: Array | None,
    valid: Array,
    *,
    keep: float,
    score: str = "learnability",
) -> Bool[Array, "c t"]:
    r"""Which tokens of a batch to train on: the `keep` of the valid ones with the highest score.

        Rho-1:  Δ_it = ℓ^L_it − ℓ^R_it,   mask = valid and Δ ≥ the k-th largest valid Δ,   k = ⌈keep · number valid⌉

    ESLM (value at risk, no reference) is the score "hard_learner" of the losses, or of `token_entropy` in their place.
    The masked tokens stay in the context; the loss is `Σ mask · ℓ / Σ mask`. It saves no compute.

    Args:
        learner_loss: f[c, t], nats per token; may hold anything where not valid.
        reference_loss: the same of the reference.
        valid: bool[c, t], which tokens have a loss at all.
        keep: fraction in (0, 1]; at least one token is kept if any is valid.
        score: "learnability", "easy_reference" or "hard_learner"; the loss that it does not read may be `None`.

    Returns:
        bool[c, t]. Equal scores at the threshold are all kept, so that the mask does not depend on the order. A score
        that is not finite counts as the lowest.

    Raises:
        ConfigError: fraction out of range, unknown score, a loss is missing, shapes that differ.

    Example:
        >>> learner, reference = jnp.array([[3.0, 1.0, 2.0, 9.0]]), jnp.array([[1.0, 1.0, 1.5, 0.0]])
        >>> token_mask(learner, reference, jnp.array([[True, True, True, False]]), keep=0.5).tolist()
        [[True, False, True, False]]

    References:
        arXiv 2404.07965, Equation 3 to 5; arXiv 2505.19893, Algorithm 1.
    """
    check_choice("token_mask", "score", score, SCORES)
    _check_fraction("token_mask", "keep", keep)
    losses = needed_losses("token_mask", score, learner_loss, reference_loss, "c t")
    for value in losses.values():
        _check_shapes("token_mask", losses=value, valid=valid)
    total = learner_less_reference(losses)
    lowest = jnp.finfo(total.dtype).min
    value = jax.lax.stop_gradient(jnp.where(valid, jnp.where(jnp.isfinite(total), total, lowest), -jnp.inf))
    kept = _ceil_share(keep, jnp.sum(valid.astype(jnp.int32)))
    ascending = jnp.sort(value.reshape(-1))
    threshold = ascending[jnp.clip(value.size - kept, 0, value.size - 1)]
    return valid & (value >= threshold)


def token_entropy(logits: Float[Array, "c t v"]) -> Float[Array, "c t"]:
    """Entropy of the next token in nats, `−Σ_v p log p`, in float32.

    Example:
        >>> round(float(token_entropy(jnp.zeros((1, 1, 8)))[0, 0]), 4)
        2.0794
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    p = jnp.exp(log_p)
    return -jnp.sum(jnp.where(p > 0, p * jnp.where(p > 0, log_p, 0.0), 0.0), axis=-1)


def domain_learnability(
    learner_loss: Float[Array, "c t"],
    reference_loss: Float[Array, "c t"],
    valid: Bool[Array, "c t"],
    domain: Int[Array, " c"],
    num_domains: int,
) -> DomainSums:
    r"""Sums of both models' losses over a super-batch, domain by domain: the feedback of mixers by learnability.

        λ_k = Σ_{i in D_k} Σ_t m_it (ℓ^L_it − ℓ^R_it) / Σ_{i in D_k} Σ_t m_it

    is `(loss_sum − reference_loss_sum) / token_count`; what a mixer makes of it (its average over steps, exponentiated
    weights, DoReMi's clipping) is the mixer's.

    Args:
        learner_loss: nats per token; may hold anything where not valid.
        reference_loss: the same of the reference, which must share the learner's tokenizer.
        valid: which tokens count.
        domain: of each row; rows outside [0, m) count nowhere.
        num_domains: m, static.

    Returns:
        `DomainSums`, float32.

    Raises:
        ConfigError: shapes that differ.

    Example:
        >>> ones = jnp.ones((3, 2))
        >>> sums = domain_learnability(2 * ones, ones, ones > 0, jnp.array([0, 1, 1]), 2)
        >>> ((sums.loss_sum - sums.reference_loss_sum) / sums.token_count).tolist(), sums.token_count.tolist()
        ([1.0, 1.0], [2.0, 4.0])
    """
    _check_shapes("domain_learnability", losses=learner_loss, reference_loss=reference_loss, valid=valid)
    by_domain = lambda values: sum_by_domain(jnp.where(valid, values, jnp.zeros((), values.dtype)), domain, num_domains)
    learner, reference = learner_loss.astype(jnp.float32), reference_loss.astype(jnp.float32)
    return DomainSums(
        loss_sum=by_domain(learner),
        reference_loss_sum=by_domain(reference),
        clipped_excess_sum=by_domain(jnp.maximum(learner - reference, 0.0)),
        token_count=by_domain(jnp.ones_like(learner)),
    )


def _ceil_share(fraction: float, count: Array) -> Array:
    """⌈fraction · count⌉ without the last bit of float32: 0.1 · 30 is 3."""
    return jnp.ceil(fraction * count.astype(jnp.float32) * (1.0 - 1e-6)).astype(jnp.int32)


def _check_fraction(name: str, argument: str, value: float) -> None:
    if not (math.isfinite(value) and 0 < value <= 1):
        raise ConfigError(f"{argument} must be above 0 and at most 1, got {value}", where=f"{name}({argument})")


def _check_shapes(name: str, *, losses: Array, **others: Array) -> None:
    for argument, value in others.items():
        if losses.ndim != 2 or value.shape != losses.shape:
            raise ConfigError(
                f"losses of shape {losses.shape} and {argument} of shape {value.shape}",
                where=f"{name}({argument})",
                fix="Both must be [rows, tokens].",
            )
