"""The loop that all joint selectors share: draw a chunk, update the scores of the other candidates, draw the next.

For a criterion F over sets, one pass is a chunked Gibbs sampler for `p(A) ∝ exp(gain · F(A))` over sets of b
examples: a candidate's score is `F(S + i) − F(S)`, S being the chunks drawn so far.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array, Bool, Float, Int, PRNGKeyArray
from jaxmix.selection.base import Selection, SelectionInfo, check_super_batch
from jaxmix.selection.candidates import Candidates, over_candidates
from jaxmix.selection.sampling import count_by_domain, sample, top_rows

_CRITERION_KEY = 0x7FFFFFFF
"""Folded into the key for the criterion; the loop folds in the number of the turn."""


class Interaction(NamedTuple):
    """How the examples already chosen change the score of the others. Arrays are of the candidates on this device.

    Attributes:
        own: the score of an example when no others are chosen.
        nothing: tree, the contribution of no examples.
        contribute: `(indices i32[k]) -> tree`, the contribution of these rows; that of −1 is nothing.
        join: `(tree with a leading axis) -> tree`, several contributions as one.
        shared: `(tree, chunks i32[j, k]) -> f[c]`, what the chosen add to `own`. `chunks` is −1 where nothing is drawn.
    """

    own: Float[Array, " c"]
    nothing: Any
    contribute: Callable[..., Any]
    join: Callable[[Any], Any]
    shared: Callable[[Any, Array], Array]


Criterion = Callable[[Candidates, PRNGKeyArray, Any, Array], Interaction]
"""`(candidates, key, data, valid) -> Interaction`, of the candidates on this device."""


class GibbsConfig(NamedTuple):
    """Static settings of the loop; see `jaxmix.selection.jest`."""

    num_select: int
    num_chunks: int = 1
    sweeps: int = 0
    greedy: bool = False
    first_chunk: str = "self"
    num_domains: int | None = None


def no_interaction(score: Float[Array, " c"]) -> Interaction:
    """Examples that do not interact: F is the sum of their scores."""
    return Interaction(
        own=score,
        nothing=(),
        contribute=lambda indices: (),
        join=lambda stack: (),
        shared=lambda total, chunks: jnp.zeros_like(score),
    )


def build_select(
    name: str,
    config: GibbsConfig,
    prepare: Callable[..., tuple[int, Any]],
    criterion: Criterion,
    *,
    gain: float,
    mesh: Mesh | None = None,
) -> Callable[..., Selection]:
    """Builds the `select` of a `Selector`, called as `select(key, first, second, valid, …)`.

    Args:
        name: of the selector, for errors.
        config: static settings of the loop.
        prepare: `(first, second, **options) -> (number of candidates, data)`, which checks a selector's own arguments.
            `data` is one pytree of scalars and of arrays with a row per candidate.
        criterion: what is maximized.
        gain: unless the call gives another.
        mesh: see `over_candidates`.
    """
    default_gain = gain

    def select(
        key: PRNGKeyArray,
        first: Any,
        second: Any,
        valid: Bool[Array, " c"] | None = None,
        *,
        domain: Int[Array, " c"] | None = None,
        quota: Int[Array, " m"] | None = None,
        gain: Any = None,
        **options: Any,
    ) -> Selection:
        count, data = prepare(first, second, **options)
        _check_call(name, config, count, valid, domain, quota)
        split = {
            "key": key,
            "gain": jnp.asarray(default_gain if gain is None else gain),
            "data": data,
            "valid": jnp.ones((count,), bool) if valid is None else jnp.asarray(valid, bool),
            "domain": None if domain is None else jnp.asarray(domain, jnp.int32),
        }
        quota = None if quota is None else jnp.asarray(quota, jnp.int32)
        return over_candidates(run, mesh, count, *jax.lax.stop_gradient((split, quota)), name=name)

    def run(candidates: Candidates, given: dict[str, Any], quota: Array | None) -> Selection:
        key, valid = given["key"], given["valid"]
        interaction = criterion(candidates, jax.random.fold_in(key, _CRITERION_KEY), given["data"], valid)
        gain = given["gain"].astype(interaction.own.dtype)
        return draw_chunks(key, interaction, candidates, valid, config, gain=gain, domain=given["domain"], quota=quota)

    return jax.jit(select)


def _check_call(name: str, config: GibbsConfig, count: int, valid: Any, domain: Any, quota: Any) -> None:
    check_super_batch(name, config.num_select, count, valid=valid, domain=domain)
    if quota is not None and (domain is None or jnp.ndim(quota) != 1):
        raise ConfigError(
            "a quota needs the domain of every row, and one number per domain",
            where=f"{name}: quota",
            fix="Pass domain i32[c] and quota i32[m].",
        )
    if domain is not None and quota is None and config.num_domains is None:
        raise ConfigError(
            "the number of domains is not known",
            where=f"{name}: domain",
            fix="Give the factory num_domains, or pass a quota for each domain.",
        )


def draw_chunks(
    key: PRNGKeyArray,
    interaction: Interaction,
    candidates: Candidates,
    valid: Bool[Array, " c"],
    config: GibbsConfig,
    *,
    gain: Float[Array, ""],
    domain: Int[Array, " c"] | None = None,
    quota: Int[Array, " m"] | None = None,
) -> Selection:
    """Draws `num_chunks` chunks, then goes over them `sweeps` times, redrawing each given all the others.

    Args:
        key: chunk n of pass p draws with `fold_in(key, p · num_chunks + n)`.
        interaction: the criterion.
        candidates: how they lie on devices.
        valid: which of the candidates on this device may be drawn.
        config: static settings.
        gain: factor on scores before the noise.
        domain: of the candidates on this device.
        quota: the largest number of examples of each domain.
    """
    size, num_chunks = config.num_select // config.num_chunks, config.num_chunks
    all_domains = None if domain is None else candidates.gather(domain)

    def draw_chunk(turn: Array, total: Any, free: Array, chunks: Array) -> tuple[Array, Array]:
        """Rows of the chunk, and the two parts of their scores, f[k, 2]."""
        shared = interaction.shared(total, chunks)
        room = None
        if quota is not None and all_domains is not None:
            room = quota - count_by_domain(all_domains, chunks.reshape(-1), quota.shape[0])
        drawn = sample(
            jax.random.fold_in(key, turn),
            interaction.own + shared,
            free,
            candidates,
            size=size,
            gain=gain,
            greedy=config.greedy,
            uniform=turn == 0 if config.first_chunk == "uniform" else False,
            domain=all_domains,
            room=room,
        )
        return drawn, candidates.fetch(jnp.stack([interaction.own, shared], axis=1), drawn)

    def first_pass(carry: Any, turn: Array) -> tuple[Any, Any]:
        total, free, chunks = carry
        drawn, parts = draw_chunk(turn, total, free, chunks)
        new = interaction.contribute(drawn)
        total = interaction.join(jax.tree.map(lambda x, y: jnp.stack([x, y]), total, new))
        carry = total, candidates.mark(free, drawn, False), chunks.at[turn].set(drawn)
        return carry, (parts, new if config.sweeps else ())

    # Nothing is drawn after the very last chunk, so its contribution is not computed.
    turns = jnp.arange(num_chunks if config.sweeps else num_chunks - 1, dtype=jnp.int32)
    carry = interaction.nothing, valid, jnp.full((num_chunks, size), -1, jnp.int32)
    parts, contributions = jnp.zeros((0, size, 2), interaction.own.dtype), ()
    if turns.size:
        carry, (parts, contributions) = jax.lax.scan(first_pass, carry, turns)
    total, free, chunks = carry
    if config.sweeps == 0:
        drawn, last = draw_chunk(jnp.int32(num_chunks - 1), total, free, chunks)
        chunks, parts = chunks.at[num_chunks - 1].set(drawn), jnp.concatenate([parts, last[None]])
    else:
        chunks, parts = _sweep(interaction, candidates, draw_chunk, config, (free, chunks, parts, contributions))
    return _result(interaction.own, candidates, valid, chunks, parts, config, all_domains, quota)


def _sweep(
    interaction: Interaction, candidates: Candidates, draw_chunk: Callable[..., Any], config: GibbsConfig, carry: Any
) -> tuple[Array, Array]:
    """Redraws chunk after chunk. The contributions of all chunks are kept, so that taking one out is exact."""
    put = lambda stack, n, one: jax.tree.map(lambda x, y: x.at[n].set(y), stack, one)

    def redraw(i: Array, carry: Any) -> Any:
        free, chunks, parts, contributions = carry
        n = i % config.num_chunks
        free = candidates.mark(free, chunks[n], True)
        chunks, contributions = chunks.at[n].set(-1), put(contributions, n, interaction.nothing)
        drawn, part = draw_chunk(config.num_chunks + i, interaction.join(contributions), free, chunks)
        return candidates.mark(free, drawn, False), chunks.at[n].set(drawn), parts.at[n].set(part), contributions

    def redraw_and_contribute(i: Array, carry: Any) -> Any:
        free, chunks, parts, contributions = redraw(i, carry)
        n = i % config.num_chunks
        return free, chunks, parts, put(contributions, n, interaction.contribute(chunks[n]))

    turns = config.sweeps * config.num_chunks
    carry = jax.lax.fori_loop(0, turns - 1, redraw_and_contribute, carry)
    _, chunks, parts, _ = redraw(jnp.int32(turns - 1), carry)
    return chunks, parts


def _result(
    own: Array,
    candidates: Candidates,
    valid: Array,
    chunks: Array,
    parts: Array,
    config: GibbsConfig,
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
    finite = jnp.where(jnp.isfinite(own), own, jnp.finfo(own.dtype).min)
    best = top_rows(candidates.gather(jnp.where(valid, finite, -jnp.inf)), config.num_select)
    is_best = (
        jnp.zeros((candidates.total,), bool).at[jnp.where(best < 0, candidates.total, best)].set(True, mode="drop")
    )
    num_domains = config.num_domains if quota is None else quota.shape[0]
    info = SelectionInfo(
        num_selected=count,
        score=positive + negative,
        positive=positive,
        negative=negative,
        chunk_score=jnp.sum(parts, axis=(1, 2)) / jnp.maximum(per_chunk, 1.0),
        chunk_share=jnp.where(both > 0, size[:, 1] / jnp.where(both > 0, both, 1.0), 0.0),
        overlap=jnp.sum((is_best[jnp.maximum(indices, 0)] & is_drawn).astype(parts.dtype)) / total,
        domain_count=None if domain is None or num_domains is None else count_by_domain(domain, indices, num_domains),
    )
    return Selection(indices, info)
