"""Selects the rows or tokens that a training step uses, in a program that runs before the step.

Methods: `jaxmix.selection`. Mindermann et al., arXiv 2206.07137 (RHO-LOSS); Lin et al., arXiv 2404.07965 (Rho-1); Bal
et al., arXiv 2505.19893 (ESLM); Evans et al., arXiv 2406.17711 (JEST).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmix.core.segment import sum_by_domain
from jaxmix.core.sharding import batch_sharding, replicated
from jaxmix.core.types import Array, PRNGKeyArray
from jaxmix.mixers.base import Feedback
from jaxmix.selection import diverse, sequence_loss, token_mask, top_learnability
from jaxmix.selection.base import score_from_losses
from jaxmix.train.lm.domain_sums import SuperBatchSums, loss_sums_by_domain
from jaxmix.train.lm.signals import Reference
from jaxmix.train.lm.state import TrainState
from jaxmix.train.lm.step import StepInfo
from jaxmix.train.selection.settings import ForwardPasses, SelectionSettings
from jaxmix.train.selection.super_batch import (
    domain_quota,
    losses_in_micro_batches,
    row_features,
    scoring_micro_batches,
)

Batch = dict[str, Array]
_STREAM = 0x5E1EC7
"""Folded into the run's key: apart from those of parameters and mixer."""


class SelectionProgram(NamedTuple):
    """A compiled selection and the settings it was made for.

    Attributes:
        select: `(params, batch, key, step) -> (batch, SuperBatchSums)`; not called where there is a train step.
        settings: of the selection.
        forward_passes: which forward passes it makes.
        batch_size: rows trained on in a step.
        train_step: chooses by the losses of its own forward pass, see `chooses_in_step`; None: the run's own step.
    """

    select: Callable[..., tuple[Batch, SuperBatchSums]]
    settings: SelectionSettings
    forward_passes: ForwardPasses
    batch_size: int
    train_step: Callable[..., tuple[TrainState, StepInfo]] | None = None


def build_token_choice(
    settings: SelectionSettings, *, forward_passes: ForwardPasses, num_domains: int, mesh: Mesh
) -> Callable[[Array, Batch], tuple[Batch, SuperBatchSums]]:
    """Builds `choose(learner, batch) -> (batch, drawn)` for `build_train_step`: the mask of `build_selection` out of
    losses f32[b, t] that are there already."""
    everywhere = replicated(mesh)

    def choose(learner: Array, batch: Batch) -> tuple[Batch, SuperBatchSums]:
        reference = batch.get("reference_loss")
        scores = _token_scores(settings, batch, learner, reference)
        chosen, score = _best_tokens(settings, batch, scores, scores, everywhere)
        if not forward_passes.trained_reference:
            chosen.pop("reference_loss", None)
        return chosen, _sums_of(batch, learner, reference, chosen, score, num_domains)

    return choose


def build_selection(
    apply: Callable[[Any, Batch], Any],
    settings: SelectionSettings,
    *,
    forward_passes: ForwardPasses,
    batch_size: int,
    num_domains: int,
    mesh: Mesh,
    accumulate: int = 1,
) -> SelectionProgram:
    """Builds `select(params, batch, key, step) -> (batch, drawn)`, jitted.

    The chosen rows keep the order in which they were drawn, which is independent of their scores, so that micro-batches
    are random parts of them; the choice is made once for the whole step. The draw depends on `(key, step)` and the
    scores alone: there is nothing to checkpoint. No gradient passes: selection is a separate program, and at the
    level of tokens the mask reaches the train step as targets of −1.

    Cost, in forward passes of one row (a third of a step each): B by the learner where `forward_passes.learner`, B by
    the reference (run outside, see `BatchSelection`) where `forward_passes.reference`. Training does not reuse the
    scoring forward pass: that would keep the activations of all B rows. Rows are scored in micro-batches no larger
    than those of the train step.

    Args:
        apply: see `Model.apply`.
        settings: see `SelectionSettings`.
        forward_passes: from `forward_passes_of`.
        batch_size: b, rows trained on; a multiple of the devices that share them.
        num_domains: m.
        mesh: where it runs.
        accumulate: micro-batches of the train step.

    Shapes:
        batch: tokens, targets i32[c, t]; domain i32[c]; `reference_loss` f32[c, t] where `forward_passes.reference`.
            Rows over ("data", "fsdp"), c a multiple of the devices.
        returned batch: the same fields with b rows, spread likewise; `reference_loss` only where
            `forward_passes.trained_reference`.

    Numerics: a row's losses are summed on one device; scores are gathered (c floats), and every device makes the same
    choice. A score that is not finite counts as the lowest.
    """
    rows, everywhere = batch_sharding(mesh), replicated(mesh)

    def select(params: Any, batch: Batch, key: PRNGKeyArray, step: Array) -> tuple[Batch, SuperBatchSums]:
        key = jax.random.fold_in(key, step)
        learner = None
        if forward_passes.learner:
            count = scoring_micro_batches(len(batch["targets"]), batch_size, accumulate=accumulate, mesh=mesh)
            learner = losses_in_micro_batches(apply, count)(params, batch)
        reference = batch.get("reference_loss") if forward_passes.reference else None
        scores = _token_scores(settings, batch, learner, reference)
        if settings.level == "token":
            ranks = jax.random.uniform(key, scores.shape) if settings.method == "uniform" else scores
            chosen, score = _best_tokens(settings, batch, scores, ranks, everywhere)
        else:
            chosen, score = _choose_rows(settings, key, batch, scores, batch_size, num_domains, everywhere)
        if not forward_passes.trained_reference:
            chosen.pop("reference_loss", None)
        chosen = {name: jax.lax.with_sharding_constraint(x, rows) for name, x in chosen.items()}
        drawn = _sums_of(batch, learner, reference, chosen, score, num_domains)
        return chosen, jax.lax.with_sharding_constraint(drawn, everywhere)

    return SelectionProgram(jax.jit(select), settings, forward_passes, batch_size)


def _sums_of(
    batch: Batch, learner: Array | None, reference: Array | None, chosen: Batch, score: Array, num_domains: int
) -> SuperBatchSums:
    rows = lambda batch: sum_by_domain(jnp.ones(batch["domain"].shape, jnp.float32), batch["domain"], num_domains)
    tokens = lambda batch: sum_by_domain(_valid(batch).astype(jnp.float32), batch["domain"], num_domains)
    sums = loss_sums_by_domain(learner, reference, batch["domain"], num_domains)
    return SuperBatchSums(
        feedback=Feedback(token_count=tokens(batch), **sums),
        rows=rows(batch),
        trained_rows=rows(chosen),
        trained_tokens=tokens(chosen),
        score=score,
    )


def _valid(batch: Batch) -> Array:
    return batch["targets"] >= 0


def _token_scores(settings: SelectionSettings, batch: Batch, learner: Array | None, reference: Array | None) -> Array:
    """The method's score of every token, f32[c, t]; a row's is their mean, or another reduction."""
    if settings.method == "uniform":
        return jnp.zeros(batch["targets"].shape, jnp.float32)
    return score_from_losses(settings.method, learner, reference)


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _choose_rows(
    settings: SelectionSettings,
    key: PRNGKeyArray,
    batch: Batch,
    token_scores: Array,
    batch_size: int,
    num_domains: int,
    everywhere: Any,
) -> tuple[Batch, Array]:
    gather = lambda x: jax.lax.with_sharding_constraint(x, everywhere)
    valid = _valid(batch)
    scores = gather(sequence_loss(token_scores, valid, reduce=settings.reduce, top=settings.top))
    greedy = settings.greedy and settings.method != "uniform"
    key, quota_key = jax.random.split(key)
    options: dict[str, Array] = {}
    if settings.hold_shares:
        domain = gather(batch["domain"])
        quota = domain_quota(quota_key, domain, batch_size, num_domains)
        options = {"domain": domain, "quota": quota}
    if settings.diversity > 0:
        select = diverse(
            batch_size,
            num_chunks=settings.num_chunks,
            strength=settings.diversity,
            kernel=settings.kernel,
            greedy=greedy,
        )
        # It works on standardized scores; gain stays per nat.
        options["gain"] = settings.gain * jnp.std(jnp.where(jnp.isfinite(scores), scores, 0.0))
        indices = select(key, scores, gather(row_features(batch["tokens"], valid)), **options).indices
    else:
        select = top_learnability(batch_size, gain=settings.gain, greedy=greedy, score="hard_learner")
        indices = select(key, scores, None, **options).indices
    # In the order they were drawn in: that of the selection would sort micro-batches by score.
    indices = jnp.sort(indices)
    return {name: x[indices] for name, x in batch.items()}, jnp.stack([_mean(scores), _mean(scores[indices])])


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _best_tokens(
    settings: SelectionSettings, batch: Batch, token_scores: Array, ranks: Array, everywhere: Any
) -> tuple[Batch, Array]:
    """The batch with only the targets of the highest `ranks`, and the mean score of all targets and of these."""
    valid, scores, ranks = jax.lax.with_sharding_constraint((_valid(batch), token_scores, ranks), everywhere)
    mask = token_mask(ranks, None, valid, keep=settings.keep, score="hard_learner")
    chosen = {**batch, "targets": jnp.where(mask, batch["targets"], -1)}
    if "reference_loss" in chosen:
        chosen["reference_loss"] = jnp.where(mask, chosen["reference_loss"], 0.0)
    return chosen, jnp.stack([_mean(scores, valid), _mean(scores, mask)])


def _mean(values: Array, where: Array | bool = True) -> Array:
    """The mean of the values that count and are finite."""
    counts = jnp.isfinite(values) & where
    return jnp.sum(jnp.where(counts, values, 0.0)) / jnp.maximum(jnp.sum(counts.astype(jnp.float32)), 1.0)


# ── in the loop ──────────────────────────────────────────────────────────────────────────────────────────────────


class BatchSelection:
    """A selection as the loop uses it: one call a step.

    Args:
        program: from `build_selection`.
        reference: the frozen model's losses; None where nothing measures against it.
        seed: of the run.
        mesh: of the run.
    """

    def __init__(self, program: SelectionProgram, *, reference: Reference | None, seed: int, mesh: Mesh):
        self.program = program
        self._reference = reference
        everywhere = replicated(mesh)
        self._key = jax.jit(lambda: jax.random.fold_in(jax.random.key(seed), _STREAM), out_shardings=everywhere)()
        self._combined = jax.jit(_combined, out_shardings=everywhere)

    def __call__(self, params: Any, batch: Batch, step: Array) -> tuple[Batch, SuperBatchSums | None]:
        """The rows of step `step` (u32[], replicated) to train on, out of all that were drawn.

        Where the train step chooses, the batch only gains the reference's losses, and `StepInfo` has the sums.
        """
        forward_passes = self.program.forward_passes
        if forward_passes.reference:
            assert self._reference is not None
            batch = {**batch, "reference_loss": self._reference(batch)}
        if self.program.train_step is not None:
            return batch, None
        chosen, drawn = self.program.select(params, batch, self._key, step)
        if forward_passes.trained_reference and not forward_passes.reference:
            assert self._reference is not None
            chosen = {**chosen, "reference_loss": self._reference(chosen)}
        return chosen, drawn

    def feedback(self, info: StepInfo, drawn: SuperBatchSums | None) -> Feedback:
        """The feedback of the step for the mixer, see `SelectionSettings.feedback`."""
        if drawn is None or self.program.settings.feedback_from == "trained":
            return info.feedback
        return self._combined(info, drawn.feedback)


def _combined(info: StepInfo, drawn: Feedback) -> Feedback:
    """Feedback with sums over all drawn rows; 0 if the update was skipped, since a skipped step teaches nothing."""
    sums = {f.name: value for f in dataclasses.fields(drawn) if (value := getattr(drawn, f.name)) is not None}
    is_skipped = info.consecutive_skipped > 0
    return dataclasses.replace(info.feedback, **{k: jnp.where(is_skipped, 0.0, v) for k, v in sums.items()})
