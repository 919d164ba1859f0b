"""Prompts that a policy completes, and the function that scores the completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxmix.core.errors import ConfigError
from jaxmix.core.validate import check_count


@dataclass(frozen=True, eq=False)
class PromptSet:
    """Prompts grouped into arms, with the function that scores their completions; all arrays live on the host.

    Attributes:
        tokens: i32[n, p], prompts padded on the left with `pad_id`, so that the last column is a prompt's last token.
        targets: i32[n, t], reference answers, each with `eos_id` at its end and then `pad_id`; `None` where there are
            none (then no supervised start).
        arms: i32[n] in [0, k), of the prompts.
        arm_names: one name per arm, all different.
        families: the family (kind of task) of each arm.
        levels: the difficulty level of each arm within its family, from 0.
        reward: `(rows i32[b], completions i32[b, g, t]) -> float32[b, g]` in [0, 1]. Runs on the host; a completion
            counts up to its first `eos_id`. Never raises, whatever the tokens are.
        decode: `(tokens i32[t]) -> str`, for logs.
        pad_id, eos_id: token ids below `vocab_size`.
        vocab_size: ids are below it.
        completion_length: t, the slots of a completion, end included.
        references: a hash of what the reward compares with, where that does not stand in `targets`.

    Raises:
        ConfigError: arrays whose shapes, ids or arms do not fit one another.

    Example:
        >>> prompts = PromptSet(
        ...     tokens=[[0, 2], [3, 2]], targets=[[4, 1], [5, 1]], arms=[0, 0], arm_names=("copy",), families=("copy",),
        ...     levels=(0,), reward=exact_match([[4, 1], [5, 1]], eos_id=1), decode=str, pad_id=0, eos_id=1,
        ...     vocab_size=6, completion_length=2,
        ... )
        >>> prompts.reward(np.array([1]), np.array([[[5, 1], [4, 1]]]))
        array([[1., 0.]], dtype=float32)
    """

    tokens: Any
    targets: Any
    arms: Any
    arm_names: tuple[str, ...]
    families: tuple[str, ...]
    levels: tuple[int, ...]
    reward: Callable[[NDArray, NDArray], NDArray[np.float32]]
    decode: Callable[[NDArray], str]
    pad_id: int
    eos_id: int
    vocab_size: int
    completion_length: int
    references: str = ""

    def __post_init__(self) -> None:
        check_count("PromptSet", "completion_length", self.completion_length)
        check_count("PromptSet", "vocab_size", self.vocab_size)
        for name in ("pad_id", "eos_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise _problem(name, f"{name} must be below vocab_size = {self.vocab_size}, got {getattr(self, name)}")
        if self.pad_id == self.eos_id:
            raise _problem("pad_id", f"pad_id and eos_id must differ, both are {self.pad_id}")
        set_field = lambda name, values: object.__setattr__(self, name, values)
        set_field("tokens", _ids("tokens", self.tokens, self.vocab_size))
        set_field("arms", _whole("arms", self.arms, 1))
        for name in ("arm_names", "families", "levels"):
            set_field(name, tuple(getattr(self, name)))
        count = len(self.tokens)
        if self.targets is not None:
            set_field("targets", _ids("targets", self.targets, self.vocab_size))
            if self.targets.shape != (count, self.completion_length):
                raise _problem(
                    "targets",
                    f"targets have shape {self.targets.shape}, expected {(count, self.completion_length)} "
                    "(prompts, completion_length)",
                )
        if self.arms.shape != (count,):
            raise _problem("arms", f"arms have shape {self.arms.shape}, expected ({count},)")
        if len(set(self.arm_names)) != len(self.arm_names) or not self.arm_names:
            raise _problem("arm_names", f"arm names must be all different, got {self.arm_names}")
        for name in ("families", "levels"):
            if len(getattr(self, name)) != self.num_arms:
                raise _problem(name, f"{len(getattr(self, name))} {name} for {self.num_arms} arms")
        if count and not 0 <= self.arms.min() <= self.arms.max() < self.num_arms:
            raise _problem("arms", f"arms must be in [0, {self.num_arms}), got {self.arms.min()} to {self.arms.max()}")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_arms(self) -> int:
        """The number of arms, those without prompts included."""
        return len(self.arm_names)

    @property
    def prompt_length(self) -> int:
        """p, the columns of `tokens`."""
        return self.tokens.shape[1]

    def rows_by_arm(self, per_arm: int | None = None) -> NDArray[np.int32]:
        """i32[k, l], the rows of every arm in order, the first `per_arm` of each, padded with −1: as cursors want."""
        rows = [np.flatnonzero(self.arms == arm)[:per_arm] for arm in range(self.num_arms)]
        table = np.full((self.num_arms, max((len(row) for row in rows), default=0)), -1, np.int32)
        for arm, row in enumerate(rows):
            table[arm, : len(row)] = row
        return table

    def with_clusters(self, labels: NDArray[np.int32], num_clusters: int) -> PromptSet:
        """The same prompts with clusters as arms, i32[n] in [0, num_clusters); a cluster's level is its place."""
        return replace(
            self,
            arms=labels,
            arm_names=tuple(f"cluster{k}" for k in range(num_clusters)),
            families=("cluster",) * num_clusters,
            levels=tuple(range(num_clusters)),
        )

    def take(self, rows: ArrayLike) -> PromptSet:
        """A set of the prompts of these rows, with all arms."""
        chosen = np.asarray(rows)
        reward = self.reward
        return replace(
            self,
            tokens=self.tokens[chosen],
            targets=None if self.targets is None else self.targets[chosen],
            arms=self.arms[chosen],
            reward=lambda rows, completions: reward(chosen[rows], completions),
        )


def exact_match(targets: ArrayLike, *, eos_id: int) -> Callable[[NDArray, NDArray], NDArray[np.float32]]:
    """A reward: 1 where a completion is its prompt's target up to and including the first end, 0 elsewhere.

    Args:
        targets: i32[n, t], with `eos_id` at the end of each answer.
        eos_id: the token that ends an answer.

    Raises:
        ConfigError: a target without an end.
    """
    reference = np.asarray(targets, np.int32)
    ends = answer_length(reference, eos_id)
    if (ends > reference.shape[1]).any():
        row = int(np.argmax(ends > reference.shape[1]))
        raise _problem("targets", f"target {row} has no end (token {eos_id})", name="exact_match")

    def reward(rows: NDArray, completions: NDArray) -> NDArray[np.float32]:
        expected = reference[rows][:, None, :]
        given = np.asarray(completions)
        width = min(given.shape[-1], reference.shape[1])
        length = ends[rows][:, None]
        counted = np.arange(width) < length[..., None]
        is_same = (given[..., :width] == expected[..., :width]) | ~counted
        return (is_same.all(axis=-1) & (length <= width)).astype(np.float32)

    return reward


def answer_length(completions: NDArray, eos_id: int) -> NDArray[np.int64]:
    """Tokens up to and including the first `eos_id` along the last axis; the length plus one where there is none."""
    is_end = np.asarray(completions) == eos_id
    return np.where(is_end.any(axis=-1), is_end.argmax(axis=-1) + 1, is_end.shape[-1] + 1)


def left_padded(sequences: Sequence[ArrayLike], length: int, pad_id: int) -> NDArray[np.int32]:
    """i32[n, length], sequences aligned to the right."""
    return _padded(sequences, length, pad_id, is_right=False)


def right_padded(sequences: Sequence[ArrayLike], length: int, pad_id: int) -> NDArray[np.int32]:
    """i32[n, length], sequences aligned to the left."""
    return _padded(sequences, length, pad_id, is_right=True)


def _padded(sequences: Sequence[ArrayLike], length: int, pad_id: int, is_right: bool) -> NDArray[np.int32]:
    table = np.full((len(sequences), length), pad_id, np.int32)
    for row, sequence in enumerate(sequences):
        ids = np.asarray(sequence, np.int32)
        if len(ids) > length:
            raise _problem("length", f"sequence {row} has {len(ids)} tokens, more than {length}", name="padding")
        if len(ids):
            table[row, slice(None, len(ids)) if is_right else slice(-len(ids), None)] = ids
    return table


def _ids(name: str, values: ArrayLike, vocab_size: int) -> NDArray[np.int32]:
    ids = _whole(name, values, 2)
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise _problem(name, f"{name} must be in [0, {vocab_size}), got {ids.min()} to {ids.max()}")
    return ids


def _whole(name: str, values: ArrayLike, dims: int) -> NDArray[np.int32]:
    array = np.asarray(values)
    if array.ndim != dims or not np.issubdtype(array.dtype, np.integer):
        raise _problem(name, f"{name} must be whole numbers in {dims} dimension(s), got {array.dtype} {array.shape}")
    return array.astype(np.int32)


def _problem(argument: str, what: str, name: str = "PromptSet") -> ConfigError:
    return ConfigError(what, where=f"{name}({argument})")
