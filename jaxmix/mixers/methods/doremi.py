"""DoReMi: group distributionally robust weights from the excess loss over a reference model.

Xie et al.: "DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining", arXiv 2305.10429.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp

from jaxmix.core.pytree import state
from jaxmix.core.types import DomainVector, PRNGKeyArray, Weights
from jaxmix.core.validate import NonNegative, checked
from jaxmix.mixers.base import Feedback, Mixer, MixerInfo, registry
from jaxmix.mixers.lmo import Estimate, LmoState, importance_weights, lmo
from jaxmix.mixers.missing import fresh_mean


@state(version=1)
class DoremiEstimate:
    """Attributes:
    score: f32[m], last mean excess loss of each domain.
    prior: f32[m] on the simplex, what a proxy run draws by.
    """

    score: DomainVector
    prior: Weights


@registry.register
@checked
def doremi(
    *,
    step_size: float = 1.0,
    smoothing: float = 1e-3,
    clip: Literal["token", "domain"] = "token",
    mode: Literal["sample", "proxy"] = "sample",
    normalizer: Literal["token", "domain"] = "token",
    initial_score: NonNegative = 0.0,
) -> Mixer:
    """DoReMi: more weight for what the model learns worse than a reference model did.

        λ_j = mean over the step's tokens of j of max(loss − reference loss, 0)
        α ← (1 − c) · normalized(α exp(η λ)) + c / m

    With α the domain weights, η = step_size, c = smoothing. A domain that a step did not draw keeps its λ. The
    method has two parts: a proxy run finds α, and the mean of α over its steps (`final`) is the mixture of the
    real run. In mode "proxy" the draws stay at the prior and α weights the training loss, through
    `loss_weights(state)`; `docs/mixers.md` has both normalizers.

    Args:
        step_size: η ≥ 0.
        smoothing: c in [0, 1], share that is always spread evenly.
        clip: "token" (the paper and its code: excess is clipped token by token) or "domain" (other
            implementations: the mean over the domain's tokens is clipped, which lets tokens cancel).
        mode: "proxy" (the paper: draw by the prior, weight the loss) or "sample" (draw by α, one run, loss as it is).
        normalizer: what the weighted loss is divided by in mode "proxy": "token" (`token_mean`, the released code) or
            "domain" (`domain_mean`, the paper). They agree when every domain has the same number of tokens in the
            batch. The run's `loss_normalization` must be the one named.
        initial_score: λ before a domain is first drawn, ≥ 0 nats per token. The released code has the logarithm
            of its vocabulary's size, which pulls hard toward what the first batches lack.

    Returns:
        A mixer that needs `token_count` and, by `clip`, `clipped_excess_sum` or `loss_sum` and
        `reference_loss_sum`; updated after every step. It starts from the prior. `info.score` is λ. `final(state)` is
        the mean of α over all steps. In mode "proxy" `weights(state)` is the prior throughout, and
        `info.extra["domain_weight"]` is α.

    Raises:
        ConfigError: unknown clip, mode or normalizer, a number out of range.

    Numerics: in log space, finite for losses of 1e30. Sums that are not finite count as "not drawn". A step
    without any token leaves α as it is.

    Differs from the paper: α weights the next step's batch and not the one that it was computed from, since
    feedback arrives after a step. The released code's mean also counts the weights before the first step. A gap
    that stays takes everything (0.1 nats at η = 1 and m = 4: 0.99 after 73 steps): use a smaller step size.

    Example:
        >>> import jax
        >>> mixer = doremi()
        >>> key = jax.random.key(0)
        >>> feedback = Feedback(clipped_excess_sum=jnp.array([0.0, 1.0, 0.0, 0.0]), token_count=jnp.full(4, 10.0))
        >>> state, info = mixer.update(key, mixer.init(key, 4), feedback)
        >>> [round(w, 4) for w in mixer.weights(state).tolist()]
        [0.2436, 0.2692, 0.2436, 0.2436]

    References:
        arXiv 2305.10429, Algorithm 1; github.com/sangmichaelxie/doremi and its issues 5 (collapse), 25 and 33
        (normalization).
    """
    sums = {"clipped_excess_sum"} if clip == "token" else {"loss_sum", "reference_loss_sum"}

    def start(weights: Weights) -> DoremiEstimate:
        return DoremiEstimate(score=jnp.full_like(weights, initial_score), prior=weights)

    def learn(state: LmoState, feedback: Feedback) -> tuple[DoremiEstimate, Estimate]:
        last = state.estimator
        excess = feedback.clipped_excess_sum if clip == "token" else feedback.loss_sum - feedback.reference_loss_sum
        new, is_fresh = fresh_mean(excess, feedback.token_count, last.score.dtype)
        score = jnp.where(is_fresh, jnp.maximum(new, 0.0), last.score)
        estimate = Estimate(score, has_moved=jnp.any(is_fresh))
        return DoremiEstimate(score=score, prior=last.prior), estimate

    def loss_weights(state: LmoState) -> DomainVector:
        if normalizer == "domain":
            return state.weights.shape[0] * state.weights
        return importance_weights(state.weights, state.estimator.prior)

    mixer = lmo(
        "doremi",
        start,
        learn,
        needs=frozenset(sums | {"token_count"}),
        step_size=step_size,
        smoothing=smoothing,
    )
    if mode == "sample":
        return mixer

    def update(key: PRNGKeyArray, state: LmoState, feedback: Feedback) -> tuple[LmoState, MixerInfo]:
        state, info = mixer.update(key, state, feedback)
        return state, info._replace(extra={"domain_weight": state.weights})

    return mixer._replace(
        update=update,
        weights=lambda state: state.estimator.prior,
        loss_weights=loss_weights,
        loss_normalization=f"{normalizer}_mean",
    )
