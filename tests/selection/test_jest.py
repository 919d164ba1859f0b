"""Selections of JEST and of the independent baselines against the loop of the specification, with the same noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import cast, conditional, fast, gumbel, logits, loop, objective, random_models, softplus

from jaxmix.core.errors import ConfigError
from jaxmix.selection import Embeddings, independent, jest, selection_objective

B, CHOSEN, CHUNKS = 96, 24, 4
KEY = jax.random.key(7)
MODELS = random_models(11, B)
VALID = np.random.default_rng(2).random(B) < 0.6
DOMAIN = np.random.default_rng(3).integers(-1, 4, B)
GROUP = np.random.default_rng(4).integers(-1, 20, B)

CASES = {
    "sigmoid": {},
    "softmax self": {"loss": "softmax", "form": "self", "score": "hard_learner"},
    "uniform start, two sweeps": {"score": "easy_reference", "gain": 3.0, "first_chunk": "uniform", "sweeps": 2},
    "marginal, one sweep": {"loss": "softmax", "form": "marginal", "sweeps": 1},
}


@functools.cache
def compiled(name):
    return fast(jest(CHOSEN, num_chunks=CHUNKS, **CASES[name]))


def part_of(options, group=None):
    chosen = {name: options[name] for name in ("loss", "form", "score") if name in options}
    return lambda rows: conditional(MODELS, rows, group=group, **chosen)


@pytest.mark.parametrize("name", CASES)
def test_selection_equals_the_loop(name):
    options = CASES[name]
    found = compiled(name)(KEY, *cast(MODELS))
    expected = loop(
        KEY,
        B,
        part_of(options),
        CHOSEN,
        CHUNKS,
        gain=options.get("gain", 1.0),
        sweeps=options.get("sweeps", 0),
        uniform="first_chunk" in options,
    )
    assert found.indices.tolist() == expected


@pytest.mark.parametrize("name", ["sigmoid", "marginal, one sweep"])
def test_with_padding_quotas_and_equal_captions(name):
    options, quota = CASES[name], np.array([2, 9, 0, 30])
    found = compiled(name)(
        KEY,
        *cast(MODELS),
        jnp.asarray(VALID),
        domain=jnp.asarray(DOMAIN, jnp.int32),
        quota=jnp.asarray(quota, jnp.int32),
        group=jnp.asarray(GROUP, jnp.int32),
    )
    expected = loop(
        KEY,
        B,
        part_of(options, GROUP),
        CHOSEN,
        CHUNKS,
        sweeps=options.get("sweeps", 0),
        valid=VALID,
        quota=(DOMAIN, quota),
    )
    assert found.indices.tolist() == expected
    drawn = np.asarray(found.indices)[np.asarray(found.indices) >= 0]
    counts = np.bincount(DOMAIN[drawn], minlength=4)
    assert (counts <= quota).all()
    assert counts[0] == 2
    assert found.info.domain_count.tolist() == counts.tolist()


@functools.cache
def context(loss, greedy):
    return fast(independent(CHOSEN, context=True, greedy=greedy, loss=loss))


def test_padding_may_hold_anything():
    models = cast(MODELS)
    hole = lambda x: jnp.where(jnp.asarray(VALID)[:, None], x, jnp.nan)
    spoiled = [m._replace(image=hole(m.image), text=hole(m.text)) for m in models]
    everything = {"domain": jnp.zeros(B, jnp.int32), "quota": jnp.full(4, B), "group": jnp.arange(B)}
    for select, options in ((compiled("sigmoid"), everything), (context("sigmoid", True), {})):
        clean, found = (select(KEY, *those, jnp.asarray(VALID), **options) for those in (models, spoiled))
        jax.tree.map(np.testing.assert_array_equal, clean, found)


def test_one_chunk_is_independent_selection():
    alone = fast(independent(CHOSEN))(KEY, *cast(MODELS))
    own, _ = conditional(MODELS, [])
    assert alone.indices.tolist() == np.argsort(-(own + gumbel(KEY, 0, B)))[:CHOSEN].tolist()
    one = fast(jest(CHOSEN, num_chunks=1))(KEY, *cast(MODELS))
    jax.tree.map(np.testing.assert_array_equal, one, alone)


@pytest.mark.parametrize(("loss", "greedy"), [("sigmoid", True), ("softmax", False)])
def test_context_is_the_average_companion(loss, greedy):
    learner, reference = MODELS
    expected = np.zeros(B)
    closed = ~VALID | np.eye(B, dtype=bool)
    share = CHOSEN / VALID.sum()
    for sign, table in ((1, logits(learner, loss)), (-1, logits(reference, loss))):
        hidden = np.where(closed, -np.inf, table), np.where(closed, -np.inf, table.T)
        if loss == "sigmoid":
            expected += sign * (softplus(-np.diag(table)) + share * sum(softplus(x).sum(1) for x in hidden))
        else:
            expected += sign * (-np.diag(table) + 0.5 * sum(np.log(share * np.exp(x).sum(1)) for x in hidden))
    if not greedy:
        expected = expected + gumbel(KEY, 0, B)
    found = context(loss, greedy)(KEY, *cast(MODELS), jnp.asarray(VALID))
    order = np.argsort(-np.where(VALID, expected, -np.inf))
    assert found.indices.tolist() == order[:CHOSEN].tolist()


def test_info():
    found = compiled("sigmoid")(KEY, *cast(MODELS))
    indices, info = np.asarray(found.indices), found.info
    own, shared = np.zeros(CHOSEN), np.zeros(CHOSEN)
    size = CHOSEN // CHUNKS
    for n in range(CHUNKS):
        here = slice(n * size, (n + 1) * size)
        parts = conditional(MODELS, indices[: n * size])
        own[here], shared[here] = (part[indices[here]] for part in parts)
    by_chunk = lambda x: x.reshape(CHUNKS, size)
    assert info.num_selected == CHOSEN
    np.testing.assert_allclose(info.positive, own.mean(), rtol=1e-5)
    np.testing.assert_allclose(info.negative, shared.mean(), rtol=1e-5)
    np.testing.assert_allclose(info.score, (own + shared).mean(), rtol=1e-5)
    np.testing.assert_allclose(info.chunk_score, by_chunk(own + shared).mean(1), rtol=1e-5)
    own_size, shared_size = (np.abs(by_chunk(x)).sum(1) for x in (own, shared))
    np.testing.assert_allclose(info.chunk_share, shared_size / (own_size + shared_size), rtol=1e-5)
    best = np.argsort(-conditional(MODELS, [])[0])[:CHOSEN]
    np.testing.assert_allclose(info.overlap, np.isin(indices, best).mean(), rtol=1e-6)
    assert info.domain_count is None


def test_the_gain_of_a_call_wins():
    found = compiled("sigmoid")(KEY, *cast(MODELS), gain=jnp.float32(3.0))
    expected = loop(KEY, B, part_of({}), CHOSEN, CHUNKS, gain=3.0)
    assert found.indices.tolist() == expected


def test_a_score_that_is_not_finite_is_drawn_last():
    learner, reference = cast(MODELS)
    broken = learner._replace(image=learner.image.at[:5].set(jnp.nan))
    found = fast(independent(B))(KEY, broken, reference)
    assert set(found.indices.tolist()[-5:]) == set(range(5))


def test_a_model_that_the_score_does_not_read_may_be_missing():
    learner, reference = cast(MODELS)
    hard = independent(CHOSEN, score="hard_learner")
    found = fast(hard)(KEY, learner, None)
    expected = softplus(-np.diag(logits(MODELS[0]))) + gumbel(KEY, 0, B)
    assert found.indices.tolist() == np.argsort(-expected)[:CHOSEN].tolist()
    easy = jest(CHOSEN, num_chunks=1, score="easy_reference")
    jax.eval_shape(easy, KEY, None, reference)
    assert (hard.needs, easy.needs) == ({"learner"}, {"reference"})


def test_widths_of_learner_and_reference_may_differ():
    wide = cast(random_models(12, B, width=20))[1]
    assert jax.eval_shape(jest(CHOSEN, num_chunks=CHUNKS), KEY, cast(MODELS)[0], wide).indices.shape == (CHOSEN,)


@pytest.mark.parametrize(("loss", "score"), [("sigmoid", "learnability"), ("softmax", "hard_learner")])
def test_objective(loss, score):
    chosen = np.random.default_rng(5).permutation(B)[:31]
    with_holes = np.concatenate([chosen, [-1, -1]])
    positive, negative = objective(MODELS, chosen, loss=loss, score=score, group=GROUP)
    measure = fast(selection_objective, static_argnames=("loss", "score"))
    found = measure(
        *cast(MODELS), jnp.asarray(with_holes, jnp.int32), loss=loss, score=score, group=jnp.asarray(GROUP, jnp.int32)
    )
    np.testing.assert_allclose(found.mean, (positive + negative) / 31, rtol=1e-5)
    np.testing.assert_allclose(found.positive, positive / 31, rtol=1e-5)
    np.testing.assert_allclose(found.negative, negative / 31, rtol=1e-5)


def test_objective_of_a_whole_batch_in_blocks():
    models = random_models(13, 700)
    positive, negative = objective(models, np.arange(700))
    found = fast(functools.partial(selection_objective, row_block=100))(*cast(models))
    np.testing.assert_allclose(found.mean, (positive + negative) / 700, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jest(10, num_chunks=4), "num_select 10 is not a multiple of num_chunks 4.*num_select=12"),
        (lambda: jest(0), "num_select must be a whole number ≥ 1, got 0"),
        (lambda: jest(8, num_chunks=True), "num_chunks must be a whole number"),
        (lambda: jest(16, loss="sigmod"), "Did you mean 'sigmoid'"),
        (lambda: jest(16, score="learn"), "Did you mean 'learnability'"),
        (lambda: jest(16, form="self"), "form 'self' is one of the softmax loss"),
        (lambda: jest(16, loss="softmax", form="papr"), "Did you mean 'paper'"),
        (lambda: jest(16, gain=-1.0), "gain must be finite and at least 0, got -1.0"),
        (lambda: jest(16, first_chunk="random"), "unknown first_chunk 'random'"),
        (lambda: jest(16, sweeps=-1), "sweeps must be a whole number ≥ 0"),
        (lambda: jest(16, row_block=0), "row_block must be a whole number ≥ 1"),
        (lambda: jest(16, num_domains=0), "num_domains must be a whole number ≥ 1"),
        (lambda: independent(16, loss="softmax", form="marginal"), "form 'marginal'"),
        (lambda: independent(-1), "num_select must be a whole number ≥ 1, got -1"),
    ],
)
def test_errors_when_made(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, a, b: s(KEY, a._replace(image=a.image[:9], text=a.text[:9]), b), "learner and reference embed 9"),
        (lambda s, a, b: s(KEY, *(m._replace(image=m.image[:9], text=m.text[:9]) for m in (a, b))), "9 candidates are"),
        (lambda s, a, b: s(KEY, a._replace(text=a.text[:, :3]), b), r"shapes \(96, 8\) and \(96, 3\)"),
        (lambda s, a, b: s(KEY, a, None), "needs the embeddings of the reference"),
        (lambda s, a, b: s(KEY, a, b, jnp.ones(95, bool)), r"valid has shape \(95,\), expected \(96,\)"),
        (lambda s, a, b: s(KEY, a, b, group=jnp.zeros(5, jnp.int32)), r"group has shape \(5,\)"),
        (lambda s, a, b: s(KEY, a, b, quota=jnp.ones(3, jnp.int32)), "a quota needs the domain"),
        (lambda s, a, b: s(KEY, a, b, domain=jnp.zeros(96, jnp.int32)), "Give the factory num_domains"),
    ],
)
def test_errors_when_called(call, message):
    with pytest.raises(ConfigError, match=message):
        call(jest(16, num_chunks=4), *cast(MODELS))


def test_embeddings_are_a_pytree_with_a_default_bias():
    assert jax.tree.leaves(Embeddings(1, 2, 3)) == [1, 2, 3, 0.0]
