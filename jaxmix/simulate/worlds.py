"""Worlds with known laws of how losses respond to mixtures: a mixer runs in one in milliseconds.

A world says how the domains' losses move when one optimizer step draws its batch by given shares. Every world is a
bundle of pure functions over arrays: it runs under `jit`, `vmap` and `scan`, and the arrays that define it may be
traced, so that one compiled program serves many worlds of equal shape. `jaxmix.simulate.mixers` runs mixers in them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array, DomainVector, Float, Int, PRNGKeyArray, Weights
from jaxmix.core.validate import Decay, checked


class Gradients(NamedTuple):
    """Exact gradients of the domains' losses.

    Attributes:
        train: of each domain's training loss, without noise.
        validation: of each domain's held-out loss.
    """

    train: Float[Array, "m p"]
    validation: Float[Array, "m p"]


class World(NamedTuple):
    """How losses respond to mixtures, as a bundle of pure functions.

    Attributes:
        init: `(key) -> state`, before the first step.
        step: `(key, state, shares) -> state`, one optimizer step on a batch of these shares, f[m] on the simplex.
        losses: `(state) -> f[m]`, held-out loss per domain (nats per token), exact.
        num_domains: m.
        irreducible: f[m], the floor of each loss; `losses − irreducible` is the reducible loss.
        train_losses: `(state) -> f[m]`, expected training loss per domain; the held-out one if `None`.
        gradients: `(state) -> Gradients`, for worlds with parameters.
        gradient_noise: f[m], trace of the covariance of a whole batch's gradient, if all of it is of one domain. A
            batch's part of share s has this over s.
        noise: std of one evaluation of a loss, independent between evaluations and domains.
        train_noise: std of the mean training loss of a whole batch of one domain; a part of share s has this over √s.
        learning_rate: of a step, or a function of the number of steps before it.
    """

    init: Callable[[PRNGKeyArray], Any]
    step: Callable[[PRNGKeyArray, Any, Weights], Any]
    losses: Callable[[Any], DomainVector]
    num_domains: int
    irreducible: DomainVector
    train_losses: Callable[[Any], DomainVector] | None = None
    gradients: Callable[[Any], Gradients] | None = None
    gradient_noise: ArrayLike = 0.0
    noise: ArrayLike = 0.0
    train_noise: ArrayLike = 0.0
    learning_rate: Any = 1.0


Interaction = Callable[[Int[Array, ""]], Float[Array, "m m"]]
"""Number of steps before this one → A of this step."""


def decaying(interaction: ArrayLike, time: float) -> Interaction:
    """`A(t) = A · exp(−t / time)`, t in steps: domains teach less and less."""
    start = as_array(interaction)
    return lambda step: start * jnp.exp(-step.astype(start.dtype) / time)


def swapped(before: ArrayLike, after: ArrayLike, at: int) -> Interaction:
    """The interaction `before` for the first `at` steps, then `after`."""
    first, then = as_array(before), as_array(after)
    return lambda step: jnp.where(step < at, first, then)


class LinearState(NamedTuple):
    step: Int[Array, ""]
    losses: DomainVector
    momentum: DomainVector


@checked
def linear_world(
    interaction: ArrayLike | Interaction,
    *,
    num_domains: int | None = None,
    start_losses: ArrayLike = 5.0,
    momentum: Decay = 0.0,
    noise: ArrayLike = 0.0,
    train_noise: ArrayLike = 0.0,
) -> World:
    """Losses that fall linearly in the shares, the law that linear mixing optimization assumes.

        f ← momentum · f + (1 − momentum) · p,     L ← L − A(t) f

    Args:
        interaction: A, f[m, m]: entry (i, j) is the drop of domain i's loss in a step on domain j alone; or a
            function of the number of steps before this one, see `decaying` and `swapped`.
        num_domains: m; needed only if `interaction` is a function.
        start_losses: L before the first step, one number or m. Losses can fall below 0.
        momentum: in [0, 1): like a first moment, f starts at 0, and a step acts on about 1 / (1 − momentum) others.
        noise, train_noise: see `World`.

    Example:
        >>> world = linear_world(jnp.array([[0.5, 0.25], [0.0, 1.0]]))
        >>> key = jax.random.key(0)
        >>> state = world.step(key, world.init(key), jnp.array([0.5, 0.5]))
        >>> world.losses(state).tolist()
        [4.625, 4.5]
    """
    if callable(interaction):
        if num_domains is None:
            raise ConfigError("an interaction that is a function needs num_domains", where="linear_world(num_domains)")
        m, at = num_domains, interaction
    else:
        constant = as_array(interaction)
        m = constant.shape[0]
        check_shape("linear_world(interaction)", constant, (m, m))
        at = lambda step: constant
    start = per_domain("linear_world(start_losses)", start_losses, m)

    def step(key: PRNGKeyArray, state: LinearState, shares: Weights) -> LinearState:
        del key
        filtered = momentum * state.momentum + (1.0 - momentum) * shares.astype(start.dtype)
        return LinearState(state.step + 1, state.losses - at(state.step) @ filtered, filtered)

    return World(
        init=lambda key: LinearState(jnp.int32(0), start, jnp.zeros_like(start)),
        step=step,
        losses=lambda state: state.losses,
        num_domains=m,
        irreducible=jnp.zeros_like(start),
        noise=noise,
        train_noise=train_noise,
    )


class Exposure(NamedTuple):
    """Shares summed over steps, with Kahan's compensation: thousands of small terms keep float32's precision.

    Attributes:
        total: summed shares.
        excess: what rounding has added to `total`.
    """

    total: DomainVector
    excess: DomainVector


def _exposure_world(
    losses: Callable[[Exposure], DomainVector], irreducible: DomainVector, noise: ArrayLike, train_noise: ArrayLike
) -> World:
    """A world whose losses depend on the summed shares alone."""
    zeros = jnp.zeros_like(irreducible)

    def step(key: PRNGKeyArray, exposure: Exposure, shares: Weights) -> Exposure:
        del key
        rest = shares.astype(zeros.dtype) - exposure.excess
        total = exposure.total + rest
        return Exposure(total, (total - exposure.total) - rest)

    return World(
        init=lambda key: Exposure(zeros, zeros),
        step=step,
        losses=losses,
        num_domains=len(zeros),
        irreducible=irreducible,
        noise=noise,
        train_noise=train_noise,
    )


def log_linear_world(
    interaction: ArrayLike,
    *,
    irreducible: ArrayLike,
    reducible: ArrayLike,
    num_steps: int,
    noise: ArrayLike = 0.0,
    train_noise: ArrayLike = 0.0,
) -> World:
    """The static log-linear law as dynamics: each step takes a share off the reducible loss.

        L_i = c_i + b_i exp(−Σ_j A_ij n_j / num_steps),     n_j ← n_j + p_j

    After `num_steps` steps on one mixture p, the losses are exactly the law's `c_i + b_i exp(−Σ_j A_ij p_j)`. They
    depend on the mixtures drawn only through their mean.

    Args:
        interaction: A, f[m, m].
        irreducible: c, one number or m.
        reducible: b, the loss above c before the first step, one number or m. A nan in b makes that domain's loss
            nan: it is not measured.
        num_steps: steps after which the law holds, > 0.
        noise, train_noise: see `World`.
    """
    a = as_array(interaction)
    m = a.shape[0]
    check_shape("log_linear_world(interaction)", a, (m, m))
    c = per_domain("log_linear_world(irreducible)", irreducible, m)
    b = per_domain("log_linear_world(reducible)", reducible, m)
    losses = lambda exposure: c + b * jnp.exp(-(a @ (exposure.total / num_steps)))
    return _exposure_world(losses, c, noise, train_noise)


def power_law_world(
    transfer: ArrayLike,
    *,
    irreducible: ArrayLike,
    scale: ArrayLike,
    exponent: ArrayLike,
    start: ArrayLike = 1.0,
    tokens_per_step: float = 1.0,
    noise: ArrayLike = 0.0,
    train_noise: ArrayLike = 0.0,
) -> World:
    """A power law per domain in the effective tokens that all domains contribute.

        L_i = c_i + b_i (n0_i + Σ_j T_ij n_j)^(−alpha_i),     n_j ← n_j + tokens_per_step · p_j

    Args:
        transfer: T, f[m, m] ≥ 0: how many tokens of domain i one token of domain j is worth.
        irreducible: c, one number or m.
        scale: b, one number or m.
        exponent: alpha > 0, one number or m.
        start: n0 > 0, one number or m: what the model knows before the first step, in tokens.
        tokens_per_step: of a batch.
        noise, train_noise: see `World`.
    """
    t = as_array(transfer)
    m = t.shape[0]
    check_shape("power_law_world(transfer)", t, (m, m))
    c = per_domain("power_law_world(irreducible)", irreducible, m)
    b = per_domain("power_law_world(scale)", scale, m)
    alpha = per_domain("power_law_world(exponent)", exponent, m)
    n0 = per_domain("power_law_world(start)", start, m)
    losses = lambda exposure: c + b * (n0 + tokens_per_step * (t @ exposure.total)) ** -alpha
    return _exposure_world(losses, c, noise, train_noise)


class QuadraticState(NamedTuple):
    params: Float[Array, " p"]
    optimizer: Any


def quadratic_world(
    hessians: ArrayLike,
    optima: ArrayLike,
    start: ArrayLike,
    *,
    learning_rate: float | Callable[[Any], Any],
    gradient_noise: ArrayLike = 0.0,
    irreducible: ArrayLike = 0.0,
    optimizer: Callable[[Any], optax.GradientTransformation] = optax.sgd,
    noise: ArrayLike = 0.0,
    train_noise: ArrayLike = 0.0,
) -> World:
    """One parameter vector, a quadratic loss per domain, and an optimizer that sees noisy gradients.

        L_i = c_i + ½ (x − x_i)ᵀ H_i (x − x_i),     g = Σ_j p_j H_j (x − x_j) + e,     x ← optimizer(g)

    with e of independent normal entries of variance `Σ_j p_j gradient_noise_j / P`.

    Args:
        hessians: H, f[m, P, P], symmetric, positive semidefinite. Directions that several H_i share transfer
            between domains; where their optima differ the domains are in conflict.
        optima: x_i, f[m, P].
        start: x before the first step, f[P].
        learning_rate: number or optax schedule, given to `optimizer`.
        gradient_noise: see `World`, one number or m.
        irreducible: c, one number or m.
        optimizer: learning rate → optax transformation, such as `optax.sgd` or `optax.adam`.
        noise, train_noise: see `World`.
    """
    h, x, x0 = as_array(hessians), as_array(optima), as_array(start)
    m, size = x.shape
    check_shape("quadratic_world(hessians)", h, (m, size, size))
    check_shape("quadratic_world(start)", x0, (size,))
    c = per_domain("quadratic_world(irreducible)", irreducible, m)
    trace = per_domain("quadratic_world(gradient_noise)", gradient_noise, m)
    transformation = optimizer(learning_rate)

    def by_domain(params: Array) -> tuple[Array, Array]:
        distance = params[None, :] - x
        return distance, jnp.einsum("mpq,mq->mp", h, distance)

    def losses(state: QuadraticState) -> DomainVector:
        distance, gradient = by_domain(state.params)
        return c + 0.5 * jnp.sum(distance * gradient, axis=1)

    def step(key: PRNGKeyArray, state: QuadraticState, shares: Weights) -> QuadraticState:
        shares = shares.astype(c.dtype)
        _, gradient = by_domain(state.params)
        spread = jnp.sqrt(jnp.sum(shares * trace) / size)
        seen = shares @ gradient + spread * jax.random.normal(key, (size,), c.dtype)
        updates, optimizer_state = transformation.update(seen, state.optimizer, state.params)
        return QuadraticState(state.params + updates, optimizer_state)

    def gradients(state: QuadraticState) -> Gradients:
        _, gradient = by_domain(state.params)
        return Gradients(train=gradient, validation=gradient)

    return World(
        init=lambda key: QuadraticState(x0, transformation.init(x0)),
        step=step,
        losses=losses,
        num_domains=m,
        irreducible=c,
        gradients=gradients,
        gradient_noise=trace,
        noise=noise,
        train_noise=train_noise,
        learning_rate=learning_rate,
    )


def as_array(x: ArrayLike) -> Array:
    """float32, or float64 in 64-bit mode."""
    return jnp.asarray(x, jnp.result_type(float))


def per_domain(where: str, x: ArrayLike, m: int) -> Array:
    """One number or m of them as f[m]."""
    array = as_array(x)
    if array.shape not in ((), (m,)):
        raise ConfigError(f"shape {array.shape}, expected one number or {m}", where=where)
    return jnp.broadcast_to(array, (m,))


def check_shape(where: str, array: Array, shape: tuple[int, ...]) -> None:
    """Raises `ConfigError` unless `array` has this shape."""
    if array.shape != shape:
        raise ConfigError(f"shape {array.shape}, expected {shape}", where=where)
