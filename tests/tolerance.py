"""How far two results may lie apart that are the same sum, added up in another order."""

import numpy as np


def float32_tolerance(values, terms):
    """`terms · ε · max |values|`, an absolute tolerance for float32 sums of `terms` numbers of the size of `values`.

    Each of the n − 1 additions rounds by at most ε/2 of what it has so far, and processors, thread counts and compilers
    add in different orders: two results lie up to (n − 1) ε Σ|x| apart, also where the sum itself cancels to nothing.
    For sums of sums (a gradient is one of products of sums) the terms of all of them add up.
    """
    values = np.asarray(values)
    return terms * float(np.finfo(np.float32).eps) * float(np.max(np.abs(values), initial=0.0))


WEIGHTS = float32_tolerance(1.0, 8)
"""Of the weights of up to eight domains, which add to 1."""


def adam_tolerance(steps, rate, terms):
    """How far the parameters of two runs lie apart after `steps` of Adam at `rate`, on gradients of `terms` numbers.

    A step moves a parameter by about `rate` times its gradient's share of the gradient's usual size, so an error of
    `terms · ε` of that size moves it by as much of `rate`; the steps add up.
    """
    return steps * rate * float32_tolerance(1.0, terms)
