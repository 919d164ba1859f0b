"""Conditional scores and the loop of JEST against brute force over all pairs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import cast, conditional, fast, objective, random_models
from tolerance import float32_tolerance

from jaxmix.selection.candidates import Candidates
from jaxmix.selection.scores import check_embeddings, contrastive

KINDS = [("sigmoid", "paper"), ("softmax", "paper"), ("softmax", "self"), ("softmax", "marginal")]
SCALES = {
    "usual": {},
    "far below": {"temperatures": (10.0, 8.0), "biases": (-40.0, -30.0)},
    "far above": {"temperatures": (100.0, 80.0), "biases": (60.0, -10.0)},
}
B = 192
CHUNKS = [[0, 5, 70, 191, 3, 44], [8, 9, 10, 11, 100, 120]]
BOTH = [*CHUNKS[0], *CHUNKS[1]]


@functools.partial(fast, static_argnames=("loss", "form", "score", "row_block"))
def scores_given(models, chunks, group=None, *, loss, form, score="learnability", row_block=None):
    """Own part, and shared part with nobody, the first chunk and both chunks chosen."""
    _, (embeddings, group) = check_embeddings("test", score, *models, group)
    interaction = contrastive(embeddings, Candidates(B), loss=loss, form=form, group=group, row_block=row_block)

    def add(carry, n):
        total, chosen = carry
        found = interaction.shared(total, chosen)
        new = interaction.contribute(chunks[n])
        total = interaction.join(jax.tree.map(lambda x, y: jnp.stack([x, y]), total, new))
        return (total, chosen.at[n].set(chunks[n])), found

    start = interaction.nothing, jnp.full_like(chunks, -1)
    # One turn more than there are chunks; the last one's contribution is not looked at.
    return interaction.own, jax.lax.scan(add, start, jnp.arange(len(chunks) + 1))[1]


def others(chosen):
    return np.setdiff1d(np.arange(B), chosen)


def assert_close(found, expected, tolerance):
    """Relative to the largest of the scores compared, of which the draw sees differences."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected)
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("loss", "form"), KINDS)
def test_scores_equal_the_formulas(loss, form, scale):
    models = random_models(1, B, **SCALES[scale])
    # The marginal score of many logits far apart is a small difference of large numbers.
    with jax.enable_x64(True):
        exact = scores_given(cast(models, jnp.float64), jnp.asarray(CHUNKS), loss=loss, form=form)
    single = scores_given(cast(models), jnp.asarray(CHUNKS, jnp.int32), loss=loss, form=form)
    for count in range(len(CHUNKS) + 1):
        chosen = list(np.concatenate([[], *CHUNKS[:count]]).astype(int))
        own, shared = conditional(models, chosen, loss=loss, form=form)
        for (found_own, found_shared), tolerance in ((exact, 1e-12), (single, 1e-5)):
            assert_close(found_own, own, tolerance)
            assert_close((found_own + found_shared[count])[others(chosen)], (own + shared)[others(chosen)], tolerance)


@pytest.mark.parametrize(("loss", "form"), [("sigmoid", "paper"), ("softmax", "marginal")])
def test_exact_scores_are_what_an_example_adds(loss, form):
    models = random_models(2, B)
    chosen = BOTH
    own, shared = conditional(models, chosen, loss=loss, form=form)
    before = sum(objective(models, chosen, loss=loss))
    added = [sum(objective(models, [*chosen, i], loss=loss)) - before for i in others(chosen)]
    np.testing.assert_allclose((own + shared)[others(chosen)], added, atol=1e-11)


@pytest.mark.parametrize(("loss", "score"), [("sigmoid", "easy_reference"), ("softmax", "hard_learner")])
def test_other_scores(loss, score):
    models = random_models(3, B)
    own, shared = scores_given(cast(models), jnp.asarray(CHUNKS, jnp.int32), loss=loss, form="paper", score=score)
    for count in range(len(CHUNKS) + 1):
        chosen = list(np.concatenate([[], *CHUNKS[:count]]).astype(int))
        expected = sum(conditional(models, chosen, loss=loss, score=score))
        assert_close((own + shared[count])[others(chosen)], expected[others(chosen)], 1e-5)


@pytest.mark.parametrize(("loss", "form"), [("sigmoid", "paper"), ("softmax", "marginal")])
def test_equal_captions_are_no_pairs(loss, form):
    models = random_models(4, B)
    group = np.random.default_rng(0).integers(-1, 12, B)
    chunks = jnp.asarray(CHUNKS, jnp.int32)
    own, shared = scores_given(cast(models), chunks, jnp.asarray(group, jnp.int32), loss=loss, form=form)
    chosen = BOTH
    expected = sum(conditional(models, chosen, loss=loss, form=form, group=group))
    assert_close((own + shared[-1])[others(chosen)], expected[others(chosen)], 1e-5)
    without = sum(conditional(models, chosen, loss=loss, form=form))
    assert np.abs(expected - without)[others(chosen)].max() > 0.01


@pytest.mark.parametrize(("loss", "form"), KINDS)
def test_swapping_the_models_flips_every_score(loss, form):
    models, chunks = cast(random_models(5, B)), jnp.asarray(CHUNKS, jnp.int32)
    own, shared = scores_given(models, chunks, loss=loss, form=form)
    swapped_own, swapped_shared = scores_given(models[::-1], chunks, loss=loss, form=form)
    np.testing.assert_array_equal(own, -swapped_own)
    if form == "marginal":  # its last sum may be compiled into one kernel for one model and another for the other
        np.testing.assert_allclose(shared, -swapped_shared, rtol=0, atol=float32_tolerance(shared, len(BOTH) + 8))
    else:
        np.testing.assert_array_equal(shared, -swapped_shared)
    assert np.abs(own).min() > 0


@pytest.mark.parametrize("row_block", [64, 50])  # 50 does not divide 192
def test_blocks_of_rows_change_nothing(row_block):
    models, chunks = cast(random_models(6, B)), jnp.asarray(CHUNKS, jnp.int32)
    group = jnp.asarray(np.random.default_rng(1).integers(-1, 9, B), jnp.int32)
    whole = scores_given(models, chunks, group, loss="sigmoid", form="paper")
    blocked = scores_given(models, chunks, group, loss="sigmoid", form="paper", row_block=row_block)
    np.testing.assert_allclose(whole[1], blocked[1], rtol=0, atol=float32_tolerance(whole[1], len(BOTH) + 8))


def test_bfloat16_embeddings_are_summed_in_float32():
    models = cast(random_models(7, B), jnp.bfloat16)
    own, shared = scores_given(models, jnp.asarray(CHUNKS, jnp.int32), loss="sigmoid", form="paper")
    assert own.dtype == shared.dtype == jnp.float32
    expected = sum(conditional(models, BOTH))
    rest = others(BOTH)
    assert_close((own + shared[-1])[rest], expected[rest], 1e-5)
