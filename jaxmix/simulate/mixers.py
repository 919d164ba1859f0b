"""Simulated training runs: any mixer in a small world, in the order of the training loop, as one compiled program.

Made for designing mixers and for testing them: a run of a few thousand steps takes milliseconds, `vmap` runs many
seeds, worlds or static mixtures at once, and the world's laws say what the best answer would have been.

Example: does a bandit on training losses beat even shares where one domain learns from the other?

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from jaxmix.mixers import odm, static
    >>> from jaxmix.simulate.worlds import log_linear_world
    >>> interaction = jnp.array([[2.0, 0.0], [1.5, 1.0]])
    >>> world = log_linear_world(interaction, irreducible=1.0, reducible=4.0, num_steps=500)
    >>> run = jax.jit(lambda key: simulate(odm(), world, key=key, num_steps=500).final_losses)
    >>> losses = jax.vmap(run)(jax.random.split(jax.random.key(0), 3))
    >>> even = simulate(static(), world, key=jax.random.key(0), num_steps=500).final_losses
    >>> bool(jnp.mean(losses) < jnp.mean(even))
    True
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Key

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array, DomainVector, Float, PRNGKeyArray, Weights
from jaxmix.core.validate import Count, Whole, checked
from jaxmix.mixers.base import Feedback, Mixer, initial_weights
from jaxmix.simulate.worlds import Gradients, World

_SUMS = ("loss_sum", "token_count", "reference_loss_sum", "clipped_excess_sum")
_DEFAULT_EVALUATIONS = 20


class SimulationResult(NamedTuple):
    """One run. With k the stride and s the number of steps:

    Attributes:
        weights: f[s/k, m], the mixer's weights that batches 0, k, 2k, … were drawn by.
        shares: f[s/k, m], what those batches realized.
        losses: f[s/k + 1, m], exact held-out losses after 0, k, 2k, … steps.
        scores: f[s/k, m], `info.score` of the last update before or at those steps' ends; 0 before the first.
        final_losses: f[m], exact held-out losses after the last step.
        mixture: f[m], what the mixer recommends for another run (`mixer.final`), or its last weights.
        state: the mixer's last state.
        evaluations: how often the validation loss was measured for the mixer.
        updates: how often the mixer was updated.
    """

    weights: Float[Array, "s m"]
    shares: Float[Array, "s m"]
    losses: Float[Array, "s1 m"]
    scores: Float[Array, "s m"]
    final_losses: DomainVector
    mixture: Weights
    state: Any
    evaluations: int
    updates: int


class _Carry(NamedTuple):
    world: Any
    mixer: Any
    queue: Array  # f[lag, m], weights that are already on their way to the data, the next one first
    sums: dict[str, Array]  # since the last update
    validation_loss: Array
    score: Array


@checked
def simulate(
    mixer: Mixer,
    world: World,
    *,
    key: PRNGKeyArray,
    num_steps: Count,
    batch_size: Count | None = None,
    prior: ArrayLike | None = None,
    lag: Whole = 0,
    reference_losses: ArrayLike | None = None,
    reward: Callable[[DomainVector], DomainVector] | None = None,
    learning_rate: Any = None,
    eval_every: int | None = None,
    observe: Callable[[DomainVector], DomainVector] | None = None,
    stride: int = 1,
) -> SimulationResult:
    """Runs a mixer in a world, in the training loop's order.

    Before step 0 the validation loss is measured if the cadence asks for it. Then, for every step s: draw a batch by
    `mixer.weights`; take the step; measure the validation loss if it is due after s + 1 steps, else keep the old one;
    update the mixer if that is due. Only the signals in `mixer.needs` are computed.

    Args:
        mixer: any mixer, wrapped or not.
        world: see `World`.
        key: of all randomness. The same key and `prior` give every mixer the same noise in the world.
        num_steps: s, static.
        batch_size: rows of a batch, shares being realized by systematic sampling: within one row of what was asked,
            right on average. `None`: shares are exactly what was asked, and a batch counts as one token.
        prior: what the mixer starts from, f[m].
        lag: how many batches are already drawn when an update is made: 0, or 1 as in the training loop, whose
            weights after step s draw batch s + 2. Without effect on mixers that need no signal.
        reference_losses: one number or m, losses of a frozen reference model. On the same tokens it has the same noise
            as the model, so that the excess of a domain over it has no noise.
        reward: losses f[m] → reward f[m], for mixers that need one.
        learning_rate: number or function of the step, shown to the mixer; that of the world if `None`.
        eval_every: the run's own evaluation schedule, beside the mixer's cadence; `None`: for a mixer without a
            cadence of its own that needs validation losses, 20 times in the run.
        observe: what becomes of a measured validation loss f[m] before the mixer sees it, such as the loss relative to
            targets that differ from world to world.
        stride: what is recorded is thinned to every so many steps; it must divide `num_steps`.

    Returns:
        `SimulationResult`. Wrap the call in `jax.jit` (and `jax.vmap` over keys or worlds) to run it often.

    Raises:
        ConfigError: an argument is out of range, or the mixer needs a signal that neither world nor arguments give.

    Numerics: in the dtype of `world.losses`. A domain without rows in a batch reports sums of 0 and gradients of 0. A
    mixer with `loss_weights` has the batch's shares multiplied by them and scaled to add to 1.
    """
    if stride < 1 or num_steps % stride:
        raise ConfigError(f"the stride {stride} does not divide {num_steps} steps", where="simulate(stride)")
    m = world.num_domains
    evaluate_after, update_after = _schedule(mixer, num_steps, m, eval_every)
    lag = lag if mixer.needs else 0
    world_key, mixer_key, run_key = jax.random.split(key, 3)
    mixer_state = mixer.init(mixer_key, m, None if prior is None else jnp.asarray(prior))
    world_state = world.init(world_key)
    start_losses = world.losses(world_state)
    dtype = start_losses.dtype
    feedback_of = _build_feedback(mixer, world, batch_size, reference_losses, reward, learning_rate)

    def evaluate(key: PRNGKeyArray, state: Any) -> Array:
        losses = world.losses(state)
        measured = losses + world.noise * jax.random.normal(key, (m,), losses.dtype)
        return measured if observe is None else observe(measured)

    def update(key: PRNGKeyArray, mixer_state: Any, feedback: Feedback) -> tuple[Any, Array]:
        mixer_state, info = mixer.update(key, mixer_state, feedback)
        return mixer_state, info.score.astype(dtype)

    def one_step(carry: _Carry, now: tuple[Array, Array, Array]) -> tuple[_Carry, tuple[Array, ...]]:
        step, is_evaluated, is_updated = now
        draw_key, step_key, noise_key, eval_key, update_key = jax.random.split(jax.random.fold_in(run_key, step), 5)
        queue = jnp.concatenate([carry.queue, mixer.weights(carry.mixer)[None]])
        weights = queue[0]
        counts = _draw(draw_key, weights, batch_size).astype(dtype)
        shares = counts / (batch_size or 1)
        sums, rest = feedback_of(noise_key, carry.world, counts, step)
        world_state = world.step(step_key, carry.world, _weighted(mixer, carry.mixer, shares))
        validation_loss = jax.lax.cond(
            is_evaluated, lambda: evaluate(eval_key, world_state), lambda: carry.validation_loss
        )
        sums = {name: carry.sums[name] + value for name, value in sums.items()}
        signals = {**sums, **rest, **({"validation_loss": validation_loss} if _needs_validation(mixer) else {})}
        mixer_state, score = jax.lax.cond(
            is_updated,
            lambda: update(update_key, carry.mixer, Feedback(**signals)),
            lambda: (carry.mixer, carry.score),
        )
        sums = {name: jnp.where(is_updated, jnp.zeros_like(value), value) for name, value in sums.items()}
        after = _Carry(world_state, mixer_state, queue[1:], sums, validation_loss, score)
        return after, (weights, shares, world.losses(world_state), score)

    weights = mixer.weights(mixer_state)
    zeros = jnp.zeros_like(start_losses)
    validation_loss = (
        evaluate(jax.random.fold_in(run_key, num_steps), world_state) if evaluate_after[0] else zeros + jnp.nan
    )
    carry = _Carry(
        world=world_state,
        mixer=mixer_state,
        queue=jnp.broadcast_to(weights[None], (lag, m)),
        sums={name: zeros for name in _SUMS if name in mixer.needs},
        validation_loss=validation_loss,
        score=zeros,
    )
    steps = (jnp.arange(num_steps, dtype=jnp.int32), jnp.asarray(evaluate_after[1:]), jnp.asarray(update_after))
    carry, (weights, shares, losses, scores) = jax.lax.scan(one_step, carry, steps)
    final = mixer.weights if mixer.final is None else mixer.final
    return SimulationResult(
        weights=weights[::stride],
        shares=shares[::stride],
        losses=jnp.concatenate([start_losses[None], losses[stride - 1 :: stride]]),
        scores=scores[stride - 1 :: stride],
        final_losses=losses[-1],
        mixture=final(carry.mixer),
        state=carry.mixer,
        evaluations=int(np.sum(evaluate_after)),
        updates=int(np.sum(update_after)),
    )


@checked
def run_static(
    world: World, mixture: ArrayLike, *, key: PRNGKeyArray, num_steps: Count, batch_size: Count | None = None
) -> DomainVector:
    """Final losses f[m] of a run on one mixture: what `simulate` gives for a static mixer of it, and cheaper."""
    world_key, _, run_key = jax.random.split(key, 3)
    mixture = initial_weights(world.num_domains, jnp.asarray(mixture))

    def one_step(state: Any, step: Array) -> tuple[Any, None]:
        draw_key, step_key, *_ = jax.random.split(jax.random.fold_in(run_key, step), 5)
        counts = _draw(draw_key, mixture, batch_size)
        return world.step(step_key, state, counts / (batch_size or 1)), None

    state, _ = jax.lax.scan(one_step, world.init(world_key), jnp.arange(num_steps, dtype=jnp.int32))
    return world.losses(state)


class StaticSearch(NamedTuple):
    """The best static mixture and all that were tried.

    Attributes:
        mixture: the best of the candidates.
        losses: its final losses, mean over the keys.
        candidates: all mixtures tried; the first is uniform.
        candidate_losses: their final losses, mean over the keys.
    """

    mixture: Weights
    losses: DomainVector
    candidates: Float[Array, "c m"]
    candidate_losses: Float[Array, "c m"]


@checked
def best_static(
    world: World,
    keys: Key[Array, " s"],
    *,
    num_candidates: Count,
    num_steps: int,
    batch_size: int | None = None,
    concentration: float = 1.0,
    weights: ArrayLike | None = None,
) -> StaticSearch:
    """Searches static mixtures: uniform and `num_candidates − 1` Dirichlet draws, each run once per key.

    Args:
        world: see `World`.
        keys: keys[k] of the runs; every candidate sees the same ones. The candidates come from the first.
        num_candidates: ≥ 1.
        num_steps, batch_size: see `simulate`.
        concentration: of the symmetric Dirichlet distribution; 1 draws evenly from the simplex.
        weights: f[m], of the domains in the objective, the weighted sum of final losses; all 1 if `None`. Losses of
            nan (not measured) do not count.
    """
    m = world.num_domains
    uniform = initial_weights(m, None)
    draw = jax.random.dirichlet(
        jax.random.fold_in(keys[0], num_candidates), jnp.full_like(uniform, concentration), (num_candidates - 1,)
    )
    candidates = jnp.concatenate([uniform[None], draw])
    run = lambda mixture, key: run_static(world, mixture, key=key, num_steps=num_steps, batch_size=batch_size)
    losses = jnp.mean(jax.vmap(jax.vmap(run, (None, 0)), (0, None))(candidates, keys), axis=1)
    counted = losses if weights is None else losses * jnp.asarray(weights, losses.dtype)[None, :]
    best = jnp.argmin(jnp.nansum(counted, axis=1))
    return StaticSearch(candidates[best], losses[best], candidates, losses)


def systematic_counts(key: PRNGKeyArray, weights: Weights, batch_size: int) -> Float[Array, " m"]:
    """Rows per domain by systematic sampling: each within one of `batch_size · weights`, that on average, all there.

    Row k belongs to the domain whose stretch of the cumulative weights holds `(k + u) / batch_size`, with one u.
    """
    offset = jax.random.uniform(key, (), weights.dtype)
    ends = jnp.cumsum(weights)
    ends = ends / ends[-1]
    # From where the sum is full on, every row is taken whatever the rounding: trailing weights of 0 get none.
    rows = jnp.where(ends < 1.0, jnp.clip(jnp.ceil(ends * batch_size - offset), 0, batch_size), batch_size)
    return jnp.diff(rows, prepend=0.0)


def _draw(key: PRNGKeyArray, weights: Weights, batch_size: int | None) -> Float[Array, " m"]:
    return weights if batch_size is None else systematic_counts(key, weights, batch_size)


def _weighted(mixer: Mixer, state: Any, shares: Array) -> Array:
    """The shares as the gradient sees them, after the loss weights of methods that have any."""
    if mixer.loss_weights is None:
        return shares
    seen = shares * mixer.loss_weights(state).astype(shares.dtype)
    return seen / jnp.sum(seen)


def _schedule(mixer: Mixer, num_steps: int, m: int, eval_every: int | None) -> tuple[np.ndarray, np.ndarray]:
    """bool[s + 1]: validation measured after so many steps; bool[s]: mixer updated after step s."""
    cadence = mixer.cadence
    evaluated = np.zeros(num_steps + 1, bool)
    if _needs_validation(mixer):
        if eval_every is None and cadence.validate == 0:
            eval_every = max(num_steps // _DEFAULT_EVALUATIONS, 1)
        evaluated = np.array([cadence.is_validation_due(step, m) for step in range(num_steps + 1)])
        if eval_every:
            evaluated |= np.arange(num_steps + 1) % eval_every == 0
    updated = np.arange(1, num_steps + 1) % cadence.update == 0
    return evaluated, updated


def _needs_validation(mixer: Mixer) -> bool:
    return "validation_loss" in mixer.needs


def _build_feedback(
    mixer: Mixer,
    world: World,
    batch_size: int | None,
    reference_losses: ArrayLike | None,
    reward: Callable[[DomainVector], DomainVector] | None,
    learning_rate: Any,
) -> Callable[[PRNGKeyArray, Any, Array, Array], tuple[dict[str, Array], dict[str, Array]]]:
    """`(key, world state, rows per domain, step) -> (sums, other signals)`: a step's signals that the mixer needs."""
    needs, m = mixer.needs, world.num_domains
    has = {
        **dict.fromkeys(("reference_loss_sum", "clipped_excess_sum"), reference_losses is not None),
        **dict.fromkeys(("gradient_alignment", "validation_alignment", "gradient_noise"), world.gradients is not None),
        "reward": reward is not None,
    }
    fixes = {"reward": "Pass reward=.", "reference_loss_sum": "Pass reference_losses=."}
    fixes["clipped_excess_sum"] = fixes["reference_loss_sum"]
    for name in sorted(needs):
        if not has.get(name, True):
            raise ConfigError(
                f"mixer {mixer.name!r} needs the signal {name!r}, which this simulation does not have",
                where="simulate",
                fix=fixes.get(name, "Use a world with parameters, such as quadratic_world."),
            )
    rate = world.learning_rate if learning_rate is None else learning_rate

    def feedback(key: PRNGKeyArray, state: Any, counts: Array, step: Array) -> tuple[dict, dict]:
        loss_key, gradient_key = jax.random.split(key)
        shares = counts / (batch_size or 1)
        losses = (world.train_losses or world.losses)(state)
        is_drawn = counts > 0
        summed = lambda per_token: jnp.where(is_drawn, counts * per_token, 0.0)
        # Of share s: std train_noise / √s per token, on s · batch_size tokens.
        scale = jnp.sqrt(shares) * (batch_size or 1) * world.train_noise
        noise = scale * jax.random.normal(loss_key, (m,), losses.dtype)
        sums = {"token_count": counts, "loss_sum": summed(losses) + noise}
        if reference_losses is not None:
            reference = jnp.broadcast_to(jnp.asarray(reference_losses, losses.dtype), (m,))
            sums["reference_loss_sum"] = summed(reference) + noise
            sums["clipped_excess_sum"] = summed(jnp.maximum(losses - reference, 0.0))
        rest = {"learning_rate": jnp.asarray(rate(step) if callable(rate) else rate, losses.dtype)}
        if reward is not None:
            rest["reward"] = reward(losses)
        if world.gradients is not None:
            exact = world.gradients(state)
            rest |= _gradient_signals(gradient_key, exact, world.gradient_noise, shares, batch_size or 1)
        needed = lambda group: {name: value for name, value in group.items() if name in needs}
        return needed(sums), needed(rest)

    return feedback


def _gradient_signals(
    key: PRNGKeyArray, exact: Gradients, noise: Any, shares: Array, batch_size: int
) -> dict[str, Array]:
    """Inner products of the gradients that this batch's rows give, and the spread of one row's gradient."""
    train = exact.train
    is_drawn = shares > 0
    per_entry = jnp.sqrt(noise / jnp.where(is_drawn, shares, 1.0) / train.shape[1])
    noisy = train + per_entry[:, None] * jax.random.normal(key, train.shape, train.dtype)
    measured = jnp.where(is_drawn[:, None], noisy, 0.0)
    return {
        "gradient_alignment": measured @ measured.T,
        "validation_alignment": measured @ exact.validation.T,
        "gradient_noise": jnp.where(is_drawn, batch_size * jnp.asarray(noise, train.dtype), 0.0),
    }
