"""Online Data Mixing: an adversarial bandit with one arm per domain and the training loss as reward.

Albalak, Pan, Raffel, Wang: "Efficient Online Data Mixing For Language Model Pre-Training", arXiv 2312.02406.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from jaxmix.core.pytree import state
from jaxmix.core.segment import mean_by_domain
from jaxmix.core.types import Array, DomainVector, Float, Int, PRNGKeyArray, Weights
from jaxmix.core.validate import Decay, at_least, checked
from jaxmix.mixers.base import Feedback, Mixer, MixerInfo, initial_weights, is_present, registry, require

_MIN_PROBABILITY = 1e-6
_NOTHING_YET = -1e30


@state(version=1)
class OdmState:
    """Attributes:
    count: i32[], updates so far.
    weights: f32[m], what the next batch is drawn by.
    estimate: f32[m], discounted reward per domain; its logarithm in the variant "repository".
    """

    count: Int[Array, ""]
    weights: Weights
    estimate: DomainVector


def exploration_rate(count: Int[Array, ""], num_domains: int) -> Float[Array, ""]:
    """`ε_t = min(1/m, sqrt(ln m / (m t)))`, the least share of every domain; 1/m at t = 0."""
    rate = jnp.sqrt(math.log(num_domains) / (num_domains * jnp.maximum(count, 1).astype(jnp.float32)))
    return jnp.where(count > 0, jnp.minimum(1.0 / num_domains, rate), 1.0 / num_domains)


def odm_weights(estimate: DomainVector, count: Int[Array, ""], variant: str) -> Weights:
    """Weights from the reward estimates after `count` = t updates.

    `p = (1 − m ε_t) · share + ε_t` with `share = softmax(ε_{t−1} R)` in the paper and `share = R / Σ R` in the
    repository, whose R comes in as its logarithm.
    """
    m = estimate.shape[0]
    temperature = exploration_rate(count - 1, m) if variant == "paper" else jnp.float32(1.0)
    rate = exploration_rate(count, m)
    # Relative to the best, so that estimates near the end of float32's range stay finite.
    share = jax.nn.softmax(temperature * (estimate - jnp.max(estimate)))
    return (1.0 - m * rate) * share + rate


@registry.register
@checked
def odm(
    variant: Literal["paper", "repository"] = "paper",
    *,
    discount: Decay = 0.9,
    warmup_updates: Annotated[int, at_least(0)] = 0,
) -> Mixer:
    r"""Online Data Mixing: draws more of what has a high training loss.

    With l_j the mean loss of domain j in the step (nats per token), p the weights, a = discount, for the domains
    j that the step drew:

        paper:       R_j ← a R_j + (1 − a) l_j / p_j,     p = (1 − m ε_t) softmax(ε_{t−1} R) + ε_t
        repository:  R_j ← a R_j + (1 − a) exp(l_j),      p = (1 − m ε_t) R / Σ R + ε_t
        both:        ε_t = min(1/m, sqrt(ln m / (m t)))

    Domains that a step did not draw keep their estimate R_j; their weight changes only with ε_t and through the
    others.

    Args:
        variant: "paper" (Algorithm 1 of the paper: importance-weighted reward, Gibbs distribution) or
            "repository" (what the released code computes: no importance weight, exponentiated loss, linear
            normalization).
        discount: a in [0, 1), how much of the old estimate stays.
        warmup_updates: for so many updates the weights stay at the prior, while estimates are already kept.

    Returns:
        A mixer that needs `loss_sum` and `token_count`, updated after every step. It starts from the prior given
        to `init`; after the warm-up the prior has no further influence, and a domain whose prior is 0 is drawn
        too. `info.score` is R (its logarithm for "repository"); `info.extra` has `exploration_rate`.

    Raises:
        ConfigError: unknown variant, discount outside [0, 1), negative warm-up.

    Numerics: float32 and in log space: finite for losses from 0 to 1e30. A p_j below 1e-6 counts as 1e-6 in
    l_j / p_j. Losses that are not finite count as "not drawn".

    Differs from the paper: nothing in the formulas. The paper's rule flattens with time, the repository's does not:
    see `docs/mixers.md`. When a wrapper changes the weights after this
    mixer, p_j is still this mixer's own.

    Example:
        >>> mixer = odm("repository")
        >>> key = jax.random.key(0)
        >>> state = mixer.init(key, 2)
        >>> feedback = Feedback(loss_sum=jnp.array([30.0, 10.0]), token_count=jnp.array([10.0, 10.0]))
        >>> for _ in range(100):
        ...     state, info = mixer.update(key, state, feedback)
        >>> bool(mixer.weights(state)[0] > 0.8)
        True

    References:
        arXiv 2312.02406, section 3 and Algorithm 1; github.com/alon-albalak/online-data-mixing.
    """
    needs = frozenset({"loss_sum", "token_count"})
    learn = _paper_estimate if variant == "paper" else _repository_estimate

    def init(key: PRNGKeyArray, num_domains: int, prior: Weights | None = None) -> OdmState:
        del key
        start = 0.0 if variant == "paper" else _NOTHING_YET
        return OdmState(
            count=jnp.int32(0),
            weights=initial_weights(num_domains, prior),
            estimate=jnp.full((num_domains,), start, jnp.float32),
        )

    def update(key: PRNGKeyArray, state: OdmState, feedback: Feedback) -> tuple[OdmState, MixerInfo]:
        del key
        require(feedback, needs, "odm")
        present = is_present(feedback)
        loss = mean_by_domain(jnp.where(present, feedback.loss_sum, 0.0), feedback.token_count, 0.0)
        estimate = jnp.where(present, learn(state.estimate, loss, state.weights, discount), state.estimate)
        count = state.count + 1
        learned = odm_weights(estimate, count, variant)
        weights = jnp.where(count > warmup_updates, learned, state.weights)
        info = MixerInfo(score=estimate, extra={"exploration_rate": exploration_rate(count, loss.shape[0])})
        return OdmState(count=count, weights=weights, estimate=estimate), info

    return Mixer(init=init, update=update, weights=lambda state: state.weights, needs=needs, name="odm")


def _paper_estimate(estimate: Array, loss: Array, weights: Array, discount: float) -> Array:
    return discount * estimate + (1.0 - discount) * (loss / jnp.maximum(weights, _MIN_PROBABILITY))


def _repository_estimate(estimate: Array, loss: Array, weights: Array, discount: float) -> Array:
    """The same average of exp(loss), kept as its logarithm."""
    del weights
    kept = estimate + (math.log(discount) if discount > 0 else -jnp.inf)
    return jnp.logaddexp(kept, loss + math.log1p(-discount))
