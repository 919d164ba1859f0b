"""Contrastive losses as criteria over sets: what each candidate adds to `F = |A| · (loss of A)`, chunk by chunk.

With the logits `l_ij = t ⟨u_i, v_j⟩ + β` of image i and text j:

    sigmoid:  F(A) = Σ_i softplus(−l_ii) + Σ_{i≠j} softplus(l_ij)
    softmax:  F(A) = Σ_i [−l_ii + ½ logsumexp_{j in A} l_ij + ½ logsumexp_{j in A} l_ji]

and, by score, F of the learner less F of the reference, either alone, or the reference's with the other sign.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmix.core.types import Array, Int
from jaxmix.selection import pairs
from jaxmix.selection.base import Embeddings
from jaxmix.selection.gibbs import Interaction
from jaxmix.selection.rows import Rows, by_row_blocks


def models_of(learner: Embeddings | None, reference: Embeddings | None, score: str) -> list[tuple[int, Embeddings]]:
    """The models that a score reads, with the sign of their loss; temperature and bias in the dtype of the sums."""
    signed = {
        "learnability": [(1, learner), (-1, reference)],
        "easy_reference": [(-1, reference)],
        "hard_learner": [(1, learner)],
    }[score]

    def settle(model: Embeddings | None) -> Embeddings:
        assert model is not None
        dtype = pairs.compute_dtype(model.image)
        factor, bias = (jnp.asarray(value).astype(dtype) for value in (model.temperature, model.bias))
        return Embeddings(jnp.asarray(model.image), jnp.asarray(model.text), factor, bias)

    return [(sign, settle(model)) for sign, model in signed]


def contrastive(
    models: list[tuple[int, Embeddings]],
    rows: Rows,
    *,
    loss: str,
    form: str,
    group: Int[Array, " c"] | None = None,
    row_block: int | None = None,
) -> Interaction:
    """The interaction of a contrastive loss. Its `contribute` takes the further argument `is_apart`: True leaves out
    the pair of a row with itself.

    Args:
        models: from `models_of`; embeddings of the rows held here.
        rows: how candidates are held.
        loss: "sigmoid" or "softmax".
        form: "paper", "self" or "marginal", of the softmax loss.
        group: of the rows held here; pairs of different rows with the same number ≥ 0 count as no pair.
        row_block: see `by_row_blocks`.
    """
    build = _sigmoid if loss == "sigmoid" else _softmax
    return build(models, _Pairs(models, rows, group, row_block), form)


def all_pairs(rows: Rows, interaction: Interaction, free: Array, *, is_apart: bool) -> Any:
    """What all free candidates together contribute, column block after column block."""
    size = min(rows.total, 512)
    everyone = rows.gather(free)

    def add(total: Any, block: Array) -> tuple[Any, None]:
        numbers = block * size + jnp.arange(size, dtype=jnp.int32)
        is_there = (numbers < rows.total) & everyone[jnp.minimum(numbers, rows.total - 1)]
        new = interaction.contribute(jnp.where(is_there, numbers, -1), is_apart)
        return interaction.join(jax.tree.map(lambda x, y: jnp.stack([x, y]), total, new)), None

    blocks = jnp.arange(-(-rows.total // size), dtype=jnp.int32)
    return jax.lax.scan(add, interaction.nothing, blocks)[0]


class _Pairs:
    """Reductions over all pairs of a held row with a chunk, for both directions and every model at once."""

    def __init__(
        self, models: list[tuple[int, Embeddings]], rows: Rows, group: Array | None, row_block: int | None
    ) -> None:
        self.models, self.rows, self.group, self.row_block = models, rows, group, row_block

    def __call__(
        self,
        reduce: Callable[[Array], Array],
        indices: Array,
        biases: list[tuple[Array, Array]],
        is_apart: bool = False,
    ) -> list[tuple[Array, Array]]:
        """Per model `reduce` of the tiles of l_ik and of l_ki, rows i, members k.

        `biases` has for each model what is added for member k to l_ik and to l_ki, f[k] each.
        """
        fetch = lambda values: self.rows.fetch(values, indices)
        chunk = [(fetch(model.text), fetch(model.image)) for _, model in self.models]
        biases = jax.tree.map(lambda bias: jnp.where(indices >= 0, bias, -jnp.inf), biases)
        chunk_group = None if self.group is None else fetch(self.group)
        held: dict[str, Any] = {"models": [(model.image, model.text) for _, model in self.models]}
        if is_apart or self.group is not None:
            held["number"] = self.rows.numbers()
        if self.group is not None:
            held["group"] = self.group

        def block(part: dict[str, Any]) -> list[tuple[Array, Array]]:
            hidden = None
            if "number" in part:
                is_same = indices[:, None] == part["number"][None, :]
                hidden = is_same if is_apart else None
            if chunk_group is not None:
                is_equal = (chunk_group[:, None] == part["group"][None, :]) & (part["group"] >= 0)[None, :]
                hidden = is_equal | is_same if is_apart else is_equal & ~is_same

            def tile(members: Array, candidates: Array, temperature: Any, bias: Array) -> Array:
                return reduce(pairs.logits(members, candidates, temperature, bias, hidden))

            found = []
            for n, (image, text) in enumerate(part["models"]):
                (texts, images), temperature = chunk[n], self.models[n][1].temperature
                found.append(
                    (tile(texts, image, temperature, biases[n][0]), tile(images, text, temperature, biases[n][1]))
                )
            return found

        return by_row_blocks(block, held, indices.shape[0], self.row_block)


def _positives(models: list[tuple[int, Embeddings]]) -> list[Array]:
    """l_ii per model."""
    # The temperature goes inside the sum: a compiler may fuse a product into the difference of two models' logits, and
    # exchanging the models would then change more than its sign.
    return [pairs.diagonal(model.image, model.text, model.temperature) + model.bias for _, model in models]


def _signed_sum(signs: list[int], values: list[Array]) -> Array:
    """Σ sign · value: one model's figure, or the difference of two."""
    terms = [value if sign > 0 else -value for sign, value in zip(signs, values, strict=True)]
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]


def _sigmoid(models: list[tuple[int, Embeddings]], pair: _Pairs, form: str) -> Interaction:
    del form
    signs = [sign for sign, _ in models]
    own = _signed_sum(signs, [jax.nn.softplus(-positive) for positive in _positives(models)])

    def contribute(indices: Array, is_apart: bool = False) -> Array:
        bias = [(jnp.full(indices.shape, model.bias),) * 2 for _, model in models]
        found = pair(pairs.softplus_sum, indices, bias, is_apart)
        return _signed_sum(signs, [of_text + of_image for of_text, of_image in found])

    return Interaction(
        own=own,
        nothing=jnp.zeros_like(own),
        contribute=contribute,
        join=lambda stack: jnp.sum(stack, axis=0),
        shared=lambda total, chunks: total,
    )


def _softmax(models: list[tuple[int, Embeddings]], pair: _Pairs, form: str) -> Interaction:
    """The total is, per model, R_i = logsumexp_{j chosen} l_ij and C_i = logsumexp_{j chosen} l_ji."""
    # A bias cancels in the softmax loss; leaving it out keeps the first chunk's diagonal free of it too.
    models = [(sign, model._replace(bias=jnp.zeros_like(model.bias))) for sign, model in models]
    positives = _positives(models)
    signs = [sign for sign, _ in models]
    nowhere = jnp.full_like(positives[0], -jnp.inf)
    own = _signed_sum(signs, [-positive for positive in positives])

    def contribute(indices: Array, is_apart: bool = False) -> list[tuple[Array, Array]]:
        zeros = [(jnp.zeros(indices.shape, positive.dtype),) * 2 for positive in positives]
        return pair(pairs.logsumexp, indices, zeros, is_apart)

    def hardening(total: list[tuple[Array, Array]], chunks: Array) -> Array:
        """½ Σ_k softplus(l_ki − R_k) + softplus(l_ik − C_k): how much harder i makes those already chosen."""

        def add(indices: Array) -> Array:
            fetch = lambda values: pair.rows.fetch(values, indices)
            found = pair(pairs.softplus_sum, indices, [(-fetch(c), -fetch(r)) for r, c in total])
            return _signed_sum(signs, [0.5 * (a + b) for a, b in found])

        def one(so_far: Array, indices: Array) -> tuple[Array, None]:
            return so_far + jax.lax.cond(jnp.any(indices >= 0), add, lambda _: jnp.zeros_like(own), indices), None

        return jax.lax.scan(one, jnp.zeros_like(own), chunks)[0]

    def shared(total: list[tuple[Array, Array]], chunks: Array) -> Array:
        denominators = []
        for positive, (r, c) in zip(positives, total, strict=True):
            both = r + c if form == "paper" else jnp.logaddexp(r, positive) + jnp.logaddexp(c, positive)
            # With no one chosen the score is the positive pair alone: a set of one has no loss to compare.
            denominators.append(jnp.where(jnp.isneginf(r), 0.0, 0.5 * both))
        found = _signed_sum(signs, denominators)
        return found + hardening(total, chunks) if form == "marginal" else found

    return Interaction(
        own=own,
        nothing=[(nowhere, nowhere) for _ in models],
        contribute=contribute,
        join=lambda stack: jax.tree.map(lambda x: jax.nn.logsumexp(x, axis=0), stack),
        shared=shared,
    )
