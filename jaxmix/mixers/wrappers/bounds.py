"""Wrappers that change weights as a function of themselves: a floor, a temperature, a pull toward a prior.

Each applies to the mixture that the inner mixer recommends, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmix.core.errors import ConfigError
from jaxmix.core.pytree import state
from jaxmix.core.simplex import kl_project_capped_simplex
from jaxmix.core.types import Weights
from jaxmix.core.validate import NonNegative, Positive, Share, check_one_per_domain, check_simplex, checked
from jaxmix.mixers import base
from jaxmix.mixers.base import Mixer
from jaxmix.mixers.wrappers.base import InnerState, registry, wrapped


@registry.register
@checked
def floor(mixer: Mixer, minimum: Share) -> Mixer:
    """No domain's weight falls below `minimum`.

    The weights are the nearest ones in KL divergence that keep the bound: `p = max(minimum, λ q)`. Weights q that
    keep it already stay as they are; domains above it keep their ratios.

    Args:
        mixer: the inner mixer.
        minimum: in [0, 1]; at most 1/m, which `init` checks.
    """

    def start(inner: Any, num_domains: int, _: Weights | None) -> InnerState:
        if minimum * num_domains > 1 + 1e-6:
            raise ConfigError(
                f"a floor of {minimum} for each of {num_domains} domains adds to more than 1",
                where="floor(minimum)",
                fix=f"Use at most {1 / num_domains:.6g}.",
            )
        return InnerState(inner)

    return wrapped(mixer, "floor", bound=lambda weights: kl_project_capped_simplex(weights, 1.0, minimum), start=start)


@registry.register
@checked
def temperature(mixer: Mixer, value: Positive) -> Mixer:
    """Flattens or sharpens the weights q: `p ∝ q^(1/value)`.

    Args:
        mixer: the inner mixer.
        value: above 0; 1 does nothing, larger values flatten, smaller ones sharpen. A weight of 0 stays 0.
    """

    return wrapped(mixer, "temperature", bound=lambda weights: tempered(weights, value))


def tempered(weights: Weights, temperature: float) -> Weights:
    """`p ∝ weights^(1/temperature)`: 1 leaves them, above flattens, below sharpens. A weight of 0 stays 0."""
    if temperature == 1:
        return weights
    is_drawn = weights > 0
    logits = jnp.log(jnp.where(is_drawn, weights, 1.0))
    # Relative to the largest, so that a small temperature does not leave float32's range.
    logits = (logits - jnp.max(jnp.where(is_drawn, logits, -jnp.inf))) / temperature
    return jax.nn.softmax(jnp.where(is_drawn, logits, -jnp.inf))


@state(version=1)
class KlToPriorState:
    """Attributes:
    inner: the wrapped mixer's state.
    prior: f32[m] on the simplex.
    """

    inner: Any
    prior: Weights


@registry.register
@checked
def kl_to_prior(mixer: Mixer, strength: NonNegative, prior: Sequence[float] | None = None) -> Mixer:
    """Pulls the weights q toward a prior: the minimizer of `KL(p ‖ q) + strength · KL(p ‖ prior)`.

    It is the weighted geometric mean `p ∝ q^(1/(1+s)) · prior^(s/(1+s))` with s = strength.

    Args:
        mixer: the inner mixer.
        strength: s ≥ 0; 0 does nothing, 1 is half way (in logarithms), large values give the prior.
        prior: m numbers that add to 1; the prior given to `init` (uniform by default) if `None`. A domain whose
            weight or prior is 0 gets 0 (for strength > 0); if that leaves none, the weights are the prior.
    """
    fixed = None if prior is None else check_simplex(prior, "kl_to_prior(prior)")

    def start(inner: Any, num_domains: int, prior: Weights | None) -> KlToPriorState:
        if fixed is not None:
            check_one_per_domain(len(fixed), num_domains, "kl_to_prior(prior)")
            prior = jnp.asarray(fixed, jnp.result_type(float))
        return KlToPriorState(inner=inner, prior=base.initial_weights(num_domains, prior))

    def weights(state: KlToPriorState) -> Weights:
        return geometric_mean(mixer.weights(state.inner), state.prior, strength)

    def final(state: KlToPriorState) -> Weights:
        assert mixer.final is not None
        return geometric_mean(mixer.final(state.inner), state.prior, strength)

    return wrapped(mixer, "kl_to_prior", start=start, weights=weights, final=mixer.final and final)


def geometric_mean(weights: Weights, prior: Weights, strength: float) -> Weights:
    """`p ∝ weights^(1/(1+s)) · prior^(s/(1+s))`; the prior if no domain has both above 0."""
    if strength == 0:
        return weights
    prior = prior.astype(weights.dtype)
    is_shared = (weights > 0) & (prior > 0)
    logits = jnp.log(jnp.where(is_shared, weights, 1.0)) + strength * jnp.log(jnp.where(is_shared, prior, 1.0))
    has_any = jnp.any(is_shared)
    mean = jax.nn.softmax(jnp.where(is_shared | ~has_any, logits / (1.0 + strength), -jnp.inf))
    return jnp.where(has_any, mean, prior)
