"""Initialization: mean directions from a sample of the rows.

"overseed": spherical k-means with 5 K seeds, then the pair whose union costs least is merged until K are left. The
cost of a union is what the likelihood loses when two clusters share one direction and one concentration,

    n_a h(R_a) + n_b h(R_b) − (n_a + n_b) h(R_ab),     h(R) = max_κ κ R + g(κ),   R_ab = |r_a + r_b| / (n_a + n_b).

"kmeans++": K seeds, each drawn in proportion to 1 − cos to the nearest before, and 5 Lloyd steps. "random": K rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.clustering.base import GemState, Sums
from jaxmix.clustering.em.block_sums import HIGHEST, LinearRule, linear_pass
from jaxmix.clustering.em.m_step import maximize
from jaxmix.core.special import inverse_bessel_ratio, log_vmf_normalizer
from jaxmix.core.types import Array, Bool, Float, Int, PRNGKeyArray

STARTS = ("overseed", "kmeans++", "random")
OVERSEED = 5
LLOYD_STEPS = 5
_LEAST_SAMPLE = 1 << 16
_ROUNDS = 128
_SHORT = 1e-6


def sample_size(num_clusters: int) -> int:
    """Rows that a start looks at, where there are as many: 65,536, or 16 a seed."""
    return max(_LEAST_SAMPLE, 16 * OVERSEED * num_clusters)


class RowSampler:
    """Draws rows of a stream without replacement: the same rows however the stream is cut into blocks.

    Every row has a random number; those with the smallest stay. Rows of weight 0 never do.
    """

    def __init__(self, key: PRNGKeyArray, size: int):
        self._random = np.random.Generator(np.random.Philox(np.random.SeedSequence(_words(key))))
        self._size = size
        self._rank = np.zeros((0,))
        self._order = np.zeros((0,), np.int64)
        self._seen = 0

    def choose(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(positions in this block that stay, for now; which of the earlier ones stay), given the block's weights."""
        rank = np.where(weights > 0, self._random.random(len(weights)), np.inf)
        order = self._seen + np.arange(len(weights))
        self._seen += len(weights)
        every = np.concatenate([self._rank, rank])
        kept = np.flatnonzero(every < np.inf)
        if len(kept) > self._size:
            kept = np.sort(kept[np.argpartition(every[kept], self._size - 1)[: self._size]])
        before = len(self._rank)
        self._rank, self._order = every[kept], np.concatenate([self._order, order])[kept]
        return kept[kept >= before] - before, kept[kept < before]


def _words(key: PRNGKeyArray) -> list[int]:
    return [int(word) for word in np.asarray(jax.random.key_data(key)).ravel()]


def seed_directions(
    key: PRNGKeyArray,
    x: Float[Array, "n d"],
    sample_weight: Float[Array, " n"],
    num_clusters: int,
    *,
    start: str,
    max_concentration: float,
) -> Float[Array, "k d"]:
    """K mean directions from rows; see the module. With fewer rows than seeds, as many seeds as rows."""
    if start == "overseed":
        seeds = min(OVERSEED * num_clusters, x.shape[0])
        directions = _lloyd(kmeans_plus_plus(key, x, sample_weight, seeds), x, sample_weight)
        sums = _cosine_sums(directions, x, sample_weight)
        return merge_clusters(sums.mass, sums.resultant, num_clusters, max_concentration)
    if start == "kmeans++":
        return _lloyd(kmeans_plus_plus(key, x, sample_weight, num_clusters), x, sample_weight)
    rows = jax.random.choice(key, x.shape[0], (num_clusters,), replace=False, p=sample_weight / jnp.sum(sample_weight))
    return x[rows]


@jax.jit
def mean_cosine(directions: Float[Array, "k d"], x: Float[Array, "n d"], sample_weight: Float[Array, " n"]) -> Array:
    """`Σ w_i max_k μ_k·x_i / Σ w_i`, from which the shared first concentration follows."""
    sums = _cosine_sums(directions, x, sample_weight)
    return sums.value / sums.weight


@jax.jit
def _cosine_sums(directions: Array, x: Array, sample_weight: Array) -> Sums:
    """The sums of every row's nearest direction."""
    return linear_pass(LinearRule(directions, jnp.zeros_like(directions[:, 0])), x, sample_weight, hard=True)


@jax.jit
def _lloyd(directions: Array, x: Array, sample_weight: Array) -> Array:
    def step(_: Any, directions: Array) -> Array:
        flat = jnp.ones_like(directions[:, 0])
        sums = _cosine_sums(directions, x, sample_weight)
        return maximize(GemState(directions, flat, flat), sums, 1.0, rule="cosine").mean_directions

    return jax.lax.fori_loop(0, LLOYD_STEPS, step, directions)


def cosine_distance(x: Float[Array, "n d"], seeds: Float[Array, "s d"]) -> Float[Array, " n"]:
    """1 − cos of every row to the nearest seed, for rows of length 1."""
    return 1 - jnp.max(jnp.matmul(x, seeds.T, precision=HIGHEST), axis=1)


@functools.partial(jax.jit, static_argnums=(3, 4))
def kmeans_plus_plus(
    key: PRNGKeyArray,
    x: Float[Array, "n d"],
    sample_weight: Float[Array, " n"],
    num_seeds: int,
    distance: Callable[[Array, Array], Array] = cosine_distance,
) -> Float[Array, "s d"]:
    """k-means++ in at most 128 rounds: the seeds of a round are drawn at once, in proportion to the weight of a row
    and to its `distance(x, seeds)` from the nearest seed before."""
    width = -(-num_seeds // _ROUNDS)
    rounds = -(-num_seeds // width)
    log_weight = jnp.where(sample_weight > 0, jnp.log(sample_weight), -jnp.inf)

    def draw(nearest: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
        noise = jax.random.gumbel(key, x.shape[:1], x.dtype)
        # Rows that equal a seed keep a tiny chance, for when there are no others.
        chance = log_weight + jnp.log(jnp.maximum(nearest, 1e-9))
        seeds = x[jax.lax.top_k(chance + noise, width)[1]]
        return jnp.minimum(nearest, distance(x, seeds)), seeds

    start = jnp.full(x.shape[:1], 2, x.dtype)
    return jax.lax.scan(draw, start, jax.random.split(key, rounds))[1].reshape(-1, x.shape[1])[:num_seeds]


class _Merging(NamedTuple):
    mass: Float[Array, " s"]
    resultant: Float[Array, "s d"]
    products: Float[Array, "s s"]  # of resultants
    own: Float[Array, " s"]  # n h(R)
    best: Float[Array, " s"]  # cheapest union with another one; of a stale one a lower bound
    partner: Int[Array, " s"]
    is_stale: Bool[Array, " s"]
    is_alive: Bool[Array, " s"]
    num_alive: Int[Array, ""]


@functools.partial(jax.jit, static_argnums=(2, 3))
def merge_clusters(
    mass: Float[Array, " s"], resultant: Float[Array, "s d"], num_clusters: int, max_concentration: float
) -> Float[Array, "k d"]:
    """Greedy merging down to K clusters by the least loss of likelihood; returns their directions.

    A union costs at least as much as the cheaper of its parts, so the best partner of a cluster whose partner was
    merged is looked up again only when it would be next. O(s²) memory, about O(s) work a merge.
    """
    total, seeds = jnp.sum(mass), mass.shape[0]
    mass, resultant = mass / total, resultant / total
    dim, positions = resultant.shape[1], jnp.arange(seeds, dtype=jnp.int32)

    def value(mass: Array, length: Array) -> Array:
        """n h(R)."""
        ratio = jnp.minimum(length / jnp.maximum(mass, jnp.finfo(mass.dtype).tiny), 1)
        kappa = jnp.minimum(inverse_bessel_ratio(ratio, dim), max_concentration)
        return mass * (kappa * ratio + log_vmf_normalizer(kappa, dim))

    def unite(now: _Merging, a: Array) -> _Merging:
        """Merges the partner of `a` into `a`; the partners of clusters that had either are out of date."""
        b = now.partner[a]
        row = now.products[a] + now.products[b]
        row = row.at[a].set(row[a] + row[b])
        return now._replace(
            mass=now.mass.at[a].add(now.mass[b]),
            resultant=now.resultant.at[a].add(now.resultant[b]),
            products=now.products.at[a].set(row).at[:, a].set(row),
            is_alive=now.is_alive.at[b].set(False),
            is_stale=now.is_stale | (now.partner == a) | (now.partner == b),
            num_alive=now.num_alive - 1,
        )

    def step(now: _Merging) -> _Merging:
        """Unites the pair that costs least, unless that cost is out of date; then looks up the partner again."""
        a = jnp.argmin(jnp.where(now.is_alive, now.best, jnp.inf)).astype(jnp.int32)
        now = jax.lax.cond(now.is_stale[a], lambda now, a: now, unite, now, a)
        square = now.products[a, a] + jnp.diagonal(now.products) + 2 * now.products[a]
        together, lengths = now.mass[a] + now.mass, jnp.sqrt(jnp.maximum(square, 0))
        # The union of a cluster with itself has twice its value, so one evaluation serves for all.
        unions = value(together, lengths)
        own = now.own.at[a].set(unions[a] / 2)
        cost = jnp.where(now.is_alive & (positions != a), own[a] + own - unions, jnp.inf)
        is_better = cost < now.best
        found = jnp.argmin(cost).astype(jnp.int32)
        return now._replace(
            own=own,
            best=jnp.where(is_better, cost, now.best).at[a].set(cost[found]),
            partner=jnp.where(is_better, a, now.partner).at[a].set(found),
            is_stale=(now.is_stale & ~is_better).at[a].set(False),
        )

    products = jnp.matmul(resultant, resultant.T, precision=HIGHEST)
    every = jnp.ones((seeds,), jnp.bool_)
    now = _Merging(
        mass=mass,
        resultant=resultant,
        products=products,
        own=value(mass, jnp.sqrt(jnp.diagonal(products))),
        best=jnp.full((seeds,), -jnp.inf, mass.dtype),  # not looked up yet
        partner=jnp.zeros((seeds,), jnp.int32),
        is_stale=every,
        is_alive=every,
        num_alive=jnp.int32(seeds),
    )
    now = jax.lax.while_loop(lambda now: now.num_alive > num_clusters, step, now)
    kept = now.resultant[jnp.nonzero(now.is_alive, size=num_clusters)[0]]
    norm = jnp.sqrt(jnp.sum(kept**2, axis=1, keepdims=True))
    # Clusters without rows have no direction: any will do, and the first iterations re-seed them.
    spare = jax.nn.one_hot(jnp.arange(num_clusters) % dim, dim, dtype=kept.dtype)
    return jnp.where(norm > _SHORT * 1e-3, kept / jnp.maximum(norm, jnp.finfo(kept.dtype).tiny), spare)
