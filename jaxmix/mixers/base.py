"""The mixer protocol: three pure functions, the signals they need, and when.

A mixer turns what training measured on each domain (`Feedback`) into the next sampling weights. That is all the
training loop knows of it: the loop computes the signals in `needs`, calls `update` at the mixer's `cadence`, and draws
data by `weights(state)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, get_args

import jax
import jax.numpy as jnp

from jaxmix.core.errors import ConfigError
from jaxmix.core.pytree import state
from jaxmix.core.registry import Registry
from jaxmix.core.schedule import MixtureSchedule
from jaxmix.core.types import Array, Bool, DomainVector, Float, PRNGKeyArray, Weights
from jaxmix.core.validate import check_simplex

SIGNALS = (
    "loss_sum",
    "token_count",
    "reference_loss_sum",
    "clipped_excess_sum",
    "validation_loss",
    "gradient_alignment",
    "validation_alignment",
    "gradient_noise",
    "learning_rate",
    "reward",
)
"""Names of the fields of `Feedback`, which are also the names a mixer may list in `needs`."""

REFERENCE_SIGNALS = ("reference_loss_sum", "clipped_excess_sum")
"""The signals that need a frozen reference model."""

registry = Registry("mixer")
"""All mixers by name. Register a factory of your own with `@jaxmix.mixers.registry.register`."""

make = registry.make
"""`make("odm", **kwargs)`: the mixer of that name; unknown names and arguments list the nearest known one."""


if TYPE_CHECKING:  # a mixer reads only the signals it needs, after `require`
    Vector: TypeAlias = Any
    Matrix: TypeAlias = Any
    VectorOrMatrix: TypeAlias = Any
    Scalar: TypeAlias = Any
else:
    Vector, Matrix, Scalar = DomainVector | None, Float[Array, "m m"] | None, Float[Array, ""] | None
    VectorOrMatrix = DomainVector | Matrix


@state(version=1)
class Feedback:
    """What one optimizer step measured, per domain. Every field is optional; `None` means "not measured".

    Attributes:
        loss_sum: f32[m], summed training loss (nats) of the step's tokens, over all micro-batches and devices.
        token_count: f32[m], number of tokens in `loss_sum`; 0 for a domain the step did not draw.
        reference_loss_sum: f32[m], summed loss of a frozen reference model on the same tokens.
        clipped_excess_sum: f32[m], `Σ max(loss − reference loss, 0)` over the same tokens, clipped token by token.
        validation_loss: f32[m], mean held-out loss (nats per token); held constant between evaluations.
        gradient_alignment: f32[m, m], inner products of the domains' mean gradients on training data, their squared
            norms on the diagonal; or f32[m], each one's inner product with the target's gradient. 0 where a domain
            was not drawn.
        validation_alignment: f32[m, m], entry (j, i): inner product of the gradient of training domain j with the
            gradient of domain i's held-out loss.
        gradient_noise: f32[m], trace of the covariance of one row's gradient, per domain.
        learning_rate: f32[], of the step.
        reward: f32[m], any other measurement per domain; larger is better.
    """

    loss_sum: Vector = None
    token_count: Vector = None
    reference_loss_sum: Vector = None
    clipped_excess_sum: Vector = None
    validation_loss: Vector = None
    gradient_alignment: VectorOrMatrix = None
    validation_alignment: Matrix = None
    gradient_noise: Vector = None
    learning_rate: Scalar = None
    reward: Vector = None


class Cadence(NamedTuple):
    """When the loop updates a mixer, in optimizer steps. Static: it never depends on an array.

    Attributes:
        update: `update` is called after every `update` steps. Sums in its feedback run over them; gradients are
            measured on the last of them.
        validate: `validation_loss` is refreshed before step 0 and after every `validate` steps; 0 means that the
            mixer takes whatever the run's own evaluation schedule provides.
        round_length: > 0 repeats the evaluations in rounds of so many steps, and
        evaluations: then only the first `1 + evaluations · m` evaluations of a round are made (m domains).
        first_step: no evaluation is made before it, and rounds count from it.
    """

    update: int = 1
    validate: int = 0
    round_length: int = 0
    evaluations: int = 0
    first_step: int = 0

    def is_validation_due(self, step: int, num_domains: int) -> bool:
        """Whether the mixer wants the validation loss after `step` steps, before the next one."""
        if self.validate == 0 or step < self.first_step:
            return False
        position = step - self.first_step
        position = position % self.round_length if self.round_length else position
        is_in_window = self.round_length == 0 or position <= self.evaluations * num_domains * self.validate
        return is_in_window and position % self.validate == 0

    def count_validations(self, steps: int, num_domains: int) -> int:
        """How many of the steps 0, …, `steps` have a validation that is due."""
        last = steps - self.first_step
        if self.validate == 0 or last < 0:
            return 0
        if self.round_length == 0:
            return last // self.validate + 1
        window = min(self.evaluations * num_domains * self.validate, self.round_length - 1)
        rounds, rest = divmod(last + 1, self.round_length)
        partial = 0 if rest == 0 else min(rest - 1, window) // self.validate + 1
        return rounds * (window // self.validate + 1) + partial


class MixerInfo(NamedTuple):
    """What one update reports for diagnosis; logged, not carried over.

    Attributes:
        score: f32[m], the method's score of each domain; a larger one means "draw more".
        extra: further named arrays of fixed shape.
    """

    score: DomainVector
    extra: dict[str, Array]


class _Init(Protocol):
    def __call__(self, key: PRNGKeyArray, num_domains: int, prior: Weights | None = None) -> Any: ...


class _Update(Protocol):
    def __call__(self, key: PRNGKeyArray, state: Any, feedback: Feedback) -> tuple[Any, MixerInfo]: ...


class _Weights(Protocol):
    def __call__(self, state: Any) -> Weights: ...


Gradients = Literal["exact", "sketch", "last_layer"]
GRADIENTS = get_args(Gradients)
"""How gradient signals may be estimated, see `jaxmix.train.lm.signals`."""


class Mixer(NamedTuple):
    """A data mixer as a bundle of pure functions.

    Attributes:
        init: `(key, num_domains, prior=None) -> state`. `prior` is a simplex vector f32[m], uniform by default;
            most methods start from it.
        update: `(key, state, feedback) -> (state, info)`. Jit-able; the state's structure, shapes and dtypes stay.
            Fields of `feedback` that the mixer does not need are ignored; a missing one that it needs raises
            `ConfigError` when the function is traced.
        weights: `(state) -> f32[m]` on the simplex, the sampling weights that the next block of data is drawn by.
        needs: names out of `SIGNALS`.
        cadence: when the loop calls `update` and refreshes the validation loss.
        name: for logs and error messages.
        gradients: out of `GRADIENTS`, how to estimate the gradient signals among `needs`.
        loss_weights: `(state) -> f32[m]`, factors on the domains' training losses, for methods that weight the loss
            and leave the draws alone; `None` for all 1.
        loss_normalization: the normalization of the training loss that `loss_weights` are meant for; `None` for any.
        final: `(state) -> f32[m]`, the mixture that the method recommends for another run; `None`: its weights.
        schedule: that the weights follow, for a plan of the run, before what wrappers make of them; `None` where they
            follow something else.
    """

    init: _Init
    update: _Update
    weights: _Weights
    needs: frozenset[str] = frozenset()
    cadence: Cadence = Cadence()
    name: str = "mixer"
    gradients: str = "exact"
    loss_weights: _Weights | None = None
    final: _Weights | None = None
    loss_normalization: str | None = None
    schedule: MixtureSchedule | None = None


def require(feedback: Feedback, needs: frozenset[str], name: str) -> None:
    """Raises `ConfigError` if `feedback` lacks a signal in `needs`. Runs at trace time only."""
    for signal in sorted(needs):
        if getattr(feedback, signal) is None:
            raise ConfigError(
                f"mixer {name!r} needs the signal {signal!r}, and the feedback has none",
                where="Feedback",
                fix="Pass it, or build the train step with signals=mixer.needs.",
            )


def initial_weights(num_domains: int, prior: Weights | None) -> Weights:
    """The prior (float32; float64 in 64-bit mode), or uniform weights. Its values are checked unless it is traced."""
    if num_domains < 1:
        raise ConfigError(f"a mixer needs at least one domain, got {num_domains}", where="mixer.init")
    if prior is None:
        return jnp.full((num_domains,), 1.0 / num_domains, jnp.result_type(float))
    prior = jnp.asarray(prior, jnp.result_type(float))
    if prior.shape != (num_domains,):
        raise ConfigError(f"the prior has shape {prior.shape}, expected ({num_domains},)", where="mixer.init")
    if not isinstance(prior, jax.core.Tracer):
        check_simplex(prior.tolist(), "prior of mixer.init")
    return prior / jnp.sum(prior)


def is_present(feedback: Feedback) -> Bool[Array, " m"]:
    """Which domains the step drew, with a finite loss. Ignore what the feedback holds for the others."""
    return (feedback.token_count > 0) & jnp.isfinite(feedback.loss_sum)
