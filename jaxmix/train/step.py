"""One jitted, donated, sharded optimizer step that also learns what each domain's loss was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmix.core.errors import ConfigError, nearest
from jaxmix.core.segment import sum_by_domain
from jaxmix.core.types import Array, DomainVector
from jaxmix.mixers.base import Feedback
from jaxmix.train.state import TrainState

__all__ = ["NORMALISATIONS", "StepInfo", "build_train_step", "check_signals"]

Batch = dict[str, Array]
Apply = Callable[[Any, Batch], Any]


def _token_mean(counts: DomainVector) -> DomainVector:
    return jnp.full_like(counts, 1.0) / jnp.maximum(jnp.sum(counts), 1.0)


def _domain_mean(counts: DomainVector) -> DomainVector:
    present = jnp.maximum(jnp.sum((counts > 0).astype(counts.dtype)), 1.0)
    return 1.0 / (present * jnp.maximum(counts, 1.0))


NORMALISATIONS: dict[str, Callable[[DomainVector], DomainVector]] = {
    "token_mean": _token_mean,
    "domain_mean": _domain_mean,
}
"""Token counts f32[m] of the whole step → weight f32[m] of one token of each domain in the training loss."""

AVAILABLE_SIGNALS = frozenset({"loss_sum", "token_count", "validation_loss"})


class StepInfo(NamedTuple):
    """What one step shows; small, replicated, never donated.

    Attributes:
        feedback: `loss_sum` and `token_count` f32[m] over all micro-batches and devices; zero if the step was skipped.
        loss: f32[], mean loss per token of the step's batch, whatever the normalisation trained on.
        grad_norm: f32[], global norm before clipping.
        skipped: i32[], updates skipped so far.
        consecutive_skipped: i32[], how many of the latest steps in a row were skipped.
    """

    feedback: Feedback
    loss: Array
    grad_norm: Array
    skipped: Array
    consecutive_skipped: Array


def check_signals(needs: frozenset[str]) -> None:
    """Raises `ConfigError` for a signal that this train step and loop do not provide."""
    for signal in sorted(needs - AVAILABLE_SIGNALS):
        raise ConfigError(
            f"the train loop does not compute the signal {signal!r}",
            where="mixer.needs",
            fix=f"It provides {', '.join(sorted(AVAILABLE_SIGNALS))}. Drive the mixer from your own loop for others.",
        )


def build_train_step(
    apply: Apply,
    optimizer: optax.GradientTransformation,
    *,
    num_domains: int,
    normalisation: str = "token_mean",
    accumulate: int = 1,
    out_shardings: Any = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepInfo]]:
    """Builds `step(state, batch) -> (state, info)`, jitted, with `state` donated.

    The training loss is `Σ_tokens c[domain] · loss`, with the weights c named by `normalisation`:

    - `token_mean`: c = 1 / tokens of the step. A domain acts in proportion to the tokens drawn from it, which is
      what sampling weights mean.
    - `domain_mean`: c_j = 1 / (domains present · tokens of domain j). Every domain present acts equally, however
      many tokens were drawn.

    c is computed from the whole step's counts before any gradient, so accumulation over micro-batches and sharding
    over devices do not change the loss. If loss or gradient norm is not finite, parameters and optimizer state stay
    as they were, the feedback is zero (a broken step teaches a mixer nothing), and the step is counted as skipped.

    Args:
        apply: `(params, batch) -> f32[b, t]` loss per token in nats, or `(loss, regulariser)`; the regulariser joins
            the gradient and no report. Tokens whose target is negative must have loss 0. Any callable will do.
        optimizer: the optax transformation, clipping included.
        num_domains: m; `batch["domain"]` holds ids below it, and −1 for rows that do not count.
        normalisation: a key of `NORMALISATIONS`.
        accumulate: number of micro-batches the batch is cut into, ≥ 1; it must divide the rows of each device.
        out_shardings: shardings of `(state, info)`; with them the state keeps its layout from step to step.

    Shapes:
        batch: tokens, targets i32[b, t]; domain i32[b]. Without `targets` every token counts.
        Shardings follow the arguments: rows over ("data", "fsdp"), parameters as placed.
    """
    if normalisation not in NORMALISATIONS:
        raise ConfigError(
            f"unknown loss normalisation {normalisation!r}",
            where="train.loss_normalisation",
            fix=nearest(normalisation, NORMALISATIONS),
        )
    if accumulate < 1:
        raise ConfigError(f"accumulate must be at least 1, got {accumulate}", where="train.accumulate")
    token_weights = NORMALISATIONS[normalisation]

    def objective(params: Any, batch: Batch, token_weight: DomainVector) -> tuple[Array, DomainVector]:
        result = apply(params, batch)
        loss, regulariser = result if isinstance(result, tuple) else (result, None)
        loss = loss.astype(jnp.float32)
        trained = loss if regulariser is None else loss + regulariser.astype(jnp.float32)
        row_weight = jnp.where(batch["domain"] >= 0, token_weight[jnp.maximum(batch["domain"], 0)], 0.0)
        total = jnp.sum(jnp.sum(trained, axis=-1) * row_weight)
        return total, sum_by_domain(loss, batch["domain"], num_domains)

    gradient = jax.value_and_grad(objective, has_aux=True)

    def accumulated(params: Any, batch: Batch, token_weight: DomainVector) -> tuple[Array, DomainVector, Any]:
        if accumulate == 1:
            (total, loss_sum), grads = gradient(params, batch, token_weight)
            return total, loss_sum, grads

        def add(carry: Any, micro: Batch) -> tuple[Any, None]:
            (total, loss_sum), grads = gradient(params, micro, token_weight)
            return jax.tree.map(jnp.add, carry, (total, loss_sum, grads)), None

        # Rows i, i + a, i + 2a, … form a micro-batch, so that each device cuts only the rows it already holds.
        micros = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1), batch)
        start = (
            jnp.zeros((), jnp.float32),
            jnp.zeros((num_domains,), jnp.float32),
            jax.tree.map(jnp.zeros_like, params),
        )
        return jax.lax.scan(add, start, micros)[0]

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepInfo]:
        valid = batch["targets"] >= 0 if "targets" in batch else jnp.ones_like(batch["tokens"], bool)
        counts = sum_by_domain(valid.astype(jnp.float32), batch["domain"], num_domains)
        total, loss_sum, grads = accumulated(state.params, batch, token_weights(counts))
        grad_norm = optax.tree.norm(grads)
        is_finite = jnp.isfinite(total) & jnp.isfinite(grad_norm)

        # optax mixes int32 counters with Python floats, which strict promotion would reject.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        proposed = (optax.apply_updates(state.params, updates), opt_state)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(is_finite, new, old), proposed, (state.params, state.opt_state)
        )
        broken = 1 - is_finite.astype(jnp.int32)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            skipped=state.skipped + broken,
            consecutive_skipped=(state.consecutive_skipped + broken) * broken,
        )
        feedback = Feedback(loss_sum=jnp.where(is_finite, loss_sum, 0.0), token_count=jnp.where(is_finite, counts, 0.0))
        loss = jnp.sum(loss_sum) / jnp.maximum(jnp.sum(counts), 1.0)
        return new_state, StepInfo(feedback, loss, grad_norm, new_state.skipped, new_state.consecutive_skipped)

    return jax.jit(step, donate_argnums=0, **({} if out_shardings is None else {"out_shardings": out_shardings}))
