"""The loop that all joint selectors share: draw a chunk, tell the other candidates of it, draw the next.

For a criterion F over sets, one pass is a chunked Gibbs sampler for `p(A) ∝ exp(gain · F(A))` over sets of b
examples: a candidate's score is `F(S + i) − F(S)`, S being the chunks drawn so far.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmix.core.types import Array, Bool, Float, Int, PRNGKeyArray
from jaxmix.selection.base import Selection, SelectionInfo
from jaxmix.selection.draw import best, count_by_domain, draw
from jaxmix.selection.rows import Rows


class Interaction(NamedTuple):
    """How those already chosen change the score of the others. Arrays are of the rows held here.

    Attributes:
        own: f[c], the score of an example with no others chosen.
        nothing: tree, what no chosen examples contribute.
        contribute: `(indices i32[k]) -> tree`, what these rows contribute; −1 contributes nothing.
        join: `(tree with a leading axis) -> tree`, several contributions as one.
        shared: `(tree, chunks i32[j, k]) -> f[c]`, what the chosen add to `own`. `chunks` has −1 for what is not
            drawn.
    """

    own: Array
    nothing: Any
    contribute: Callable[..., Any]
    join: Callable[[Any], Any]
    shared: Callable[[Any, Array], Array]


class Rules(NamedTuple):
    """Static settings of the loop; see `jaxmix.selection.jest`."""

    num_select: int
    num_chunks: int = 1
    sweeps: int = 0
    greedy: bool = False
    first_chunk: str = "self"
    num_domains: int | None = None


def no_interaction(score: Float[Array, " c"]) -> Interaction:
    """Examples that do not meet: F is the sum of their scores."""
    return Interaction(
        own=score,
        nothing=(),
        contribute=lambda indices: (),
        join=lambda stack: (),
        shared=lambda total, chunks: jnp.zeros_like(score),
    )


def choose(
    key: PRNGKeyArray,
    interaction: Interaction,
    rows: Rows,
    free: Bool[Array, " c"],
    rules: Rules,
    *,
    gain: Float[Array, ""],
    domain: Int[Array, " c"] | None = None,
    quota: Int[Array, " m"] | None = None,
) -> Selection:
    """Draws `num_chunks` chunks, then goes over them `sweeps` times, redrawing each given all the others.

    Args:
        key: chunk n of pass p draws with `fold_in(key, p · num_chunks + n)`.
        interaction: the criterion.
        rows: how candidates are held.
        free: which of the rows held here may be drawn.
        rules: static settings.
        gain: factor on scores before the noise.
        domain: of the rows held here.
        quota: the largest number of examples of each domain.
    """
    size, num_chunks = rules.num_select // rules.num_chunks, rules.num_chunks
    all_domains = None if domain is None else rows.gather(domain)
    anyone = free

    def draw_chunk(turn: Array, total: Any, free: Array, chunks: Array) -> tuple[Array, Array]:
        """Rows of the chunk, and the two parts of their scores, f[k, 2]."""
        shared = interaction.shared(total, chunks)
        room = None
        if quota is not None and all_domains is not None:
            room = quota - count_by_domain(all_domains, chunks.reshape(-1), quota.shape[0])
        drawn = draw(
            jax.random.fold_in(key, turn),
            interaction.own + shared,
            free,
            rows,
            size=size,
            gain=gain,
            greedy=rules.greedy,
            is_uniform=turn == 0 if rules.first_chunk == "uniform" else False,
            domain=all_domains,
            room=room,
        )
        return drawn, rows.fetch(jnp.stack([interaction.own, shared], axis=1), drawn)

    def first_pass(carry: Any, turn: Array) -> tuple[Any, Any]:
        total, free, chunks = carry
        drawn, parts = draw_chunk(turn, total, free, chunks)
        new = interaction.contribute(drawn)
        total = interaction.join(jax.tree.map(lambda x, y: jnp.stack([x, y]), total, new))
        carry = total, rows.mark(free, drawn, False), chunks.at[turn].set(drawn)
        return carry, (parts, new if rules.sweeps else ())

    nobody = jnp.full((num_chunks, size), -1, jnp.int32)
    turns = jnp.arange(num_chunks if rules.sweeps else num_chunks - 1, dtype=jnp.int32)
    total, chunks, parts, kept = interaction.nothing, nobody, jnp.zeros((0, size, 2), interaction.own.dtype), ()
    if turns.size:
        (total, free, chunks), (parts, kept) = jax.lax.scan(first_pass, (total, free, chunks), turns)
    if rules.sweeps == 0:
        drawn, last = draw_chunk(jnp.int32(num_chunks - 1), total, free, chunks)
        chunks, parts = chunks.at[num_chunks - 1].set(drawn), jnp.concatenate([parts, last[None]])
    else:
        chunks, parts = _sweep(interaction, rows, draw_chunk, rules, (free, chunks, parts, kept))
    return _result(interaction.own, rows, anyone, chunks, parts, rules, all_domains, quota)


def _sweep(
    interaction: Interaction, rows: Rows, draw_chunk: Callable[..., Any], rules: Rules, carry: Any
) -> tuple[Array, Array]:
    """Redraws chunk after chunk. The contributions of all chunks are kept, so that taking one out is exact."""
    put = lambda stack, n, one: jax.tree.map(lambda x, y: x.at[n].set(y), stack, one)

    def redraw(i: Array, carry: Any) -> Any:
        free, chunks, parts, kept = carry
        n = i % rules.num_chunks
        free = rows.mark(free, chunks[n], True)
        chunks, kept = chunks.at[n].set(-1), put(kept, n, interaction.nothing)
        drawn, part = draw_chunk(rules.num_chunks + i, interaction.join(kept), free, chunks)
        return rows.mark(free, drawn, False), chunks.at[n].set(drawn), parts.at[n].set(part), kept

    def redraw_and_tell(i: Array, carry: Any) -> Any:
        free, chunks, parts, kept = redraw(i, carry)
        n = i % rules.num_chunks
        return free, chunks, parts, put(kept, n, interaction.contribute(chunks[n]))

    turns = rules.sweeps * rules.num_chunks
    carry = jax.lax.fori_loop(0, turns - 1, redraw_and_tell, carry)
    _, chunks, parts, _ = redraw(jnp.int32(turns - 1), carry)
    return chunks, parts


def _result(
    own: Array,
    rows: Rows,
    anyone: Array,
    chunks: Array,
    parts: Array,
    rules: Rules,
    domain: Array | None,
    quota: Array | None,
) -> Selection:
    """The selection with its diagnosis; parts f[j, k, 2] are 0 where nothing was drawn."""
    indices = chunks.reshape(-1)
    is_drawn = indices >= 0
    count = jnp.sum(is_drawn.astype(jnp.int32))
    per_chunk = jnp.sum((chunks >= 0).astype(parts.dtype), axis=1)
    total = jnp.maximum(count, 1).astype(parts.dtype)
    positive, negative = jnp.sum(parts[..., 0]) / total, jnp.sum(parts[..., 1]) / total
    size = jnp.sum(jnp.abs(parts), axis=1)
    both = size[:, 0] + size[:, 1]
    alone = best(rows.gather(jnp.where(anyone, _finite(own), -jnp.inf)), rules.num_select)
    is_alone = jnp.zeros((rows.total,), bool).at[jnp.where(alone < 0, rows.total, alone)].set(True, mode="drop")
    both_ways = jnp.sum((is_alone[jnp.maximum(indices, 0)] & is_drawn).astype(parts.dtype))
    num_domains = rules.num_domains if quota is None else quota.shape[0]
    info = SelectionInfo(
        num_selected=count,
        score=positive + negative,
        positive=positive,
        negative=negative,
        chunk_score=jnp.sum(parts, axis=(1, 2)) / jnp.maximum(per_chunk, 1.0),
        chunk_share=jnp.where(both > 0, size[:, 1] / jnp.where(both > 0, both, 1.0), 0.0),
        overlap=both_ways / total,
        domain_count=None if domain is None or num_domains is None else count_by_domain(domain, indices, num_domains),
    )
    return Selection(indices, info)


def _finite(score: Array) -> Array:
    return jnp.where(jnp.isfinite(score), score, jnp.finfo(score.dtype).min)
