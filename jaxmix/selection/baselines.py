"""Selection of examples one by one: the baselines of joint selection.

Mindermann et al.: "Prioritized training on points that are learnable, worth learning, and not yet learned" (RHO-LOSS),
arXiv 2206.07137.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array, PRNGKeyArray
from jaxmix.core.validate import check_choice, check_number
from jaxmix.selection.base import SCORES, Selector, check_sizes, learner_less_reference, needed_losses, needs_of
from jaxmix.selection.candidates import Candidates
from jaxmix.selection.gibbs import GibbsConfig, Interaction, build_select, no_interaction
from jaxmix.selection.jest import check_contrastive
from jaxmix.selection.scores import all_pairs, check_embeddings, contrastive


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
            "form 'marginal' scores the effect on the examples already chosen, and independent selection has none",
            where="independent(form)",
            fix="Use paper or self.",
        )
    config = GibbsConfig(num_select, greedy=greedy, num_domains=num_domains)

    def criterion(candidates: Candidates, key: PRNGKeyArray, data: Any, valid: Array) -> Interaction:
        del key
        models, group = data
        if not context:
            return no_interaction(contrastive(models, candidates, loss=loss, form=form).own)
        # Values of rows that are not valid must not reach the others, not even as 0 · nan.
        clean = lambda x: jnp.where(valid[:, None], x, jnp.zeros((), x.dtype)) if x.ndim else x
        models = jax.tree.map(clean, models)
        pairwise = contrastive(models, candidates, loss=loss, form=form, group=group, row_block=row_block)
        total = all_pairs(candidates, pairwise, valid, distinct=True)
        num_valid = jnp.sum(candidates.gather(valid).astype(pairwise.own.dtype))
        share = num_select / jnp.maximum(num_valid, num_select)
        thin = (lambda x: share * x) if loss == "sigmoid" else (lambda x: jnp.log(share) + x)
        shared = pairwise.shared(jax.tree.map(thin, total), jnp.full((1, 1), -1, jnp.int32))
        return no_interaction(pairwise.own)._replace(shared=lambda total, chunks: shared)

    prepare = partial(check_embeddings, "independent", score)
    select = build_select("independent", config, prepare, criterion, gain=gain, mesh=mesh)
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
    config = GibbsConfig(num_select, greedy=greedy, num_domains=num_domains)

    def prepare(learner_loss: Array | None, reference_loss: Array | None) -> tuple[int, Array]:
        losses = needed_losses(name, score, learner_loss, reference_loss, "c")
        sizes = [len(value) for value in losses.values()]
        if len(set(sizes)) > 1:
            raise ConfigError(
                f"learner and reference have losses of {sizes[0]} and {sizes[1]} candidates",
                where=f"{name}: reference_loss",
            )
        return sizes[0], learner_less_reference(losses)

    criterion = lambda candidates, key, score, valid: no_interaction(score)
    return Selector(build_select(name, config, prepare, criterion, gain=gain), name, num_select, 1, needs_of(score))
