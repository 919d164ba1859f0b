"""Aioli: measures how every domain lowers every loss, with short probes inside ordinary training.

Chen, Hu, Lourie, Cho, Ré: "Aioli: A Unified Optimization Framework for Language Model Data Mixing",
arXiv 2411.05735.
"""

from __future__ import annotations

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from jaxmix.core.errors import ConfigError
from jaxmix.core.pytree import state
from jaxmix.core.simplex import exponentiated_gradient_step
from jaxmix.core.types import Array, Bool, DomainVector, Float, Int, PRNGKeyArray, Weights
from jaxmix.core.validate import NonNegative, Share, at_least, check_number, checked
from jaxmix.mixers.base import Cadence, Feedback, Mixer, MixerInfo, initial_weights, registry, require
from jaxmix.mixers.lmo import normalized_interaction


@state(version=1)
class AioliState:
    """Attributes:
    count: i32[], updates so far.
    weights: f32[m], the mixture outside of probes.
    order: i32[s · m], which domain each interval of this round probes; `next_order` of the next round.
    last_losses: f32[m], validation losses at the start of the interval in progress.
    shares: f32[s · m, m], what each interval drew: tokens, or sums of filtered shares.
    drops: f32[s · m, m], by how much each validation loss fell in each interval.
    filtered: f32[m], exponential average of the drawn shares.
    interaction: f32[m, m], the latest estimate of A, in nats per interval.
    average: f32[m, m], the average of A that moves the weights.
    """

    count: Int[Array, ""]
    weights: Weights
    order: Int[Array, " k"]
    next_order: Int[Array, " k"]
    last_losses: DomainVector
    shares: Float[Array, "k m"]
    drops: Float[Array, "k m"]
    filtered: Weights
    interaction: Float[Array, "m m"]
    average: Float[Array, "m m"]


def probe_mixtures(num_domains: int, smoothing: float) -> Float[Array, "m m"]:
    """Row j is the mixture that probes domain j: `(1 − smoothing) · one-hot + smoothing · uniform`."""
    return (1.0 - smoothing) * jnp.eye(num_domains) + smoothing / num_domains


def estimate_interaction(
    drops: Float[Array, "k n"],
    shares: Float[Array, "k m"],
    order: Int[Array, " k"],
    *,
    smoothing: float,
    estimator: str = "realized",
) -> Float[Array, "n m"]:
    """Solves `drops = shares · Aᵀ` for A, with k = sweeps · m intervals.

    Args:
        drops: by how much each loss fell in each interval.
        shares: what each interval drew, at any scale ("filtered": shares per step, averaged over the interval).
        order: which domain each interval probed; every domain equally often.
        smoothing: of the probe mixtures, see `probe_mixtures`.
        estimator: see `aioli`.

    Returns:
        A in loss per interval of a pure domain. Entries are not finite where the shares determine nothing.
    """
    m = shares.shape[1]
    if estimator == "filtered":
        return jnp.linalg.lstsq(shares, drops)[0].T
    is_probe = (order[None, :] == jnp.arange(m, dtype=order.dtype)[:, None]).astype(drops.dtype)
    mean_drops = is_probe @ drops * (m / drops.shape[0])
    nominal = probe_mixtures(m, smoothing).astype(drops.dtype)
    if estimator == "diagonal":
        return jnp.diag(jnp.diag(mean_drops) / jnp.diag(nominal))
    mixtures = nominal
    if estimator == "realized":
        drawn = is_probe @ shares
        total = jnp.sum(drawn, axis=1, keepdims=True)
        mixtures = jnp.where(total > 0, drawn / jnp.where(total > 0, total, 1.0), nominal)
    return jnp.linalg.solve(mixtures, mean_drops).T


@registry.register
@checked
def aioli(
    *,
    variant: Literal["paper", "released"] = "paper",
    round_length: Annotated[int, at_least(1)] = 250,
    sweeps: Annotated[int, at_least(1)] = 4,
    interval: Annotated[int, at_least(2)] = 4,
    smoothing: float = 0.75,
    step_size: NonNegative = 0.2,
    memory: Share | None = None,
    ema: float | None = None,
    estimator: Literal["realized", "nominal", "filtered", "diagonal"] = "realized",
    normalize: bool = True,
    momentum: float = 0.9,
    initial_steps: Annotated[int, at_least(0)] = 0,
    after_initial: Literal["uniform", "prior"] = "uniform",
    total_steps: int | None = None,
    lead: Annotated[int, at_least(0)] = 1,
) -> Mixer:
    r"""Aioli: the interaction matrix from probe intervals, then an exponentiated-gradient step.

    A round begins with `sweeps` passes over the m domains in random order; each is trained on for `interval` steps with
    its probe mixture `(1 − ε) e_j + ε/m`, between two evaluations. The drops of the losses give A, its average M moves
    the weights, `p_j ∝ p_j^ρ exp(η Σ_i M_ij)`, and the rest of the round trains on p. Nothing is rolled back: probing
    is ordinary training. `docs/mixers.md` has the formulas and how to choose.

    Args:
        variant: defaults of `memory` and `ema`: "paper" (ρ = 1, γ = 0) or "released", what the scripts of the released
            code run (ρ = 0, γ = 0.1).
        round_length: in steps; `m · sweeps · interval` must be below it.
        sweeps: ≥ 1; more of them average noise, and a trend of the losses, out.
        interval: steps of one probe, ≥ 2.
        smoothing: ε in [0, 1).
        step_size: η ≥ 0.
        memory: ρ in [0, 1].
        ema: γ in [0, 1), weight of the old average. The first round replaces it.
        estimator: solve with the shares that were drawn ("realized"), with the probe mixtures ("nominal"), with the
            diagonal alone ("diagonal", the paper's ablation), or regress on shares passed through the optimizer's
            momentum ("filtered").
        normalize: shift and scale A to entries ≥ 0 that add to 1 (the default of paper and code), or use A as it is.
        momentum: of "filtered", first-moment decay of the optimizer, in [0, 1).
        initial_steps: train on the prior for so many steps first ("restricted setting").
        after_initial: then go on from "uniform" (released code) or from the "prior". Without initial steps the
            mixer starts from the prior.
        total_steps: length of the run, if known; rounds that could not finish their probes do not begin them.
        lead: by how many batches weights act later than right after the update that gave them: 1 in jaxmix's loop,
            0 where every batch is drawn after the update of the step before it.

    Returns:
        A mixer that needs `token_count` and `validation_loss`, updated at every step; `weights(state)` is the probe
        mixture while probing. A run costs `m · sweeps + 1` evaluations per round. `info.score` is the column sums of
        M, `info.extra` has `interaction` f32[m, m] (A, row: evaluated domain, column: training domain; nats per
        interval) and `is_probing`.

    Raises:
        ConfigError: an argument is out of range, or (in `init`) the probes do not fit into a round.

    Numerics: float32. A round whose A is not finite (an evaluation failed, or the draws determine nothing) leaves
    the weights as they are. Only differences of losses on the same tokens act: evaluate on a fixed set.

    Differs from the paper: probes solve with the drawn shares, so that they stay right when blocks of data are
    longer than an interval; the released code's rounding of batches to whole rows, which gives a wrong A for many
    domains, is not reproduced.

    Example:
        >>> mixer = aioli(round_length=20, sweeps=1, interval=2, smoothing=0.5)
        >>> state = mixer.init(jax.random.key(0), 2)
        >>> sorted(mixer.weights(state).tolist())
        [0.25, 0.75]

    References:
        arXiv 2411.05735, Algorithms 1 and 2; github.com/HazyResearch/aioli.
    """
    memory = memory if memory is not None else 1.0 if variant == "paper" else 0.0
    ema = ema if ema is not None else 0.0 if variant == "paper" else 0.1
    for argument, value in (("smoothing", smoothing), ("ema", ema), ("momentum", momentum)):
        check_number("aioli", argument, value, 0.0, 1.0 - 1e-6)
    starts_over = initial_steps > 0 and after_initial == "uniform"
    needs = frozenset({"token_count", "validation_loss"})

    def init(key: PRNGKeyArray, num_domains: int, prior: Weights | None = None) -> AioliState:
        m = num_domains
        if m * sweeps * interval >= round_length:
            raise ConfigError(
                f"probing {m} domains takes {m} x {sweeps} sweeps x {interval} steps = {m * sweeps * interval}, "
                f"not less than the round of {round_length} steps",
                where="aioli(round_length)",
                fix="Lengthen the round, or use fewer sweeps or shorter intervals.",
            )
        start = initial_weights(m, prior)
        first, second = jax.random.split(key)
        table = jnp.zeros((m * sweeps, m), start.dtype)
        square = jnp.zeros((m, m), start.dtype)
        return AioliState(
            count=jnp.int32(0),
            weights=start,
            order=_sweep_order(first, m, sweeps),
            next_order=_sweep_order(second, m, sweeps),
            last_losses=jnp.zeros_like(start),
            shares=table,
            drops=table,
            filtered=start,
            interaction=square,
            average=square,
        )

    def is_probing(step: Int[Array, ""], m: int) -> Bool[Array, ""]:
        """Whether the batch after `step` steps of rounds belongs to a probe."""
        probe_steps = m * sweeps * interval
        position = step % round_length
        is_probe = position < probe_steps
        if total_steps is not None:
            is_probe &= step - position + probe_steps <= total_steps - initial_steps
        return is_probe

    def weights(state: AioliState) -> Weights:
        m, step = state.weights.shape[0], state.count - initial_steps
        ahead = step + lead
        # Just before a round ends, the weights are already for the first batches of the next one.
        is_next_round = (step >= 0) & (ahead // round_length > step // round_length)
        order = jnp.where(is_next_round, state.next_order, state.order)
        number = jnp.clip((ahead % round_length) // interval, 0, order.shape[0] - 1)
        probe = probe_mixtures(m, smoothing).astype(state.weights.dtype)[order[number]]
        return jnp.where((ahead >= 0) & is_probing(jnp.maximum(ahead, 0), m), probe, state.weights)

    def update(key: PRNGKeyArray, state: AioliState, feedback: Feedback) -> tuple[AioliState, MixerInfo]:
        require(feedback, needs, "aioli")
        m, dtype = state.weights.shape[0], state.weights.dtype
        losses, counts = feedback.validation_loss.astype(dtype), feedback.token_count.astype(dtype)

        total = jnp.sum(counts)
        drawn = jnp.where(total > 0, counts / jnp.where(total > 0, total, 1.0), state.filtered)
        filtered = momentum * state.filtered + (1.0 - momentum) * drawn
        before = state.count - initial_steps
        is_in_round = before >= 0
        position = before % round_length
        is_probed = is_in_round & is_probing(jnp.maximum(before, 0), m)
        number = jnp.clip(position // interval, 0, m * sweeps - 1)
        share = filtered / interval if estimator == "filtered" else counts
        shares = state.shares.at[number].add(jnp.where(is_probed, share, 0.0))

        after = position + 1
        # The first update sees the losses before any step: an interval has at least two steps.
        is_start = (before == 0) | (is_in_round & (after == round_length))
        is_boundary = is_probed & (after % interval == 0)
        last = jnp.where(before == 0, losses, state.last_losses)
        drops = state.drops.at[number].set(jnp.where(is_boundary, last - losses, state.drops[number]))
        is_complete = is_boundary & (after == m * sweeps * interval)

        def learn() -> tuple[Array, Array, Array]:
            found = estimate_interaction(drops, shares, state.order, smoothing=smoothing, estimator=estimator)
            is_usable = jnp.all(jnp.isfinite(found)) & jnp.all(jnp.isfinite(drops))
            found = jnp.where(is_usable, found, state.interaction)
            fresh = normalized_interaction(found) if normalize else found
            smooth = ema * state.average + (1.0 - ema) * fresh
            average = jnp.where(is_usable, jnp.where(before < round_length, fresh, smooth), state.average)
            moved = exponentiated_gradient_step(
                state.weights, jnp.sum(average, axis=0), step_size=step_size, memory=memory
            )
            return found, average, jnp.where(is_usable, moved, state.weights)

        interaction, average, mixture = jax.lax.cond(
            is_complete, learn, lambda: (state.interaction, state.average, state.weights)
        )
        if starts_over:
            mixture = jnp.where(before == -1, 1.0 / m, mixture)
        is_turn = is_in_round & (after == round_length)
        new = AioliState(
            count=state.count + 1,
            weights=mixture,
            order=jnp.where(is_turn, state.next_order, state.order),
            next_order=jnp.where(is_turn, _sweep_order(key, m, sweeps), state.next_order),
            last_losses=jnp.where(is_start | is_boundary, losses, last),
            shares=jnp.where(is_turn, 0.0, shares),
            drops=jnp.where(is_turn, 0.0, drops),
            filtered=filtered,
            interaction=interaction,
            average=average,
        )
        step = new.count - initial_steps
        extra = {"interaction": interaction, "is_probing": ((step >= 0) & is_probing(step, m)).astype(dtype)}
        return new, MixerInfo(score=jnp.sum(average, axis=0), extra=extra)

    return Mixer(
        init=init,
        update=update,
        weights=weights,
        needs=needs,
        cadence=Cadence(1, interval, round_length, sweeps, initial_steps),
        name="aioli",
        final=lambda state: state.weights,
    )


def _sweep_order(key: PRNGKeyArray, num_domains: int, sweeps: int) -> Int[Array, " k"]:
    """All domains once per sweep, each sweep in an order of its own."""
    keys = jax.random.split(key, sweeps)
    domains = jnp.arange(num_domains, dtype=jnp.int32)
    return jax.vmap(lambda k: jax.random.permutation(k, domains))(keys).reshape(-1)
