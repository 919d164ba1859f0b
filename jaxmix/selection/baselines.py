"""Selection of examples one by one: what joint selection has to beat.

Mindermann et al.: "Prioritized training on points that are learnable, worth learning, and not yet learned" (RHO-LOSS),
arXiv 2206.07137.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array, Bool, Int, PRNGKeyArray
from jaxmix.core.validate import check_choice, check_number
from jaxmix.selection.base import SCORES, Selection, Selector, check_sizes, needs_of, score_from_losses
from jaxmix.selection.gibbs import Interaction, Rules, no_interaction
from jaxmix.selection.jest import check_contrastive, join_models, pick_by_embeddings
from jaxmix.selection.pairs import compute_dtype
from jaxmix.selection.picking import pick
from jaxmix.selection.rows import Rows
from jaxmix.selection.scores import all_pairs, contrastive


def independent(
    num_select: int,
    *,
    context: bool = False,
    loss: str = "sigmoid",
    score: str = "learnability",
    gain: float = 1.0,
    greedy: bool = False,
    form: str = "paper",
    num_domains: int | None = None,
    row_block: int | None = None,
    mesh: Mesh | None = None,
) -> Selector:
    r"""Contrastive scores without regard to what else is selected.

    With s_ij as in `jest`, B candidates of which n are valid, and b = num_select, the score of example i is

        context=False:  s_ii                                              (JEST with one chunk)
        context=True:   s_ii + (b/n) Σ_{j≠i} (s_ij + s_ji)                sigmoid
                        c_i with R_i = log(b/n) + logsumexp_{j≠i} l_ij,   softmax, C_i alike

    that is, each example against the average companion instead of against those chosen.

    Args:
        num_select: b ≥ 1.
        context: whether the companions of the super-batch count. It costs `8 B² d`, B/b times a pass of JEST, and is
            a strong baseline.
        loss: "sigmoid" or "softmax".
        score: "learnability", "easy_reference" or "hard_learner".
        gain: inverse temperature of the draw, ≥ 0.
        greedy: the b best instead of a draw.
        form: "paper" or "self", of the softmax loss with context.
        num_domains: see `jest`.
        row_block: see `jest`.
        mesh: see `jest`.

    Returns:
        A `Selector`, called as that of `jest`. In `info`, the context is the shared part.

    Raises:
        ConfigError: as `jest`.

    Differs from the paper: the context is not in it.

    Example:
        >>> from jaxmix.selection import Embeddings
        >>> eye = jnp.eye(6)
        >>> learner, reference = Embeddings(eye, eye, 1.0, 0.0), Embeddings(eye, eye, jnp.float32(5.0), 0.0)
        >>> independent(2, context=True)(jax.random.key(0), learner, reference).indices.shape
        (2,)

    References:
        arXiv 2406.17711, section 3 ("independent" selection).
    """
    check_contrastive("independent", loss, score, form, gain, num_domains, row_block)
    check_sizes("independent", num_select=num_select)
    if form == "marginal":
        raise ConfigError(
            "form 'marginal' is a difference that one example makes to others chosen, and here there are none",
            where="independent(form)",
            fix="Use paper or self.",
        )
    rules = Rules(num_select, greedy=greedy, num_domains=num_domains)

    def criterion(rows: Rows, key: PRNGKeyArray, per_row: Any, whole: Any, free: Array) -> Interaction:
        del key
        models = join_models(per_row, whole)
        if not context:
            own = contrastive(models, rows, loss=loss, form=form).own
            return no_interaction(own)
        # What rows that are not valid hold must not reach the others, not even as 0 · nan.
        clean = lambda x: jnp.where(free[:, None], x, jnp.zeros((), x.dtype))
        models = [(sign, model._replace(image=clean(model.image), text=clean(model.text))) for sign, model in models]
        pairwise = contrastive(models, rows, loss=loss, form=form, group=per_row["group"], row_block=row_block)
        total = all_pairs(rows, pairwise, free, is_apart=True)
        num_valid = jnp.sum(rows.gather(free).astype(pairwise.own.dtype))
        share = num_select / jnp.maximum(num_valid, num_select)
        thin = (lambda x: share * x) if loss == "sigmoid" else (lambda x: jnp.log(share) + x)
        shared = pairwise.shared(jax.tree.map(thin, total), jnp.full((1, 1), -1, jnp.int32))
        return no_interaction(pairwise.own)._replace(shared=lambda total, chunks: shared)

    select = pick_by_embeddings("independent", rules, criterion, score=score, gain=gain, mesh=mesh)
    compared_rows = float if context else lambda candidates: 0.0
    return Selector(select, "independent", num_select, 1, needs_of(score), compared_rows)


def top_learnability(
    num_select: int,
    *,
    gain: float = 1.0,
    greedy: bool = False,
    score: str = "learnability",
    num_domains: int | None = None,
) -> Selector:
    r"""Picks examples by the difference of two losses: RHO-LOSS, and sequences of a language model.

        s_i = ℓ^L_i − ℓ^R_i,    indices = top-b of  gain · s_i + Gumbel_i

    A loss that does not depend on a batch's other examples makes F a plain sum, and joint selection falls back on
    this: how many chunks it takes makes no difference.

    Args:
        num_select: b ≥ 1.
        gain: inverse temperature of the draw, ≥ 0.
        greedy: the b best, which is RHO-LOSS itself.
        score: "learnability", "easy_reference" (−ℓ^R alone) or "hard_learner" (ℓ^L alone); the loss that a score does
            not read may be passed as `None`.
        num_domains: m, to count the selected by domain where `domain` is passed without a quota.

    Returns:
        A `Selector` called as `selector(key, learner_loss f[c], reference_loss f[c], valid=None, *, domain=None,
        quota=None, gain=None)`. Losses of sequences should be normalized by their length, see `sequence_loss`.

    Raises:
        ConfigError: an argument is out of range or unknown; when traced, c < b or arrays disagree in shape.

    Numerics: float32 (float64 for float64 losses). A score that is not finite counts as the lowest. Negative scores
    are kept: they are what rejects noise.

    Example:
        >>> losses = jnp.array([3.0, 1.0, 2.0, 5.0]), jnp.array([1.0, 1.0, 1.5, 4.9])
        >>> top_learnability(2, greedy=True)(jax.random.key(0), *losses).indices.tolist()
        [0, 2]

    References:
        arXiv 2206.07137, Algorithm 1.
    """
    name = "top_learnability"
    check_sizes(name, num_select=num_select, num_domains=num_domains)
    check_number(name, "gain", gain, 0)
    check_choice(name, "score", score, SCORES)
    rules, default_gain, needs = Rules(num_select, greedy=greedy, num_domains=num_domains), gain, needs_of(score)

    def select(
        key: PRNGKeyArray,
        learner_loss: Array | None,
        reference_loss: Array | None,
        valid: Bool[Array, " c"] | None = None,
        *,
        domain: Int[Array, " c"] | None = None,
        quota: Int[Array, " m"] | None = None,
        gain: Any = None,
    ) -> Selection:
        losses, sizes = {"learner": learner_loss, "reference": reference_loss}, {}
        for role in sorted(needs):
            value = losses[role]
            if value is None or value.ndim != 1:
                raise ConfigError(
                    f"the score needs the {role}'s loss of every candidate, got "
                    f"{'nothing' if value is None else f'an array of shape {value.shape}'}",
                    where=f"{name}: {role}_loss",
                    fix="Pass f[c]; see sequence_loss for losses per token.",
                )
            losses[role], sizes[role] = value.astype(compute_dtype(value)), value.shape[0]
        if len(set(sizes.values())) > 1:
            raise ConfigError(
                f"learner and reference have losses of {sizes['learner']} and {sizes['reference']} candidates",
                where=f"{name}: reference_loss",
            )
        total = score_from_losses(score, **losses)
        return pick(
            rules,
            lambda rows, key, per_row, whole, free: no_interaction(per_row),
            key,
            total,
            (),
            name=name,
            count=total.shape[0],
            gain=default_gain if gain is None else gain,
            valid=valid,
            domain=domain,
            quota=quota,
        )

    return Selector(jax.jit(select), name, num_select, 1, needs)
