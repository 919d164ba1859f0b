"""Random gradients per domain, and the signals that the train loop makes of them."""

import numpy as np


def gradients(seed, steps, m, *, width=8, absent=0.3, size=1.0):
    """(g, h) [s, m, width]: training gradients, zero where a domain was not drawn, and held-out gradients."""
    rng = np.random.default_rng(seed)
    g, h = size * rng.normal(size=(2, steps, m, width))
    g[rng.random((steps, m)) < absent] = 0
    return g, h


def gram(g):
    return g @ g.T
