"""How the arrays of a checkpoint make up a parameter, in both directions.

Letters: d width, h query heads, g key-value heads (h = g · r), k size of a head, f hidden units, i input matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxmix.models.lm.config import TransformerConfig


class Layout(NamedTuple):
    """A parameter as it lies in a checkpoint.

    Attributes:
        names: of its arrays; `{}` stands for the number of the block.
        join: `(config, arrays) -> parameter`.
        split: `(config, parameter) -> arrays`, the inverse.
    """

    names: tuple[str, ...]
    join: Callable[[TransformerConfig, Sequence[np.ndarray]], np.ndarray]
    split: Callable[[TransformerConfig, np.ndarray], Sequence[np.ndarray]]


def copied(name: str) -> Layout:
    """The same array."""
    return Layout((name,), lambda _, arrays: arrays[0], lambda _, x: [x])


def transposed(name: str) -> Layout:
    """[out, in] → [in, out]."""
    return Layout((name,), lambda _, arrays: arrays[0].T, lambda _, x: [x.T])


def stacked(*names: str) -> Layout:
    """Input matrices [f, d], or their biases [f], one for each i → [d, i, f], [i, f]."""

    def join(config: TransformerConfig, arrays: Sequence[np.ndarray]) -> np.ndarray:
        return _input_first(np.stack(arrays), 2)

    def split(config: TransformerConfig, x: np.ndarray) -> Sequence[np.ndarray]:
        return list(_input_last(x, 2))

    return Layout(names, join, split)


def one_input(name: str) -> Layout:
    """A single input matrix that lies the right way round, [d, f] → [d, 1, f]."""
    return Layout((name,), lambda _, arrays: arrays[0][:, None], lambda _, x: [x[:, 0]])


def heads_apart(query: str, key: str, value: str) -> Layout:
    """Matrices [heads · k, d] of query, key and value → [d, g, r + 2, k]; their biases [heads · k] → [g, r + 2, k]."""

    def join(config: TransformerConfig, arrays: Sequence[np.ndarray]) -> np.ndarray:
        parts = [x.reshape(config.key_heads, -1, config.size_of_head, *x.shape[1:]) for x in arrays]
        return _input_first(np.concatenate(parts, axis=1), 3)

    def split(config: TransformerConfig, x: np.ndarray) -> Sequence[np.ndarray]:
        x = _input_last(x, 3)
        return [part.reshape(-1, *x.shape[3:]) for part in (x[:, :-2], x[:, -2], x[:, -1])]

    return Layout((query, key, value), join, split)


def heads_joint(name: str, *, by_head: bool, is_turned: bool = False) -> Layout:
    """One matrix of query, key and value, with as many heads each, or its bias.

    Args:
        name: of the array.
        by_head: the rows are (head, part, k) and not (part, head, k).
        is_turned: the matrix is [d, rows] and not [rows, d].
    """

    def join(config: TransformerConfig, arrays: Sequence[np.ndarray]) -> np.ndarray:
        x = arrays[0].T if is_turned else arrays[0]
        order = (config.query_heads, 3) if by_head else (3, config.query_heads)
        x = x.reshape(*order, config.size_of_head, *x.shape[1:])
        return _input_first(x if by_head else np.swapaxes(x, 0, 1), 3)

    def split(config: TransformerConfig, x: np.ndarray) -> Sequence[np.ndarray]:
        x = _input_last(x, 3)
        x = x if by_head else np.swapaxes(x, 0, 1)
        x = x.reshape(-1, *x.shape[3:])
        return [x.T if is_turned else x]

    return Layout((name,), join, split)


def heads_out(name: str, *, is_turned: bool = False) -> Layout:
    """The matrix behind the heads, [d, h · k] (or [h · k, d] if turned) → [h, k, d]."""

    def join(config: TransformerConfig, arrays: Sequence[np.ndarray]) -> np.ndarray:
        x = arrays[0] if is_turned else arrays[0].T
        return x.reshape(config.query_heads, config.size_of_head, -1)

    def split(config: TransformerConfig, x: np.ndarray) -> Sequence[np.ndarray]:
        x = x.reshape(-1, x.shape[-1])
        return [x if is_turned else x.T]

    return Layout((name,), join, split)


def _input_first(x: np.ndarray, bias_dims: int) -> np.ndarray:
    """[…, d] → [d, …], of a matrix; a bias, which has `bias_dims` axes, stays."""
    return np.moveaxis(x, -1, 0) if x.ndim > bias_dims else x


def _input_last(x: np.ndarray, bias_dims: int) -> np.ndarray:
    """The inverse of `_input_first`."""
    return np.moveaxis(x, 0, -1) if x.ndim > bias_dims else x
