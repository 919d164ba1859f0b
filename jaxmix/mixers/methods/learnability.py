"""Domain-level learnability: JEST's score of examples, averaged by domain and fed back into the mixture.

Evans, Parthasarathy, Merzic, Hénaff: "Data curation via joint example selection further accelerates multimodal
learning", arXiv 2406.17711; Mindermann et al., arXiv 2206.07137 (the score, as RHO-LOSS).
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxmix.core.pytree import state
from jaxmix.core.types import Array, DomainVector, Int, Weights
from jaxmix.core.validate import Decay, checked
from jaxmix.mixers.base import Feedback, Mixer, registry
from jaxmix.mixers.lmo import Estimate, LmoState, lmo
from jaxmix.mixers.missing import fresh_mean


@state(version=1)
class LearnabilityEstimate:
    """Attributes:
    score: f32[m], learnability of each domain; 0 before it was drawn.
    seen: i32[m], updates at which the domain was drawn.
    """

    score: DomainVector
    seen: Int[Array, " m"]


@registry.register
@checked
def learnability(
    *,
    step_size: float = 1.0,
    memory: float = 1.0,
    smoothing: float = 1e-3,
    averaging: Decay = 0.0,
    clip: bool = False,
) -> Mixer:
    """Draws more of what the reference model shows to be learnable and the learner has not learned yet.

        s_j ← a s_j + (1 − a) (mean loss − mean reference loss of the step's tokens of j)
        p ← (1 − c) · normalized(p^ρ exp(η s)) + c / m

    With η = step_size, ρ = memory, c = smoothing, a = averaging; a domain's first s is its first difference.
    Domains that a step did not draw keep their s.

    Args:
        step_size: η ≥ 0.
        memory: ρ in [0, 1]; 1 accumulates the scores, 0 makes the weights a softmax of η s.
        smoothing: c in [0, 1], share that is always spread evenly.
        averaging: a in [0, 1), how much of the old score stays at an update; of use with a small memory.
        clip: whether a difference below 0 counts as 0. JEST's finding is that the negative ones reject noise, so
            the default keeps them.

    Returns:
        A mixer that needs `loss_sum`, `reference_loss_sum` and `token_count`, updated after every step. It starts
        from the prior. `info.score` is s. `final(state)` is the mean of the weights over all updates.

    Raises:
        ConfigError: an argument is out of range.

    Numerics: in log space, finite for losses of ±1e30; sums that are not finite count as "not drawn". A step
    without any token leaves the weights as they are.

    Differs from the paper: JEST selects examples and has no domains; this is its score at the level of domains. With
    clip = True, memory 1 and averaging 0 it is `doremi(clip="domain")`. Learner and reference must share the
    tokenizer, and the reference must have seen the distribution that is wanted.

    Example:
        >>> import jax
        >>> mixer = learnability()
        >>> key, ten = jax.random.key(0), jnp.array([10.0, 10.0])
        >>> feedback = Feedback(loss_sum=3 * ten, reference_loss_sum=jnp.array([20.0, 35.0]), token_count=ten)
        >>> state, info = mixer.update(key, mixer.init(key, 2), feedback)
        >>> info.score.tolist()
        [1.0, -0.5]

    References:
        arXiv 2406.17711, section 3 (learnability); arXiv 2305.10429, Algorithm 1 (the same feedback, clipped).
        `docs/mixers.md` has the formulas beside the other methods'.
    """

    def start(weights: Weights) -> LearnabilityEstimate:
        return LearnabilityEstimate(score=jnp.zeros_like(weights), seen=jnp.zeros(weights.shape, jnp.int32))

    def learn(state: LmoState, feedback: Feedback) -> tuple[LearnabilityEstimate, Estimate]:
        last = state.estimator
        excess = feedback.loss_sum - feedback.reference_loss_sum
        new, is_fresh = fresh_mean(excess, feedback.token_count, last.score.dtype)
        new = jnp.maximum(new, 0.0) if clip else new
        new = jnp.where(last.seen > 0, averaging * last.score + (1.0 - averaging) * new, new)
        score = jnp.where(is_fresh, new, last.score)
        estimator = LearnabilityEstimate(score=score, seen=last.seen + is_fresh.astype(jnp.int32))
        return estimator, Estimate(score, has_moved=jnp.any(is_fresh))

    return lmo(
        "learnability",
        start,
        learn,
        needs=frozenset({"loss_sum", "reference_loss_sum", "token_count"}),
        step_size=step_size,
        memory=memory,
        smoothing=smoothing,
    )
