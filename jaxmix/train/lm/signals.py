"""Signals beyond the train step's own sums: the losses of a reference model, and the alignment of gradients.

Each is computed only when a mixer needs it. Costs are in optimizer steps of the same model and batch (a forward pass
is a third of one), for m domains. Measured on two CPU cores with lm-300k, 16 rows of 128 tokens and 7 domains
(experiments/bench_mixers): exact alignment 4.9 steps, a sketch of one row per domain 0.6 steps; a table as reference
nothing that could be measured.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxmix.core.errors import ConfigError, nearest
from jaxmix.core.segment import sum_by_domain
from jaxmix.core.sharding import batch_spec, replicated
from jaxmix.core.types import Array
from jaxmix.mixers.base import GRADIENTS, REFERENCE_SIGNALS, Mixer
from jaxmix.models.base import Model, token_loss
from jaxmix.train.lm.evaluate import ValidationSet

Batch = dict[str, Array]

Reference = Callable[[Batch], Array]
"""`(batch) -> f32[b, t]`: a frozen model's loss of every token, nats; 0 where the target is negative."""

GRADIENT_SIGNALS = frozenset({"gradient_alignment", "validation_alignment", "gradient_noise"})
LOOP_SIGNALS = frozenset({"loss_sum", "token_count", "validation_loss", "learning_rate"})


def check_mixer(
    mixer: Mixer, *, has_reference: bool, loss_normalization: str, origin: Callable[[str], str] = str
) -> None:
    """Raises `ConfigError` where the run does not offer what the mixer asks of it.

    Args:
        mixer: with its wrappers.
        has_reference: whether the run knows the losses of a reference.
        loss_normalization: of the run.
        origin: where a setting was written, for the message.
    """
    provided = LOOP_SIGNALS | GRADIENT_SIGNALS | set(REFERENCE_SIGNALS)
    for signal in sorted(mixer.needs - provided):
        raise ConfigError(
            f"the train loop does not compute the signal {signal!r} that mixer {mixer.name!r} needs",
            where="mixer.needs",
            fix=f"It provides {', '.join(sorted(provided))}. Drive the mixer from your own loop for others.",
        )
    if mixer.needs & set(REFERENCE_SIGNALS) and not has_reference:
        raise ConfigError(
            f"mixer {mixer.name!r} measures the loss against a reference, and the run has none",
            where=origin("reference"),
            fix="Set reference.run to the folder of a finished run, or reference.losses to a loss per source.",
        )
    if mixer.loss_normalization not in (None, loss_normalization):
        raise ConfigError(
            f"mixer {mixer.name!r} weights losses for train.loss_normalization {mixer.loss_normalization!r}, "
            f"the run has {loss_normalization!r}",
            where=origin("train.loss_normalization"),
            fix=f"Set it to {mixer.loss_normalization}.",
        )


def check_gradients(mixer: Mixer, model: Model) -> None:
    """Raises `ConfigError` where the mixer's estimate of gradients is unknown, or the model does not allow it."""
    if mixer.gradients not in GRADIENTS:
        raise ConfigError(
            f"unknown estimate of gradients {mixer.gradients!r}",
            where="mixer.gradients",
            fix=nearest(str(mixer.gradients), GRADIENTS),
        )
    if mixer.needs & GRADIENT_SIGNALS and mixer.gradients == "last_layer" and model.apply_readout is None:
        raise ConfigError(
            "the model does not say what its last layer is",
            where="mixer.gradients: last_layer",
            fix="Set the model's `readout` and `apply_readout`, or use exact or sketch.",
        )


def reference_model(apply: Callable[[Any, Batch], Any], params: Any) -> Reference:
    """The loss of frozen parameters, computed afresh for every batch: a third of a step.

    Args:
        apply: see `Model.apply`; the regularizer is left out.
        params: on the mesh of the run.
    """

    @jax.jit
    def loss(params: Any, batch: Batch) -> Array:
        return token_loss(apply(params, batch))[0]

    return partial(loss, params)


def reference_table(losses: np.ndarray, mesh: Mesh) -> Reference:
    """A known loss per token for every domain, f32[m], in place of a model: costs nothing.

    Token-wise excess then also counts that tokens of one domain differ in difficulty; a model's does not.
    """

    @jax.jit
    def loss(table: Array, batch: Batch) -> Array:
        per_row = table[jnp.maximum(batch["domain"], 0)]
        return jnp.where(batch["targets"] >= 0, per_row[:, None], 0.0)

    return partial(loss, jax.device_put(np.asarray(losses, np.float32), replicated(mesh)))


def held_out_rows(validation: ValidationSet, *, rows_per_domain: int, turn: int) -> dict[str, np.ndarray]:
    """The next `rows_per_domain` held-out rows of every domain, going round: tokens and targets i32[m, c, t]."""
    chosen = []
    for index in range(len(validation.names)):
        rows = np.flatnonzero(validation.domain == index)
        chosen.append(rows[(turn * rows_per_domain + np.arange(rows_per_domain)) % len(rows)])
    return {"tokens": validation.tokens[np.stack(chosen)], "targets": validation.targets[np.stack(chosen)]}


def build_gradient_signals(
    model: Model,
    *,
    needs: frozenset[str],
    num_domains: int,
    estimator: str = "exact",
    rows_per_domain: int = 2,
    sketch_size: int = 4096,
    mesh: Mesh,
) -> Callable[[Any, Batch, Batch | None, Array], dict[str, Array]]:
    """Builds `measure(params, batch, held_out, key) -> signals`, jitted; see `Feedback` for the signals.

    g_j is the gradient of the mean loss of domain j's tokens in the batch, h_i that of domain i's held-out rows.

    - "exact": g_j over all rows of the batch, from one forward pass and m backward passes: (1 + 2m)/3 steps, and m
      gradients in memory.
    - "sketch": g_j over at most `rows_per_domain` rows of each domain, reduced at once to `sketch_size` numbers by
      random signs: m · rows_per_domain / b steps, one gradient and m sketches in memory. Inner products are unbiased
      given the rows, with a relative error of about sqrt(2 / sketch_size) of the product of the norms.
    - "last_layer": as exact, with respect to the last layer only: one forward pass and m passes through that layer.

    Held-out rows cost m · c / b steps more (c rows per domain), "last_layer" a third of that.

    Args:
        model: its loss is differentiated.
        needs: which of `GRADIENT_SIGNALS` to return.
        num_domains: m.
        estimator: one of the above.
        rows_per_domain: ≥ 1, for "sketch" (2 at least where `gradient_noise` is needed); rounded up to fill every
            device.
        sketch_size: numbers a gradient is reduced to.
        mesh: where it runs.

    Returns:
        A function of params, batch (tokens, targets i32[b, t]; domain i32[b]), held_out (tokens, targets
        i32[m, c, t]; `None` unless `validation_alignment` is needed) and a typed key (used by "sketch" alone).

    Numerics: gradients as the model computes them, inner products in float32 at highest precision.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    halves = 2 if "gradient_noise" in needs else 1
    rows_per_group = _round_up(-(-rows_per_domain // halves), shards)

    def measure(params: Any, batch: Batch, held_out: Batch | None, key: Array) -> dict[str, Array]:
        theta: Any = params
        loss: Callable[[Any, Batch], Array] = partial(_loss, model.apply)
        if estimator == "last_layer":
            assert model.readout is not None
            assert model.apply_readout is not None
            theta = model.readout(params)
            readout_loss = partial(_loss, model.apply_readout)
            loss = lambda readout, rows: readout_loss(readout, params, rows)
        if estimator == "sketch":
            # Drawn once: inside the loop over domains they would be drawn for each.
            signs = [_signs(jax.random.fold_in(key, i), x.size) for i, x in enumerate(jax.tree.leaves(theta))]
            reduce: Callable[[Any], Any] = partial(_sketch, signs=signs, size=sketch_size)
            rows = _first_rows(batch, num_domains, halves, rows_per_group)
            gradients, tokens, row_counts = _grouped(loss, theta, _sharded(rows, mesh), reduce)
        else:
            reduce = lambda tree: tree
            gradients, tokens, row_counts = _by_group(loss, theta, batch, num_domains, halves)
        signals = {}
        if halves == 2:
            signals["gradient_noise"] = _noise(gradients, row_counts)
            gradients = _join_halves(gradients, tokens)
        if "gradient_alignment" in needs:
            signals["gradient_alignment"] = _inner(gradients, gradients)
        if "validation_alignment" in needs:
            assert held_out is not None
            targets, _, _ = _grouped(loss, theta, _sharded(held_out, mesh), reduce)
            signals["validation_alignment"] = _inner(gradients, targets)
        # A step whose gradients are not finite is ignored: its domains count as not drawn.
        return {name: jnp.where(jnp.isfinite(signals[name]), signals[name], 0.0) for name in sorted(signals)}

    return jax.jit(measure, out_shardings=replicated(mesh))


def _loss(apply: Callable[..., Any], *args: Any) -> Array:
    return token_loss(apply(*args))[0]


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _rank_in_domain(domain: Array, num_domains: int) -> Array:
    """The number of earlier rows of the same domain, i32[b]."""
    is_member = (domain[:, None] == jnp.arange(num_domains, dtype=domain.dtype)[None, :]).astype(jnp.int32)
    return jnp.sum(is_member * (jnp.cumsum(is_member, axis=0) - 1), axis=1)


def _by_group(
    loss: Callable[[Any, Batch], Array], theta: Any, batch: Batch, num_domains: int, halves: int
) -> tuple[Any, Array, Array]:
    """Gradients of all groups' mean losses, stacked; tokens and rows of each group. Group halves · j + h: domain j."""
    domain, groups = batch["domain"], num_domains * halves
    group = jnp.where(domain >= 0, domain * halves + _rank_in_domain(domain, num_domains) % halves, -1)
    is_target = (batch["targets"] >= 0).astype(jnp.float32)
    tokens = sum_by_domain(is_target, group, groups)
    rows = sum_by_domain(jnp.ones_like(is_target[:, 0]), group, groups)

    def means(theta: Any) -> Array:
        return sum_by_domain(loss(theta, batch), group, groups) / jnp.maximum(tokens, 1.0)

    _, pull = jax.vjp(means, theta)
    return jax.lax.map(lambda one: pull(one)[0], jnp.eye(groups)), tokens, rows


def _first_rows(batch: Batch, num_domains: int, halves: int, rows_per_group: int) -> Batch:
    """The first rows of every domain in the batch, [groups, c, t]; where there are fewer, targets are −1."""
    domain = batch["domain"]
    rank = _rank_in_domain(domain, num_domains)
    place = jnp.arange(num_domains * halves * rows_per_group, dtype=jnp.int32)
    wanted_domain, wanted_rank = place // (halves * rows_per_group), place % (halves * rows_per_group)
    # Ranks alternate between the halves, so that a domain of two rows has one in each.
    half, within = wanted_rank // rows_per_group, wanted_rank % rows_per_group
    is_wanted = (domain[None, :] == wanted_domain[:, None]) & (rank[None, :] == (within * halves + half)[:, None])
    row = jnp.argmax(is_wanted, axis=1)
    shape = (num_domains * halves, rows_per_group, batch["tokens"].shape[1])
    targets = jnp.where(jnp.any(is_wanted, axis=1)[:, None], batch["targets"][row], -1)
    return {"tokens": batch["tokens"][row].reshape(shape), "targets": targets.reshape(shape)}


def _sharded(rows: Batch, mesh: Mesh) -> Batch:
    """Spreads the rows of each group over the devices where they divide."""
    count = rows["tokens"].shape[1]
    if count % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return rows
    sharding = jax.sharding.NamedSharding(mesh, PartitionSpec(None, *batch_spec()))
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding), rows)


def _grouped(
    loss: Callable[[Any, Batch], Array], theta: Any, rows: Batch, reduce: Callable[[Any], Any]
) -> tuple[Any, Array, Array]:
    """As `_by_group` for rows that lie by group, one group at a time, each gradient reduced at once."""

    def one(group: Batch) -> tuple[Any, Array, Array]:
        is_target = group["targets"] >= 0
        tokens = jnp.sum(is_target.astype(jnp.float32))
        gradient = jax.grad(lambda theta: jnp.sum(loss(theta, group)) / jnp.maximum(tokens, 1.0))(theta)
        return reduce(gradient), tokens, jnp.sum(jnp.any(is_target, axis=1).astype(jnp.float32))

    return jax.lax.map(one, rows)


def _signs(key: Array, size: int) -> Array:
    return jax.random.rademacher(key, (size,), jnp.int8)


def _sketch(tree: Any, *, signs: list[Array], size: int) -> Array:
    """Random signs, then sums over `size` buckets: keeps inner products on average."""
    total = jnp.zeros((size,), jnp.float32)
    for leaf, sign in zip(jax.tree.leaves(tree), signs, strict=True):
        signed = jnp.pad(leaf.reshape(-1).astype(jnp.float32) * sign.astype(jnp.float32), (0, -leaf.size % size))
        total = total + jnp.sum(signed.reshape(-1, size), axis=0)
    return total


def _noise(gradients: Any, rows: Array) -> Array:
    """Trace of the covariance of one row's gradient from two halves: E|g_a − g_b|² = trace · (1/n_a + 1/n_b)."""
    a, b = rows[0::2], rows[1::2]
    squares = [
        jnp.sum(jnp.square(leaf[0::2] - leaf[1::2]).reshape(a.shape[0], -1), axis=1)
        for leaf in jax.tree.leaves(gradients)
    ]
    spread = 1.0 / jnp.maximum(a, 1.0) + 1.0 / jnp.maximum(b, 1.0)
    return jnp.where((a > 0) & (b > 0), sum(squares) / spread, 0.0)


def _join_halves(gradients: Any, tokens: Array) -> Any:
    """Domain gradients from those of the halves, each with the weight of its tokens."""
    pairs = tokens.reshape(-1, 2)
    share = pairs / jnp.maximum(jnp.sum(pairs, axis=1, keepdims=True), 1.0)

    def join(leaf: Array) -> Array:
        weight = share.reshape(share.shape + (1,) * (leaf.ndim - 1))
        return jnp.sum(leaf.reshape(-1, 2, *leaf.shape[1:]) * weight, axis=1)

    return jax.tree.map(join, gradients)


def _inner(a: Any, b: Any) -> Array:
    """Inner products of stacked gradients, f32[m, m]: entry (j, i) is ⟨a_j, b_i⟩."""
    products = [
        jnp.einsum(
            "jp,ip->ji",
            x.reshape(x.shape[0], -1).astype(jnp.float32),
            y.reshape(y.shape[0], -1).astype(jnp.float32),
            precision=jax.lax.Precision.HIGHEST,
        )
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ]
    return sum(products[1:], products[0])
