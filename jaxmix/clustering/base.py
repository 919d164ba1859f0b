"""The interface of clusterers: four pure functions of a state of directions, concentrations and biases.

Every method here ends in the same rule. A row x on the unit sphere goes to the largest of

    κ_k μ_k·x + g(κ_k) + b_k,        g the relative log-normalizer of the von Mises–Fisher density,

so one state serves all of them, and code that labels, describes or stores clusters needs only that state.

    state = clusterer.init(directions, concentration)
    sums  = Σ over blocks of clusterer.accumulate(state, rows, sample_weight)
    state = clusterer.maximize(state, sums)

`accumulate` returns sums over rows: those of blocks, devices and processes are added.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxmix.core.pytree import state
from jaxmix.core.registry import Registry
from jaxmix.core.types import Array, Float, Int

registry = Registry("clusterer")


@state(version=1)
class GemState:
    """The model: all that is stored, and all that a new row's label depends on. Keep every field.

    Attributes:
        mean_directions: unit rows μ.
        concentrations: κ ≥ 0. Under hard clusterers a common scale; see their docstrings.
        biases: b: balance potentials of `gem`, `log(K α_k)` of a mixture with learned weights α.
    """

    mean_directions: Float[Array, "k d"]
    concentrations: Float[Array, " k"]
    biases: Float[Array, " k"]


class Assignment(NamedTuple):
    """Labels of rows.

    Attributes:
        labels: the likeliest cluster of every row; of equals the first.
        log_posterior: `log softmax_k(κ_k μ_k·x + g(κ_k) + b_k)`; `None` where it was not asked for.
    """

    labels: Int[Array, " n"]
    log_posterior: Float[Array, "n k"] | None = None


class Sums(NamedTuple):
    """Statistics of rows, additive over blocks, devices and processes. Weights w_i are as given, not normalized.

    Attributes:
        count: rows with a weight above 0.
        weight: `Σ w_i`.
        value: `Σ w_i logsumexp_k(logit_ik)`; for hard clusterers `Σ w_i max_k(score_ik)`.
        mass: `Σ w_i γ_ik`.
        resultant: `Σ w_i γ_ik x_i`.
        gram: `Σ w_i γ_i γ_iᵀ`; zeros where it was not asked for, `None` within a block.
    """

    count: Float[Array, ""]  # type: ignore[assignment]
    weight: Float[Array, ""]
    value: Float[Array, ""]
    mass: Float[Array, " k"]
    resultant: Float[Array, "k d"]
    gram: Float[Array, "k k"] | None


@dataclasses.dataclass(frozen=True)
class Balance:
    """The balance penalty of `gem`, and how its E-step is solved.

    Attributes:
        strength: λ ≥ 0, infinity for exact balance.
        target: K numbers that sum to 1, as a tuple; `None` for equal ones.
        penalty: "per_sample" (λ as it is) or "summed" (λ divided by the number of rows).
        e_step: "dual" or "mirror".
        mirror_steps: inner steps of "mirror".
    """

    strength: float
    target: tuple[float, ...] | None = None
    penalty: str = "per_sample"
    e_step: str = "dual"
    mirror_steps: int = 5


@dataclasses.dataclass(frozen=True)
class Clusterer:
    """A clusterer as a bundle of pure functions; made by `gem`, `vmf_mixture`, `spherical_kmeans` and `kmeans`.

    Attributes:
        init: `(mean_directions f[k, d], concentration f[]) -> GemState`: a start with a shared concentration.
        accumulate: `(state, x f[n, d], sample_weight f[n] | None) -> Sums` of a block of any size, jitted.
        maximize: `(state, sums) -> GemState`: the M-step, in closed form, jitted. Biases of `gem` stay.
        assign: `(state, x, *, with_posterior=True) -> Assignment`, jitted, in blocks.
        name: for logs and error messages.
        num_clusters: K.
        rule: "soft", "cosine" or "distance": posterior weights, or one cluster for each row.
        has_learned_weights: whether the biases follow the masses.
        max_concentration: κ is clipped to it.
        balance: how the masses are held to a target; `None` for clusterers without.
    """

    init: Callable[..., GemState]
    accumulate: Callable[..., Sums]
    maximize: Callable[..., GemState]
    assign: Callable[..., Assignment]
    name: str
    num_clusters: int
    rule: str
    has_learned_weights: bool
    max_concentration: float
    balance: Balance | None = None


class FitInfo(NamedTuple):
    """Diagnostics of a fit, one entry per iteration.

    Attributes:
        gap: certificate of the E-step: how much F could still gain over the posterior weights (14).
        evaluations: passes over the log-likelihoods that the E-step took (a stream: over the rows).
        reseeded: clusters given a new start after the iteration; F may fall there.
        largest_bias: `max |b|`. Near 0, the penalty does nothing.
        strength_per_sample: λ as it acts on F.
        strength_summed: the same on the scale of a likelihood summed over rows, N times as large.
        restart: which restart was the best, from 0.
        restart_objectives: the best F of each restart.
    """

    gap: Float[np.ndarray, " it"]
    evaluations: Int[np.ndarray, " it"]
    reseeded: Int[np.ndarray, " it"]
    largest_bias: Float[np.ndarray, " it"]
    strength_per_sample: float
    strength_summed: float
    restart: int
    restart_objectives: Float[np.ndarray, " restarts"]


class FitResult(NamedTuple):
    """Result of a fit.

    Attributes:
        state: the state of the best F seen, with the biases of a last E-step.
        objective: F after the M-step of every iteration (22).
        converged: whether F and the labels came to rest within `max_iters`.
        iterations: how many were run.
        info: see `FitInfo`.
    """

    state: GemState
    objective: Float[np.ndarray, " it"]
    converged: bool
    iterations: int
    info: FitInfo
