"""Image–text pairs for training with selection: the rows of a super-batch, and augmentation.

Both are pure functions of a key and the step: neither needs a checkpoint, scoring and training see the same pixels, and
a resumed run sees the same data as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.core.types import Array, Int, PRNGKeyArray
from jaxmix.train.pairs.embedding_cache import EmbeddingCache

Augment = Callable[[PRNGKeyArray, Array], Array]
"""`(key, image [h, w, 3]) -> image` of the same shape and dtype, pure."""


class PairPool(NamedTuple):
    """All pairs that a run may draw. Arrays may be memory maps: only the rows of a step are read.

    Attributes:
        images: u8 or f32.
        tokens: captions; padding as the text tower wants it.
        group: the same number for pairs that are not negatives of each other (the same caption), −1 for pairs without
            such partners; None where all captions differ. Selectors on embeddings leave such pairs out of the score.
    """

    images: Shaped[np.ndarray, "n h w 3"]
    tokens: Int[np.ndarray, "n t"]
    group: Int[np.ndarray, " n"] | None = None


class PairStream:
    """The super-batch of every step, by number.

    A pool is gone through in a new random order in every epoch, one super-batch after the other, across the borders of
    epochs: no row is left out, and between any two rows the number of times drawn differs by at most one. A
    super-batch that lies across a border may meet a row twice; the second time it is marked as not valid, because a
    row beside itself looks like a perfect hard negative.

    Args:
        pool: at least `num_candidates` pairs.
        num_candidates: c, rows of a super-batch; without selection the batch size.
        num_select: b, rows to be selected from it; c if None.
        seed: of the order.
        reference: embeddings of the pool's rows, added to each super-batch; None for a reference computed on the way,
            or none.

    Raises:
        ConfigError: sizes that do not fit.
    """

    def __init__(
        self,
        pool: PairPool,
        *,
        num_candidates: int,
        seed: int,
        num_select: int | None = None,
        reference: EmbeddingCache | None = None,
    ):
        from jaxmix.data.mixture.permutation import EpochPermutation

        rows = len(pool.images)
        if len(pool.tokens) != rows:
            raise ConfigError(f"{rows} images and {len(pool.tokens)} captions", where="PairPool")
        if not 1 <= num_candidates <= rows:
            raise ConfigError(
                f"num_candidates must be from 1 to the pool's {rows} pairs, got {num_candidates}",
                where="num_candidates",
                fix="Use a smaller super-batch or a larger pool.",
            )
        if reference is not None and len(reference.image) != rows:
            raise ConfigError(
                f"the embedding cache has {len(reference.image)} rows, the pool {rows}",
                where="reference",
                fix="Fill a cache from this pool, in the same order.",
            )
        self.pool, self.num_candidates, self.reference = pool, num_candidates, reference
        self.num_select = num_candidates if num_select is None else num_select
        self._order = EpochPermutation(rows, seed=seed, name="pairs")

    def rows(self, step: int) -> np.ndarray:
        """Row numbers i64[c] of the super-batch of step ≥ 0."""
        return self._order(np.arange(step * self.num_candidates, (step + 1) * self.num_candidates, dtype=np.int64))

    def batch(self, step: int, *, shard: tuple[int, int] = (0, 1)) -> dict[str, np.ndarray]:
        """One process's share of the super-batch of a step.

        Args:
            step: from 0.
            shard: (index of the process, number of processes); the latter divides c.

        Returns:
            images [r, h, w, 3], tokens i32[r, t], row i32[r], valid bool[r] with r = c / processes; group i32[r] where
            the pool has it, and with cached references reference_image and reference_text f32[r, d].

        Raises:
            RunError: fewer than `num_select` different rows.
        """
        index, count = shard
        if self.num_candidates % count:
            raise ConfigError(
                f"a super-batch of {self.num_candidates} rows cannot be divided over {count} processes",
                where="num_candidates",
            )
        rows = self.rows(step)
        valid = np.zeros(len(rows), bool)
        valid[np.unique(rows, return_index=True)[1]] = True
        if valid.sum() < self.num_select < len(rows):
            raise RunError(
                f"the super-batch of step {step} has {valid.sum()} different rows, "
                f"{self.num_select} are to be selected",
                where="num_candidates",
                fix="Use a smaller super-batch or a larger pool: this one spans the border of two epochs.",
            )
        mine = slice(index * len(rows) // count, (index + 1) * len(rows) // count)
        rows, valid = rows[mine], valid[mine]
        batch = {
            "images": np.asarray(self.pool.images[rows]),
            "tokens": np.asarray(self.pool.tokens[rows], np.int32),
            "row": rows.astype(np.int32),
            "valid": valid,
        }
        if self.pool.group is not None:
            batch["group"] = np.asarray(self.pool.group[rows], np.int32)
        if self.reference is not None:
            batch["reference_image"], batch["reference_text"] = self.reference.read(rows)
        return batch


def augment_rows(
    augment: Augment | None, key: PRNGKeyArray, step: Int[Array, ""], images: Array, rows: Int[Array, " b"]
) -> Array:
    """The images as step `step` sees them: row r gets `augment(fold_in(fold_in(key, step), r), image)`.

    Which other rows are in the batch does not matter, so an image looks the same when it is scored among many and
    when it is trained on among few.
    """
    if augment is None:
        return images
    this_step = jax.random.fold_in(key, step)
    return jax.vmap(lambda image, row: augment(jax.random.fold_in(this_step, row), image))(images, rows)


def random_shift(pixels: int, *, fill: int = 255) -> Augment:
    """Moves an image by up to `pixels` in each direction; what comes in is `fill`.

    Example:
        >>> moved = random_shift(1)(jax.random.key(0), jnp.zeros((4, 4, 3), jnp.uint8))
        >>> moved.shape, str(moved.dtype)
        ((4, 4, 3), 'uint8')
    """
    if pixels < 0:
        raise ConfigError(f"pixels must be at least 0, got {pixels}", where="random_shift(pixels)")

    def shift(key: PRNGKeyArray, image: Array) -> Array:
        height, width, channels = image.shape
        padded = jnp.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), constant_values=fill)
        down, right = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
        zero: Any = jnp.zeros_like(down)
        return jax.lax.dynamic_slice(padded, (down, right, zero), (height, width, channels))

    return shift
