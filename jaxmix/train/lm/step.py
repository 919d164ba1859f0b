"""One jitted, donated, sharded optimizer step that also sums the losses of each domain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmix.core.errors import ConfigError, nearest
from jaxmix.core.segment import sum_by_domain
from jaxmix.core.types import Array, DomainVector, Float, Int
from jaxmix.mixers.base import Feedback
from jaxmix.models.base import token_loss
from jaxmix.train.lm.domain_sums import SuperBatchSums, loss_sums_by_domain
from jaxmix.train.lm.state import TrainState
from jaxmix.train.run.micro_batches import split_rows, sum_over
from jaxmix.train.run.update import guarded_update

Batch = dict[str, Array]
Apply = Callable[[Any, Batch], Any]
Sums = dict[str, DomainVector]


def _token_mean(counts: DomainVector, loss_weights: DomainVector) -> DomainVector:
    return _over(loss_weights, jnp.sum(loss_weights * counts))


def _domain_mean(counts: DomainVector, loss_weights: DomainVector) -> DomainVector:
    present = jnp.sum(jnp.where(counts > 0, loss_weights, 0.0))
    return _over(loss_weights / jnp.maximum(counts, 1.0), present)


def _over(weights: DomainVector, total: Array) -> DomainVector:
    return jnp.where(total > 0, weights / jnp.where(total > 0, total, 1.0), 0.0)


NORMALIZATIONS: dict[str, Callable[[DomainVector, DomainVector], DomainVector]] = {
    "token_mean": _token_mean,
    "domain_mean": _domain_mean,
}
"""Token counts f32[m] of the whole step, loss weights f32[m] → weight f32[m] of one token in the training loss."""


class StepInfo(NamedTuple):
    """The report of one step; small, replicated, never donated.

    Attributes:
        feedback: `loss_sum` and `token_count` f32[m] over all micro-batches and devices; with reference losses in the
            batch also `reference_loss_sum` and `clipped_excess_sum`. Zero if the step was skipped.
        loss: mean loss per token of the step's batch, for every normalization.
        grad_norm: global norm before clipping.
        skipped: updates skipped so far.
        consecutive_skipped: how many of the latest steps in a row were skipped.
        drawn: sums over all tokens that `choose` chose from; None without it.
    """

    feedback: Feedback
    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    skipped: Int[Array, ""]
    consecutive_skipped: Int[Array, ""]
    drawn: SuperBatchSums | None = None


def build_train_step(
    apply: Apply,
    optimizer: optax.GradientTransformation,
    *,
    num_domains: int,
    normalization: str = "token_mean",
    accumulate: int = 1,
    choose: Callable[[Array, Batch], tuple[Batch, SuperBatchSums]] | None = None,
    out_shardings: Any = None,
) -> Callable[..., tuple[TrainState, StepInfo]]:
    """Builds `step(state, batch, loss_weights=None) -> (state, info)`, jitted, with `state` donated.

    The training loss is `Σ_tokens c[domain] · loss`. With n_j the tokens of domain j in the step and w the loss
    weights (all 1 if `None`), `normalization` names c:

    - `token_mean`: c_j = w_j / Σ_k w_k n_k. A domain acts in proportion to the tokens drawn from it, which is what
      sampling weights mean.
    - `domain_mean`: c_j = w_j / (n_j Σ_k w_k), the sum over the domains present. With equal w every domain present
      acts equally, however many tokens were drawn.

    c is computed from the whole step's counts before any gradient, so accumulation over micro-batches and sharding
    over devices do not change the loss. If loss or gradient norm is not finite, parameters and optimizer state stay
    as they were, the feedback is zero (a broken step teaches a mixer nothing), and the step is counted as skipped.

    Args:
        apply: `(params, batch) -> f32[b, t]` loss per token in nats, or `(loss, regularizer)`; the regularizer joins
            the gradient and no report. Tokens whose target is negative must have loss 0. Any callable will do.
        optimizer: the optax transformation, clipping included.
        num_domains: m; `batch["domain"]` holds ids below it, and −1 for rows that do not count.
        normalization: a key of `NORMALIZATIONS`.
        accumulate: number of micro-batches the batch is cut into, ≥ 1; it must divide the rows of each device.
        choose: `(loss f32[b, t], batch) -> (batch, drawn)` takes targets out by the losses of this very forward pass,
            which no gradient passes through; see `build_token_choice`. Every token is then in one pass: not with
            `accumulate` above 1.
        out_shardings: shardings of `(state, info)`; with them the state keeps its layout from step to step.

    Shapes:
        batch: tokens, targets i32[b, t]; domain i32[b]. Without `targets` every token counts. With
            `reference_loss` f32[b, t], nats of a frozen model, the excess over it is measured as well.
        loss_weights: f32[m], ≥ 0.
        Shardings follow the arguments: rows over ("data", "fsdp"), parameters as placed.
    """
    if normalization not in NORMALIZATIONS:
        raise ConfigError(
            f"unknown loss normalization {normalization!r}",
            where="train.loss_normalization",
            fix=nearest(normalization, NORMALIZATIONS),
        )
    if accumulate < 1:
        raise ConfigError(f"accumulate must be at least 1, got {accumulate}", where="train.accumulate")
    if choose is not None and accumulate > 1:
        raise ConfigError(
            f"tokens cannot be chosen inside a step of {accumulate} micro-batches", where="build_train_step(choose)"
        )
    token_weights = NORMALIZATIONS[normalization]

    def total_and_sums(
        loss: Array, regularizer: Array | None, batch: Batch, token_weight: DomainVector
    ) -> tuple[Array, Sums]:
        trained = loss if regularizer is None else loss + regularizer
        row_weight = jnp.where(batch["domain"] >= 0, token_weight[jnp.maximum(batch["domain"], 0)], 0.0)
        total = jnp.sum(jnp.sum(trained, axis=-1) * row_weight)
        return total, loss_sums_by_domain(loss, batch.get("reference_loss"), batch["domain"], num_domains)

    def objective(params: Any, batch: Batch, token_weight: DomainVector) -> tuple[Array, Sums]:
        return total_and_sums(*token_loss(apply(params, batch)), batch, token_weight)

    def choosing_objective(params: Any, batch: Batch, loss_weights: DomainVector) -> tuple[Array, Any]:
        assert choose is not None
        loss, regularizer = token_loss(apply(params, batch))
        chosen, drawn = choose(jax.lax.stop_gradient(loss), batch)
        kept = chosen["targets"] >= 0
        loss, regularizer = jax.tree.map(lambda x: jnp.where(kept, x, 0.0), (loss, regularizer))
        counts = count(chosen)
        total, sums = total_and_sums(loss, regularizer, chosen, token_weights(counts, loss_weights))
        return total, (sums, counts, drawn)

    def count(batch: Batch) -> DomainVector:
        valid = batch["targets"] >= 0 if "targets" in batch else jnp.ones_like(batch["tokens"], bool)
        return sum_by_domain(valid.astype(jnp.float32), batch["domain"], num_domains)

    gradient = jax.value_and_grad(objective, has_aux=True)

    def accumulated(params: Any, batch: Batch, token_weight: DomainVector) -> tuple[tuple[Array, Sums], Any]:
        if accumulate == 1:
            return gradient(params, batch, token_weight)
        micros = jax.tree.map(lambda x: split_rows(x, accumulate), batch)
        return sum_over(lambda micro: gradient(params, micro, token_weight), micros)

    def step(state: TrainState, batch: Batch, loss_weights: DomainVector | None = None) -> tuple[TrainState, StepInfo]:
        loss_weights = jnp.ones(num_domains, jnp.float32) if loss_weights is None else loss_weights
        drawn = None
        if choose is None:
            counts = count(batch)
            (total, sums), grads = accumulated(state.params, batch, token_weights(counts, loss_weights))
        else:
            choosing = jax.value_and_grad(choosing_objective, has_aux=True)
            (total, (sums, counts, drawn)), grads = choosing(state.params, batch, loss_weights)
        new_state, grad_norm, is_finite = guarded_update(state, total, grads, optimizer)
        loss = jnp.sum(sums["loss_sum"]) / jnp.maximum(jnp.sum(counts), 1.0)
        feedback = Feedback(**{k: jnp.where(is_finite, x, 0.0) for k, x in {**sums, "token_count": counts}.items()})
        return new_state, StepInfo(feedback, loss, grad_norm, new_state.skipped, new_state.consecutive_skipped, drawn)

    return jax.jit(step, donate_argnums=0, **({} if out_shardings is None else {"out_shardings": out_shardings}))
