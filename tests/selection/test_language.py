"""Losses of sequences, masks over tokens and sums by domain against plain loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.mixers import Feedback, learnability
from jaxmix.selection import domain_learnability, sequence_loss, token_entropy, token_mask

RNG = np.random.default_rng(1)
LEARNER, REFERENCE = RNG.gamma(2.0, size=(2, 12, 10)).astype(np.float32)
VALID = RNG.random((12, 10)) < 0.7
VALID[3] = False
JUNK = np.where(VALID, LEARNER, np.nan)


@pytest.mark.parametrize(("reduce", "top"), [("mean", 0.2), ("sum", 0.2), ("top", 0.3), ("top", 1.0), ("top", 0.01)])
def test_sequence_loss(reduce, top):
    found = sequence_loss(jnp.asarray(JUNK), jnp.asarray(VALID), reduce=reduce, top=top)
    for i, row in enumerate(LEARNER.astype(np.float64)):
        kept = np.sort(row[VALID[i]])[::-1]
        if reduce == "top":
            kept = kept[: math.ceil(round(top * len(kept), 9))]
        expected = 0.0 if len(kept) == 0 else kept.sum() if reduce == "sum" else kept.mean()
        np.testing.assert_allclose(found[i], expected, rtol=1e-6)


@pytest.mark.parametrize("score", ["learnability", "easy_reference", "hard_learner"])
@pytest.mark.parametrize("keep", [0.01, 0.25, 0.6, 1.0])
def test_token_mask_keeps_the_best(score, keep):
    mask = np.asarray(token_mask(jnp.asarray(JUNK), jnp.asarray(REFERENCE), jnp.asarray(VALID), keep=keep, score=score))
    value = {"learnability": LEARNER - REFERENCE, "easy_reference": -REFERENCE, "hard_learner": LEARNER}[score]
    count = math.ceil(round(keep * VALID.sum(), 9))
    assert mask.sum() == count
    assert not (mask & ~VALID).any()
    assert value[mask].min() > value[VALID & ~mask].max(initial=-np.inf)


def test_equal_tokens_are_kept_together():
    zeros = jnp.zeros((4, 5))
    valid = jnp.ones((4, 5), bool).at[2].set(False)
    np.testing.assert_array_equal(token_mask(zeros, zeros, valid, keep=0.1), valid)
    assert not token_mask(zeros, zeros, jnp.zeros((4, 5), bool), keep=0.5).any()


def test_no_gradient_flows_through_the_mask():
    def loss(scale):
        losses = scale * jnp.asarray(LEARNER)
        mask = token_mask(losses, jnp.asarray(REFERENCE), jnp.asarray(VALID), keep=0.5)
        return jnp.sum(jnp.where(mask, losses, 0.0)) / jnp.sum(mask.astype(jnp.float32))

    value, slope = jax.value_and_grad(loss)(1.0)
    np.testing.assert_allclose(slope, value, rtol=1e-6)


def test_entropy_selects_without_a_reference():
    logits = jnp.asarray(RNG.normal(size=(3, 4, 6)) * 3, jnp.float32).at[0, 0, 1].set(-jnp.inf)
    p = np.exp(np.asarray(logits, np.float64))
    p /= p.sum(-1, keepdims=True)
    expected = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0).sum(-1)
    entropy = token_entropy(logits)
    np.testing.assert_allclose(entropy, expected, rtol=1e-5)
    mask = token_mask(entropy, None, jnp.ones((3, 4), bool), keep=0.25, score="hard_learner")
    np.testing.assert_array_equal(mask, expected >= np.sort(expected.ravel())[-3])


def test_domain_learnability_is_the_mixers_feedback():
    domain = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, -1, 7])
    sums = domain_learnability(
        jnp.asarray(JUNK), jnp.asarray(REFERENCE), jnp.asarray(VALID), jnp.asarray(domain, jnp.int32), 4
    )
    for k in range(4):
        counted = VALID & (domain == k)[:, None]
        np.testing.assert_allclose(sums.token_count[k], counted.sum())
        np.testing.assert_allclose(sums.loss_sum[k], LEARNER[counted].sum(), rtol=1e-5)
        np.testing.assert_allclose(sums.reference_loss_sum[k], REFERENCE[counted].sum(), rtol=1e-5)
        excess = np.maximum(LEARNER - REFERENCE, 0.0)[counted].sum()
        np.testing.assert_allclose(sums.clipped_excess_sum[k], excess, rtol=1e-5)
    mixer = learnability()
    state = mixer.init(jax.random.key(0), 4)
    state, info = mixer.update(jax.random.key(0), state, Feedback(**sums._asdict()))
    expected = (sums.loss_sum - sums.reference_loss_sum)[:3] / sums.token_count[:3]
    np.testing.assert_allclose(info.score[:3], expected, rtol=1e-5)


ROWS = jnp.asarray(LEARNER), jnp.asarray(VALID)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sequence_loss(*ROWS, reduce="median"), "unknown reduce 'median'"),
        (lambda: sequence_loss(*ROWS, reduce="top", top=0.0), "top must be above 0 and at most 1, got 0.0"),
        (lambda: sequence_loss(ROWS[0], ROWS[1][:5]), r"valid of shape \(5, 10\)"),
        (lambda: token_mask(ROWS[0], ROWS[0], ROWS[1], keep=1.5), "keep must be above 0 and at most 1, got 1.5"),
        (lambda: token_mask(ROWS[0], None, ROWS[1], keep=0.5), "needs the reference's loss of every token"),
        (lambda: token_mask(ROWS[0], ROWS[0], ROWS[1], keep=0.5, score="easy_ref"), "Did you mean 'easy_reference'"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
