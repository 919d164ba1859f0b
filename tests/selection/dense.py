"""Oracles in NumPy float64 that hold all pairs: scores, conditional scores, F, and the loop, as the specification
writes them."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.selection import Embeddings


def fast(function, **options):
    """Jitted in little time: what is tested does not depend on how well a program is compiled."""
    options["compiler_options"] = {"xla_backend_optimization_level": 0}
    return jax.jit(getattr(function, "select", function), **options)


def softplus(x):
    return np.logaddexp(0.0, x)


def logsumexp(x, axis):
    with np.errstate(divide="ignore"):
        top = np.max(x, axis=axis, keepdims=True, initial=-np.inf)
        top = np.where(np.isfinite(top), top, 0.0)
        return np.squeeze(top, axis) + np.log(np.sum(np.exp(x - top), axis=axis))


def random_models(seed, count, width=8, temperatures=(10.0, 8.0), biases=(-4.0, -6.0)):
    """Learner and reference of random unit vectors, in which text leans toward its image."""
    rng = np.random.default_rng(seed)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    models = []
    for temperature, bias in zip(temperatures, biases, strict=True):
        image = unit(rng.normal(size=(count, width)))
        text = unit(image + 0.8 * unit(rng.normal(size=(count, width))))
        models.append(Embeddings(image, text, temperature, bias))
    return models


def cast(models, dtype=jnp.float32):
    return [Embeddings(jnp.asarray(m.image, dtype), jnp.asarray(m.text, dtype), m.temperature, m.bias) for m in models]


def logits(model, loss="sigmoid"):
    image, text = (np.asarray(x, np.float64) for x in (model.image, model.text))
    return model.temperature * image @ text.T + (model.bias if loss == "sigmoid" else 0.0)


def signed(models, score, loss="sigmoid"):
    learner, reference = models
    return {
        "learnability": [(1, logits(learner, loss)), (-1, logits(reference, loss))],
        "easy_reference": [(-1, logits(reference, loss))],
        "hard_learner": [(1, logits(learner, loss))],
    }[score]


def apart(group, count):
    """Which pairs are no pair: different rows of equal number."""
    if group is None:
        return np.zeros((count, count), bool)
    group = np.asarray(group)
    return (group[:, None] == group[None, :]) & (group >= 0)[:, None] & ~np.eye(count, dtype=bool)


def objective(models, chosen, *, loss="sigmoid", score="learnability", group=None):
    """F(S), its part of the positive pairs first."""
    chosen = np.asarray(chosen)
    hidden = apart(group, len(models[0].image))[np.ix_(chosen, chosen)]
    positive = negative = 0.0
    for sign, table in signed(models, score, loss):
        part = table[np.ix_(chosen, chosen)]
        if loss == "sigmoid":
            positive += sign * softplus(-np.diag(part)).sum()
            pairs = np.where(hidden | np.eye(len(chosen), dtype=bool), 0.0, softplus(part))
            negative += sign * pairs.sum()
        else:
            positive -= sign * np.diag(part).sum()
            part = np.where(hidden, -np.inf, part)
            negative += sign * 0.5 * (logsumexp(part, 1) + logsumexp(part, 0)).sum()
    return positive, negative


def conditional(models, chosen, *, loss="sigmoid", score="learnability", form="paper", group=None):
    """The score of every row given those chosen, own part and shared part; from the formulas, not from F."""
    count = len(models[0].image)
    chosen = np.asarray(chosen, int)
    hidden = apart(group, count)
    own, shared = np.zeros(count), np.zeros(count)
    for sign, table in signed(models, score, loss):
        diagonal = np.diag(table)
        if loss == "sigmoid":
            own += sign * softplus(-diagonal)
            pairs = np.where(hidden, 0.0, softplus(table) + softplus(table.T))
            shared += sign * pairs[:, chosen].sum(1)
            continue
        own -= sign * diagonal
        if len(chosen) == 0:
            continue
        open_ = np.where(hidden, -np.inf, table)
        r, c = logsumexp(open_[:, chosen], 1), logsumexp(open_[chosen, :], 0)
        is_met = r > -np.inf
        r_, c_ = (r, c) if form == "paper" else (np.logaddexp(r, diagonal), np.logaddexp(c, diagonal))
        with np.errstate(invalid="ignore"):
            shared += sign * np.where(is_met, 0.5 * (r_ + c_), 0.0)
        if form == "marginal":
            harder = softplus(open_[chosen, :].T - r[chosen]) + softplus(open_[:, chosen] - c[chosen])
            shared += sign * 0.5 * harder.sum(1)
    return own, shared


def gumbel(key, turn, count, dtype=jnp.float32):
    """The noise of one turn, as specified: of all candidates, from the key and the number of the turn."""
    return np.asarray(jax.random.gumbel(jax.random.fold_in(key, turn), (count,), dtype), np.float64)


def loop(key, count, part, num_select, num_chunks, *, sweeps=0, gain=1.0, valid=None, uniform=False, quota=None):
    """Indices by the loop of the specification; `part(chosen)` gives own and shared part of every row.

    `quota` is (domain of each row, largest number of each domain).
    """
    size = num_select // num_chunks
    chunks = [[] for _ in range(num_chunks)]
    for turn in range(num_chunks * (1 + sweeps)):
        n = turn % num_chunks
        chunks[n] = []
        chosen = [i for chunk in chunks for i in chunk]
        own, shared = part(chosen)
        z = gain * (own + shared) + gumbel(key, turn, count)
        if uniform and turn == 0:
            z = gumbel(key, turn, count)
        is_open = np.ones(count, bool) if valid is None else np.array(valid)
        is_open[chosen] = False
        room = (
            None
            if quota is None
            else [limit - sum(quota[0][i] == k for i in chosen) for k, limit in enumerate(quota[1])]
        )
        for i in np.argsort(-z, kind="stable"):
            if len(chunks[n]) == size or not is_open[i]:
                continue
            if room is not None:
                if not 0 <= quota[0][i] < len(room) or room[quota[0][i]] <= 0:
                    continue
                room[quota[0][i]] -= 1
            chunks[n].append(int(i))
    found = [i for chunk in chunks for i in chunk]
    return found + [-1] * (num_select - len(found))
