"""The hierarchical law written out slowly in NumPy, without sharing any code with the library."""

import numpy as np

SCALARS = 7
MEAN = [0.5, np.log(10), np.log(0.4), 0.09, 0.4, np.log(0.2), np.log(0.7), 4.5, 1.5, np.log(0.6), np.log(0.7), 0.0]
DEVIATION = [1.0, 0.4, 0.5, 0.03, 0.5, 0.3, 0.3, 0.7, 1.5, 0.3, 0.3, 0.2]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def log_loss(theta, lowest, h, nu, d, *, competition=True):
    """One metric, one run."""
    m = len(h)
    irreducible, reducible, exponent, growth, floor, rate, psi = theta[:SCALARS]
    rates, powers, taken = (theta[SCALARS + k * m : SCALARS + (k + 1) * m] for k in range(3))
    amount = 1.0
    for j in range(m):
        if h[j] > 0:
            gamma = np.exp(powers[j])
            amount += np.exp(rates[j]) * h[j] ** gamma * np.exp(gamma * np.exp(psi) * d)
    if competition:
        amount *= np.exp(-sum(taken[j] * h[j] for j in range(m)))
    rho = sigmoid(floor)
    lasting = lowest * sigmoid(irreducible) * (rho + (1 - rho) * np.exp(-np.exp(rate) * nu))
    return np.log(lasting + np.exp(reducible) * amount ** -(np.exp(exponent) * np.exp(growth * nu)))


def objective(theta, lowest, h, nu, d, logs, counts, noise, mean, precision):
    """One metric."""
    total = np.sum(precision * (theta - mean) ** 2)
    for r in range(len(h)):
        if counts[r] > 0:
            z = (log_loss(theta, lowest, h[r], nu[r], d[r]) - logs[r]) / noise
            total += counts[r] * 2 * (np.sqrt(1 + z * z) - 1)
    return total


def groups(own, m):
    found = np.empty((len(own), SCALARS + 3 * m), int)
    for i, j in enumerate(own):
        found[i, :SCALARS] = np.arange(SCALARS)
        for k in range(m):
            found[i, SCALARS + k] = 7 if k == j else 8
            found[i, SCALARS + m + k] = 9 if k == j else 10
            found[i, SCALARS + 2 * m + k] = 11
    return found


def update(theta, variance, effective, residual, pull, counts, own, m, noise, deviation, *, structure, robust):
    """Means [e, p], deviations [12] and noise [e] after one round, from what a mode has left."""
    e, group = len(own), groups(own, m)
    squared, free = np.empty(e), np.empty(e)
    for i in range(e):
        runs = counts[i].sum()
        free[i] = max(runs - effective[i], 0.15 * runs)
        used = pull[i] * noise[i] ** 2 if robust else counts[i]
        squared[i] = np.sum(used * residual[i] ** 2) / free[i] + 1e-10
    pooled = np.exp(np.mean(np.log(squared)))
    new_noise = np.sqrt((free * squared + 6 * pooled) / (free + 6))
    mean = np.empty_like(theta)
    for g in range(12):
        here = group == g
        mean[here] = 0.0 if g == 11 else (theta[here].sum() + 3 * MEAN[g]) / (here.sum() + 3)
        if g == 8:
            other = (theta[here].sum() + 3 * MEAN[g]) / (here.sum() + 3)
    if structure:
        rates = theta[:, SCALARS : SCALARS + m]
        row, column = np.zeros(e), np.zeros(m)
        for _ in range(3):
            column = np.array(
                [sum(rates[i, j] - other - row[i] for i in range(e) if own[i] != j) / (e + 2) for j in range(m)]
            )
            row = np.array(
                [sum(rates[i, j] - other - column[j] for j in range(m) if own[i] != j) / (m + 4) for i in range(e)]
            )
        left, mirror = np.zeros((e, m)), np.zeros((e, m))
        for i in range(e):
            for j in range(m):
                if own[i] != j:
                    left[i, j] = rates[i, j] - other - row[i] - column[j]
        for i in range(e):
            for j in range(m):
                pairs = [left[k, own[i]] for k in range(e) if own[k] == j]
                if own[i] not in (j, -1) and pairs:
                    mirror[i, j] = np.mean(pairs)
        likeness = np.clip(np.sum(mirror * left) / (np.sum(mirror**2) + 2.5 * deviation[8] ** 2 + 1e-9), 0, 0.6)
        for i in range(e):
            for j in range(m):
                if own[i] != j:
                    mean[i, SCALARS + j] = other + row[i] + column[j] + likeness * mirror[i, j]
    new_deviation = np.empty(12)
    for g in range(12):
        here = group == g
        spread = np.sum((theta[here] - mean[here]) ** 2 + variance[here])
        new_deviation[g] = np.sqrt((spread + 4 * DEVIATION[g] ** 2) / (here.sum() + 4))
    return mean, new_deviation, new_noise
