"""The formulas of GEM written out slowly in NumPy float64, with SciPy's Bessel functions and generic optimizers."""

import numpy as np
from scipy.optimize import brentq, minimize
from scipy.special import gammaln, ive, logsumexp, softmax


def normalizer(kappa, d):
    """log C_d(κ) − log C_d(0)."""
    nu = d / 2 - 1
    kappa = np.asarray(kappa, np.float64)
    safe = np.where(kappa > 0, kappa, 1.0)
    log_c = nu * np.log(safe) - (nu + 1) * np.log(2 * np.pi) - np.log(ive(nu, safe)) - safe
    return np.where(kappa > 0, log_c - log_uniform(d), 0.0)


def log_uniform(d):
    return gammaln(d / 2) - np.log(2) - d / 2 * np.log(np.pi)


def ratio(kappa, d):
    return ive(d / 2, kappa) / ive(d / 2 - 1, kappa)


def concentration(r, d, most):
    if r <= 0:
        return 0.0
    return most if r >= ratio(most, d) else brentq(lambda kappa: ratio(kappa, d) - r, 1e-9, most, xtol=1e-13)


def logits(mu, kappa, x):
    return kappa[None, :] * (x @ mu.T) + normalizer(kappa, x.shape[1])[None, :]


def objective(table, gamma, w, strength, target):
    """F of (3); for infinite balance without the penalty."""
    k = gamma.shape[1]
    w = w / w.sum()
    entropy = -np.sum(gamma * np.log(np.maximum(gamma, 1e-300)), axis=1)
    off = w @ gamma - target
    penalty = 0.0 if np.isinf(strength) else strength / 2 * (off @ off)
    return w @ (np.sum(gamma * table, axis=1) + entropy) - np.log(k) - penalty


def best_posterior(table, w, strength, target):
    """max over Γ of F, by a generic optimizer over the logarithms of Γ."""
    n, k = table.shape

    def gamma_of(flat):
        return softmax(flat.reshape(n, k), axis=1)

    def negative(flat):
        return -objective(table, gamma_of(flat), w, strength, target)

    start = (table - logsumexp(table, axis=1, keepdims=True)).ravel()
    if np.isinf(strength):
        held = {"type": "eq", "fun": lambda flat: ((w / w.sum()) @ gamma_of(flat) - target)[:-1]}
        found = minimize(negative, start, method="SLSQP", constraints=[held], options={"maxiter": 2000, "ftol": 1e-15})
    else:
        found = minimize(negative, start, method="BFGS", options={"gtol": 1e-10, "maxiter": 5000})
    return -found.fun, gamma_of(found.x)


def m_step(gamma, x, w, most):
    w = w / w.sum()
    mass, resultant = w @ gamma, (gamma * w[:, None]).T @ x
    length = np.linalg.norm(resultant, axis=1)
    kappa = np.array([concentration(r, x.shape[1], most) for r in length / mass])
    return resultant / length[:, None], kappa, mass


def mirror(table, gamma, w, strength, target, steps):
    """(7), row by row."""
    w = w / w.sum()
    pull = strength * (w @ gamma - target)
    eta = 1 / (1 + strength / 2)
    out = np.zeros_like(gamma)
    for i in range(len(table)):
        q = np.log(gamma[i])
        for _ in range(steps):
            q = (1 - eta) * q + eta * (table[i] - pull - strength * (np.exp(q) - gamma[i]))
            q = q - logsumexp(q)
        out[i] = np.exp(q)
    return out


def greedy_merging(mass, resultant, k, most):
    """The pair whose union loses least, again and again; every pair looked at every time."""
    d = resultant.shape[1]
    clusters = [(m, r) for m, r in zip(mass, resultant, strict=True)]

    def value(m, r):
        share = min(1.0, np.linalg.norm(r) / m)
        kappa = concentration(share, d, most)
        return m * (kappa * share + float(normalizer(kappa, d)))

    while len(clusters) > k:
        pairs = [(i, j) for i in range(len(clusters)) for j in range(i + 1, len(clusters))]

        def loss(pair):
            (ma, ra), (mb, rb) = clusters[pair[0]], clusters[pair[1]]
            return value(ma, ra) + value(mb, rb) - value(ma + mb, ra + rb)

        i, j = min(pairs, key=loss)
        (ma, ra), (mb, rb) = clusters[i], clusters[j]
        clusters[i] = ma + mb, ra + rb
        del clusters[j]
    return np.array([r / np.linalg.norm(r) for _, r in clusters])


def influence(mu, kappa, b, x, labels, beta, m, form):
    d = x.shape[1]
    table = logits(mu, kappa, x) + b[None, :]
    log_gamma = table - logsumexp(table, axis=1, keepdims=True)
    score = np.full(len(x), -np.inf)
    for k in np.unique(labels[labels >= 0]):
        rows = np.flatnonzero(labels == k)
        cosine = x[rows] @ x[rows].T
        density = np.ones(len(rows))
        for i in range(len(rows)):
            others = np.sort(np.delete(cosine[i], i))[::-1][:m]
            if len(others):
                density[i] = others.mean()
        terms = [
            log_gamma[rows, k],
            kappa[k] * x[rows] @ mu[k] + normalizer(kappa[k], d) + log_uniform(d),
            np.log(np.maximum(density, 1e-6)),
        ]
        if form == "standardized":
            terms = [(t - t.mean()) / t.std() for t in terms]
        score[rows] = terms[0] + terms[1] + beta * terms[2]
    return score
