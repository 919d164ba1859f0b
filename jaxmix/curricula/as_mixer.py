"""Any bandit as a mixer: ordinary training with domains as arms, and the improvement of their loss as the signal."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxmix.core.errors import ConfigError
from jaxmix.core.pytree import state
from jaxmix.core.segment import mean_by_domain
from jaxmix.core.types import Array, Bool, DomainVector, Float, PRNGKeyArray, Weights
from jaxmix.core.validate import Count, Rate, check_number, checked
from jaxmix.curricula.base import Bandit, first_visit_average, make, registry
from jaxmix.mixers.base import (
    Cadence,
    Feedback,
    Mixer,
    MixerInfo,
    initial_weights,
    is_present,
    registry as mixers,
    require,
)

_LEAST_LOSS = 1e-30


@state(version=1)
class CurriculumState:
    """State of `as_mixer`.

    Attributes:
        bandit: the bandit's own state.
        prior: factor on the bandit's probabilities.
        weights: those of the next block.
        first: loss at a domain's first visit.
        fast: fast average of the loss.
        slow: slow average of the loss.
        is_seen: domains that were visited.
    """

    bandit: Any
    prior: Float[Array, " m"]
    weights: Float[Array, " m"]
    first: Float[Array, " m"]
    fast: Float[Array, " m"]
    slow: Float[Array, " m"]
    is_seen: Bool[Array, " m"]


def improvement_rewards(first: DomainVector, fast: DomainVector, slow: DomainVector) -> Float[Array, "m g"]:
    """Losses as rewards for a curriculum: two pretended rollouts per domain.

        x_j = max(0, (slow_j − fast_j) / slow_j) / max_k (slow_k − fast_k) / slow_k       improvement, best domain = 1
        q_j = max(0, 1 − fast_j / first_j)                                                 part of the loss that is gone
        rewards  (1 − x_j) q_j   and   (1 − x_j) q_j + x_j

    Their spread is the improvement, `signal_of(rewards) = x`, which rules that follow the signal inside groups
    maximize; their mean, `(1 − x) q + x / 2`, is the solve rate of those that follow it: 0 for a domain that has
    learned nothing and learns nothing, 1 for one that is done, one half for the one that improves most.

    Args:
        first, fast, slow: f[m] ≥ 0, losses in any unit; x and q do not depend on it.

    Returns:
        f[m, 2] in [0, 1].
    """
    relative = (slow - fast) / jnp.maximum(slow, _LEAST_LOSS)
    most = jnp.max(relative)
    gain = jnp.where(most > 0, jnp.clip(relative / jnp.where(most > 0, most, 1.0), 0.0, 1.0), 0.0)
    gone = jnp.clip(1.0 - fast / jnp.maximum(first, _LEAST_LOSS), 0.0, 1.0)
    low = (1.0 - gain) * gone
    return jnp.stack([low, jnp.minimum(low + gain, 1.0)], axis=1)


@checked
def as_mixer(
    bandit: Bandit | Callable[[int], Bandit],
    *,
    fast_rate: float = 0.3,
    slow_rate: Rate = 0.08,
    update_every: Count = 1,
) -> Mixer:
    """A bandit as a mixer: its arms are the domains, and the weights `prior · P / Σ prior · P`.

    After every update the bandit gets one group of two rewards from each drawn domain, made of how far its training
    loss has fallen and how fast it falls, see `improvement_rewards`. P are the bandit's probabilities.

    Args:
        bandit: or a function that makes one for a number of arms.
        fast_rate, slow_rate: 0 < slow < fast ≤ 1, weights of the newest loss in the two averages that improvement is
            the difference of.
        update_every: optimizer steps between updates; their losses are added up. More steps, less noise.

    Returns:
        A mixer that needs `loss_sum` and `token_count`. A domain whose prior is 0 is never drawn. `info.score` is the
        improvement x; `info.extra` has the bandit's scores.

    Raises:
        ConfigError: rates out of range; in `init`, a bandit of another number of arms.

    Differs from what the bandits are for: there are no rollouts. Rules that only look at whether a prompt is solved
    ("literal", `staged`, `adarft`) see the part of the loss that is gone, those that measure spread see improvement.

    Example:
        >>> from jaxmix.curricula import space
        >>> mixer = as_mixer(space(2))
        >>> key, tokens = jax.random.key(0), jnp.ones(2)
        >>> state = mixer.init(key, 2)
        >>> for step in range(40):      # the first domain improves, the second does not
        ...     losses = jnp.array([4.0 * 0.97**step, 4.0])
        ...     state, info = mixer.update(key, state, Feedback(loss_sum=losses, token_count=tokens))
        >>> bool(mixer.weights(state)[0] > 0.9)
        True
    """
    check_number("as_mixer", "fast_rate", fast_rate, at_most=1.0, above=slow_rate)
    needs = frozenset({"loss_sum", "token_count"})

    @functools.cache
    def bandit_of(num_domains: int) -> Bandit:
        made = bandit if isinstance(bandit, Bandit) else bandit(num_domains)
        if made.num_arms != num_domains:
            raise ConfigError(
                f"the bandit has {made.num_arms} arms, and there are {num_domains} domains",
                where="as_mixer(bandit)",
                fix="Give a function that makes a bandit of any number of arms.",
            )
        return made

    def mixed(prior: Weights, bandit_state: Any) -> Weights:
        share = prior * bandit_of(prior.shape[0]).probabilities(bandit_state).astype(prior.dtype)
        total = jnp.sum(share)
        # The bandit may give its whole probability to domains whose prior is 0.
        return jnp.where(total > 0, share / jnp.where(total > 0, total, 1.0), prior)

    def init(key: PRNGKeyArray, num_domains: int, prior: Weights | None = None) -> CurriculumState:
        del key
        start = initial_weights(num_domains, prior)
        inner = bandit_of(num_domains).init()
        losses = dict.fromkeys(("first", "fast", "slow"), jnp.zeros((num_domains,), jnp.float32))
        is_seen = jnp.zeros((num_domains,), jnp.bool_)
        return CurriculumState(bandit=inner, prior=start, weights=mixed(start, inner), **losses, is_seen=is_seen)

    def update(key: PRNGKeyArray, state: CurriculumState, feedback: Feedback) -> tuple[CurriculumState, MixerInfo]:
        del key
        require(feedback, needs, "as_mixer")
        present = is_present(feedback)
        loss = mean_by_domain(jnp.where(present, feedback.loss_sum, 0.0), feedback.token_count, 0.0)
        loss = loss.astype(jnp.float32)
        first = jnp.where(present & ~state.is_seen, loss, state.first)
        fast = first_visit_average(state.fast, loss, fast_rate, state.is_seen, present)
        slow = first_visit_average(state.slow, loss, slow_rate, state.is_seen, present)
        rewards = improvement_rewards(first, fast, slow)
        m = loss.shape[0]
        arms = jnp.where(present, jnp.arange(m, dtype=jnp.int32), -1)
        rule = bandit_of(m)
        updated = rule.update(state.bandit, arms, rewards)
        # A step that drew nothing changes nothing, not even the discounts.
        inner = jax.tree.map(lambda new, old: jnp.where(jnp.any(present), new, old), updated, state.bandit)
        after = CurriculumState(
            bandit=inner,
            prior=state.prior,
            weights=mixed(state.prior, inner),
            first=first,
            fast=fast,
            slow=slow,
            is_seen=state.is_seen | present,
        )
        extra = {name: value for name, value in rule.scores(inner).items() if name != "score"}
        return after, MixerInfo(score=rewards[:, 1] - rewards[:, 0], extra=extra)

    return Mixer(
        init=init,
        update=update,
        weights=lambda state: state.weights,
        needs=needs,
        cadence=Cadence(update=update_every),
        name="curriculum",
    )


@mixers.register
def curriculum(
    bandit: str = "space",
    *,
    options: Mapping[str, Any] | None = None,
    fast_rate: float = 0.3,
    slow_rate: float = 0.08,
    update_every: int = 1,
) -> Mixer:
    """A registered bandit as a mixer, by name: see `as_mixer`. For configurations.

    Args:
        bandit: out of `jaxmix.curricula.registry`.
        options: its arguments, without the number of arms.
        fast_rate, slow_rate, update_every: see `as_mixer`.

    Raises:
        ConfigError: unknown bandit or option, rates out of range.

    Example:
        >>> curriculum("dump", options={"temperature": 0.2}).name
        'curriculum'
    """
    given = dict(options or {})
    registry.get(bandit, where="curriculum(bandit)")
    make(bandit, 1, where="curriculum(options)", **_without_tables(given))
    return as_mixer(
        lambda num_arms: make(bandit, num_arms, where="curriculum(options)", **given),
        fast_rate=fast_rate,
        slow_rate=slow_rate,
        update_every=update_every,
    )


def _without_tables(options: Mapping[str, Any]) -> dict[str, Any]:
    """Without values per arm, whose number is not known before `init`, where they are checked."""
    return {name: value for name, value in options.items() if not isinstance(value, (list, tuple))}
