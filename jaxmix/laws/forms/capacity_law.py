"""The capacity-and-noise law: a domain's loss by the capacity it wins and the data it is shown.

Dai, Zheng: "Explaining Data Mixing Scaling Laws", arXiv 2606.08167.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array
from jaxmix.core.validate import Whole, checked
from jaxmix.laws.base import Form, Law, Parameter, Params, Shape, register_law
from jaxmix.laws.forms.capacity import log_capacity
from jaxmix.laws.forms.capacity_jacobian import noise_columns, size_columns
from jaxmix.laws.solve.least_squares import least_squares


@register_law
@checked
def capacity(
    offset: Literal["shared", "per_domain", "none"] = "shared",
    *,
    exponents: Literal["free", "shared", "tied"] = "free",
    rank: Whole = 0,
    competition: bool = True,
) -> Law:
    r"""The capacity-and-noise law of Dai and Zheng (their Equation 3), with its extensions to weights of zero.

    For metric i that validates domain j = d(i), at mixture h, model size N and tokens D:

        L_i(h, N, D) = c_j x_j(h, N)^{−b_j} + A_i (D m_i)^{−a_i} + E_i
        m_i = h_j + δ + Σ_r U_ir Σ_k V_rk h_k

    where x(h, N) is the allocation of `jaxmix.laws.allocate_capacity`, which all domains compete for.
    Symbols: b `exponent`, c `scale`, A `noise_scale`, a `noise_exponent`, E `irreducible`, H `head`, δ `offset`,
    U `transfer_out`, V `transfer_in`.

    Args:
        offset: "shared": one δ > 0 for all; "per_domain": one per metric; "none": δ = 0, the law of the paper, which
            is infinite where the own weight is 0 unless `rank` ≥ 1. Tables with such cells need one or the other.
        exponents: "free"; "shared": one b for all domains; "tied": a_i = b_j / (1 + b_j), as the paper's
            single-domain theory suggests: fewer parameters, steadier when extrapolated.
        rank: number of terms of low-rank transfer, ≥ 0: what other domains count for.
        competition: False sets x = N: no head, and b and c belong to the metric; they are left out where all runs
            have one size, since E says the same.

    Returns:
        The law. Parameters: `exponent`, `scale` [m] ([1] if shared, [e] without competition), `head` [1],
        `irreducible`, `noise_scale`, `noise_exponent` [e], `offset` [1] or [e], `transfer_out` [e, rank],
        `transfer_in` [rank, m]; 5 m + 2 numbers by default when every domain has a metric. A metric of no domain
        (−1) has only the transfer and noise term, and needs `rank` ≥ 1 and exponents that are not tied.

    Raises:
        ConfigError: unknown option; negative rank; when laid out for a table whose metrics it cannot express.

    Numerics: sizes are measured in the table's geometric mean size and tokens in its mean tokens, which only moves
    c and A (the law is the same in any unit); the head is a fraction of the table's smallest model, in
    [1e-5, 0.9]. Prediction for a model smaller than the head gives every domain the whole model.

    Differs from the paper: δ, low-rank transfer, tied exponents and the fitted head are additions; the paper drops
    cells of zero own weight instead.

    Example:
        >>> from jaxmix.laws import Shape
        >>> form = capacity().build(Shape(num_domains=3, metric_domain=(0, 1, 2)))
        >>> form.num_params
        17

    References:
        arXiv 2606.08167, Equation 3 and Theorem 4.1.
    """

    def build(shape: Shape) -> Form:
        _check_metrics(shape, exponents=exponents, rank=rank)
        has_size_term = competition or shape.model_size_varies
        e, m = shape.num_metrics, shape.num_domains
        parameters: dict[str, Parameter] = {}
        if has_size_term:
            parameters |= _size_parameters(shape, competition=competition, is_shared=exponents == "shared")
        elif exponents != "free":
            raise ConfigError(
                f"exponents {exponents!r} need a capacity term, and without competition there is none where all runs "
                "have one size",
                where="capacity(exponents)",
                fix='Use "free".',
            )
        parameters["irreducible"] = Parameter((e,), 1e-3, 10.0, (0.1, 2.0))
        parameters["noise_scale"] = Parameter((e,), 1e-5, 1e3, (0.05, 1.0))
        if exponents != "tied":
            parameters["noise_exponent"] = Parameter((e,), 1e-2, 3.0, (0.1, 0.6))
        if offset != "none":
            size = 1 if offset == "shared" else e
            parameters["offset"] = Parameter((size,), 1e-5, 0.5, (1e-3, 0.1), per_metric=offset != "shared")
        if rank:
            parameters["transfer_out"] = Parameter((e, rank), 1e-6, 1e2, (1e-2, 0.5))
            parameters["transfer_in"] = Parameter((rank, m), 1e-6, 1e2, (1e-2, 1.0), per_metric=False)

        return _form(_Options(offset, exponents, rank, competition, has_size_term), shape, parameters)

    return Law("capacity", least_squares, build)


@register_law
@checked
def capacity_only(exponents: Literal["free", "shared"] = "free") -> Law:
    r"""Capacity competition alone (Equation 1 of Dai and Zheng).

        L_i(h, N) = c_j x_j(h, N)^{−b_j} + E_i,     j = d(i)

    as `capacity`, without its noise term: 3 m + 1 parameters, no dependence on tokens, finite at weights of zero. Its
    best mixture is always the target's own weights.

    Args:
        exponents: "free", or "shared": one b for all domains.

    Raises:
        ConfigError: unknown option; when laid out for a table with a metric of no domain.

    Example:
        >>> from jaxmix.laws import Shape
        >>> capacity_only().build(Shape(num_domains=3, metric_domain=(0, 1, 2))).num_params
        10

    References:
        arXiv 2606.08167, Equation 1.
    """

    def build(shape: Shape) -> Form:
        if -1 in shape.metric_domain:
            raise ConfigError(
                f"metric {shape.metric_domain.index(-1)} validates no domain, and capacity_only has no other term",
                where="capacity_only",
                fix="Use capacity(rank=1), or another law.",
            )
        parameters = _size_parameters(shape, competition=True, is_shared=exponents == "shared")
        parameters["irreducible"] = Parameter((shape.num_metrics,), 1e-3, 10.0, (0.1, 2.0))
        return _form(_Options("none", exponents, rank=0, has_noise=False), shape, parameters)

    return Law("capacity_only", least_squares, build)


class _Options(NamedTuple):
    """Arguments of `capacity`, and which of its terms there are."""

    offset: str
    exponents: str
    rank: int
    competition: bool = True
    has_size_term: bool = True
    has_noise: bool = True


def _form(options: _Options, shape: Shape, parameters: dict[str, Parameter]) -> Form:
    jacobian = functools.partial(_columns, options, shape) if options.competition else None
    return Form(parameters, functools.partial(_losses, options, shape), jacobian=jacobian)


def _losses(options: _Options, shape: Shape, params: Params, weights: Array, model_size: Array, tokens: Array) -> Array:
    """Equation 3 with its extensions, [r, e]."""
    losses = jnp.broadcast_to(params["irreducible"][None, :], (weights.shape[0], shape.num_metrics))
    exponent = None
    if options.has_size_term:
        relative = model_size / shape.model_size
        term, exponent = _size_term(params, weights, relative, shape, competition=options.competition)
        losses = losses + term
    if not options.has_noise:
        return losses
    noise_exponent = _noise_exponent(options, params, exponent)
    amount = _amount(options, shape, params, weights, tokens)
    return losses + params["noise_scale"][None, :] * amount ** -noise_exponent[None, :]


def _amount(options: _Options, shape: Shape, params: Params, weights: Array, tokens: Array) -> Array:
    """D m, what each metric was shown, [r, e]."""
    own = np.asarray(shape.metric_domain)
    seen = jnp.where(own[None, :] >= 0, weights[:, own], 0.0)
    if options.offset != "none":
        seen = seen + params["offset"][None, :]
    if options.rank:
        seen = seen + (weights @ params["transfer_in"].T) @ params["transfer_out"].T
    return (tokens / shape.tokens)[:, None] * seen


def _noise_exponent(options: _Options, params: Params, exponent: Array | None) -> Array:
    if options.exponents == "tied" and exponent is not None:
        return exponent / (1.0 + exponent)
    return params["noise_exponent"]


def _columns(
    options: _Options, shape: Shape, params: Params, weights: Array, model_size: Array, tokens: Array
) -> tuple[Array, dict[str, Array]]:
    """The losses with competition and their derivatives by the logarithms of all parameters (see `Form.jacobian`)."""
    own = np.asarray(shape.metric_domain)
    exponent, log_scale, log_size, head = _competition(params, weights, model_size / shape.model_size, shape)
    term, columns = size_columns(log_size, exponent, log_scale, jnp.log(head)[:, None], own)
    column = lambda values: values.T[:, None, :]
    columns["irreducible"] = column(jnp.broadcast_to(params["irreducible"][None, :], term.shape))
    if options.exponents == "shared":
        columns["exponent"] = jnp.sum(columns["exponent"], axis=1, keepdims=True)
    if not options.has_noise:
        return term + params["irreducible"][None, :], columns
    noise_exponent = _noise_exponent(options, params, exponent[own])
    amount = _amount(options, shape, params, weights, tokens)
    noise = params["noise_scale"][None, :] * amount ** -noise_exponent[None, :]
    by = noise_columns(noise, amount, noise_exponent)
    if options.exponents == "tied":
        is_own = jnp.asarray(own[:, None] == np.arange(shape.num_domains)[None, :], noise.dtype)[:, :, None]
        bent = exponent[own] / (1.0 + exponent[own]) ** 2
        columns["exponent"] = columns["exponent"] + is_own * column(by["exponent"] * bent[None, :])
    else:
        columns["noise_exponent"] = column(by["exponent"] * noise_exponent[None, :])
    columns["noise_scale"] = column(by["log_scale"])
    # By the own weight: m is the amount over D.
    by_seen = by["log_amount"] / amount * (tokens / shape.tokens)[:, None]
    if options.offset != "none":
        columns["offset"] = column(by_seen * params["offset"][None, :])
    if options.rank:
        out, into = params["transfer_out"], params["transfer_in"]
        columns["transfer_out"] = column(by_seen) * (out[:, :, None] * (weights @ into.T).T[None])
        drawn = (into[:, :, None] * weights.T[None])[None]
        whole = drawn * out[:, :, None, None] * by_seen.T[:, None, None, :]
        columns["transfer_in"] = whole.reshape(noise.shape[1], -1, noise.shape[0])
    return term + noise + params["irreducible"][None, :], columns


def _size_parameters(shape: Shape, *, competition: bool, is_shared: bool) -> dict[str, Parameter]:
    """Those of the capacity term; without competition each metric has its own."""
    count = shape.num_domains if competition else shape.num_metrics
    is_own = not competition
    parameters = {
        "exponent": Parameter((1 if is_shared else count,), 1e-2, 3.0, (0.1, 0.6), per_metric=is_own and not is_shared),
        "scale": Parameter((count,), 1e-3, 1e3, (0.1, 1.0), per_metric=is_own),
    }
    if competition:
        parameters["head"] = Parameter((1,), 1e-5, 0.9, (1e-4, 0.1), per_metric=False)
    return parameters


def _size_term(
    params: Mapping[str, Array], weights: Array, model_size: Array, shape: Shape, *, competition: bool
) -> tuple[Array, Array]:
    """`c x^{−b}` [r, e], 0 for metrics of no domain, and b per metric [e]; `model_size` in units of the table's."""
    own = np.asarray(shape.metric_domain)
    if competition:
        exponent, log_scale, log_size, _ = _competition(params, weights, model_size, shape)
        exponent, log_scale, log_size = exponent[own], log_scale[own], log_size[:, own]
    else:
        exponent = jnp.broadcast_to(params["exponent"], params["scale"].shape)
        log_scale, log_size = jnp.log(params["scale"]), jnp.log(model_size)[:, None]
    term = jnp.exp(log_scale[None, :] - exponent[None, :] * log_size)
    return jnp.where(own[None, :] >= 0, term, 0.0), exponent


def _competition(
    params: Mapping[str, Array], weights: Array, model_size: Array, shape: Shape
) -> tuple[Array, Array, Array, Array]:
    """b and log c per domain [m], log x [r, m], and H [r]; sizes in units of the table's."""
    exponent = jnp.broadcast_to(params["exponent"], params["scale"].shape)
    log_scale = jnp.log(params["scale"])
    head = jnp.minimum(params["head"][0] * (shape.smallest_model_size / shape.model_size), model_size)
    return exponent, log_scale, log_capacity(weights, exponent, log_scale, head, model_size), head


def _check_metrics(shape: Shape, *, exponents: str, rank: int) -> None:
    if -1 not in shape.metric_domain:
        return
    which = f"metric {shape.metric_domain.index(-1)} validates no domain"
    if rank == 0:
        raise ConfigError(
            f"{which}, and without transfer the law has no term for it",
            where="capacity(rank)",
            fix="Use rank=1 or more, name the domain it validates, or leave the metric out.",
        )
    if exponents == "tied":
        raise ConfigError(
            f"{which}, so that there is no capacity exponent to tie its noise exponent to",
            where="capacity(exponents)",
            fix='Use exponents="free".',
        )
