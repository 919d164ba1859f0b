"""What all wrappers share: their registry, and the functions that a wrapper takes over from its inner mixer."""

from __future__ import annotations

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


def wrapped(
    mixer: Mixer,
    name: str,
    *,
    start: Callable[[Any, int, Weights | None], Any] | None = None,
    step: Callable[[Any, Any, Feedback], Any] | None = None,
    bound: Callable[[Weights], Weights] | None = None,
    **functions: Any,
) -> Mixer:
    """Wraps `mixer` under the name `name(mixer)`.

    What the wrapper does not define itself is the inner mixer's, applied to the field `inner` of the wrapper's state.

    Args:
        mixer: the inner mixer.
        name: of the wrapper.
        start: `(inner state, num_domains, prior) -> state`; an `InnerState` by default.
        step: `(state, new inner state, feedback) -> state`; an `InnerState` by default.
        bound: a function of weights alone, applied to the inner mixer's weights and to the mixture that it
            recommends. Factors on losses stay the inner mixer's: wrappers act on what is drawn.
        functions: fields of `Mixer` that the wrapper defines in its own way.
    """

    def init(key: PRNGKeyArray, num_domains: int, prior: Weights | None = None) -> Any:
        inner = mixer.init(key, num_domains, prior)
        return start(inner, num_domains, prior) if start else InnerState(inner=inner)

    def update(key: PRNGKeyArray, state: Any, feedback: Feedback) -> tuple[Any, MixerInfo]:
        inner, info = mixer.update(key, state.inner, feedback)
        return step(state, inner, feedback) if step else InnerState(inner=inner), info

    def on_inner(function: Callable[[Any], Weights], then: Callable[[Weights], Weights] | None = None) -> Any:
        return lambda state: then(function(state.inner)) if then else function(state.inner)

    inherited = {
        "init": init,
        "update": update,
        "weights": on_inner(mixer.weights, bound),
        "loss_weights": mixer.loss_weights and on_inner(mixer.loss_weights),
        "final": mixer.final and on_inner(mixer.final, bound),
    }
    return mixer._replace(**{**inherited, **functions}, name=f"{name}({mixer.name})")
