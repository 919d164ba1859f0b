"""Dynamic batch loading: weights follow the distance of each domain's loss from a target.

Xia, Gao, Zeng, Chen: "Sheared LLaMA: Accelerating Language Model Pre-training via Structured Pruning",
arXiv 2310.06694.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from jaxmix.core.types import DomainVector, Weights
from jaxmix.core.validate import Count, NonNegative, check_choice, checked
from jaxmix.mixers.base import Cadence, Feedback, Mixer, registry
from jaxmix.mixers.lmo import Estimate, LmoState, lmo
from jaxmix.mixers.missing import finite_or_nan, keep_last, mean_for_unknown
from jaxmix.mixers.per_domain import check_values, domain_values

VARIANTS = ("exponentiated", "bandit")
_NAME = "dynamic_batch_loading"


@registry.register
@checked
def dynamic_batch_loading(
    target_losses: float | Sequence[float],
    *,
    step_size: NonNegative = 1.0,
    smoothing: float = 1e-4,
    every: Count = 400,
    clip: bool = True,
    variant: str = "exponentiated",
) -> Mixer:
    """Sheared-LLaMA's dynamic batch loading: draws more of what is furthest above its target loss.

        d = max(L − T, 0)         (without the max if not clip)
        exponentiated:  p ← (1 − c) softmax(log p + η d) + c / m
        bandit:         p ← (1 − c) softmax(p + η d) + c / m

    With L_j the validation loss of domain j (nats per token), T_j = target_losses, η = step_size, c = smoothing.

    Args:
        target_losses: T in nats per token, one number or one per domain: the loss of a source model, or what a
            scaling law fitted to models of several sizes predicts.
        step_size: η ≥ 0.
        smoothing: c in [0, 1], share that is always spread evenly.
        every: optimizer steps from one evaluation and update to the next, ≥ 1: 400 in continued pre-training, 50
            while pruning.
        clip: true as in the paper, where a domain below its target counts as at it; false as in the released code,
            where it loses weight by its lead.
        variant: "exponentiated" (the paper, and the released code's default) or "bandit" (an option of the released
            code: adds to the weights, not to their logarithms, so that only the last losses matter much).

    Returns:
        A mixer that needs `validation_loss`, measured and used every `every` steps. It starts from the prior.
        `info.score` is d; for "bandit" it is the exponent, p + η d. `final(state)` is the mean of the weights over all
        updates.

    Raises:
        ConfigError: an argument is out of range, or (in `init`) the targets are not one per domain.

    Numerics: in log space, finite for losses of ±1e30. A loss that is not finite counts as not measured: the domain
    keeps its last one, and before it has any its d is the mean of the others'.

    Differs from the paper: nothing in the formulas. Worth knowing: d accumulates, so a target that is out of reach
    takes over the mixture; users report one domain near 0.94. A cap or a smaller step keeps it in bounds.

    Example:
        >>> import jax
        >>> mixer = dynamic_batch_loading([2.0, 1.0])
        >>> key = jax.random.key(0)
        >>> state, info = mixer.update(key, mixer.init(key, 2), Feedback(validation_loss=jnp.array([2.5, 0.5])))
        >>> info.score.tolist(), bool(mixer.weights(state)[0] > 0.62)
        ([0.5, 0.0], True)

    References:
        arXiv 2310.06694, section 2.2 and Algorithm 1; github.com/princeton-nlp/LLM-Shearing.
        `docs/mixers.md` has the formulas beside the other methods'.
    """
    targets = check_values(_NAME, "target_losses", target_losses)
    check_choice(_NAME, "variant", variant, VARIANTS)
    is_bandit = variant == "bandit"

    def start(weights: Weights) -> DomainVector:
        domain_values(_NAME, "target_losses", targets, weights.shape[0], weights.dtype)
        return jnp.full_like(weights, jnp.nan)

    def learn(state: LmoState, feedback: Feedback) -> tuple[DomainVector, Estimate]:
        new = finite_or_nan(feedback.validation_loss, state.weights.dtype)
        losses = keep_last(state.estimator, new)
        excess = losses - domain_values(_NAME, "target_losses", targets, losses.shape[0], losses.dtype)
        excess = jnp.maximum(excess, 0.0) if clip else excess
        score = mean_for_unknown(excess, ~jnp.isnan(losses))
        score = state.weights + step_size * score if is_bandit else score
        return losses, Estimate(score, has_moved=jnp.any(~jnp.isnan(new)))

    return lmo(
        _NAME,
        start,
        learn,
        needs=frozenset({"validation_loss"}),
        step_size=1.0 if is_bandit else step_size,
        memory=0.0 if is_bandit else 1.0,
        smoothing=smoothing,
        cadence=Cadence(update=every, validate=every),
    )
