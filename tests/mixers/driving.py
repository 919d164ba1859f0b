"""Feeds a mixer with recorded feedback in float32 or float64, for comparison with a NumPy oracle."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.mixers import Feedback

KEY = jax.random.key(0)
PRECISIONS = [(False, 1e-6), (True, 1e-12)]
"""(is_double, absolute tolerance of weights)."""


def drive(mixer, num_domains, records, *, prior=None, is_double=False):
    """Runs `update` on every record (signal → array); returns (weights after each [s, m], infos, last state)."""
    with jax.enable_x64(is_double):
        dtype = np.float64 if is_double else np.float32
        state = mixer.init(KEY, num_domains, None if prior is None else jnp.asarray(prior, dtype))
        update, weights, infos = jax.jit(mixer.update), [], []
        for record in records:
            state, info = update(KEY, state, Feedback(**{k: jnp.asarray(v, dtype) for k, v in record.items()}))
            weights.append(np.asarray(mixer.weights(state), np.float64))
            infos.append(jax.tree.map(np.asarray, info))
        assert mixer.weights(state).dtype == dtype
    return np.array(weights), infos, state


def softmax(x):
    e = np.exp(np.asarray(x, np.float64) - np.max(x))
    return e / e.sum()


def evaluations(seed, steps, m, *, missing=0.0, low=0.5, high=4.0):
    """Validation losses [s, m], each nan with probability `missing`."""
    rng = np.random.default_rng(seed)
    losses = rng.uniform(low, high, (steps, m))
    return np.where(rng.random((steps, m)) < missing, np.nan, losses)


def token_losses(seed, steps, m, *, absent=0.3):
    """For every step a list of m pairs (losses, reference losses) of the tokens drawn; empty for absent domains."""
    rng = np.random.default_rng(seed)
    counts = np.where(rng.random((steps, m)) < absent, 0, rng.integers(1, 30, (steps, m)))
    return [[(rng.uniform(0.5, 4.0, n), rng.uniform(0.5, 4.0, n)) for n in row] for row in counts]


def sums_of(step):
    """The signals that the train loop makes of a step of `token_losses`."""
    return {
        "loss_sum": [a.sum() for a, _ in step],
        "reference_loss_sum": [b.sum() for _, b in step],
        "clipped_excess_sum": [np.maximum(a - b, 0).sum() for a, b in step],
        "token_count": [len(a) for a, _ in step],
    }
