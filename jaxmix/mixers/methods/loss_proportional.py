"""Weights proportional to a softmax of the validation losses: the simplest online mixer."""

from __future__ import annotations

import jax.numpy as jnp

from jaxmix.core.types import DomainVector, Weights
from jaxmix.core.validate import Count, check_number, checked
from jaxmix.mixers.base import Cadence, Feedback, Mixer, registry
from jaxmix.mixers.lmo import Estimate, LmoState, lmo
from jaxmix.mixers.missing import finite_or_nan, keep_last, mean_for_unknown


@registry.register
@checked
def loss_proportional(*, temperature: float = 1.0, every: Count = 500, smoothing: float = 0.0) -> Mixer:
    """A softmax of the validation losses: draws more of what has a high loss.

        p = (1 − c) softmax(L / τ) + c / m

    With L_j the last validation loss of domain j (nats per token), τ = temperature, c = smoothing.

    Args:
        temperature: τ > 0, in nats per token. Large values give uniform weights, small ones all to the highest loss.
        every: optimizer steps from one evaluation and update to the next, ≥ 1.
        smoothing: c in [0, 1], share that is always spread evenly.

    Returns:
        A mixer that needs `validation_loss`, measured and used every `every` steps. It starts from the prior, which
        has no influence after the first update. `info.score` is L.

    Raises:
        ConfigError: an argument is out of range.

    Numerics: relative to the highest loss, finite for losses of ±1e30. A loss that is not finite counts as not
    measured: the domain keeps its last one, and before it has any it takes the mean of the others.

    Differs from the paper: it has none. Frameworks for fine-tuning offer it; here it is a baseline without memory,
    targets or graph.

    Example:
        >>> import jax
        >>> mixer = loss_proportional(temperature=0.5)
        >>> key = jax.random.key(0)
        >>> feedback = Feedback(validation_loss=jnp.array([2.0, 1.0]))
        >>> state, info = mixer.update(key, mixer.init(key, 2), feedback)
        >>> mixer.weights(state).round(3).tolist() == jax.nn.softmax(jnp.array([4.0, 2.0])).round(3).tolist()
        True
    """
    check_number("loss_proportional", "temperature", temperature, 1e-30)

    def start(weights: Weights) -> DomainVector:
        return jnp.full_like(weights, jnp.nan)

    def learn(state: LmoState, feedback: Feedback) -> tuple[DomainVector, Estimate]:
        new = finite_or_nan(feedback.validation_loss, state.weights.dtype)
        losses = keep_last(state.estimator, new)
        score = mean_for_unknown(losses, ~jnp.isnan(losses))
        return losses, Estimate(score, has_moved=jnp.any(~jnp.isnan(new)))

    return lmo(
        "loss_proportional",
        start,
        learn,
        needs=frozenset({"validation_loss"}),
        step_size=1.0 / temperature,
        memory=0.0,
        smoothing=smoothing,
        cadence=Cadence(update=every, validate=every),
    )
