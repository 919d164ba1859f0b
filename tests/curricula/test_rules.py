"""Every rule against its formulas in float64, slot by slot."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxmix.curricula as curricula
from jaxmix.core.errors import ConfigError
from jaxmix.curricula.base import arm_sums, race
from jaxmix.curricula.space import gaussian_argmax

K, B, G, STEPS = 5, 8, 4, 10


def batches(seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(STEPS):
        arms = rng.integers(0, K - 1, B)  # the last arm is never drawn
        yield arms, (rng.random((B, G)) < np.linspace(0.9, 0.1, K)[arms][:, None]).astype(float)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def advantage(group):
    return (group - group.mean()) / (group.std() + 1e-6)


def drive(bandit, oracle, seed=0, **tolerance):
    """Runs both; `oracle(arms, rewards)` returns the expected probabilities after each batch."""
    update, state = (
        jax.jit(lambda s, a, r: (lambda n: (n, bandit.probabilities(n)))(bandit.update(s, a, r))),
        bandit.init(),
    )
    for arms, rewards in batches(seed):
        state, got = update(state, jnp.asarray(arms, jnp.int32), jnp.asarray(rewards, jnp.float32))
        np.testing.assert_allclose(got, oracle(arms, rewards), **({"atol": 3e-5} | tolerance))
    return state


class SpaceOracle:
    def __init__(self, al, be, lam, mem=32.0, floor=0.15, kappa=2.0, sigma=0.2, n0=1.0, argmax=False):
        self.al, self.be, self.lam, self.mem, self.floor, self.kappa = al, be, lam, mem, floor, kappa
        self.sigma, self.n0, self.argmax = sigma, n0, argmax
        self.n, self.m, self.h = np.zeros(K), np.zeros(K), np.zeros(K)
        self.fast, self.slow, self.seen = np.zeros(K), np.zeros(K), np.zeros(K, bool)

    def __call__(self, arms, rewards):
        g = max(0.5, 1 - len(arms) / (self.mem * K))
        self.n, self.m, self.h = g * self.n, g * self.m, g * self.h
        for k in range(K):
            mine = rewards[arms == k]
            if not len(mine):
                continue
            self.n[k] += len(mine)
            self.m[k] += mine.mean(1).sum()
            self.h[k] += sum(2 * np.sqrt(q * (1 - q)) for q in mine.mean(1))
            new = mine.mean()
            self.fast[k] = self.fast[k] + 0.3 * (new - self.fast[k]) if self.seen[k] else new
            self.slow[k] = self.slow[k] + 0.08 * (new - self.slow[k]) if self.seen[k] else new
            self.seen[k] = True
        p = (self.m + 0.5 * self.n0) / (self.n + self.n0)
        s = (self.h + 0.9 * self.n0) / (self.n + self.n0)
        x = np.linspace(0, 1, 200_001)
        largest = ((4 * x * (1 - x)) ** (self.al / 2) * (1 - x) ** self.be).max()  # by search, not by the formula
        u = (1 - self.lam) * s**self.al * (1 - p) ** self.be / largest
        u += self.lam * np.minimum(1, np.abs(self.fast - self.slow) / 0.1)
        if self.argmax:
            return (1 - self.floor) * most_likely(u, self.sigma / np.sqrt(self.n + 1)) + self.floor / K
        return (1 - self.floor) * u**self.kappa / (u**self.kappa).sum() + self.floor / K


def most_likely(mean, deviation):
    """P(arm k has the largest of k normal numbers) by integration over a fine grid."""
    x = np.linspace((mean - 7 * deviation).min(), (mean + 7 * deviation).max(), 20_001)
    out = []
    for k in range(len(mean)):
        rest = np.prod([stats.norm.cdf(x, mean[j], deviation[j]) for j in range(len(mean)) if j != k], axis=0)
        out.append(np.trapezoid(stats.norm.pdf(x, mean[k], deviation[k]) * rest, x))
    return np.array(out)


@pytest.mark.parametrize(
    ("arguments", "oracle"),
    [
        ({}, SpaceOracle(1, 0.25, 0)),
        ({"rule": "thompson"}, SpaceOracle(0.5, 0.75, 0.1, argmax=True)),
        ({"rule": "literal"}, SpaceOracle(0, 1, 0.5, argmax=True)),
        (
            {"memory": 1.0, "floor": 0.0, "progress_weight": 0.3, "sharpness": 3.0, "hardness_power": 0.0},
            SpaceOracle(1, 0, 0.3, mem=1.0, floor=0.0, kappa=3.0),
        ),
    ],
)
def test_space(arguments, oracle):
    drive(curricula.space(K, **arguments), oracle, atol=2e-3 if oracle.argmax else 3e-5)


def test_sparft_v1():
    history = [[] for _ in range(K)]

    def oracle(arms, rewards):
        for arm, group in zip(arms, rewards, strict=True):
            history[arm].append(group.mean())
        mean = np.array([np.mean(x) if x else 0.0 for x in history])
        return most_likely(-mean, 1 / np.sqrt(np.array([len(x) for x in history]) + 1))

    drive(curricula.sparft_v1(K), oracle, atol=2e-3)


def test_dump():
    history = [[] for _ in range(K)]

    def oracle(arms, rewards):
        for arm, group in zip(arms, rewards, strict=True):
            history[arm] += list(np.abs(advantage(group)))
        size = np.array([np.mean(x[-40:]) if x else 0.0 for x in history])
        n = np.array([len(x) for x in history])
        return softmax((size + np.sqrt(2 * np.log(n.sum() + 1) / (n + 1))) / 0.1)

    drive(curricula.dump(K, window=40), oracle, atol=1e-4)


@pytest.mark.parametrize("variant", ["paper", "repository"])
@pytest.mark.parametrize("objective", ["advantage", "reward_change"])
def test_sec(variant, objective):
    quality, last = np.zeros(K), [None] * K

    def oracle(arms, rewards):
        for k in range(K):
            mine = rewards[arms == k]
            if len(mine):
                change = 0.0 if last[k] is None else mine.mean() - last[k]
                x = np.mean([np.abs(advantage(group)).mean() for group in mine]) if objective == "advantage" else change
                quality[k] = 0.5 * quality[k] + 0.5 * x
                last[k] = mine.mean()
            elif variant == "repository":
                quality[k] *= 0.5
        return softmax(quality / 0.2)

    drive(curricula.sec(K, temperature=0.2, variant=variant, objective=objective), oracle)


def beta_nearest(alpha, beta, target=0.5):
    """P(arm k's draw is the nearest to the target): 400,000 draws."""
    draws = np.random.default_rng(0).beta(alpha, beta, (400_000, K))
    return np.bincount(np.abs(draws - target).argmin(1), minlength=K) / len(draws)


def test_mopps():
    alpha, beta = np.ones(K), np.ones(K)
    bandit = curricula.mopps(K, kept=0.5)
    update, state = jax.jit(bandit.update), bandit.init()
    for arms, rewards in batches():
        state = update(state, jnp.asarray(arms, jnp.int32), jnp.asarray(rewards, jnp.float32))
        for k in np.unique(arms):
            alpha[k] = 0.5 * alpha[k] + 0.5 + rewards[arms == k].sum()
            beta[k] = 0.5 * beta[k] + 0.5 + (1 - rewards[arms == k]).sum()
        np.testing.assert_allclose(state.solved, alpha, rtol=1e-5)
        np.testing.assert_allclose(state.failed, beta, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(bandit.probabilities)(state), beta_nearest(alpha, beta), atol=4e-3)


def test_mopps_candidates_are_different_arms():
    bandit = curricula.mopps(20, candidates=12)
    draw = jax.jit(jax.vmap(lambda key: bandit.sample(key, bandit.init(), 6)))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 20)))
    assert all(len(set(row)) == 6 for row in drawn.tolist())
    assert len(set(drawn.ravel().tolist())) == 20
    with pytest.raises(ConfigError, match="a batch of 13 does not fit 12 candidates"):
        bandit.sample(jax.random.key(0), bandit.init(), 13)


def test_bots():
    d, alpha, beta = np.array([0.0, 0.2, 0.5, 0.7, 1.0]), np.ones(K), np.ones(K)
    bandit = curricula.bots(K, kept=0.9, interpolated=0.25, difficulty=d.tolist(), bandwidth=0.3)
    update, state = jax.jit(bandit.update), bandit.init()
    for arms, rewards in batches():
        state = update(state, jnp.asarray(arms, jnp.int32), jnp.asarray(rewards, jnp.float32))
        for k in range(K):
            mine = rewards[arms == k]
            w = np.exp(-np.abs(d[arms] - d[k]) / 0.3)
            q = (w * rewards.mean(1)).sum() / w.sum()
            solved, failed = (mine.sum(), (1 - mine).sum()) if len(mine) else (q * G, (1 - q) * G)
            weight = 0.75 if len(mine) else 0.25
            alpha[k] = 0.9 * alpha[k] + 0.1 + weight * solved
            beta[k] = 0.9 * beta[k] + 0.1 + weight * failed
        np.testing.assert_allclose(state.solved, alpha, rtol=2e-5)
        np.testing.assert_allclose(state.failed, beta, rtol=2e-5)


def test_lilo():
    alpha, beta = np.ones(K), np.ones(K)

    def oracle(arms, rewards):
        for k in np.unique(arms):
            alpha[k] = 0.5 * alpha[k] + 0.5 + rewards[arms == k].sum()
            beta[k] = 0.5 * beta[k] + 0.5 + (1 - rewards[arms == k]).sum()
        p = alpha / (alpha + beta)
        return p * (1 - p) / (p * (1 - p)).sum()

    drive(curricula.lilo(K), oracle)


def test_adarft():
    d = np.array([80.0, 10.0, 45.0, 0.0, 100.0])
    target = [0.0]

    def oracle(arms, rewards):
        target[0] = np.clip(target[0] + 50 * np.tanh(2 * (rewards.mean() - 0.5)), 0, 100)
        return np.eye(K)[np.abs(d - target[0]).argmin()]

    bandit = curricula.adarft(K, difficulty=d.tolist())
    state = drive(bandit, oracle)
    order = np.argsort(np.abs(d - target[0]), kind="stable")
    assert bandit.sample(jax.random.key(0), state, 7).tolist() == [*order, *order[:2]]
    wide = curricula.adarft(K, difficulty=d.tolist(), prompts_per_arm=3)
    assert wide.sample(jax.random.key(0), state, 4).tolist() == [order[0]] * 3 + [order[1]]


def test_staged():
    order, stage, accuracy = [0, 2, 1, 3, 4], [0], [None]

    def oracle(arms, rewards):
        mine = rewards[arms == order[stage[0]]]
        if len(mine):
            new = mine.mean()
            accuracy[0] = new if accuracy[0] is None else accuracy[0] + 0.3 * (new - accuracy[0])
        if accuracy[0] is not None and accuracy[0] >= 0.4 and stage[0] < K - 1:
            stage[0], accuracy[0] = stage[0] + 1, None
        return np.eye(K)[order[stage[0]]]

    drive(curricula.staged(K, order=order, threshold=0.4), oracle)
    assert stage[0] >= 2


def test_dots():
    d = np.array([0.1, 0.45, 0.5, 0.52, 0.9])

    def oracle(arms, rewards):
        for k in np.unique(arms):
            d[k] = 1 - rewards[arms == k].mean()
        return softmax(-np.abs(d - 0.5) / 0.05)

    bandit = curricula.dots(K, difficulty=d.tolist(), temperature=0.05)
    state = drive(bandit, oracle)
    assert sorted(bandit.sample(jax.random.key(1), state, K).tolist()) == list(range(K))


def test_dapo_keeps_what_has_a_gradient():
    rewards = jnp.asarray([[0.0, 0.0], [0.1, 0.1], [0.0, 1.0], [jnp.nan, 1.0], [1.0, 1.0], [1.0, 0.0]])
    keep = curricula.dapo(2).keep
    assert keep(rewards).tolist() == [False, False, True, False, False, True]
    assert keep(rewards, jnp.arange(6) < 4).tolist() == [False, False, True, False, False, False]
    quarter = jnp.asarray([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    assert curricula.dapo(2, low=0.3, high=0.7).keep(quarter).tolist() == [False, True]


def test_hard_first_stays_with_what_cannot_be_solved():
    arms, rewards = jnp.asarray([0, 0, 1, 1], jnp.int32), jnp.asarray([[1.0, 0.0]] * 2 + [[0.0, 0.0]] * 2)

    def after(bandit):
        steps = lambda state, _: (bandit.update(state, arms, rewards), None)
        return jax.jit(lambda: bandit.probabilities(jax.lax.scan(steps, bandit.init(), length=20)[0]))()

    assert after(curricula.sparft_v1(2))[1] > 0.95
    assert after(curricula.space(2))[1] < 0.15


def test_the_group_signal_sees_what_the_mean_of_an_arm_hides():
    # Arm 0: half its prompts always solved, half never. Arm 1: every prompt solved half the time.
    arms = jnp.asarray([0, 0, 1, 1])
    rewards = jnp.asarray([[1.0] * 4, [0.0] * 4, [1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
    sums = arm_sums(arms, rewards, None, 2)
    np.testing.assert_allclose(sums.solve_rate, [0.5, 0.5])
    np.testing.assert_allclose(sums.signal, [0.0, 2.0], atol=1e-6)


def test_mean_advantage_of_a_group_is_its_signal():
    for solved in range(1, 8):
        group = (np.arange(8) < solved).astype(float)
        q = solved / 8
        assert np.abs((group - q) / group.std()).mean() == pytest.approx(2 * np.sqrt(q * (1 - q)), rel=1e-12)
        # The gradient on the logit of the solve probability at p = q: mean over the group of A (r − p).
        assert ((group - q) / group.std() * (group - q)).mean() == pytest.approx(np.sqrt(q * (1 - q)), rel=1e-12)


@pytest.mark.parametrize(
    ("p", "share"), [(0.005, 0.96), (0.02, 0.85), (0.05, 0.66), (0.1, 0.43), (0.25, 0.10), (0.5, 0.008), (0.98, 0.85)]
)
def test_share_of_dead_groups(p, share):
    rewards = jax.random.bernoulli(jax.random.key(0), p, (20_000, 8)).astype(jnp.float32)
    dead = 1 - float(jnp.mean(curricula.live_groups(rewards)))
    assert dead == pytest.approx(p**8 + (1 - p) ** 8, abs=0.015)
    assert p**8 + (1 - p) ** 8 == pytest.approx(share, abs=0.005)


def test_race_of_equals_and_of_a_certain_winner():
    ramp = jnp.linspace(0.0, 1.0, 101)
    np.testing.assert_allclose(race(jnp.stack([ramp] * 4)), np.full(4, 0.25), atol=1e-6)
    sure = race(jnp.stack([jnp.clip(2 * ramp, 0, 1), jnp.clip(2 * ramp - 1, 0, 1)]))
    np.testing.assert_allclose(sure, [1.0, 0.0], atol=1e-3)
    wide = jax.jit(gaussian_argmax)(jnp.asarray([0.0, 0.0, -0.5]), jnp.asarray([1.0, 0.02, 0.02]))
    np.testing.assert_allclose(wide, most_likely(np.array([0, 0, -0.5]), np.array([1.0, 0.02, 0.02])), atol=2e-3)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("space", {"rule": "thomson"}, "Did you mean 'thompson'"),
        ("space", {"floor": 1.5}, "at least 0 and at most 1, got 1.5"),
        ("space", {"memory": 0.0}, "memory must be finite and above 0"),
        ("uniform", {"sizes": [1.0, 2.0]}, "2 numbers for 5 arms"),
        ("uniform", {"sizes": [0.0] * 5}, "all sizes are 0"),
        ("staged", {"order": [0, 1, 2, 3, 3]}, "does not name each of the arms"),
        ("adarft", {"difficulty": [0, 10, 20, 30, 101]}, r"number 4 of difficulty must be finite and in \[0, 100\]"),
        ("mopps", {"candidates": 6}, "6 candidates of 5 arms"),
        ("sec", {"variant": "papr"}, "Did you mean 'paper'"),
        ("dapo", {"low": 0.5, "high": 0.5}, "high must be finite and above 0.5"),
    ],
)
def test_errors(name, arguments, message):
    with pytest.raises(ConfigError, match=message):
        curricula.make(name, K, **arguments)


def test_rewards_outside_the_range_are_refused():
    bandit = curricula.make("space", 2)
    arms, signs = jnp.asarray([0, 1, -1]), jnp.asarray([[1.0, -1.0], [1.0, 1.0], [5.0, 5.0]])
    with pytest.raises(ConfigError, match=r"in \[0, 1\], got -1 to 1 .*rescale_rewards\(rewards, -1, 1\)"):
        bandit.update(bandit.init(), arms, signs)
    zeros = bandit.update(bandit.init(), arms, curricula.rescale_rewards(signs, -1.0, 1.0))
    chex.assert_trees_all_equal(
        zeros, bandit.update(bandit.init(), arms, jnp.asarray([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]))
    )
    assert zeros.pulls.tolist() == [1, 1]
    within = jax.jit(bandit.update)(bandit.init(), arms, signs)
    assert within.pulls.tolist() == [0, 1]


def test_rewards_of_another_range():
    np.testing.assert_allclose(curricula.rescale_rewards(jnp.asarray([[-1.0, 0.0, 1.0]]), -1.0, 1.0), [[0, 0.5, 1]])
    with pytest.raises(ConfigError, match="high must be finite and above 1"):
        curricula.rescale_rewards(jnp.zeros((1, 1)), 1.0, 1.0)
