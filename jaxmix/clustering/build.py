"""Builds the four functions of a clusterer from its rule and settings; assignment of rows to clusters."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmix.clustering.base import Assignment, Balance, Clusterer, GemState, Sums
from jaxmix.clustering.em.block_sums import fused_pass, label_pass
from jaxmix.clustering.em.m_step import maximize
from jaxmix.core.errors import ConfigError
from jaxmix.core.sharding import shard_map
from jaxmix.core.types import Array

_accumulate = jax.jit(fused_pass, static_argnames=("hard", "gram"))
_label = jax.jit(label_pass, static_argnames="with_posterior")


@functools.cache
def build_clusterer(
    name: str,
    num_clusters: int,
    *,
    rule: str,
    learned_weights: bool = False,
    max_concentration: float,
    balance: Balance | None = None,
) -> Clusterer:
    """The clusterer; equal settings give the same object, so that programs compiled for one serve the next."""
    gram = balance is not None and balance.strength > 0

    def init(mean_directions: Any, concentration: Any) -> GemState:
        directions = jnp.asarray(mean_directions)
        kappa = jnp.minimum(jnp.asarray(concentration, directions.dtype), max_concentration)
        return GemState(directions, jnp.full((num_clusters,), kappa), jnp.zeros((num_clusters,), directions.dtype))

    def accumulate(state: GemState, x: Array, sample_weight: Array | None = None) -> Sums:
        check_rows(name, state, x)
        weights = jnp.ones(x.shape[:1], state.concentrations.dtype) if sample_weight is None else sample_weight
        return _accumulate(state, x, weights, hard=rule != "soft", gram=gram)

    def step(state: GemState, sums: Sums) -> GemState:
        return maximize(state, sums, max_concentration, rule=rule, learned_weights=learned_weights)

    def label(state: GemState, x: Array, *, with_posterior: bool = True) -> Assignment:
        check_rows(name, state, x)
        return Assignment(*_label_rows(x)(state, x, with_posterior=with_posterior))

    return Clusterer(
        init, accumulate, step, label, name, num_clusters, rule, learned_weights, max_concentration, balance
    )


def assign(clusterer: Clusterer, state: GemState, x: Array, *, with_posterior: bool = True) -> Assignment:
    """The cluster of every row, by `argmax_k κ_k μ_k·x + g(κ_k) + b_k`. Blocks of rows; pure, for `jit` and shards.

    Args:
        clusterer: that fitted `state`; static under `jit`.
        state: of a fit.
        x: f[n, d] rows of length 1, any n; half precision is computed in float32. Rows may be sharded.
        with_posterior: also return f[n, k]; leave it out where n is large. Static under `jit`.

    Raises:
        ConfigError: rows of another width than the state's.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmix.clustering import GemState, assign, gem
        >>> state = GemState(jnp.eye(4)[:2], jnp.full(2, 10.0), jnp.zeros(2))
        >>> assign(gem(2), state, jnp.eye(4)[:2]).labels.tolist()
        [0, 1]
    """
    return clusterer.assign(state, x, with_posterior=with_posterior)


def _label_rows(x: Any) -> Any:
    """Compiled labeling: each device labels its own rows when they are split over a mesh."""
    sharding = None if isinstance(x, jax.core.Tracer) else getattr(x, "sharding", None)
    if isinstance(sharding, NamedSharding) and len(sharding.spec) and sharding.spec[0] is not None:
        return _label_shards(sharding.mesh, PartitionSpec(sharding.spec[0]))
    return _label


@functools.cache
def _label_shards(mesh: Mesh, rows: PartitionSpec) -> Any:
    def label(state: GemState, x: Array, *, with_posterior: bool) -> tuple[Array, Array | None]:
        local = functools.partial(label_pass, with_posterior=with_posterior)
        found: tuple[Array, Array | None] = shard_map(local, mesh, in_specs=(PartitionSpec(), rows), out_specs=rows)(
            state, x
        )
        return found

    return jax.jit(label, static_argnames="with_posterior")


def check_rows(name: str, state: GemState, x: Any) -> None:
    """Raises `ConfigError` unless `x` is a matrix of floats as wide as the state."""
    width = state.mean_directions.shape[1]
    if x.ndim != 2 or x.shape[1] != width or x.shape[0] < 1 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ConfigError(
            f"rows must be floats of shape [n, {width}], got {x.dtype}{list(x.shape)}",
            where=f"{name}: x",
            fix="Give embeddings of the encoder that the state was fitted on.",
        )
