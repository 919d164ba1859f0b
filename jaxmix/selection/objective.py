"""The value of a selection: the criterion itself, over the selected examples alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmix.core.types import Array, Float, Int
from jaxmix.selection.base import Embeddings, check_sizes
from jaxmix.selection.candidates import Candidates
from jaxmix.selection.jest import check_contrastive
from jaxmix.selection.scores import all_pairs, check_embeddings, contrastive


class SelectionObjective(NamedTuple):
    """`F(S)/b` and its two parts.

    Attributes:
        mean: F(S)/b: the mean loss of the batch under the learner less that under the reference.
        positive: the part of the positive pairs, `(1/b) Σ_i s_ii`.
        negative: the rest.
    """

    mean: Float[Array, ""]
    positive: Float[Array, ""]
    negative: Float[Array, ""]


def selection_objective(
    learner: Embeddings | None,
    reference: Embeddings | None,
    indices: Int[Array, " b"] | None = None,
    *,
    loss: str = "sigmoid",
    score: str = "learnability",
    group: Int[Array, " c"] | None = None,
    row_block: int | None = None,
) -> SelectionObjective:
    r"""Returns F(S)/b of the selected examples, exactly, including the pairs within a chunk.

        sigmoid:  F(S) = Σ_{i,j in S} s_ij
        softmax:  F(S) = |S| (InfoNCE^L(S) − InfoNCE^R(S))

    The metric by which selections from one super-batch compare: a random one, an independent one, JEST's.

    Args:
        learner: embeddings of the super-batch, or of the batch itself if there are no indices.
        reference: the same.
        indices: i32[b], rows of the super-batch; −1 is left out, and b is the number of the others.
        loss: "sigmoid" or "softmax".
        score: see `jest`.
        group: i32[c], see `jest`.
        row_block: rows whose pairs with 512 others are held at once; by default all, or as many as 32 MiB take.

    Raises:
        ConfigError: unknown loss or score, embeddings that are missing or disagree in shape.

    Shapes: jit-able with everything but the arrays static. Memory O(b d + row_block · 512): no b × b array.

    Numerics: as `jest`.

    Example:
        >>> eye = jnp.eye(4)
        >>> learner, reference = Embeddings(eye, eye, 1.0, 0.0), Embeddings(eye, eye, 5.0, -2.0)
        >>> found = selection_objective(learner, reference, jnp.array([0, 2]))
        >>> round(float(found.mean), 4), round(float(found.positive), 4), round(float(found.negative), 4)
        (0.8309, 0.2647, 0.5662)

    References:
        arXiv 2406.17711, section 2.
    """
    name = "selection_objective"
    check_contrastive(name, loss, score, "paper", 1.0, None, row_block)
    count, (models, group) = check_embeddings(name, score, learner, reference, group)
    if indices is None:
        indices = jnp.arange(count, dtype=jnp.int32)
    check_sizes(name, selected=indices.shape[0])
    selected, is_drawn = Candidates(indices.shape[0]), indices >= 0
    fetch = lambda values: Candidates(count).fetch(values, indices) if values.ndim else values
    models, group = jax.tree.map(fetch, (models, group))
    interaction = contrastive(models, selected, loss=loss, form="paper", group=group, row_block=row_block)
    # In the sigmoid loss each pair of different examples counts once in each direction; the sum over rows and
    # columns has it twice. A softmax loss has each row's own logit in its denominators.
    total: Any = all_pairs(selected, interaction, is_drawn, distinct=loss == "sigmoid")
    shared = interaction.shared(total, jnp.full((1, 1), -1, jnp.int32))
    number = jnp.maximum(jnp.sum(is_drawn.astype(shared.dtype)), 1.0)
    mean = lambda values: jnp.sum(jnp.where(is_drawn, values, 0.0)) / number
    positive, negative = mean(interaction.own), mean(shared) * (0.5 if loss == "sigmoid" else 1.0)
    return jax.tree.map(jax.lax.stop_gradient, SelectionObjective(positive + negative, positive, negative))
