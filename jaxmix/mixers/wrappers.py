"""Wrappers take a mixer and return a mixer: bounds, smoothing, budgets and priors, each written once.

They compose in any order around any mixer; the first one applied is the innermost. A wrapper changes the weights
that data is drawn by, not what the inner mixer believes: the inner mixer's state evolves as if it were alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.core.counter import Counter, add, counter, difference, total
from jaxmix.core.errors import ConfigError
from jaxmix.core.pytree import state
from jaxmix.core.registry import Registry
from jaxmix.core.schedule import check_weights
from jaxmix.core.simplex import kl_project_capped_simplex, normalize
from jaxmix.core.types import PRNGKeyArray, Weights
from jaxmix.mixers import base
from jaxmix.mixers.base import Feedback, Mixer, MixerInfo

__all__ = ["build", "ema", "epoch_cap", "floor", "geometric_mean", "kl_to_prior", "registry", "wrap_with"]

registry = Registry("wrapper")
"""All wrappers by name; a wrapper takes a mixer first."""


@state(version=1)
class FloorState:
    """Attributes:
    inner: the wrapped mixer's state.
    """

    inner: Any


@registry.register
def floor(mixer: Mixer, minimum: float) -> Mixer:
    """No domain's weight falls below `minimum`.

    The weights are the nearest ones in KL divergence that keep the bound: `p = max(minimum, λ q)`. Weights q that
    keep it already stay as they are; domains above it keep their ratios.

    Args:
        mixer: the inner mixer.
        minimum: in [0, 1]; at most 1/m, which `init` checks.
    """
    if not 0 <= minimum <= 1:
        raise ConfigError(f"the floor must be in [0, 1], got {minimum}", where="floor(minimum)")

    def init(key: PRNGKeyArray, num_domains: int, prior: Weights | None = None) -> FloorState:
        if minimum * num_domains > 1 + 1e-6:
            raise ConfigError(
                f"a floor of {minimum} for each of {num_domains} domains adds to more than 1",
                where="floor(minimum)",
                fix=f"Use at most {1 / num_domains:.6g}.",
            )
        return FloorState(inner=mixer.init(key, num_domains, prior))

    def update(key: PRNGKeyArray, state: FloorState, feedback: Feedback) -> tuple[FloorState, MixerInfo]:
        inner, info = mixer.update(key, state.inner, feedback)
        return FloorState(inner=inner), info

    def weights(state: FloorState) -> Weights:
        return kl_project_capped_simplex(mixer.weights(state.inner), 1.0, minimum)

    return mixer._replace(init=init, update=update, weights=weights, name=f"floor({mixer.name})")


@state(version=1)
class EmaState:
    """Attributes:
    inner: the wrapped mixer's state.
    average: f32[m] on the simplex.
    """

    inner: Any
    average: Any


@registry.register
def ema(mixer: Mixer, decay: float) -> Mixer:
    """Draws by a moving average of the weights: `average ← decay · average + (1 − decay) · weights`.

    Args:
        mixer: the inner mixer.
        decay: in [0, 1), per update; 0 does nothing. The average starts at the inner mixer's first weights.
    """
    if not 0 <= decay < 1:
        raise ConfigError(f"decay must be in [0, 1), got {decay}", where="ema(decay)")

    def init(key: PRNGKeyArray, num_domains: int, prior: Weights | None = None) -> EmaState:
        inner = mixer.init(key, num_domains, prior)
        return EmaState(inner=inner, average=mixer.weights(inner))

    def update(key: PRNGKeyArray, state: EmaState, feedback: Feedback) -> tuple[EmaState, MixerInfo]:
        inner, info = mixer.update(key, state.inner, feedback)
        average = decay * state.average + (1.0 - decay) * mixer.weights(inner)
        return EmaState(inner=inner, average=normalize(average)), info

    return mixer._replace(init=init, update=update, weights=lambda state: state.average, name=f"ema({mixer.name})")


@state(version=1)
class EpochCapState:
    """Attributes:
    inner: the wrapped mixer's state.
    drawn: counter [m], tokens of each domain trained on so far.
    """

    inner: Any
    drawn: Counter


@registry.register
def epoch_cap(mixer: Mixer, available_tokens: Sequence[float], total_tokens: float, max_epochs: float = 4.0) -> Mixer:
    """No domain is repeated more than `max_epochs` times by the end of the budget.

    The weights are the nearest ones to the inner mixer's in KL divergence with
    `p_j ≤ (max_epochs · available_j − drawn_j) / (total − Σ drawn)`: what may still be drawn of a domain, over
    what will still be drawn of all. A domain at this bound uses its allowance up exactly at the end of the budget.

    Args:
        mixer: the inner mixer.
        available_tokens: m numbers ≥ 0, the size of one epoch of each domain.
        total_tokens: the budget of the whole run, all domains together.
        max_epochs: > 0.

    Returns:
        A mixer that needs `token_count` besides the inner mixer's signals. After the budget is spent, domains with
        any allowance left are drawn freely; when no domain has any left, the weights are proportional to
        `available_tokens`, so that all repeat equally often.

    Raises:
        ConfigError: an argument is out of range, or all allowances together are smaller than the budget.
    """
    available, budget = _check_budget(available_tokens, total_tokens, max_epochs)
    # An allowance beyond the whole budget never binds; capped, it fits a counter whatever the source's size.
    allowance = np.floor(np.minimum(available * max_epochs, budget)).astype(np.int64)
    m = len(available)
    if np.floor(available * max_epochs).sum() < budget:
        raise ConfigError(
            f"a budget of {budget:.4g} tokens needs {budget / max(available.sum(), 1):.3g} epochs of the "
            f"{available.sum():.4g} available ones, more than max_epochs = {max_epochs:g}",
            where="epoch_cap",
            fix="Raise max_epochs, lower the budget or add data.",
        )
    natural = available / available.sum()
    needs = mixer.needs | {"token_count"}

    def init(key: PRNGKeyArray, num_domains: int, prior: Weights | None = None) -> EpochCapState:
        if num_domains != m:
            raise ConfigError(
                f"{m} values for {num_domains} domains", where="epoch_cap(available_tokens)", fix="Give one per source."
            )
        inner = mixer.init(key, num_domains, prior)
        return EpochCapState(inner=inner, drawn=counter(np.zeros(m, np.int64)))

    def update(key: PRNGKeyArray, state: EpochCapState, feedback: Feedback) -> tuple[EpochCapState, MixerInfo]:
        base.require(feedback, frozenset({"token_count"}), "epoch_cap")
        inner, info = mixer.update(key, state.inner, feedback)
        return EpochCapState(inner=inner, drawn=add(state.drawn, feedback.token_count)), info

    def weights(state: EpochCapState) -> Weights:
        left = jnp.maximum(difference(counter(allowance), state.drawn), 0.0)
        ahead = jnp.maximum(difference(counter(budget), total(state.drawn)), 1.0)
        capped = kl_project_capped_simplex(mixer.weights(state.inner), left / ahead)
        return jnp.where(jnp.any(left > 0), capped, jnp.asarray(natural, jnp.float32))

    return mixer._replace(init=init, update=update, weights=weights, needs=needs, name=f"epoch_cap({mixer.name})")


def _check_budget(available_tokens: Sequence[float], total_tokens: float, max_epochs: float) -> tuple[np.ndarray, int]:
    available = np.asarray(list(available_tokens), np.float64)
    if available.ndim != 1 or not np.all(np.isfinite(available)) or np.any(available < 0) or not available.sum() > 0:
        raise ConfigError(
            f"token counts must be finite, ≥ 0 and not all 0, got {available.tolist()}",
            where="epoch_cap(available_tokens)",
        )
    for name, value in (("total_tokens", total_tokens), ("max_epochs", max_epochs)):
        if not (np.isfinite(value) and value > 0):
            raise ConfigError(f"{name} must be finite and > 0, got {value}", where=f"epoch_cap({name})")
    return available, round(total_tokens)


@state(version=1)
class KlToPriorState:
    """Attributes:
    inner: the wrapped mixer's state.
    prior: f32[m] on the simplex.
    """

    inner: Any
    prior: Any


@registry.register
def kl_to_prior(mixer: Mixer, strength: float, prior: Sequence[float] | None = None) -> Mixer:
    """Pulls the weights q towards a prior: the minimiser of `KL(p ‖ q) + strength · KL(p ‖ prior)`.

    It is the weighted geometric mean `p ∝ q^(1/(1+s)) · prior^(s/(1+s))` with s = strength.

    Args:
        mixer: the inner mixer.
        strength: s ≥ 0; 0 does nothing, 1 is half way (in logarithms), large values give the prior.
        prior: m numbers that add to 1; the prior given to `init` (uniform by default) if `None`. A domain whose
            weight or prior is 0 gets 0 (for strength > 0); if that leaves none, the weights are the prior.
    """
    if not (np.isfinite(strength) and strength >= 0):
        raise ConfigError(f"strength must be finite and ≥ 0, got {strength}", where="kl_to_prior(strength)")
    fixed = None if prior is None else check_weights(prior, where="kl_to_prior(prior)")

    def init(key: PRNGKeyArray, num_domains: int, prior: Weights | None = None) -> KlToPriorState:
        if fixed is not None and len(fixed) != num_domains:
            raise ConfigError(
                f"{len(fixed)} weights for {num_domains} domains",
                where="kl_to_prior(prior)",
                fix="Give one per source.",
            )
        anchor = base.initial_weights(num_domains, prior if fixed is None else jnp.asarray(fixed, jnp.float32))
        return KlToPriorState(inner=mixer.init(key, num_domains, prior), prior=anchor)

    def update(key: PRNGKeyArray, state: KlToPriorState, feedback: Feedback) -> tuple[KlToPriorState, MixerInfo]:
        inner, info = mixer.update(key, state.inner, feedback)
        return KlToPriorState(inner=inner, prior=state.prior), info

    def weights(state: KlToPriorState) -> Weights:
        return geometric_mean(mixer.weights(state.inner), state.prior, strength)

    return mixer._replace(init=init, update=update, weights=weights, name=f"kl_to_prior({mixer.name})")


def geometric_mean(weights: Weights, prior: Weights, strength: float) -> Weights:
    """`p ∝ weights^(1/(1+s)) · prior^(s/(1+s))`; the prior if no domain has both above 0."""
    if strength == 0:
        return weights
    is_shared = (weights > 0) & (prior > 0)
    logits = jnp.log(jnp.where(is_shared, weights, 1.0)) + strength * jnp.log(jnp.where(is_shared, prior, 1.0))
    has_any = jnp.any(is_shared)
    mean = jax.nn.softmax(jnp.where(is_shared | ~has_any, logits / (1.0 + strength), -jnp.inf))
    return jnp.where(has_any, mean, prior)


def wrap_with(mixer: Mixer, wrappers: Sequence[Mapping[str, Any]], *, where: str = "mixer.wrap") -> Mixer:
    """Applies wrappers as they stand in a configuration file, the first one innermost.

    Args:
        mixer: the mixer to wrap.
        wrappers: entries with one key each, the wrapper's name; the value is its first argument, or a mapping of
            its arguments: `[{"floor": 0.001}, {"kl_to_prior": {"strength": 0.5}}]`.
        where: the configuration key, for error messages.

    Raises:
        ConfigError: an entry has not exactly one key, or the wrapper or an argument is unknown.
    """
    for i, entry in enumerate(wrappers):
        place = f"{where}[{i}]"
        if not isinstance(entry, Mapping) or len(entry) != 1:
            raise ConfigError(
                f"a wrapper is one name with its argument, got {entry!r}", where=place, fix="For example floor: 0.001."
            )
        ((name, value),) = entry.items()
        if isinstance(value, Mapping):
            mixer = registry.make(name, mixer, where=place, **value)
        else:
            mixer = registry.make(name, mixer, value, where=place)
    return mixer


def build(
    name: str,
    options: Mapping[str, Any] | None = None,
    wrap: Sequence[Mapping[str, Any]] = (),
    *,
    where: str = "mixer",
) -> Mixer:
    """Builds a mixer from configuration: `build("odm", {"variant": "paper"}, [{"floor": 0.001}])`.

    Raises:
        ConfigError: the mixer, a wrapper or an argument is unknown (the nearest is suggested) or out of range.
    """
    mixer = base.registry.make(name, where=f"{where}.name", **(options or {}))
    return wrap_with(mixer, wrap, where=f"{where}.wrap")
