"""Contrastive losses as criteria over sets: what each candidate adds to `F = |A| · (loss of A)`, chunk by chunk.

With the logits `l_ij = t ⟨u_i, v_j⟩ + β` of image i and text j:

    sigmoid:  F(A) = Σ_i softplus(−l_ii) + Σ_{i≠j} softplus(l_ij)
    softmax:  F(A) = Σ_i [−l_ii + ½ logsumexp_{j in A} l_ij + ½ logsumexp_{j in A} l_ji]

and, by score, F of the learner less F of the reference, or one of these two terms. See `docs/jest.md`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array, Bool, Float, Int
from jaxmix.selection import pairwise
from jaxmix.selection.base import Embeddings, compute_dtype, learner_less_reference, needs_of
from jaxmix.selection.candidates import Candidates, by_row_blocks
from jaxmix.selection.gibbs import Interaction

Models = dict[str, Embeddings]
"""The embeddings that a score reads, by role: "learner", "reference" or both."""


def check_embeddings(
    name: str,
    score: str,
    learner: Embeddings | None,
    reference: Embeddings | None,
    group: Int[Array, " c"] | None = None,
) -> tuple[int, tuple[Models, Array | None]]:
    """(number of candidates, (models that the score reads, group)), scalars in the dtype of the sums.

    Raises:
        ConfigError: an embedding is missing, or shapes disagree.
    """
    models = {}
    for role in sorted(needs_of(score)):
        model = {"learner": learner, "reference": reference}[role]
        if model is None:
            raise ConfigError(
                f"the score needs the embeddings of the {role}", where=f"{name}: {role}", fix="Pass Embeddings."
            )
        if model.image.ndim != 2 or model.image.shape != model.text.shape:
            raise ConfigError(
                f"image and text embeddings have shapes {model.image.shape} and {model.text.shape}",
                where=f"{name}: {role}",
                fix="Both must be [candidates, width], row i of one belonging to row i of the other.",
            )
        dtype = compute_dtype(model.image)
        temperature, bias = (jnp.asarray(value).astype(dtype) for value in (model.temperature, model.bias))
        models[role] = Embeddings(jnp.asarray(model.image), jnp.asarray(model.text), temperature, bias)
    counts = [model.image.shape[0] for model in models.values()]
    if len(set(counts)) > 1:
        raise ConfigError(
            f"learner and reference embed {counts[0]} and {counts[1]} candidates",
            where=f"{name}: reference",
            fix="Both must see the same super-batch, in the same order.",
        )
    if group is not None and group.shape != (counts[0],):
        raise ConfigError(f"group has shape {group.shape}, expected ({counts[0]},)", where=f"{name}: group")
    return counts[0], (models, None if group is None else jnp.asarray(group, jnp.int32))


def contrastive(
    models: Models,
    candidates: Candidates,
    *,
    loss: str,
    form: str,
    group: Int[Array, " c"] | None = None,
    row_block: int | None = None,
) -> Interaction:
    """The interaction of a contrastive loss. Its `contribute` takes the further argument `distinct`: True leaves out
    the pair of a row with itself.

    Args:
        models: of the candidates on this device.
        candidates: how they lie on devices.
        loss: "sigmoid" or "softmax".
        form: "paper", "self" or "marginal", of the softmax loss.
        group: of the candidates on this device; two different ones with the same number ≥ 0 are not compared.
        row_block: see `by_row_blocks`.
    """
    pairs = _Pairs(models, candidates, group, row_block)
    return _sigmoid(pairs) if loss == "sigmoid" else _softmax(pairs, form)


def all_pairs(candidates: Candidates, interaction: Interaction, valid: Bool[Array, " c"], *, distinct: bool) -> Any:
    """The contribution of all valid candidates together, column block after column block."""
    size = min(candidates.total, 512)
    is_valid = candidates.gather(valid)

    def add(total: Any, block: Array) -> tuple[Any, None]:
        indices = block * size + jnp.arange(size, dtype=jnp.int32)
        is_there = (indices < candidates.total) & is_valid[jnp.minimum(indices, candidates.total - 1)]
        new = interaction.contribute(jnp.where(is_there, indices, -1), distinct)
        return interaction.join(jax.tree.map(lambda x, y: jnp.stack([x, y]), total, new)), None

    blocks = jnp.arange(-(-candidates.total // size), dtype=jnp.int32)
    return jax.lax.scan(add, interaction.nothing, blocks)[0]


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """The pairs of the candidates on this device with the members of a chunk, in both directions, for every model."""

    models: Models
    candidates: Candidates
    group: Array | None
    row_block: int | None

    def positives(self) -> dict[str, Array]:
        """l_ii by role."""
        # The temperature goes inside the sum: a compiler may fuse a product into the difference of two models' logits,
        # and exchanging the models would then change more than its sign.
        of = lambda model: pairwise.diagonal(model.image, model.text, model.temperature) + model.bias
        return {role: of(model) for role, model in self.models.items()}

    def reduce(
        self,
        reduction: Callable[[Array], Array],
        indices: Int[Array, " k"],
        biases: dict[str, tuple[Array, Array]],
        distinct: bool = False,
    ) -> dict[str, tuple[Array, Array]]:
        """By role, `reduction` of the tiles of l_ik and of l_ki, candidates i, members k.

        `biases` has for each model what is added for member k to l_ik and to l_ki, f[k] each.
        """
        fetch = lambda values: self.candidates.fetch(values, indices)
        chunk = {role: (fetch(model.text), fetch(model.image)) for role, model in self.models.items()}
        biases = jax.tree.map(lambda bias: jnp.where(indices >= 0, bias, -jnp.inf), biases)
        chunk_group = None if self.group is None else fetch(self.group)
        rows: dict[str, Any] = {"towers": {role: (model.image, model.text) for role, model in self.models.items()}}
        if distinct or self.group is not None:
            rows["index"], rows["group"] = self.candidates.local_indices(), self.group

        def block(rows: dict[str, Any]) -> dict[str, tuple[Array, Array]]:
            hidden = None
            if "index" in rows:
                is_same = indices[:, None] == rows["index"][None, :]
                hidden = is_same if distinct else None
            if chunk_group is not None:
                is_equal = (chunk_group[:, None] == rows["group"][None, :]) & (rows["group"] >= 0)[None, :]
                hidden = is_equal | is_same if distinct else is_equal & ~is_same

            def reduce_role(role: str) -> tuple[Array, Array]:
                (image, text), (texts, images), (to_text, to_image) = rows["towers"][role], chunk[role], biases[role]
                tile = lambda members, rows, bias: reduction(
                    pairwise.logits(members, rows, self.models[role].temperature, bias, hidden)
                )
                return tile(texts, image, to_text), tile(images, text, to_image)

            return {role: reduce_role(role) for role in self.models}

        return by_row_blocks(block, rows, indices.shape[0], self.row_block)


def _sigmoid(pairs: _Pairs) -> Interaction:
    own = learner_less_reference({role: jax.nn.softplus(-x) for role, x in pairs.positives().items()})

    def contribute(indices: Array, distinct: bool = False) -> Array:
        biases = {role: (jnp.full(indices.shape, model.bias),) * 2 for role, model in pairs.models.items()}
        found = pairs.reduce(pairwise.softplus_sum, indices, biases, distinct)
        return learner_less_reference({role: of_text + of_image for role, (of_text, of_image) in found.items()})

    return Interaction(
        own=own,
        nothing=jnp.zeros_like(own),
        contribute=contribute,
        join=lambda stack: jnp.sum(stack, axis=0),
        shared=lambda total, chunks: total,
    )


def _softmax(pairs: _Pairs, form: str) -> Interaction:
    """The total is, by role, R_i = logsumexp_{j chosen} l_ij and C_i = logsumexp_{j chosen} l_ji."""
    # A bias cancels in the softmax loss; leaving it out keeps the first chunk's diagonal free of it too.
    unbiased = {role: model._replace(bias=jnp.zeros_like(model.bias)) for role, model in pairs.models.items()}
    pairs = dataclasses.replace(pairs, models=unbiased)
    positives = pairs.positives()
    own = learner_less_reference({role: -positive for role, positive in positives.items()})

    def contribute(indices: Array, distinct: bool = False) -> dict[str, tuple[Array, Array]]:
        zeros = jnp.zeros(indices.shape, own.dtype)
        return pairs.reduce(pairwise.logsumexp, indices, dict.fromkeys(positives, (zeros, zeros)), distinct)

    def hardening(total: dict[str, tuple[Array, Array]], chunks: Array) -> Float[Array, " c"]:
        """½ Σ_k softplus(l_ki − R_k) + softplus(l_ik − C_k): how much harder i makes those already chosen."""

        def add(indices: Array) -> Array:
            fetch = lambda values: pairs.candidates.fetch(values, indices)
            biases = {role: (-fetch(c), -fetch(r)) for role, (r, c) in total.items()}
            found = pairs.reduce(pairwise.softplus_sum, indices, biases)
            return learner_less_reference({role: 0.5 * (a + b) for role, (a, b) in found.items()})

        def one(so_far: Array, indices: Array) -> tuple[Array, None]:
            return so_far + jax.lax.cond(jnp.any(indices >= 0), add, lambda _: jnp.zeros_like(own), indices), None

        return jax.lax.scan(one, jnp.zeros_like(own), chunks)[0]

    def shared(total: dict[str, tuple[Array, Array]], chunks: Array) -> Array:
        denominators = {}
        for role, (r, c) in total.items():
            positive = positives[role]
            both = r + c if form == "paper" else jnp.logaddexp(r, positive) + jnp.logaddexp(c, positive)
            # With no example chosen the score is the positive pair alone: a set of one has no loss to compare.
            denominators[role] = jnp.where(jnp.isneginf(r), 0.0, 0.5 * both)
        found = learner_less_reference(denominators)
        return found + hardening(total, chunks) if form == "marginal" else found

    nowhere = jnp.full_like(own, -jnp.inf)
    return Interaction(
        own=own,
        nothing=dict.fromkeys(positives, (nowhere, nowhere)),
        contribute=contribute,
        join=lambda stack: jax.tree.map(lambda x: jax.nn.logsumexp(x, axis=0), stack),
        shared=shared,
    )
