"""The program that selects the rows or tokens that a step trains on, before the step.

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
from jaxmix.core.types import Array, DomainVector, PRNGKeyArray
from jaxmix.mixers.base import Feedback
from jaxmix.selection import diverse, sequence_loss, token_mask, top_learnability
from jaxmix.selection.base import score_from_losses
from jaxmix.train.lm.domain_sums import SuperBatchSums, loss_sums_by_domain
from jaxmix.train.lm.signals import Reference
from jaxmix.train.lm.state import TrainState
from jaxmix.train.lm.step import StepInfo
from jaxmix.train.selection.settings import Scan, SelectionSettings
from jaxmix.train.selection.super_batch import domain_quota, in_pieces, pieces_for, row_features

Batch = dict[str, Array]
_STREAM = 0x5E1EC7
"""Folded into the run's key: apart from those of parameters and mixer."""


class SelectionProgram(NamedTuple):
    """A compiled selection and what it was made for.

    Attributes:
        select: `(params, batch, key, step) -> (batch, SuperBatchSums)`; not called where there is a train step.
        settings: of the selection.
        scan: which forward passes it makes.
        batch_size: rows trained on in a step.
        train_step: chooses by the losses of its own forward pass, see `chooses_in_step`; None: the run's own step.
    """

    select: Callable[..., tuple[Batch, SuperBatchSums]]
    settings: SelectionSettings
    scan: Scan
    batch_size: int
    train_step: Callable[..., tuple[TrainState, StepInfo]] | None = None


def build_token_choice(
    settings: SelectionSettings, *, scan: Scan, num_domains: int, mesh: Mesh
) -> Callable[[Array, Batch], tuple[Batch, SuperBatchSums]]:
    """Builds `choose(learner, batch) -> (batch, drawn)` for `build_train_step`: the mask of `build_selection` out of
    losses f32[b, t] that are there already."""
    everywhere = replicated(mesh)

    def choose(learner: Array, batch: Batch) -> tuple[Batch, SuperBatchSums]:
        valid = batch["targets"] >= 0
        reference = batch.get("reference_loss")
        scores = _token_scores(settings, valid, learner, reference)
        chosen, score = _best_tokens(settings, batch, scores, scores, everywhere)
        if not scan.trained_reference:
            chosen.pop("reference_loss", None)
        return chosen, _sums_of(valid, learner, reference, batch["domain"], chosen, score, num_domains)

    return choose


def build_selection(
    apply: Callable[[Any, Batch], Any],
    settings: SelectionSettings,
    *,
    scan: Scan,
    batch_size: int,
    num_domains: int,
    mesh: Mesh,
    accumulate: int = 1,
) -> SelectionProgram:
    """Builds `select(params, batch, key, step) -> (batch, drawn)`, jitted.

    The chosen rows come back in the order they were drawn in, which says nothing of their scores, so that micro-batches
    are cut from them at random; the choice is made once for the whole step. The draw depends on `(key, step)` and the
    scores alone: there is nothing to checkpoint. No gradient passes: selection is a program of its own, and at the
    level of tokens the mask reaches the train step as targets of −1.

    Cost, in forward passes of one row, a third of a step each: B of the learner where `scan.learner`, B of the
    reference (made outside, see `BatchSelection`) where `scan.reference`. The forward pass of scoring is not kept for
    training: that would keep the activations of all B rows. At most as many rows are scored at a time as the train step
    takes in a micro-batch.

    Args:
        apply: see `Model.apply`.
        settings: see `SelectionSettings`.
        scan: from `scan_of`.
        batch_size: b, rows trained on; a multiple of the devices that share them.
        num_domains: m.
        mesh: where it runs.
        accumulate: micro-batches of the train step.

    Shapes:
        batch: tokens, targets i32[c, t]; domain i32[c]; `reference_loss` f32[c, t] where `scan.reference`. Rows over
            ("data", "fsdp"), c a multiple of the devices.
        returned batch: the same fields with b rows, spread likewise; `reference_loss` only where
            `scan.trained_reference`.

    Numerics: a row's losses are summed on one device; scores are gathered (c floats), and every device makes the same
    choice. A score that is not finite counts as the lowest.
    """
    rows = batch_sharding(mesh)

    def select(params: Any, batch: Batch, key: PRNGKeyArray, step: Array) -> tuple[Batch, SuperBatchSums]:
        key = jax.random.fold_in(key, step)
        valid = batch["targets"] >= 0
        learner = None
        if scan.learner:
            pieces = pieces_for(valid.shape[0], batch_size, accumulate=accumulate, mesh=mesh)
            learner = in_pieces(apply, pieces)(params, batch)
        reference = batch.get("reference_loss") if scan.reference else None
        scores = _token_scores(settings, valid, learner, reference)
        if settings.level == "token":
            chosen, score = _choose_tokens(settings, key, batch, scores, replicated(mesh))
        else:
            chosen, score = _choose_rows(settings, key, batch, scores, batch_size, num_domains, replicated(mesh))
        if not scan.trained_reference:
            chosen.pop("reference_loss", None)
        chosen = {name: jax.lax.with_sharding_constraint(x, rows) for name, x in chosen.items()}
        drawn = _sums_of(valid, learner, reference, batch["domain"], chosen, score, num_domains)
        return chosen, jax.lax.with_sharding_constraint(drawn, replicated(mesh))

    return SelectionProgram(jax.jit(select), settings, scan, batch_size)


def _sums_of(
    valid: Array,
    learner: Array | None,
    reference: Array | None,
    domain: Array,
    chosen: Batch,
    score: Array,
    num_domains: int,
) -> SuperBatchSums:
    kept = (chosen["targets"] >= 0).astype(jnp.float32)
    sums = loss_sums_by_domain(learner, reference, domain, num_domains)
    return SuperBatchSums(
        feedback=Feedback(token_count=sum_by_domain(valid.astype(jnp.float32), domain, num_domains), **sums),
        rows=_rows_of(domain, num_domains),
        trained_rows=_rows_of(chosen["domain"], num_domains),
        trained_tokens=sum_by_domain(kept, chosen["domain"], num_domains),
        score=score,
    )


def _rows_of(domain: Array, num_domains: int) -> DomainVector:
    return sum_by_domain(jnp.ones(domain.shape, jnp.float32), domain, num_domains)


def _token_scores(settings: SelectionSettings, valid: Array, learner: Array | None, reference: Array | None) -> Array:
    """The method's score of every token, f32[c, t]; a row's is their mean, or another reduction."""
    if settings.method == "uniform":
        return jnp.zeros(valid.shape, jnp.float32)
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
    valid = batch["targets"] >= 0
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


def _choose_tokens(
    settings: SelectionSettings, key: PRNGKeyArray, batch: Batch, token_scores: Array, everywhere: Any
) -> tuple[Batch, Array]:
    lots = jax.random.uniform(key, token_scores.shape) if settings.method == "uniform" else token_scores
    return _best_tokens(settings, batch, token_scores, lots, everywhere)


def _best_tokens(
    settings: SelectionSettings, batch: Batch, token_scores: Array, lots: Array, everywhere: Any
) -> tuple[Batch, Array]:
    """The batch with all targets but those of the largest `lots` taken out."""
    valid = jax.lax.with_sharding_constraint(batch["targets"] >= 0, everywhere)
    scores = jax.lax.with_sharding_constraint(token_scores, everywhere)
    lots = jax.lax.with_sharding_constraint(lots, everywhere)
    mask = token_mask(lots, None, valid, keep=settings.keep, score="hard_learner")
    chosen = {**batch, "targets": jnp.where(mask, batch["targets"], -1)}
    if "reference_loss" in chosen:
        chosen["reference_loss"] = jnp.where(mask, chosen["reference_loss"], 0.0)
    return chosen, jnp.stack([_mean(scores, valid), _mean(scores, mask)])


def _mean(values: Array, where: Array | bool = True) -> Array:
    """Of those that count and are finite."""
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

        Where the train step chooses, the batch comes back with what it measures against, and `StepInfo` has the rest.
        """
        scan = self.program.scan
        if scan.reference:
            assert self._reference is not None
            batch = {**batch, "reference_loss": self._reference(batch)}
        if self.program.train_step is not None:
            return batch, None
        chosen, drawn = self.program.select(params, batch, self._key, step)
        if scan.trained_reference and not scan.reference:
            assert self._reference is not None
            chosen = {**chosen, "reference_loss": self._reference(chosen)}
        return chosen, drawn

    def feedback(self, info: StepInfo, drawn: SuperBatchSums | None) -> Feedback:
        """What the mixer learns from the step, see `SelectionSettings.feedback`."""
        if drawn is None or self.program.settings.feedback_from == "trained":
            return info.feedback
        return self._combined(info, drawn.feedback)


def _combined(info: StepInfo, drawn: Feedback) -> Feedback:
    """The sums over what was drawn in the place of the step's own; 0 if its update was skipped: it teaches nothing."""
    sums = {f.name: value for f in dataclasses.fields(drawn) if (value := getattr(drawn, f.name)) is not None}
    is_skipped = info.consecutive_skipped > 0
    return dataclasses.replace(info.feedback, **{k: jnp.where(is_skipped, 0.0, v) for k, v in sums.items()})
