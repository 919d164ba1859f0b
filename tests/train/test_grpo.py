"""The objective against NumPy in float64, and the facts that the specification states of it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.train.grpo import AGGREGATES, group_advantages, grpo_loss

compiled = jax.jit(grpo_loss, static_argnames=("clip_low", "clip_high", "kl_weight", "aggregate", "standardize"))


def oracle(logp, old, reference, rewards, mask, *, low, high, beta, aggregate, standardize):
    """Loss, clip shares and mean KL, token by token."""
    groups, rollouts, length = logp.shape
    total, clipped, kls, tokens = 0.0, [0, 0], 0.0, int(mask.sum())
    present = int(mask.any(2).sum())
    for b, g, t in np.ndindex(groups, rollouts, length):
        if not mask[b, g, t]:
            continue
        spread = np.sqrt(np.mean((rewards[b] - rewards[b].mean()) ** 2))
        advantage = 0.0
        if len(set(rewards[b])) > 1:
            advantage = (rewards[b, g] - rewards[b].mean()) / (spread + 1e-6 if standardize else 1.0)
        ratio = math.exp(logp[b, g, t] - old[b, g, t])
        bounded = min(max(ratio, 1 - low), 1 + high)
        loss = -min(ratio * advantage, bounded * advantage)
        clipped[0] += advantage < 0 and ratio < 1 - low
        clipped[1] += advantage > 0 and ratio > 1 + high
        difference = reference[b, g, t] - logp[b, g, t]
        k3 = math.exp(difference) - difference - 1
        kls += k3
        weight = {
            "token_mean": 1 / tokens,
            "sequence_mean": 1 / (present * mask[b, g].sum()),
            "constant": 1 / (present * length),
        }[aggregate]
        total += weight * (loss + beta * k3)
    return total, clipped[0] / tokens, clipped[1] / tokens, kls / tokens


def random_batch(seed=0, groups=5, rollouts=4, length=6):
    rng = np.random.default_rng(seed)
    logp = -rng.exponential(size=(groups, rollouts, length))
    old, reference = (logp + rng.normal(size=logp.shape) * scale for scale in (0.4, 0.7))
    rewards = (rng.random((groups, rollouts)) < 0.5).astype(float)
    rewards[0] = 1.0
    rewards[1] = rng.random(rollouts)
    lengths = rng.integers(1, length + 1, (groups, rollouts))
    lengths[-1] = 0  # a group that is not there
    return logp, old, reference, rewards, np.arange(length) < lengths[..., None]


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("standardize", [True, False])
def test_loss_equals_its_definition(aggregate, standardize):
    logp, old, reference, rewards, mask = random_batch()
    options = {"aggregate": aggregate, "standardize": standardize}
    expected = oracle(logp, old, reference, rewards, mask, low=0.1, high=0.3, beta=0.05, **options)
    single = [jnp.asarray(x, jnp.float32) for x in (logp, old, reference, rewards)]
    loss, info = compiled(*single, jnp.asarray(mask), clip_low=0.1, clip_high=0.3, kl_weight=0.05, **options)
    np.testing.assert_allclose((loss, info.clip_low, info.clip_high, info.kl), expected, rtol=2e-5, atol=1e-6)
    assert min(expected[1:3]) > 0
    np.testing.assert_allclose(info.live_share, 3 / 4)
    np.testing.assert_allclose(info.solve_rate, rewards.mean(1), rtol=1e-6)


def test_gradient_on_the_logit_is_the_root_of_the_variance():
    """A policy that succeeds with logit x: the gradient that one group puts on x is √(q (1 − q))."""
    rng = np.random.default_rng(0)
    rewards = jnp.asarray(rng.random((200, 8)) < rng.random((200, 1)), jnp.float32)

    def slope(x, group):
        logp = jnp.where(group > 0, jax.nn.log_sigmoid(x), jax.nn.log_sigmoid(-x))[None, :, None]
        old = jax.lax.stop_gradient(logp)
        return grpo_loss(logp, old, None, group[None], jnp.ones(logp.shape, bool))[0]

    gradients = jax.jit(jax.vmap(jax.grad(slope)))(jnp.asarray(rng.normal(size=200), jnp.float32), rewards)
    solve_rate = np.asarray(rewards, np.float64).mean(1)
    # The 1e-6 beside the standard deviation takes as much from it.
    np.testing.assert_allclose(-gradients, np.sqrt(solve_rate * (1 - solve_rate)), atol=1.5e-6)


@pytest.mark.parametrize(
    ("chance", "share"),
    [(0.005, 0.96), (0.02, 0.85), (0.05, 0.66), (0.1, 0.43), (0.25, 0.10), (0.5, 0.008), (0.98, 0.85)],
)
def test_share_of_groups_without_a_gradient(chance, share):
    rewards = jax.random.bernoulli(jax.random.key(0), chance, (20_000, 8)).astype(jnp.float32)
    advantages, is_live = group_advantages(rewards)
    dead = 1 - float(jnp.mean(is_live))
    assert dead == pytest.approx(chance**8 + (1 - chance) ** 8, abs=0.01)
    assert dead == pytest.approx(share, abs=0.012)
    assert (np.asarray(advantages)[~np.asarray(is_live)] == 0.0).all()


def test_rewards_that_are_alike_but_not_exact_in_binary_leave_no_trace():
    advantages, is_live = group_advantages(jnp.full((1, 7), 0.1))
    assert not bool(is_live[0])
    assert (np.asarray(advantages) == 0.0).all()


def test_k3_is_unbiased_and_never_negative():
    rng = np.random.default_rng(0)
    policy, reference = (np.exp(x) / np.exp(x).sum() for x in rng.normal(size=(2, 20)))
    kl = float((policy * np.log(policy / reference)).sum())
    drawn = rng.choice(20, p=policy, size=200_000)
    logp, other = (jnp.asarray(np.log(p)[drawn], jnp.float32)[:, None, None] for p in (policy, reference))
    rewards, mask = jnp.zeros((len(drawn), 1)), jnp.ones(logp.shape, bool)
    loss, info = compiled(logp, logp, other, rewards, mask, kl_weight=1.0)
    each = np.exp(np.asarray(other - logp, np.float64)) - 1 - np.asarray(other - logp, np.float64)
    assert each.min() >= 0
    assert float(info.kl) == pytest.approx(kl, abs=4 * each.std() / np.sqrt(len(drawn)))
    assert float(loss) == pytest.approx(float(info.kl), rel=1e-5)
    assert each.std() < np.log(policy / reference)[drawn].std()  # here less noise than k1

    # Near 0, where exp(δ) − δ − 1 is all rounding.
    close = logp[:1000] + 1e-4 * jnp.asarray(rng.normal(size=(1000, 1, 1)), jnp.float32)
    assert float(compiled(logp[:1000], logp[:1000], close, rewards[:1000], mask[:1000])[1].kl) >= 0


slope_of = jax.jit(
    jax.value_and_grad(
        lambda logp, old, reference, rewards, mask: grpo_loss(logp, old, reference, rewards, mask, kl_weight=0.1)[0]
    )
)


@pytest.mark.parametrize("filler", [-1e9, 1e9, math.nan, -math.inf])
def test_padding_leaves_no_trace(filler):
    logp, old, reference, rewards, mask = random_batch()
    rewards[2, 1] = math.nan  # a verifier that failed
    single = [x.astype(np.float32) for x in (logp, old, reference, rewards)]

    def gradient(filled):
        logp, *others = (np.where(mask, x, np.float32(filled)) for x in single[:3])
        return slope_of(logp, *others, single[3], mask)

    (loss, slope), (expected, expected_slope) = gradient(filler), gradient(0.0)
    assert np.isfinite(float(loss))
    np.testing.assert_array_equal(loss, expected)
    np.testing.assert_array_equal(slope, expected_slope)
    assert (np.asarray(slope)[~mask] == 0).all()


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("failed", [math.nan, math.inf])
def test_a_group_with_a_failed_verifier_is_as_if_it_were_not_there(aggregate, failed):
    arrays = random_batch()
    rewards, mask = arrays[3], arrays[4]
    rewards[2, 1] = failed
    others = [np.delete(x, 2, axis=0) for x in arrays]
    options = {"aggregate": aggregate, "standardize": True}
    expected = oracle(*others, low=0.1, high=0.3, beta=0.1, **options)
    single = [jnp.asarray(x, jnp.float32) for x in arrays[:4]]
    loss, info = compiled(*single, jnp.asarray(mask), clip_low=0.1, clip_high=0.3, kl_weight=0.1, **options)
    np.testing.assert_allclose((loss, info.clip_low, info.clip_high, info.kl), expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose((info.live_share, info.dropped), (2 / 3, 1))
    _, slope = slope_of(*single, mask)
    np.testing.assert_array_equal(slope[2], 0.0)
    assert np.isfinite(slope).all()


def test_a_batch_of_failed_groups_alone_has_a_gradient_of_zero():
    logp, old, reference, rewards, mask = random_batch()
    rewards[:, 0] = math.nan
    single = [jnp.asarray(x, jnp.float32) for x in (logp, old, reference, rewards)]
    loss, slope = slope_of(*single, mask)
    assert float(loss) == 0
    np.testing.assert_array_equal(slope, 0.0)


def test_a_batch_without_a_live_group_has_a_gradient_of_zero():
    logp, old, _, rewards, mask = random_batch()
    single = [jnp.asarray(x, jnp.float32) for x in (logp, old)]
    slope = jax.jit(jax.grad(lambda x: grpo_loss(x, single[1], None, jnp.ones(rewards.shape), jnp.asarray(mask))[0]))
    np.testing.assert_array_equal(slope(single[0]), 0.0)


def test_wrong_arguments_are_named():
    logp = jnp.zeros((2, 3, 4))
    rewards, mask = jnp.zeros((2, 3)), jnp.ones((2, 3, 4), bool)
    with pytest.raises(ConfigError, match="sequence_mean"):
        grpo_loss(logp, logp, None, rewards, mask, aggregate="sequence_men")
    with pytest.raises(ConfigError, match="needs log-probabilities of a reference"):
        grpo_loss(logp, logp, None, rewards, mask, kl_weight=0.1)
    with pytest.raises(ConfigError, match="clip_low"):
        grpo_loss(logp, logp, None, rewards, mask, clip_low=1.5)
    with pytest.raises(ConfigError, match="rewards of shape"):
        grpo_loss(logp, logp, None, rewards.T, mask)
    with pytest.raises(ConfigError, match="mask has shape"):
        grpo_loss(logp, logp, None, rewards, mask[:1])
