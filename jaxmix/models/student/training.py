"""Training of a student on a teacher's labels: one jitted step, texts split over the devices of a mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from jaxmix.core.errors import ConfigError
from jaxmix.core.sharding import batch_sharding, batch_spec, build_mesh, replicated, shard_map, sum_over
from jaxmix.core.types import Array, Float, PRNGKeyArray
from jaxmix.core.validate import Count, Positive, check_count, checked
from jaxmix.models.student.features import Features, StudentBatch, build_batch, hash_texts
from jaxmix.models.student.model import Student, StudentConfig

_EPSILON = 1e-8


class StudentParams(NamedTuple):
    """Trained parameters; Adagrad's sums of squares have the same form."""

    table: Float[Array, "u w"]
    head: Float[Array, "w k"] | None
    bias: Float[Array, " k"]


def batch_loss(rows: ArrayLike, head: ArrayLike | None, bias: ArrayLike, batch: StudentBatch) -> Array:
    """Sum of the cross-entropies of the texts of one part of a batch, nats; `rows` are those of `batch.used`."""
    gathered = jnp.asarray(rows)[batch.places] * batch.shares[:, None]
    hidden = jax.ops.segment_sum(gathered, batch.rows, num_segments=batch.targets.shape[0], indices_are_sorted=True)
    logits = (hidden if head is None else hidden @ head) + jnp.asarray(bias)[None, :]
    return -jnp.sum(batch.targets * jax.nn.log_softmax(logits, axis=-1))


@checked
def train_student(
    texts: Sequence[str],
    labels: np.ndarray,
    *,
    num_clusters: int,
    key: PRNGKeyArray,
    epochs: Count = 5,
    batch_size: Count = 64,
    learning_rate: Positive | None = None,
    mass: np.ndarray | None = None,
    width: Count | None = None,
    buckets: int = 1 << 21,
    orders: Sequence[int] = (1, 2),
    max_words: Count = 512,
    hash_seed: int = 0,
    mesh: Mesh | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Student:
    """Trains a student; see `jaxmix.models.student.model` for the model.

    Args:
        texts: n raw texts; which ones, `choose_rows` says.
        labels: i32[n] in [0, num_clusters), or f32[n, num_clusters], rows on the simplex: the teacher's posterior.
        num_clusters: k ≥ 2.
        key: of the order of texts and of the head.
        epochs: passes over the texts, ≥ 1.
        batch_size: texts per step; rounded up to a multiple of the number of devices.
        learning_rate: of Adagrad at the start, > 0; falls linearly to 0. None: 3, or 0.2 with a `width`.
            On 6,000 documents of the bundled corpus 0.3, 1, 3, 5, 10 gave 85, 93, 94, 94, 93 per cent of new labels.
        mass: f32[k] > 0, the shares of the clusters where the student will be used. Texts drawn evenly from all
            clusters teach an even prior; log(mass_k / share of the training texts) is added to the bias.
        width: numbers per bucket before the logits (FastText's dimension); None: none between.
        buckets, orders, max_words, hash_seed: of the features, see `hashed_ngrams`.
        mesh: texts of a batch are split over `data` × `fsdp`, the table is whole on every device and the sums of the
            gradients of the rows that a batch uses travel between them; this process's devices by default.
        progress: called after every step as `progress(step, steps, mean loss of the batch)`.

    Returns:
        A `Student`; equal for equal arguments, and to rounding on any number of devices.

    Raises:
        ConfigError: an argument is out of range, or no text has a word.

    Differs from the paper: which trains FastText itself; its hyper-parameters are not known.

    Example:
        >>> texts = ["red apple pie", "green apple", "fast red car", "slow car and bus"] * 8
        >>> student = train_student(texts, np.array([0, 0, 1, 1] * 8), num_clusters=2, key=jax.random.key(0),
        ...                         buckets=4096, batch_size=8)
        >>> student.predict(["an apple", "two cars: a car"])[0].tolist()
        [0, 1]

    References:
        Joulin et al., "Bag of tricks for efficient text classification" (2016); Duchi et al., "Adaptive subgradient
        methods" (2011).
    """
    targets = _targets(texts, labels, num_clusters)
    if learning_rate is None:
        learning_rate = 3.0 if width is None else 0.2
    if mass is not None and (np.shape(mass) != (num_clusters,) or not (np.asarray(mass) > 0).all()):
        raise ConfigError(f"mass must be {num_clusters} numbers above 0", where="train_student(mass)")
    config = StudentConfig(num_clusters, buckets, tuple(orders), max_words, hash_seed, width)
    ids, offsets = hash_texts(texts, buckets=buckets, orders=orders, seed=hash_seed, max_words=max_words)
    known, columns = np.unique(ids, return_inverse=True)
    if not len(known):
        raise ConfigError("no text has a word to learn from", where="train_student(texts)")
    features = Features(columns.astype(np.int32), offsets)
    mesh = build_mesh(devices=jax.local_devices()) if mesh is None else mesh
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    batch_size = -(-batch_size // parts) * parts
    head_key, order_key = jax.random.split(key)
    params = _initial(head_key, len(known), config)
    params, squares = jax.device_put((params, jax.tree.map(jnp.zeros_like, params)), replicated(mesh))
    step = _build_step(mesh)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(order_key)).tolist())
    per_epoch = -(-len(texts) // batch_size)
    scratch = np.zeros(len(known), np.int32)
    for number in range(epochs * per_epoch):
        if number % per_epoch == 0:
            order = np.full(per_epoch * batch_size, -1, np.int64)
            order[: len(texts)] = rng.permutation(len(texts))
        place = number % per_epoch * batch_size
        chosen = order[place : place + batch_size]
        batch = build_batch(features, chosen, targets, parts=parts, table_rows=len(known), scratch=scratch)
        rate = learning_rate * (1 - number / (epochs * per_epoch))
        params, squares, loss = step(params, squares, _place(batch, mesh), np.float32(rate))
        if progress is not None:
            progress(number + 1, epochs * per_epoch, float(loss))
    host = jax.device_get(params)
    bias = host.bias
    if mass is not None:
        share = targets.sum(axis=0) / targets.sum()
        bias = (bias + np.log(mass / np.sum(mass)) - np.log(np.maximum(share, 1e-12))).astype(np.float32)
    return Student(config, known.astype(np.int32), np.asarray(host.table), host.head, bias)


def _place(batch: StudentBatch, mesh: Mesh) -> StudentBatch:
    rows, whole = batch_sharding(mesh), replicated(mesh)
    return jax.device_put(batch, StudentBatch(whole, rows, rows, rows, rows))


def _initial(key: Array, rows: int, config: StudentConfig) -> StudentParams:
    bias = jnp.zeros(config.num_clusters, jnp.float32)
    if config.width is None:
        return StudentParams(jnp.zeros((rows, config.num_clusters), jnp.float32), None, bias)
    head = jax.random.normal(key, (config.width, config.num_clusters), jnp.float32) / config.width**0.5
    return StudentParams(jnp.zeros((rows, config.width), jnp.float32), head, bias)


@functools.cache
def _build_step(mesh: Mesh) -> Any:
    """The jitted step: (params, squares, batch, rate) → (params, squares, mean loss)."""
    spec = batch_spec()
    whole = jax.sharding.PartitionSpec()

    def of_part(rows: Any, head: Any, bias: Any, batch: StudentBatch) -> Any:
        return sum_over((batch_loss(rows, head, bias, batch), jnp.sum(batch.targets)))

    total = shard_map(of_part, mesh, in_specs=(whole, whole, whole, StudentBatch(whole, *[spec] * 4)), out_specs=whole)

    def step(params: StudentParams, squares: StudentParams, batch: StudentBatch, rate: Any) -> Any:
        rows = params.table.at[batch.used].get(mode="fill", fill_value=0.0)
        trained = (0, 2) if params.head is None else (0, 1, 2)
        differentiate = jax.value_and_grad(total, trained, has_aux=True)
        (loss, weight), gradient = differentiate(rows, params.head, params.bias, batch)
        gradient = jax.tree.map(lambda leaf: leaf / weight, gradient)
        table = _adagrad_rows(params.table, squares.table, batch.used, gradient[0], rate)
        head: tuple[Any, Any] = (None, None)
        if params.head is not None and squares.head is not None:
            head = _adagrad(params.head, squares.head, gradient[1], rate)
        bias = _adagrad(params.bias, squares.bias, gradient[-1], rate)
        new, sums = (StudentParams(*leaves) for leaves in zip(table, head, bias, strict=True))
        return new, sums, loss / weight

    return jax.jit(step, donate_argnums=(0, 1))


def _adagrad(value: Array, squares: Array, gradient: Array, rate: Any) -> tuple[Array, Array]:
    squares = squares + jnp.square(gradient)
    return value - rate * gradient / (jnp.sqrt(squares) + _EPSILON), squares


def _adagrad_rows(table: Array, squares: Array, used: Array, gradient: Array, rate: Any) -> tuple[Array, Array]:
    """Adagrad on the rows `used`, which are different; those beyond the table are dropped."""
    sums = squares.at[used].get(mode="fill", fill_value=0.0) + jnp.square(gradient)
    moved = -rate * gradient / (jnp.sqrt(sums) + _EPSILON)
    options: Any = {"mode": "drop", "indices_are_sorted": True}
    return table.at[used].add(moved, **options), squares.at[used].set(sums, **options)


def _targets(texts: Sequence[str], labels: np.ndarray, num_clusters: int) -> np.ndarray:
    """The teacher's labels as rows on the simplex, f32[n, k]."""
    check_count("train_student", "num_clusters", num_clusters, 2)
    labels = np.asarray(labels)
    if not len(texts) or len(labels) != len(texts):
        raise ConfigError(f"{len(texts)} texts with {len(labels)} labels", where="train_student(labels)")
    if labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer):
        if labels.min() < 0 or labels.max() >= num_clusters:
            raise ConfigError(
                f"labels must be from 0 to {num_clusters - 1}, got {labels.min()} to {labels.max()}",
                where="train_student(labels)",
                fix="Drop unlabeled texts first.",
            )
        return np.eye(num_clusters, dtype=np.float32)[labels]
    if labels.shape != (len(texts), num_clusters) or not np.issubdtype(labels.dtype, np.floating):
        raise ConfigError(
            f"labels must be whole numbers [n] or rows [n, {num_clusters}], got {labels.dtype}{list(labels.shape)}",
            where="train_student(labels)",
        )
    if not (np.isfinite(labels).all() and labels.min() >= 0 and np.abs(labels.sum(axis=1) - 1).max() < 1e-3):
        raise ConfigError("rows of soft labels must be on the simplex", where="train_student(labels)")
    return labels.astype(np.float32)
