"""What all wrappers share: their registry, and the functions that a wrapper takes over from its inner mixer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxmix.core.pytree import state
from jaxmix.core.registry import Registry
from jaxmix.core.types import PRNGKeyArray, Weights
from jaxmix.mixers.base import Feedback, Mixer, MixerInfo

registry = Registry("wrapper")
"""All wrappers by name; a wrapper takes a mixer first."""


@state(version=1)
class InnerState:
    """The state of a wrapper that has none of its own.

    Attributes:
        inner: the wrapped mixer's state.
    """

    inner: Any


Start = Callable[[Any, int, Weights | None], Any]
"""`(inner state, num_domains, prior) -> state`"""

Advance = Callable[[Any, Any, Feedback], Any]
"""`(state, new inner state, feedback) -> new state`"""


def wrapped(
    mixer: Mixer,
    name: str,
    *,
    start: Start = lambda inner, num_domains, prior: InnerState(inner),
    advance: Advance = lambda state, inner, feedback: dataclasses.replace(state, inner=inner),
    bound: Callable[[Weights], Weights] | None = None,
    **functions: Any,
) -> Mixer:
    """Wraps `mixer` under the name `name(mixer)`.

    What the wrapper does not define itself is the inner mixer's, applied to the field `inner` of the wrapper's state.

    Args:
        mixer: the inner mixer.
        name: of the wrapper.
        start: the wrapper's state around the inner mixer's first one; an `InnerState` by default.
        advance: the wrapper's state around the inner mixer's next one; by default the rest of it stays.
        bound: a function of weights alone, applied to the inner mixer's weights and to the mixture that it
            recommends. Factors on losses stay the inner mixer's: wrappers act on what is drawn.
        functions: fields of `Mixer` that the wrapper defines.
    """

    def on_inner(function: Callable[[Any], Weights], then: Callable[[Weights], Weights] | None = None) -> Any:
        return lambda state: then(function(state.inner)) if then else function(state.inner)

    def init(key: PRNGKeyArray, num_domains: int, prior: Weights | None = None) -> Any:
        return start(mixer.init(key, num_domains, prior), num_domains, prior)

    def update(key: PRNGKeyArray, state: Any, feedback: Feedback) -> tuple[Any, MixerInfo]:
        inner, info = mixer.update(key, state.inner, feedback)
        return advance(state, inner, feedback), info

    inherited = {
        "init": init,
        "update": update,
        "weights": on_inner(mixer.weights, bound),
        "loss_weights": mixer.loss_weights and on_inner(mixer.loss_weights),
        "final": mixer.final and on_inner(mixer.final, bound),
    }
    return mixer._replace(**{**inherited, **functions}, name=f"{name}({mixer.name})")
