"""The wrapper that keeps a run's token budget: no domain is repeated more often than it may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmix.core.counter import Counter, add, counter, difference, total
from jaxmix.core.errors import ConfigError
from jaxmix.core.pytree import state
from jaxmix.core.simplex import kl_project_capped_simplex
from jaxmix.core.types import Weights
from jaxmix.core.validate import Positive, check_one_per_domain, checked
from jaxmix.mixers import base
from jaxmix.mixers.base import Feedback, Mixer
from jaxmix.mixers.wrappers.base import registry, wrapped


@state(version=1)
class EpochCapState:
    """Attributes:
    inner: the wrapped mixer's state.
    drawn: counter [m], tokens of each domain trained on so far.
    """

    inner: Any
    drawn: Counter


@registry.register
@checked
def epoch_cap(
    mixer: Mixer, available_tokens: Sequence[float], total_tokens: Positive, max_epochs: Positive = 4.0
) -> Mixer:
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
    available, budget = np.asarray(list(available_tokens), np.float64), round(total_tokens)
    if available.ndim != 1 or not np.all(np.isfinite(available)) or np.any(available < 0) or not available.sum() > 0:
        raise ConfigError(
            f"token counts must be finite, ≥ 0 and not all 0, got {available.tolist()}",
            where="epoch_cap(available_tokens)",
        )
    # An allowance beyond the whole budget never binds; capped, it fits a counter whatever the source's size.
    allowance = np.floor(np.minimum(available * max_epochs, budget)).astype(np.int64)
    m = len(available)
    if np.floor(available * max_epochs).sum() < budget:
        raise ConfigError(
            f"a budget of {budget:.4g} tokens needs {budget / max(available.sum(), 1):.3g} epochs of the "
            f"{available.sum():.4g} available ones, more than max_epochs = {max_epochs:g}",
            where="epoch_cap(max_epochs)",
            fix="Raise max_epochs, lower the budget or add data.",
        )
    natural = available / available.sum()
    needs = mixer.needs | {"token_count"}

    def start(inner: Any, num_domains: int, _: Weights | None) -> EpochCapState:
        check_one_per_domain(m, num_domains, "epoch_cap(available_tokens)", "values")
        return EpochCapState(inner=inner, drawn=counter(np.zeros(m, np.int64)))

    def advance(state: EpochCapState, inner: Any, feedback: Feedback) -> EpochCapState:
        base.require(feedback, frozenset({"token_count"}), "epoch_cap")
        return EpochCapState(inner=inner, drawn=add(state.drawn, feedback.token_count))

    def weights(state: EpochCapState) -> Weights:
        left = jnp.maximum(difference(counter(allowance), state.drawn), 0.0)
        ahead = jnp.maximum(difference(counter(budget), total(state.drawn)), 1.0)
        capped = kl_project_capped_simplex(mixer.weights(state.inner), left / ahead)
        return jnp.where(jnp.any(left > 0), capped, jnp.asarray(natural, capped.dtype))

    return wrapped(mixer, "epoch_cap", start=start, advance=advance, weights=weights, needs=needs)
