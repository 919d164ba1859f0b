"""Velocitune: weights follow the share of the way that each domain still has to go.

Luo et al.: "Velocitune: A Velocity-based Dynamic Domain Reweighting Method for Continual Pre-training",
arXiv 2411.14318.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from jaxmix.core.pytree import state
from jaxmix.core.types import DomainVector, Weights
from jaxmix.core.validate import Count, checked
from jaxmix.mixers.base import Cadence, Feedback, Mixer, registry
from jaxmix.mixers.lmo import Estimate, LmoState, lmo
from jaxmix.mixers.missing import finite_or_nan, keep_last, mean_for_unknown
from jaxmix.mixers.per_domain import check_values, domain_values


@state(version=1)
class VelocituneEstimate:
    """Attributes:
    losses: f32[m], last validation losses; nan before the first.
    initial: f32[m], where each domain set out from; nan until it is known.
    """

    losses: DomainVector
    initial: DomainVector


def remaining_share(losses: DomainVector, initial: DomainVector, target: DomainVector) -> DomainVector:
    """`clip((L − target) / (initial − target), 0, 1)`: 1 at the initial loss, 0 at the target and below.

    A domain whose target does not lie below its initial loss has no way to go: 1 above the target, else 0.
    """
    way = initial - target
    is_way = way > 0
    share = jnp.clip((losses - target) / jnp.where(is_way, way, 1.0), 0.0, 1.0)
    return jnp.where(is_way, share, (losses > target).astype(losses.dtype))


@registry.register
@checked
def velocitune(
    target_losses: float | Sequence[float],
    *,
    initial_losses: float | Sequence[float] | None = None,
    step_size: float = 1.0,
    every: Count = 500,
) -> Mixer:
    """Velocitune: draws more of what has come the least of its way to a target loss.

        V_j = clip((L_j − T_j) / (I_j − T_j), 0, 1),     p_j ∝ p_j exp(η V_j)

    With L_j the validation loss of domain j (nats per token), I_j its initial loss, T_j = target_losses,
    η = step_size.

    Args:
        target_losses: T in nats per token, one number or one per domain: what the budget should reach, from a power
            law fitted on a small share of the data.
        initial_losses: I, of the model that training starts from; if `None`, each domain's first evaluation here.
        step_size: η ≥ 0. A logarithmic weight grows by up to η per update.
        every: optimizer steps from one evaluation and update to the next, ≥ 1.

    Returns:
        A mixer that needs `validation_loss`, measured and used every `every` steps. It starts from the prior.
        `info.score` is V. `final(state)` is the mean of the weights over all updates.

    Raises:
        ConfigError: an argument is out of range, or (in `init`) a list has not one number per domain.

    Numerics: V is in [0, 1] whatever the losses. A loss that is not finite counts as not measured: the domain keeps
    its last one, and before it has any its V is the mean of the others'.

    Differs from the paper: the step size, which is 1 there. Without it 40 updates are enough to give one domain
    e^40 times the weight of another, so choose `every` such that there are few updates, or a smaller step. The mixer
    first sees a loss after `every` steps; give `initial_losses` for the model's before training. A domain that sets
    out at or below its target, where the formula would divide by 0 or turn its sign, counts as arrived until its
    loss exceeds the target.

    Example:
        >>> import jax
        >>> mixer = velocitune([2.0, 1.0], initial_losses=[4.0, 2.0])
        >>> key = jax.random.key(0)
        >>> state, info = mixer.update(key, mixer.init(key, 2), Feedback(validation_loss=jnp.array([3.5, 1.5])))
        >>> info.score.tolist()
        [0.75, 0.5]

    References:
        arXiv 2411.14318, section 3.
        `docs/mixers.md` has the formulas beside the other methods'.
    """
    targets = check_values("velocitune", "target_losses", target_losses)
    given = None if initial_losses is None else check_values("velocitune", "initial_losses", initial_losses)

    def start(weights: Weights) -> VelocituneEstimate:
        m, dtype = weights.shape[0], weights.dtype
        domain_values("velocitune", "target_losses", targets, m, dtype)
        unknown = jnp.full_like(weights, jnp.nan)
        initial = unknown if given is None else domain_values("velocitune", "initial_losses", given, m, dtype)
        return VelocituneEstimate(losses=unknown, initial=initial)

    def learn(state: LmoState, feedback: Feedback) -> tuple[VelocituneEstimate, Estimate]:
        last, m, dtype = state.estimator, state.weights.shape[0], state.weights.dtype
        new = finite_or_nan(feedback.validation_loss, dtype)
        losses, initial = keep_last(last.losses, new), keep_last(new, last.initial)
        target = domain_values("velocitune", "target_losses", targets, m, dtype)
        score = mean_for_unknown(remaining_share(losses, initial, target), ~jnp.isnan(losses))
        estimate = Estimate(score, has_moved=jnp.any(~jnp.isnan(new)))
        return VelocituneEstimate(losses=losses, initial=initial), estimate

    return lmo(
        "velocitune",
        start,
        learn,
        needs=frozenset({"validation_loss"}),
        step_size=step_size,
        cadence=Cadence(update=every, validate=every),
    )
