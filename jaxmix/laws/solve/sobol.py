"""Sobol points in the unit cube: they fill it more evenly than random ones.

Bratley, Fox: "Algorithm 659", ACM TOMS 14 (1988), with the direction numbers of Joe and Kuo, SIAM J. Sci. Comput. 30
(2008).
"""

from __future__ import annotations

import numpy as np

from jaxmix.core.errors import ConfigError

_BITS = 32

# fmt: off
_DIRECTIONS: tuple[tuple[int, ...], ...] = (
    (3, 1), (7, 1,3), (11, 1,3,1), (13, 1,1,1), (19, 1,1,3,3), (25, 1,3,5,13), (37, 1,1,5,5,17), (41, 1,1,5,5,5),
    (47, 1,1,7,11,19), (55, 1,1,5,1,1), (59, 1,1,1,3,11), (61, 1,3,5,5,31), (67, 1,3,3,9,7,49), (91, 1,1,1,15,21,21),
    (97, 1,3,1,13,27,49), (103, 1,1,1,15,7,5), (109, 1,3,1,15,13,25), (115, 1,1,5,5,19,61),
    (131, 1,3,7,11,23,15,103), (137, 1,3,7,13,13,15,69), (143, 1,1,3,13,7,35,63), (145, 1,3,5,9,1,25,53),
    (157, 1,3,1,13,9,35,107), (167, 1,3,1,5,27,61,31), (171, 1,1,5,11,19,41,61), (185, 1,3,5,3,3,13,69),
    (191, 1,1,7,13,1,19,1), (193, 1,3,7,5,13,19,59), (203, 1,1,3,9,25,29,41), (211, 1,3,5,13,23,1,55),
    (213, 1,3,7,3,13,59,17), (229, 1,3,1,3,5,53,69), (239, 1,1,5,5,23,33,13), (241, 1,1,7,7,1,61,123),
    (247, 1,1,7,9,13,61,49), (253, 1,3,3,5,3,55,33), (285, 1,3,1,15,31,13,49,245), (299, 1,3,5,15,31,59,63,97),
    (301, 1,3,1,11,11,11,77,249), (333, 1,3,1,11,27,43,71,9), (351, 1,1,7,15,21,11,81,45),
    (355, 1,3,7,3,25,31,65,79), (357, 1,3,1,1,19,11,3,205), (361, 1,1,5,9,19,21,29,157),
    (369, 1,3,7,11,1,33,89,185), (391, 1,3,3,3,15,9,79,71), (397, 1,3,7,11,15,39,119,27),
    (425, 1,1,3,1,11,31,97,225), (451, 1,1,1,3,23,43,57,177), (463, 1,3,7,7,17,17,37,71),
    (487, 1,3,1,5,27,63,123,213), (501, 1,1,3,5,11,43,53,133), (529, 1,3,5,5,29,17,47,173,479),
    (539, 1,3,3,11,3,1,109,9,69), (545, 1,1,1,5,17,39,23,5,343), (557, 1,3,1,5,25,15,31,103,499),
    (563, 1,1,1,11,11,17,63,105,183), (601, 1,1,5,11,9,29,97,231,363), (607, 1,1,5,15,19,45,41,7,383),
    (617, 1,3,7,7,31,19,83,137,221), (623, 1,1,1,3,23,15,111,223,83), (631, 1,1,5,13,31,15,55,25,161),
    (637, 1,1,3,13,25,47,39,87,257),)
# fmt: on
"""For every dimension from the second: the primitive polynomial as bits, then the first direction numbers m_1, …"""

MAX_DIMENSIONS = len(_DIRECTIONS) + 1


def sobol_points(num_points: int, num_dimensions: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Returns float64[n, d] in (0, 1): the first n points of the sequence.

    Args:
        num_points: n ≥ 1; the spread is best for powers of two.
        num_dimensions: d, from 1 to `MAX_DIMENSIONS`.
        rng: shifts all points by one random digital shift, which keeps their spread; None: none, and the first point is
            the corner (moved inside by 2^-33).

    Raises:
        ConfigError: too many dimensions or points.
    """
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        raise ConfigError(
            f"Sobol points have from 1 to {MAX_DIMENSIONS} dimensions, got {num_dimensions}", where="sobol_points"
        )
    if not 1 <= num_points < 2**_BITS:
        raise ConfigError(
            f"the number of points must be from 1 to 2^{_BITS} - 1, got {num_points}", where="sobol_points"
        )
    directions = np.stack([_direction_integers(i) for i in range(num_dimensions)], axis=1)
    state = np.zeros(num_dimensions, np.uint64)
    points = np.empty((num_points, num_dimensions), np.uint64)
    for index in range(num_points):
        points[index] = state
        # Gray code: from one point to the next only the digit of the lowest 0 bit of the index changes.
        state = state ^ directions[(~index & (index + 1)).bit_length() - 1]
    if rng is not None:
        points ^= rng.integers(0, 2**_BITS, num_dimensions, dtype=np.uint64)
    return (points.astype(np.float64) + 0.5) / 2.0**_BITS


def _direction_integers(dimension: int) -> np.ndarray:
    """v_k = m_k 2^(32−k) for k = 1 … 32, by the recurrence of the dimension's polynomial."""
    if dimension == 0:
        return np.array([1 << (_BITS - k) for k in range(1, _BITS + 1)], np.uint64)
    polynomial, *numbers = _DIRECTIONS[dimension - 1]
    degree = len(numbers)
    for k in range(degree, _BITS):
        new = numbers[k - degree] ^ (numbers[k - degree] << degree)
        for i in range(1, degree):
            if polynomial >> (degree - i) & 1:
                new ^= numbers[k - i] << i
        numbers.append(new)
    return np.array([number << (_BITS - k - 1) for k, number in enumerate(numbers)], np.uint64)
