"""Per-domain sums of the losses of a batch: what a step, or a selection, tells a mixer."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from jaxmix.core.segment import sum_by_domain
from jaxmix.core.types import Array, DomainVector
from jaxmix.mixers.base import Feedback


class SuperBatchSums(NamedTuple):
    """What one selection shows; small, replicated. Sums run over the rows that were drawn unless they say otherwise.

    Attributes:
        feedback: `token_count` f32[m]; with a pass of the learner also `loss_sum`; with one of the reference
            `reference_loss_sum`; with both `clipped_excess_sum`.
        rows: f32[m], rows drawn.
        trained_rows, trained_tokens: f32[m], of those chosen.
        score: f32[2], mean score of what was drawn and of what was chosen: of rows, or of tokens at their level.
    """

    feedback: Feedback
    rows: DomainVector
    trained_rows: DomainVector
    trained_tokens: DomainVector
    score: Array


def loss_sums_by_domain(
    learner: Array | None, reference: Array | None, domain: Array, num_domains: int
) -> dict[str, DomainVector]:
    """Sums by domain of what was measured, under the names of `Feedback`.

    Args:
        learner: f32[b, t], the model's loss per token; None where it was not measured.
        reference: the same of a frozen model.
        domain: i32[b].
        num_domains: m.
    """
    measured = {}
    if learner is not None:
        measured["loss_sum"] = learner
    if reference is not None:
        measured["reference_loss_sum"] = reference
    if learner is not None and reference is not None:
        measured["clipped_excess_sum"] = jnp.maximum(learner - reference, 0.0)
    return {name: sum_by_domain(x, domain, num_domains) for name, x in measured.items()}
