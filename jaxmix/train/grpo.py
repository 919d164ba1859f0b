"""The objective of group-relative policy optimization: rollouts of a prompt are compared with one another."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array, Bool, Float
from jaxmix.core.validate import check_choice, check_number
from jaxmix.curricula.uniform import live_groups

AGGREGATES = ("token_mean", "sequence_mean", "constant")
_EPSILON = 1e-6


class GrpoInfo(NamedTuple):
    """Statistics of one loss.

    Attributes:
        live_share: groups with a gradient among those that have tokens at all.
        clip_low, clip_high: shares of the tokens whose gradient the lower and the upper bound took away.
        kl: mean over tokens of k3 against the reference; 0 without one.
        drift: mean over tokens of k3 against the policy that sampled: how far this one has moved.
        solve_rate: mean reward of each group, nan for one that was dropped.
        dropped: groups that were left out because of a reward that is not finite.
    """

    live_share: Float[Array, ""]
    clip_low: Float[Array, ""]
    clip_high: Float[Array, ""]
    kl: Float[Array, ""]
    drift: Float[Array, ""]
    solve_rate: Float[Array, " b"]
    dropped: Float[Array, ""]


class TokenObjective(NamedTuple):
    """The objective before it is summed, 0 where masked.

    Attributes:
        loss: of each token, the penalty included.
        is_low, is_high: whether a bound took the gradient away.
        kl: k3 against the reference; 0 without one.
        drift: k3 against the policy that sampled.
    """

    loss: Float[Array, "b g t"]
    is_low: Bool[Array, "b g t"]
    is_high: Bool[Array, "b g t"]
    kl: Float[Array, "b g t"]
    drift: Float[Array, "b g t"]


def grpo_loss(
    logp: Array,
    logp_old: Array,
    logp_reference: Array | None,
    rewards: Array,
    mask: Array,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    kl_weight: float = 0.0,
    aggregate: str = "token_mean",
    standardize: bool = True,
) -> tuple[Float[Array, ""], GrpoInfo]:
    r"""The clipped policy-gradient loss of groups of rollouts.

        A_bg = (r_bg − mean_g r_bg) / (std_g r_bg + 10⁻⁶),      exactly 0 where all rewards of the group are the same
        ρ    = exp(ℓ − ℓ_old)
        L    = −min( ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A ) + β (exp(δ) − δ − 1),      δ = ℓ_reference − ℓ
        loss = Σ w L over the tokens of the mask

    ℓ = `logp`, A = advantages, ε = `clip_low` and `clip_high`, β = `kl_weight`; std is that of the population. The
    last term is the k3 estimate of KL(policy ‖ reference): never negative, and unbiased for tokens that the policy
    itself drew. The weights w by `aggregate`, with n_bg the tokens of a rollout and rollouts without any left out:

        token_mean      1 / Σ n                        every token alike (DAPO)
        sequence_mean   1 / (rollouts · n_bg)          every rollout alike (GRPO)
        constant        1 / (rollouts · t)             no length normalization (Dr. GRPO)

    Pure; may be jitted with the keyword arguments static, and differentiated in `logp`.

    Args:
        logp: f32[b, g, t], log-probabilities of the tokens under the policy that is trained, at the temperature they
            were drawn at.
        logp_old: f32[b, g, t], under the policy that drew them.
        logp_reference: f32[b, g, t], under a frozen policy; None, only without `kl_weight`.
        rewards: f32[b, g]. A group with a reward that is not finite is dropped: it counts in no sum, weight or share,
            the penalty included.
        mask: bool[b, g, t], the tokens of each rollout up to and including its end. What the other arrays hold
            elsewhere does not matter: they are set to 0 there before any exponential is taken.
        clip_low, clip_high: ≥ 0 (`clip_low` ≤ 1).
        kl_weight: ≥ 0.
        aggregate: see above.
        standardize: divide by the standard deviation; without (Dr. GRPO) groups that are nearly decided count less.

    Returns:
        The loss and a `GrpoInfo`.

    Raises:
        ConfigError: shapes that do not fit, a number outside its range, an unknown aggregate.

    Numerics: float32, or that of `logp`.

    Differs from the papers: the population's standard deviation, so that mean |A| = 2 √(q (1 − q)) for 0/1 rewards
    with solve rate q (libraries that divide by g − 1 have it smaller by √(1 − 1/g)).

    Example:
        >>> rewards, mask = jnp.array([[1.0, 0.0]]), jnp.ones((1, 2, 3), bool)
        >>> logp = jnp.full((1, 2, 3), -1.0)
        >>> loss, info = grpo_loss(logp, logp, None, rewards, mask)
        >>> abs(float(loss)) < 1e-6, float(info.live_share), info.solve_rate.tolist()
        (True, 1.0, [0.5])

    References:
        Shao et al., arXiv 2402.03300 (GRPO); Yu et al., arXiv 2503.14476 (DAPO: separate bounds, token mean); Liu et
        al., arXiv 2503.20783 (Dr. GRPO); Schulman, "Approximating KL divergence", 2020 (k3).
    """
    check_choice("grpo_loss", "aggregate", aggregate, AGGREGATES)
    check_number("grpo_loss", "clip_low", clip_low, 0.0, 1.0)
    check_number("grpo_loss", "clip_high", clip_high, 0.0)
    check_number("grpo_loss", "kl_weight", kl_weight, 0.0)
    if logp_reference is None and kl_weight > 0:
        raise ConfigError("a penalty needs log-probabilities of a reference", where="grpo_loss(logp_reference)")
    arrays = {"logp_old": logp_old, "logp_reference": logp_reference, "mask": mask}
    for name, array in arrays.items():
        if array is not None and array.shape != logp.shape:
            raise ConfigError(f"{name} has shape {array.shape}, logp {logp.shape}", where=f"grpo_loss({name})")
    if logp.ndim != 3 or rewards.shape != logp.shape[:2]:
        raise ConfigError(
            f"rewards of shape {rewards.shape} do not fit log-probabilities of shape {logp.shape}",
            where="grpo_loss(rewards)",
            fix="Give log-probabilities [groups, rollouts, tokens] and rewards [groups, rollouts].",
        )
    advantages, is_live = group_advantages(rewards, standardize=standardize)
    is_given, mask = jnp.any(mask, axis=(1, 2)), without_failed(mask, rewards)
    tokens = token_objective(
        logp, logp_old, logp_reference, advantages, mask, clip_low=clip_low, clip_high=clip_high, kl_weight=kl_weight
    )
    weights = token_weights(mask, aggregate)
    is_present = jnp.any(mask, axis=(1, 2))
    total = lambda x: jnp.sum(x.astype(jnp.float32))
    mean = lambda x: total(x) / jnp.maximum(total(mask), 1.0)
    info = GrpoInfo(
        live_share=total(is_live & is_present) / jnp.maximum(total(is_present), 1.0),
        clip_low=mean(tokens.is_low),
        clip_high=mean(tokens.is_high),
        kl=mean(tokens.kl),
        drift=mean(tokens.drift),
        solve_rate=jnp.mean(rewards, axis=1),
        dropped=total(is_given & ~is_present),
    )
    return jnp.sum(weights.astype(logp.dtype) * tokens.loss), info


def without_failed(mask: Bool[Array, "b g t"], rewards: Float[Array, "b g"]) -> Bool[Array, "b g t"]:
    """The mask, without the groups that have a reward that is not finite: a verifier has failed on them."""
    return mask & jnp.all(jnp.isfinite(rewards), axis=1)[:, None, None]


def group_advantages(
    rewards: Float[Array, "b g"], *, standardize: bool = True
) -> tuple[Float[Array, "b g"], Bool[Array, " b"]]:
    """Advantages, exactly 0 in groups without a gradient; and bool[b], which groups have one."""
    is_live = live_groups(rewards)
    # Zeros in dead groups: a reward of nan must not reach the others through 0 · nan.
    clean = jnp.where(is_live[:, None], rewards, 0.0)
    centered = clean - jnp.mean(clean, axis=1, keepdims=True)
    if standardize:
        centered = centered / (jnp.std(clean, axis=1, keepdims=True) + _EPSILON)
    return jnp.where(is_live[:, None], centered, 0.0), is_live


def token_objective(
    logp: Float[Array, "b g t"],
    logp_old: Float[Array, "b g t"],
    logp_reference: Float[Array, "b g t"] | None,
    advantages: Float[Array, "b g"],
    mask: Bool[Array, "b g t"],
    *,
    clip_low: float,
    clip_high: float,
    kl_weight: float,
) -> TokenObjective:
    """The loss of every token, see `grpo_loss`; the trainer sums it over micro-batches."""
    # Before the exponentials: a padded token's log-probability may be −10⁹ or nan, and 0 · ∞ is nan, in gradients too.
    logp, logp_old = jnp.where(mask, logp, 0.0), jnp.where(mask, logp_old, 0.0)
    advantage = advantages[:, :, None].astype(logp.dtype)
    ratio = jnp.exp(logp - logp_old)
    bounded = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    loss = -jnp.minimum(ratio * advantage, bounded * advantage)
    kl = jnp.zeros_like(loss)
    if logp_reference is not None:
        kl = _k3(jnp.where(mask, logp_reference, 0.0) - logp)
        loss = loss + kl_weight * kl
    return TokenObjective(
        loss=jnp.where(mask, loss, 0.0),
        is_low=mask & (advantage < 0) & (ratio < 1.0 - clip_low),
        is_high=mask & (advantage > 0) & (ratio > 1.0 + clip_high),
        kl=kl,
        drift=_k3(logp_old - logp),
    )


def token_weights(mask: Bool[Array, "b g t"], aggregate: str) -> Float[Array, "b g t"]:
    """The weight of each token's loss, f32; 0 where masked. With weights of the whole batch, micro-batches add up."""
    counted = mask.astype(jnp.float32)
    lengths = jnp.sum(counted, axis=2, keepdims=True)
    rollouts = jnp.maximum(jnp.sum(lengths > 0), 1).astype(jnp.float32)
    if aggregate == "token_mean":
        return counted / jnp.maximum(jnp.sum(counted), 1.0)
    if aggregate == "sequence_mean":
        return counted / (rollouts * jnp.maximum(lengths, 1.0))
    return counted / (rollouts * mask.shape[2])


def _k3(difference: Array) -> Array:
    """`exp(δ) − 1 − δ`, through expm1: near 0 the direct form would be rounding alone."""
    return jnp.maximum(jnp.expm1(difference) - difference, 0.0)
