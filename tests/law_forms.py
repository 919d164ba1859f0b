"""What the tests of every law share: planted tables, and checks against formulas written out in NumPy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from jaxmix.laws import RunTable, Shape, fit
from jaxmix.laws.fit import on_host

CONSTANT = Shape(3, (0, 2, 1))
VARYING = Shape(3, (0, 2, 1), model_size_varies=True, tokens_vary=True, model_size=50.0, tokens=3.0)


def mixtures(count, num_domains, seed=0):
    """Rows on the simplex, among them one-hot ones, zeros and weights next to nothing."""
    h = np.random.default_rng(seed).dirichlet(np.ones(num_domains), count)
    h[:num_domains] = np.eye(num_domains)
    h[num_domains, 0] = 0.0
    h[num_domains + 1, -1] = 1e-12
    return h / h.sum(axis=1, keepdims=True)


def scales(count, shape, seed=1):
    rng = np.random.default_rng(seed)
    size, tokens = np.full(count, shape.model_size), np.full(count, shape.tokens)
    if shape.model_size_varies:
        size = size * rng.choice([0.25, 1.0, 4.0], count)
    if shape.tokens_vary:
        tokens = tokens * rng.choice([0.2, 1.0, 5.0], count)
    return size, tokens


def draw(form, seed=2):
    """Parameters from the ranges that starts are drawn from."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, p in form.parameters.items():
        low, high = np.log(p.start) if p.is_log else p.start
        value = rng.uniform(low, high, p.shape)
        params[name] = np.exp(value) if p.is_log else value
    return params


def predict(form, params, weights, size, tokens):
    with on_host():
        return np.asarray(jax.jit(form.predict)(*jax.tree.map(jnp.asarray, (params, weights, size, tokens))))


def fitted(law, table):
    return fit(law, table, key=jax.random.key(0))


def predicted(found, table):
    """By a fit, for the runs of a table."""
    return found.predict(table.weights, table.model_size, table.tokens)


def check_formula(law, shape, formula):
    """`formula(p, h, n, d, i, j)` for one run and metric i of domain j, with n and d in units of the table."""
    form = law.build(shape)
    params, h = draw(form), mixtures(9, shape.num_domains)
    size, tokens = scales(len(h), shape)
    found = predict(form, params, h, size, tokens)
    wanted = np.empty((len(h), shape.num_metrics))
    for r in range(len(h)):
        for i, j in enumerate(shape.metric_domain):
            own = {name: value[i] for name, value in params.items()}
            wanted[r, i] = formula(own, h[r], size[r] / shape.model_size, tokens[r] / shape.tokens, i, j)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    return form


def check_recovered(law, shape, tolerance=2e-3, num_runs=48, starts=4):
    """SciPy's least squares on a planted table finds parameters that predict new mixtures."""
    form = law.build(shape)
    h = mixtures(2 * num_runs, shape.num_domains, seed=3)
    size, tokens = scales(len(h), shape, seed=4)
    losses = predict(form, draw(form, seed=5), h, size, tokens)
    names = list(form.parameters)
    bound = lambda which: np.concatenate(
        [np.full(int(np.prod(p.shape)), _inside(p, getattr(p, which))) for p in form.parameters.values()]
    )
    old = slice(0, None, 2)

    def params_of(vector):
        found, at = {}, 0
        for name in names:
            p = form.parameters[name]
            part = vector[at : at + int(np.prod(p.shape))].reshape(p.shape)
            found[name] = jnp.exp(part) if p.is_log else part
            at += part.size
        return found

    with on_host():
        rows = tuple(jnp.asarray(part[old]) for part in (h, size, tokens))
        target = jnp.asarray(losses[old])
        residual = lambda vector: (form.predict(params_of(vector), *rows) / target - 1.0).reshape(-1)
        value, slope = jax.jit(residual), jax.jit(jax.jacfwd(residual))
        best = None
        for seed in range(starts):
            start = draw(form, seed=10 + seed)
            begin = np.concatenate([np.reshape(_inside(form.parameters[n], start[n]), -1) for n in names])
            done = scipy.optimize.least_squares(
                lambda v: np.asarray(value(jnp.asarray(v))),
                begin,
                jac=lambda v: np.asarray(slope(jnp.asarray(v))),
                bounds=(bound("low"), bound("high")),
                max_nfev=300,
            )
            best = done if best is None or done.cost < best.cost else best
        found = {name: np.asarray(part) for name, part in params_of(jnp.asarray(best.x)).items()}
    error = np.abs(predict(form, found, h[1::2], size[1::2], tokens[1::2]) / losses[1::2] - 1.0)
    assert error.mean() < tolerance, error.mean()


def check_safe(law, shape):
    """Finite predictions, and finite derivatives by parameters and weights, on the rim of the simplex too."""
    form = law.build(shape)
    params, h = draw(form), mixtures(9, shape.num_domains)
    size, tokens = scales(len(h), shape)
    with on_host():
        arguments = jax.tree.map(jnp.asarray, (params, h, size, tokens))
        assert np.isfinite(jax.jit(form.predict)(*arguments)).all()
        slopes = jax.jit(jax.grad(lambda *a: jnp.sum(form.predict(*a)), argnums=(0, 1)))
        by_params, by_weights = slopes(*arguments)
    for name, value in by_params.items():
        assert np.any(np.asarray(value) != 0), f"{name} moves nothing"
    chex.assert_tree_all_finite((by_params, by_weights))


def table_of(law, shape, num_runs=60, noise=0.0, seed=6):
    """A table planted with a law."""
    form = law.build(shape)
    h = mixtures(num_runs, shape.num_domains, seed=seed)
    size, tokens = scales(num_runs, shape, seed=seed + 1)
    losses = predict(form, draw(form, seed=seed + 2), h, size, tokens)
    losses = losses * np.exp(noise * np.random.default_rng(seed + 3).normal(size=losses.shape))
    return RunTable(
        h,
        losses,
        size,
        tokens,
        [f"d{i}" for i in range(shape.num_domains)],
        [f"m{i}" for i in range(shape.num_metrics)],
        shape.metric_domain,
    )


def _inside(parameter, value):
    return np.log(value) if parameter.is_log else np.asarray(value)
