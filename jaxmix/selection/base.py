"""The interface of selectors: a pure function that picks, from a super-batch of candidates, the examples to train on.

    selector(key, learner, reference, valid=None) -> Selection

A selector reads embeddings, losses, or scores and features; what it returns is the same for all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array, Float, Int
from jaxmix.core.validate import check_count

LOSSES = ("sigmoid", "softmax")
SCORES = ("learnability", "easy_reference", "hard_learner")
"""Loss of the learner less that of the reference; less the reference's loss; the learner's loss."""


def compute_dtype(x: Array) -> jnp.dtype:
    """float32, or float64 for float64 arrays."""
    return jnp.dtype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


class Embeddings(NamedTuple):
    """A two-tower model's embeddings of a super-batch. A pytree; its rows may be sharded.

    Attributes:
        image: unit-norm rows; float32, bfloat16 (products are then accumulated in float32) or float64.
        text: the same; row i belongs to row i of `image`.
        temperature: the factor t of the logits `t ⟨image_i, text_j⟩ + bias`, already exponentiated, > 0.
        bias: added to the logits of the sigmoid loss; without effect in the softmax loss.
    """

    image: Float[Array, "c d"]
    text: Float[Array, "c d"]
    temperature: Float[Array, ""] | float
    bias: Float[Array, ""] | float = 0.0


class SelectionInfo(NamedTuple):
    """Diagnostics of a selection; logged and forgotten. Means run over the examples drawn.

    Every example has, at the moment it is drawn, a score: what it adds to the selection given the chunks drawn
    before. The score is the sum of two parts: the example's own (with a contrastive loss that of its positive pair),
    and what it shares with those already drawn (its negative pairs).

    Attributes:
        num_selected: how many examples were drawn; less than b only where candidates run out.
        score: mean score.
        positive: mean of the own part.
        negative: mean of the shared part; 0 for selectors without interaction.
        chunk_score: mean score of each chunk.
        chunk_share: share of the shared part in each chunk, `Σ|shared| / (Σ|own| + Σ|shared|)`. Near 1, the
            negative pairs outweigh the positive ones: look at temperature and bias of both models.
        overlap: share of the examples drawn that the b best by their own part alone would contain too.
        domain_count: examples drawn from each domain; `None` without domains.
    """

    num_selected: Int[Array, ""]
    score: Float[Array, ""]
    positive: Float[Array, ""]
    negative: Float[Array, ""]
    chunk_score: Float[Array, " j"]
    chunk_share: Float[Array, " j"]
    overlap: Float[Array, ""]
    domain_count: Int[Array, " m"] | None = None


class Selection(NamedTuple):
    """The examples picked.

    Attributes:
        indices: rows of the super-batch, all different, in the order they were drawn: chunk after chunk. Shuffle
            before splitting them. Where fewer than b candidates are valid (or quotas leave room for fewer), the last
            entries are −1, never an invalid row and never a row twice; mask them out of the training batch.
        info: see `SelectionInfo`.
    """

    indices: Int[Array, " b"]
    info: SelectionInfo


@dataclasses.dataclass(frozen=True)
class Selector:
    """A selector and its properties; calling it calls `select`. Not a tuple, so that `jax.jit` takes it.

    Attributes:
        select: `(key, *data, valid=None, *, domain=None, quota=None, gain=None, …) -> Selection`. Pure and jitted, to
            be called as it is or from a larger program; gradients do not flow through it. Beside the data it takes

            - valid: bool[c], False for rows that must never be drawn (padding); they may hold anything, nan too;
            - domain: i32[c], the domain of each row, and quota: i32[m], the largest number of examples from each.
              Rows whose domain is below 0 or ≥ m are then never drawn;
            - gain: f[], in the place of the factory's, for a ramp that does not recompile.
        name: for logs and error messages.
        num_select: b.
        num_chunks: N; 1 for selectors without interaction.
        needs: out of "learner" and "reference": whose values it reads; the other may be passed as `None`.
        compared_rows: `c -> rows`, with how many rows each of c candidates is multiplied in one selection, image by
            text and text by image, under each model it needs: what it costs, see `selection_products`.
    """

    select: Callable[..., Selection]
    name: str
    num_select: int
    num_chunks: int = 1
    needs: frozenset[str] = frozenset({"learner", "reference"})
    compared_rows: Callable[[int], float] = lambda candidates: 0.0

    def __call__(self, key: Any, *data: Any, **options: Any) -> Selection:
        return self.select(key, *data, **options)


def needs_of(score: str) -> frozenset[str]:
    """The models whose losses a score reads."""
    return frozenset({"learner", "reference"} - {{"easy_reference": "learner", "hard_learner": "reference"}.get(score)})


def learner_less_reference(values: Mapping[str, Array]) -> Array:
    """The learner's value less the reference's; of either alone, its value with that sign."""
    if "reference" not in values:
        return values["learner"]
    return values["learner"] - values["reference"] if "learner" in values else -values["reference"]


def score_from_losses(score: str, learner: Any, reference: Any) -> Any:
    """The score of examples whose losses are given; a loss that it does not read may be `None`."""
    losses = {"learner": learner, "reference": reference}
    return learner_less_reference({role: losses[role] for role in needs_of(score)})


def needed_losses(name: str, score: str, learner: Array | None, reference: Array | None, axes: str) -> dict[str, Array]:
    """The losses that a score reads, by role, in float32 (float64 for float64).

    Raises:
        ConfigError: one is missing, or does not have the `axes`, "c" or "c t".
    """
    losses = {}
    for role in sorted(needs_of(score)):
        value = {"learner": learner, "reference": reference}[role]
        if value is None or value.ndim != len(axes.split()):
            raise ConfigError(
                f"the score needs the {role}'s loss of every {'token' if axes == 'c t' else 'candidate'}, got "
                f"{'nothing' if value is None else f'an array of shape {value.shape}'}",
                where=f"{name}: {role}_loss",
                fix="Pass f[c, t]." if axes == "c t" else "Pass f[c]; see sequence_loss for losses per token.",
            )
        losses[role] = value.astype(compute_dtype(value))
    return losses


def check_sizes(name: str, *, least: int = 1, **sizes: int | None) -> None:
    """Raises `ConfigError` unless every size that is given is a whole number ≥ `least`."""
    for argument, value in sizes.items():
        if value is not None:
            check_count(name, argument, value, least)


def check_chunks(name: str, num_select: int, num_chunks: int) -> None:
    """Raises `ConfigError` unless the selection divides into chunks."""
    check_sizes(name, num_select=num_select, num_chunks=num_chunks)
    if num_select % num_chunks:
        raise ConfigError(
            f"num_select {num_select} is not a multiple of num_chunks {num_chunks}",
            where=f"{name}(num_chunks)",
            fix=f"The next multiple is num_select={-(-num_select // num_chunks) * num_chunks}.",
        )


def check_super_batch(name: str, num_select: int, candidates: int, **per_row: Any) -> None:
    """Raises `ConfigError` where there are fewer candidates than examples to pick, or an array of another length."""
    if candidates < num_select:
        raise ConfigError(
            f"{candidates} candidates are fewer than the {num_select} to select",
            where=f"{name}(num_select)",
            fix="Give a super-batch at least as large as the batch to train on.",
        )
    for argument, value in per_row.items():
        if value is not None and value.shape != (candidates,):
            raise ConfigError(
                f"{argument} has shape {value.shape}, expected ({candidates},)", where=f"{name}: {argument}"
            )
