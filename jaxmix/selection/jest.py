"""JEST: picks the examples of a batch jointly, by the learnability of the batch as a whole.

Evans, Parthasarathy, Merzic, Hénaff: "Data curation via joint example selection further accelerates multimodal
learning", arXiv 2406.17711.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from jax.sharding import Mesh

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array, PRNGKeyArray
from jaxmix.core.validate import check_choice, check_number
from jaxmix.selection.base import LOSSES, SCORES, Selector, check_chunks, check_sizes, needs_of
from jaxmix.selection.candidates import Candidates
from jaxmix.selection.gibbs import GibbsConfig, Interaction, build_select
from jaxmix.selection.scores import check_embeddings, contrastive

FORMS = ("paper", "self", "marginal")
FIRST_CHUNKS = ("self", "uniform")


def jest(
    num_select: int,
    *,
    num_chunks: int = 16,
    loss: str = "sigmoid",
    score: str = "learnability",
    gain: float = 1.0,
    greedy: bool = False,
    form: str = "paper",
    first_chunk: str = "self",
    sweeps: int = 0,
    num_domains: int | None = None,
    row_block: int | None = None,
    mesh: Mesh | None = None,
) -> Selector:
    r"""Joint example selection for contrastive learning.

    From B candidates picks b in N chunks. Each chunk is drawn without replacement by the candidates' scores given the
    chunks before it, S:

        z_i = γ · (s_ii + g_i) + Gumbel_i,   X = the b/N largest z_i not yet taken
        g_i ← g_i + Σ_{k in X} (s_ik + s_ki)

    with, for logits `l_ij = t ⟨u_i, v_j⟩ + β` of learner (L) and reference (R), each with its own t and β,

        sigmoid:  s_ij = nll^L_ij − nll^R_ij,   nll_ii = softplus(−l_ii),   nll_ij = softplus(l_ij)
        softmax:  score c^L_i − c^R_i, with R_i = logsumexp_{j in S} l_ij and C_i = logsumexp_{j in S} l_ji
            paper      c_i = −l_ii + ½ (R_i + C_i)
            self       c_i = −l_ii + ½ (logaddexp(R_i, l_ii) + logaddexp(C_i, l_ii))
            marginal   c_i = self + ½ Σ_{k in S} (softplus(l_ki − R_k) + softplus(l_ik − C_k))

    and −l_ii alone while S is empty. For the sigmoid loss and the marginal form this is a chunked Gibbs sampler for
    `p(A) ∝ exp(γ F(A))`, F(A) = |A| · (loss of A under L − loss of A under R): `docs/jest.md` shows why. γ = gain,
    B = candidates, b = num_select, N = num_chunks.

    Args:
        num_select: b ≥ 1, a multiple of `num_chunks`.
        num_chunks: N. One chunk is independent selection; beyond 16 little is gained.
        loss: "sigmoid" (SigLIP) or "softmax" (CLIP).
        score: "learnability" (as above), "easy_reference" (−nll^R alone) or "hard_learner" (nll^L alone); the model
            that a score does not read may be passed as `None`.
        gain: γ ≥ 0, the inverse temperature. More gain finds batches of higher score and rejects less noise.
        greedy: take the largest scores, without noise; ties in random order.
        form: of the softmax loss. "marginal" costs N/2 times the others.
        first_chunk: "self" draws it by s_ii, "uniform" without regard to scores.
        sweeps: after the pass, redraw every chunk given all the others, so many times: blocked Gibbs for the same law.
            One sweep costs as much as the pass once more; on the synthetic task of the tests it raised F by 20 to 40 %.
        num_domains: m, to count the selected by domain where `domain` is passed without a quota.
        row_block: candidates whose pairs with a chunk are held at once; by default all, or as many as 32 MiB take.
        mesh: spreads the rows over its data axes with `shard_map`. Without it, arrays sharded by rows work too under
            `jit`.

    Returns:
        A `Selector` called as `selector(key, learner, reference, valid=None, *, domain=None, quota=None, group=None,
        gain=None)` with `Embeddings` of learner and reference; their widths d may differ. `group` i32[B]: rows with
        the same number ≥ 0 (the same caption, say) are not negatives of each other: such pairs score 0 (softmax: are
        left out of the denominators). An exact duplicate otherwise looks like a perfect hard negative.

    Raises:
        ConfigError: when it is made, an argument is out of range or unknown, or b is not a multiple of N; when it is
            traced, B < b, arrays disagree in shape, an embedding that the score needs is missing.

    Shapes: everything static but how many rows are valid. Memory O(B d + row_block · b/N): no B × B and no B × b array.
    Sharded over P devices: B/P rows each, per chunk an all-gather of B floats (of the local best where that is less)
    and a sum of four [b/N, d] arrays.

    Numerics: embeddings may be bfloat16; all else is float32 (float64 for float64 embeddings), products of float32
    embeddings at highest precision. Finite for logits of any finite size. The noise is drawn for all B candidates, so
    that the selection does not depend on the mesh; a different order of summation can still flip a near tie. A score
    that is not finite counts as the lowest.

    Differs from the paper: the logits of a draw are not exponentiated (the Gumbel form draws from the same law without
    overflow); `self`, `marginal`, `sweeps`, `group`, `valid` and quotas are not in the paper. The first chunk by
    softmax of s_ii and the gain of 1 are readings of the paper's pseudo-code.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmix.selection import Embeddings
        >>> rng = jax.random.normal(jax.random.key(0), (4, 64, 8))
        >>> unit = rng / jnp.linalg.norm(rng, axis=-1, keepdims=True)
        >>> learner, reference = Embeddings(unit[0], unit[1], 10.0, -5.0), Embeddings(unit[2], unit[3], 10.0, -5.0)
        >>> out = jest(16, num_chunks=4)(jax.random.key(1), learner, reference)
        >>> out.indices.shape, len(set(out.indices.tolist())), int(out.info.num_selected)
        ((16,), 16, 16)

    References:
        arXiv 2406.17711, sections 2 and 3 (scores, algorithm).
    """
    check_contrastive("jest", loss, score, form, gain, num_domains, row_block)
    check_chunks("jest", num_select, num_chunks)
    check_choice("jest", "first_chunk", first_chunk, FIRST_CHUNKS)
    check_sizes("jest", least=0, sweeps=sweeps)
    config = GibbsConfig(num_select, num_chunks, sweeps, greedy, first_chunk, num_domains)

    def criterion(candidates: Candidates, key: PRNGKeyArray, data: Any, valid: Array) -> Interaction:
        del key, valid
        models, group = data
        return contrastive(models, candidates, loss=loss, form=form, group=group, row_block=row_block)

    select = build_select("jest", config, partial(check_embeddings, "jest", score), criterion, gain=gain, mesh=mesh)
    rows = _compared_rows(config, marginal=loss == "softmax" and form == "marginal")
    return Selector(select, "jest", num_select, num_chunks, needs_of(score), lambda candidates: rows)


def _compared_rows(config: GibbsConfig, *, marginal: bool) -> float:
    """How many rows each candidate is multiplied with: those of every chunk drawn but the last.

    The marginal score multiplies by the rows of all earlier chunks again at each draw.
    """
    number, sweeps = config.num_chunks, config.sweeps
    chunks = number * (1 + sweeps) - 1 + (number * (number - 1) * (0.5 + sweeps) if marginal else 0)
    return config.num_select * chunks / number


def check_contrastive(
    name: str, loss: str, score: str, form: str, gain: float, num_domains: int | None, row_block: int | None
) -> None:
    """Raises `ConfigError` for arguments that selectors on embeddings do not take."""
    check_choice(name, "loss", loss, LOSSES)
    check_choice(name, "score", score, SCORES)
    check_choice(name, "form", form, FORMS)
    check_number(name, "gain", gain, 0)
    check_sizes(name, num_domains=num_domains, row_block=row_block)
    if loss == "sigmoid" and form != "paper":
        raise ConfigError(
            f"form {form!r} is one of the softmax loss's; the sigmoid loss has a single form, which is exact",
            where=f"{name}(form)",
            fix="Leave it out, or set loss to softmax.",
        )
