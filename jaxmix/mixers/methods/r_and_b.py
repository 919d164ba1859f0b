"""R&B, the balancing part: a softmax of how well each domain's gradient agrees with all domains'.

Ge, Huang, Cooper, Trost, Chu, Namburi GNVV, Cai, Park, Roberts, Sala: "R&B: Domain Regrouping and Data Mixture
Balancing for Efficient Foundation Model Training", arXiv 2505.00358.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from jaxmix.core.pytree import state
from jaxmix.core.types import Array, DomainVector, Float, Weights
from jaxmix.core.validate import Count, NonNegative, checked
from jaxmix.mixers.alignment import bounded, squared_norms, target_row
from jaxmix.mixers.base import Cadence, Feedback, Gradients, Mixer, registry
from jaxmix.mixers.lmo import Estimate, LmoState, lmo


@state(version=1)
class RAndBState:
    """Attributes:
    mean: f32[m, m], mean inner products over this round's updates.
    pairs: f32[m, m], number of updates of this round that drew both domains.
    gram: f32[m, m], the last finished round's means; older ones for pairs that it did not draw, 0 before any.
    evaluation: f32[m] on the simplex.
    """

    mean: Float[Array, "m m"]
    pairs: Float[Array, "m m"]
    gram: Float[Array, "m m"]
    evaluation: Weights


def unit_norm(vector: DomainVector) -> DomainVector:
    """`v / ‖v‖₂`; zeros stay zeros."""
    largest = jnp.max(jnp.abs(vector))
    scaled = vector / jnp.where(largest > 0, largest, 1.0)
    return scaled / jnp.where(largest > 0, jnp.linalg.norm(scaled), 1.0)


@registry.register
@checked
def r_and_b(
    *,
    sharpness: NonNegative = 3.0,
    evaluation_weights: Sequence[float] | None = None,
    round_updates: Count = 100,
    smoothing: float = 0.0,
    every: Count = 1,
    gradients: Gradients = "last_layer",
) -> Mixer:
    r"""R&B: once a round, weights become a softmax of the domains' agreement with the evaluation mixture.

    With g_j(s) the mean gradient of domain j at update s of the round, q = evaluation_weights, λ = sharpness,
    c = smoothing:

        G_ij = mean over the updates s that drew both of ⟨g_i(s), g_j(s)⟩
        v = G q,   p = (1 − c) softmax(λ v / ‖v‖) + c/m

    The weights have no memory: only the round's gradients count. A pair of domains that was never drawn together in
    a round keeps its last G_ij.

    Args:
        sharpness: λ ≥ 0. As v has length 1, λ alone limits the spread: with 3 domains and λ = 1 no weight exceeds
            0.630, nor 0.576 if all inner products are ≥ 0.
        evaluation_weights: m weights that add to 1, the mixture on which the model is to be good; uniform by default.
        round_updates: ≥ 1, updates in a round.
        smoothing: c in [0, 1].
        every: ≥ 1, optimizer steps between updates. In the paper the last layer's gradients are a by-product of the
            backward pass; jaxmix's loop measures them by a forward pass and m passes through that layer.
        gradients: see `Mixer`; the paper uses the last layer's.

    Returns:
        A mixer that needs `gradient_alignment` f32[m, m]. It starts from the prior, which has no influence after the
        first round. `info.score` is v / ‖v‖ of the last finished round; `info.extra` is empty.

    Raises:
        ConfigError: an argument out of its range; evaluation weights of another number than the domains, from
            `init`; when traced, a `gradient_alignment` f32[m].

    Numerics: finite for inner products from 0 to 1e30. While v is 0 the weights stay as they are.

    Differs from the paper: G averages the updates' inner products, where the paper takes the inner products of the
    gradients summed over the round. The published λ was not recovered. Regrouping (k-means on embeddings) is
    not part of this mixer.

    Example:
        >>> import jax
        >>> mixer = r_and_b(sharpness=1.0, round_updates=1)
        >>> key = jax.random.key(0)
        >>> state = mixer.init(key, 3)
        >>> state, info = mixer.update(key, state, Feedback(gradient_alignment=jnp.diag(jnp.array([1.0, 1e-9, 1e-9]))))
        >>> [f"{w:.3f}" for w in mixer.weights(state)]
        ['0.576', '0.212', '0.212']

    References:
        arXiv 2505.00358, section 3.
    """

    def start(weights: Weights) -> RAndBState:
        m = weights.shape[0]
        nothing = jnp.zeros((m, m), weights.dtype)
        return RAndBState(
            mean=nothing,
            pairs=nothing,
            gram=nothing,
            evaluation=target_row(evaluation_weights, weights, "r_and_b(evaluation_weights)"),
        )

    def learn(state: LmoState, feedback: Feedback) -> tuple[RAndBState, Estimate]:
        old = state.estimator
        now = bounded(feedback.gradient_alignment.astype(state.weights.dtype))
        is_drawn = squared_norms(now, "r_and_b") > 0
        is_pair = is_drawn[:, None] & is_drawn[None, :] & jnp.isfinite(now)
        pairs = old.pairs + is_pair.astype(old.pairs.dtype)
        step = jnp.where(is_pair, now - old.mean, 0.0) / jnp.maximum(pairs, 1.0)
        mean = old.mean + step
        is_end = (state.count + 1) % round_updates == 0
        gram = jnp.where(is_end & (pairs > 0), mean, old.gram)
        score = unit_norm(jnp.sum(gram * old.evaluation[None, :], axis=1))
        new = RAndBState(
            mean=jnp.where(is_end, 0.0, mean),
            pairs=jnp.where(is_end, 0.0, pairs),
            gram=gram,
            evaluation=old.evaluation,
        )
        return new, Estimate(score=score, has_moved=is_end & jnp.any(score != 0))

    return lmo(
        "r_and_b",
        start,
        learn,
        needs=frozenset({"gradient_alignment"}),
        step_size=sharpness,
        memory=0.0,
        smoothing=smoothing,
        cadence=Cadence(update=every),
        gradients=gradients,
    )
