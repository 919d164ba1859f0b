"""Sums of a batch's losses by domain, which a mixer learns from."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from jaxmix.core.segment import sum_by_domain
from jaxmix.core.types import Array, DomainVector, Float
from jaxmix.mixers.base import Feedback


class SuperBatchSums(NamedTuple):
    """The report of one selection; small, replicated. Sums are over all drawn rows unless stated otherwise.

    Attributes:
        feedback: `token_count` f32[m]; with a pass of the learner also `loss_sum`; with one of the reference
            `reference_loss_sum`; with both `clipped_excess_sum`.
        rows: drawn.
        trained_rows, trained_tokens: of those chosen.
        score: mean score of what was drawn and of what was chosen: of rows, or of tokens at their level.
    """

    feedback: Feedback
    rows: DomainVector
    trained_rows: DomainVector
    trained_tokens: DomainVector
    score: Float[Array, " 2"]


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
    losses = {}
    if learner is not None:
        losses["loss_sum"] = learner
    if reference is not None:
        losses["reference_loss_sum"] = reference
    if learner is not None and reference is not None:
        losses["clipped_excess_sum"] = jnp.maximum(learner - reference, 0.0)
    return {name: sum_by_domain(x, domain, num_domains) for name, x in losses.items()}
