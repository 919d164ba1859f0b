"""Validation loss of every domain, on fixed held-out rows, never weighted by the training mixture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxmix.core.errors import ConfigError
from jaxmix.core.segment import sum_by_domain
from jaxmix.core.sharding import global_batch, process_shard
from jaxmix.core.types import Int
from jaxmix.core.validate import check_choice
from jaxmix.models.base import token_loss


class ValidationSet(NamedTuple):
    """Held-out rows of every domain, identical in every evaluation so that differences of losses mean something.

    Attributes:
        names: domain names; `domain` indexes them.
        tokens: of the rows.
        targets: −1 where no loss counts.
        domain: of each row.
    """

    names: tuple[str, ...]
    tokens: Int[np.ndarray, "n t"]
    targets: Int[np.ndarray, "n t"]
    domain: Int[np.ndarray, " n"]

    def count_tokens(self) -> dict[str, int]:
        """Tokens that have a target, by domain."""
        counts = np.bincount(self.domain, weights=(self.targets >= 0).sum(axis=1), minlength=len(self.names))
        return {name: int(count) for name, count in zip(self.names, counts, strict=True)}


PARTS = ("all", "validation", "test")


def validation_set(
    sources: Mapping[str, Any], *, seq_len: int, rows_per_domain: int, part: str = "all"
) -> ValidationSet:
    """Takes up to `rows_per_domain` rows of `seq_len` tokens from every source, spread evenly over it.

    Args:
        sources: token sources by name, in the order of the training domains; each must have at least one token.
        seq_len: tokens per row.
        rows_per_domain: at most so many rows per domain; a short source gives all it has.
        part: "validation" takes the even rows alone and "test" the odd ones, so that what a mixer steered by is not
            what it is judged on.
    """
    from jaxmix.data.mixture.packing import PackedRows

    if rows_per_domain < 1:
        raise ConfigError(f"rows_per_domain must be at least 1, got {rows_per_domain}", where="validation")
    check_choice("validation_set", "part", part, PARTS)
    first, stride = PARTS.index(part) // 2, 1 if part == "all" else 2
    tokens: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    domain: list[np.ndarray] = []
    for index, (name, source) in enumerate(sources.items()):
        rows = PackedRows(source, seq_len)
        available = np.arange(first, len(rows), stride)
        if len(available) == 0:
            raise ConfigError(
                f"domain {name!r} has no {'validation' if part == 'all' else part} tokens",
                where="validation",
                fix="Raise data.validation_fraction, or give the domain more documents.",
            )
        chosen = available[_spread(len(available), rows_per_domain)]
        tokens.append(np.zeros((len(chosen), seq_len), np.int32))
        targets.append(np.full((len(chosen), seq_len), -1, np.int32))
        rows.read_into(chosen.tolist(), tokens[-1], targets[-1], range(len(chosen)))
        domain.append(np.full(len(chosen), index, np.int32))
    return ValidationSet(tuple(sources), np.concatenate(tokens), np.concatenate(targets), np.concatenate(domain))


def _spread(size: int, wanted: int) -> np.ndarray:
    """Up to `wanted` of the numbers below `size`, spread evenly."""
    return np.unique(np.linspace(0, size - 1, min(wanted, size)).round().astype(np.int64))


def subset(validation: ValidationSet, rows_per_domain: int) -> ValidationSet:
    """Up to `rows_per_domain` rows of every domain, spread evenly over those in `validation`."""
    chosen = []
    for index in range(len(validation.names)):
        rows = np.flatnonzero(validation.domain == index)
        chosen.append(rows[_spread(len(rows), rows_per_domain)])
    rows = np.concatenate(chosen)
    return ValidationSet(validation.names, validation.tokens[rows], validation.targets[rows], validation.domain[rows])


def loss_sums(
    apply: Callable[[Any, Any], Any], params: Any, batch: Mapping[str, jax.Array], *, num_domains: int
) -> jax.Array:
    """f32[2, m]: the summed loss (nats) of a batch's tokens by domain, and how many tokens there are."""
    loss, _ = token_loss(apply(params, batch))
    counts = (batch["targets"] >= 0).astype(jnp.float32)
    return jnp.stack([sum_by_domain(x, batch["domain"], num_domains) for x in (loss, counts)])


def mean_losses(sums: jax.Array) -> jax.Array:
    """f32[m], nats per token, from added `loss_sums`; nan for a domain without tokens."""
    return jnp.where(sums[1] > 0, sums[0] / jnp.maximum(sums[1], 1.0), jnp.nan)


def build_evaluate(
    apply: Callable[[Any, Any], Any], *, num_domains: int, mesh: Mesh
) -> Callable[[Any, list[dict[str, jax.Array]]], jax.Array]:
    """Builds `evaluate(params, batches) -> f32[m]`: mean loss per token (nats) of every domain; nan where none.

    `batches` come from `place`; sums and counts are added up in float32 on the devices.
    """

    @jax.jit
    def add(sums: jax.Array, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        return sums + loss_sums(apply, params, batch, num_domains=num_domains)

    mean = jax.jit(mean_losses)

    def evaluate(params: Any, batches: list[dict[str, jax.Array]]) -> jax.Array:
        sums = jax.device_put(np.zeros((2, num_domains), np.float32), jax.sharding.NamedSharding(mesh, jax.P()))
        for batch in batches:
            sums = add(sums, params, batch)
        return mean(sums)

    return evaluate


def held_out_batches(validation: ValidationSet, *, batch_size: int) -> dict[str, np.ndarray]:
    """The rows cut into batches i32[k, b, …]; the last is filled with rows of domain −1."""
    missing = -len(validation.domain) % batch_size
    filled = {
        "tokens": np.pad(validation.tokens, ((0, missing), (0, 0))),
        "targets": np.pad(validation.targets, ((0, missing), (0, 0)), constant_values=-1),
        "domain": np.pad(validation.domain, (0, missing), constant_values=-1),
    }
    return {k: np.ascontiguousarray(v.reshape(-1, batch_size, *v.shape[1:]), np.int32) for k, v in filled.items()}


def place(validation: ValidationSet, *, batch_size: int, mesh: Mesh) -> list[dict[str, jax.Array]]:
    """Puts the rows' `held_out_batches` on the mesh, once per run."""
    index, count = process_shard()
    share = batch_size // count
    mine = slice(index * share, (index + 1) * share)
    batches = held_out_batches(validation, batch_size=batch_size)
    return [
        global_batch(mesh, {k: np.ascontiguousarray(v[number, mine]) for k, v in batches.items()})
        for number in range(len(batches["domain"]))
    ]


def aggregates(losses: np.ndarray, prior: np.ndarray) -> dict[str, float]:
    """Named means over domains with a measured loss: `uniform`, `prior` (weighted by it), and the `worst` domain."""
    is_finite = np.isfinite(losses)
    values, weights = losses[is_finite].astype(np.float64), prior[is_finite].astype(np.float64)
    if not len(values):
        return {}
    weighted = float(np.sum(values * weights) / np.sum(weights)) if np.sum(weights) > 0 else float("nan")
    return {"uniform": float(np.mean(values)), "prior": weighted, "worst": float(np.max(values))}
