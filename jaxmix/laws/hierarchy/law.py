"""The hierarchical transfer law: a rate for every pair of metric and domain, with priors that metrics share."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array, PRNGKeyArray
from jaxmix.laws.base import FitOptions, Form, Law, Parameter, Params, RunTable, Shape, register_law
from jaxmix.laws.fit import LawFit, compiled, fit_with_params, on_host
from jaxmix.laws.hierarchy.evidence import MEAN, Switches, deviations, fit_hierarchy
from jaxmix.laws.hierarchy.posterior import LEAST_WEIGHT, Coordinates, Runs, split
from jaxmix.laws.solve.least_squares import cells_of

_MAX_LOG = 30.0


@register_law
def hierarchical(competition: bool = True, *, structure: bool = True, robust: bool = False) -> Law:
    r"""Each metric learns from every domain at a rate and a power of its own; both are shrunk by priors metrics share.

    For metric i at mixture h, model size N (unit N₀) and tokens D (unit D₀), with ν = ln(N/N₀) and d = ln(D/D₀):

        L_i = E_i (ρ_i + (1 − ρ_i) exp(−α_i ν)) + R_i M_i^{−g_i exp(η_i ν)}
        M_i = (1 + Σ_j C_ij h_j^{γ_ij} exp(γ_ij ψ_i d)) exp(−Σ_j W_ij h_j)

    M = 1 without data, so that E + R is the loss of an untrained model; size makes learning faster from there (η), and
    lowers what no data remove (α, down to the share ρ). C counts what a domain teaches, W what it takes away: a domain
    that wins capacity leaves less to a metric (negative transfer). γ = 1 is a transfer power law, g = 1 and W = 0 the
    additive law of Shukor et al., C = 0 off the own domain a power law of the own weight.
    Symbols: E `irreducible`, ρ `floor_share`, α `size_exponent`, R `reducible`, g `exponent`, η `exponent_growth`,
    C `rates` [e, m], γ `weight_exponents` [e, m], ψ `token_exponent`, W `competition` [e, m].

    The coordinates of all metrics have normal priors; their means and deviations and the noise of each metric are
    learned from the table by the evidence framework. Priors, objective and rounds: docs/laws.md.

    Args:
        competition: whether W is fitted; False: W = 0.
        structure: whether metrics, domains and swapped pairs shape the prior of C.
        robust: whether runs that fit badly count less in the noise, which then is smaller: better where rows are many
            or a few cells are odd, worse where runs are very few. No setting is best on every table; "auto" chooses.

    Returns:
        The law; (3 + 3 m) numbers a metric, (3 + 2 m) without competition, three more where N varies (η, ρ, α), one
        more where D varies (ψ). What does not vary is held at the prior's mean, in predictions too. Far fewer numbers
        are determined by the runs: `LawFit.effective_params`. Metrics of no domain (−1) take all domains as others.

    Numerics: float64 on the host's CPU, one program per `metric_domain` and rounded number of runs, for all variants.
    Deterministic: one start and no use of the key (random starts of the prior's deviation end in the same objective to
    1e-4). The options of `fit` for searches and losses do not matter to it; `row_weights` do. The exponent of R M^{…}
    is kept within ±30. h^γ at γ > 1 has slope 0 at h = 0, as it should; γ ≤ 1 is replaced below h = 1e-9 by its chord
    h · 1e-9^{γ − 1}, so that the derivative at 0 is finite, positive and steep instead of infinite.

    Accuracy: on the RegMix tables it predicts mixtures of the fitted scale within 0.8 to 1.5 %. From a table of one
    scale, rankings carry over to another and levels do not: see docs/laws.md before extrapolating.

    Example:
        >>> from jaxmix.laws import Shape
        >>> hierarchical().build(Shape(num_domains=3, metric_domain=(0, 1, -1))).num_params
        36

    References:
        MacKay, "Bayesian Interpolation", 1992, for the rounds; arXiv 2507.09404 for the additive law. The law itself
        is new here.
    """
    for name, value in (("competition", competition), ("structure", structure), ("robust", robust)):
        if not isinstance(value, bool):
            raise ConfigError(f"must be True or False, got {value!r}", where=f"hierarchical({name})")
    build = _builder(competition)

    def fit(law: Law, table: RunTable, key: PRNGKeyArray, row_weights: np.ndarray, options: FitOptions) -> LawFit:
        del key, options  # There is one start, the prior's mean.
        return _fit(law, table, row_weights, (competition, structure, robust))

    return Law("hierarchical", fit, build)


@functools.lru_cache(maxsize=2)
def _builder(competition: bool) -> Callable[[Shape], Form]:
    """One object for all laws of the same form, so that variants share compiled predictions."""
    return functools.partial(_build, competition=competition)


def _build(shape: Shape, *, competition: bool) -> Form:
    e, m = shape.num_metrics, shape.num_domains
    parameters = {
        "irreducible": Parameter((e,), 1e-6, 1e3, (0.5, 2.5)),
        "reducible": Parameter((e,), 1e-6, 1e6, (6.0, 15.0)),
        "exponent": Parameter((e,), 1e-4, 1e2, (0.25, 0.7)),
    }
    if shape.model_size_varies:
        parameters["exponent_growth"] = Parameter((e,), -10.0, 10.0, (0.0, 0.2), is_log=False)
        parameters["floor_share"] = Parameter((e,), 0.0, 1.0, (0.4, 0.8), is_log=False)
        parameters["size_exponent"] = Parameter((e,), 1e-4, 1e2, (0.1, 0.4))
    if shape.tokens_vary:
        parameters["token_exponent"] = Parameter((e,), 1e-4, 1e2, (0.4, 1.0))
    parameters["rates"] = Parameter((e, m), 1e-12, 1e12, (1.0, 100.0))
    parameters["weight_exponents"] = Parameter((e, m), 1e-4, 1e2, (0.4, 1.4))
    if competition:
        parameters["competition"] = Parameter((e, m), -1e2, 1e2, (-0.2, 0.2), is_log=False)
    fixed = {
        "exponent_growth": MEAN["exponent_growth"],
        "floor_share": 1.0 / (1.0 + np.exp(-MEAN["floor_share"])),
        "size_exponent": np.exp(MEAN["size_exponent"]),
        "token_exponent": np.exp(MEAN["token_exponent"]),
    }

    def predict(params: Params, weights: Array, model_size: Array, tokens: Array) -> Array:
        of = lambda name: params[name][None, :] if name in params else jnp.full((1, e), fixed[name], weights.dtype)
        log_size, log_tokens = (jnp.log(v)[:, None] for v in (model_size / shape.model_size, tokens / shape.tokens))
        gamma = params["weight_exponents"][None, :, :]
        lift = jnp.exp(gamma * (of("token_exponent") * log_tokens)[:, :, None])
        parts = params["rates"][None, :, :] * _power(weights[:, None, :], gamma) * lift
        log_amount = jnp.log1p(jnp.sum(parts, axis=2))
        if competition:
            log_amount = log_amount - weights @ params["competition"].T
        exponent = params["exponent"][None, :] * jnp.exp(of("exponent_growth") * log_size)
        log_falling = jnp.log(params["reducible"])[None, :] - exponent * log_amount
        decay = jnp.exp(-of("size_exponent") * log_size)
        floor = of("floor_share") + (1.0 - of("floor_share")) * decay
        return params["irreducible"][None, :] * floor + jnp.exp(jnp.clip(log_falling, -_MAX_LOG, _MAX_LOG))

    return Form(parameters, predict)


def _power(weights: Array, gamma: Array) -> Array:
    """h^γ; below the least weight and for γ ≤ 1 its chord, whose derivative is finite at 0."""
    is_positive, is_small = weights > 0, weights < LEAST_WEIGHT
    power = jnp.where(is_positive, jnp.where(is_positive, weights, 1.0) ** gamma, 0.0)
    return jnp.where(is_small & (gamma <= 1), weights * LEAST_WEIGHT ** (gamma - 1.0), power)


def _fit(law: Law, table: RunTable, row_weights: np.ndarray, switches: tuple[bool, bool, bool]) -> LawFit:
    shape = table.shape
    with on_host():
        cells, counts = cells_of(table, row_weights)
        runs = Runs(
            weights=cells.weights,
            competing=cells.weights,
            log_size=jnp.log(cells.model_size / shape.model_size),
            log_tokens=jnp.log(cells.tokens / shape.tokens),
        )
        found = fit_hierarchy(
            shape.metric_domain,
            runs,
            cells.losses,
            cells.is_observed * jnp.asarray(counts)[:, None],
            jnp.asarray(deviations(size_varies=shape.model_size_varies, tokens_vary=shape.tokens_vary)),
            Switches(*(jnp.asarray(value) for value in switches)),
        )
        params = _natural(split(found.mode.theta, shape.num_domains), found.lowest)
        share = (cells.is_observed * jnp.asarray(counts)[:, None]).T
        objective = jnp.sum(share * jnp.expm1(found.mode.residual) ** 2) / jnp.sum(share)
    return fit_with_params(
        law,
        shape,
        {name: np.asarray(params[name]) for name in compiled(law, shape).form.parameters},
        float(objective),
        converged=bool(found.mode.is_converged),
        effective_params=float(np.sum(np.asarray(found.effective))),
    )


def _natural(at: Coordinates, lowest: Array) -> dict[str, Array]:
    """Parameters from coordinates."""
    return {
        "irreducible": lowest * jax.nn.sigmoid(at.irreducible),
        "reducible": jnp.exp(at.reducible),
        "exponent": jnp.exp(at.exponent),
        "exponent_growth": at.exponent_growth,
        "floor_share": jax.nn.sigmoid(at.floor_share),
        "size_exponent": jnp.exp(at.size_exponent),
        "token_exponent": jnp.exp(at.token_exponent),
        "rates": jnp.exp(at.rates),
        "weight_exponents": jnp.exp(at.weight_exponents),
        "competition": at.competition,
    }
