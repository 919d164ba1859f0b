"""The simulator's order against a loop written out, its signals against their definitions, searches and errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.core.pytree import state
from jaxmix.mixers import Cadence, Feedback, Mixer, MixerInfo, odm, static
from jaxmix.mixers.base import SIGNALS, require
from jaxmix.simulate.mixers import best_static, run_static, simulate, systematic_counts
from jaxmix.simulate.worlds import linear_world, log_linear_world, quadratic_world

KEY = jax.random.key(0)
M = 4


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@state(version=1)
class SeenState:
    weights: object
    seen: object


def tilt(cadence):
    """A mixer whose weights follow everything it is shown, so that any slip of the order shows."""
    needs = frozenset({"loss_sum", "token_count", "validation_loss"})

    def init(key, num_domains, prior=None):
        weights = jnp.full(num_domains, 1 / num_domains) if prior is None else prior
        return SeenState(weights=weights, seen=jnp.zeros((3, num_domains), weights.dtype))

    def update(key, state, feedback):
        require(feedback, needs, "tilt")
        seen = jnp.stack([feedback.loss_sum, feedback.token_count, feedback.validation_loss])
        score = feedback.loss_sum / jnp.maximum(feedback.token_count, 1e-3) + feedback.validation_loss
        weights = jax.nn.softmax(jnp.log(state.weights) + 0.3 * score)
        return SeenState(weights=weights, seen=seen), MixerInfo(score=score, extra={})

    return Mixer(init, update, lambda state: state.weights, needs, cadence, "tilt")


def spy(needs=SIGNALS, update=1, validate=1, **others):
    """A mixer that keeps its prior and remembers the last feedback: of every signal, what came."""
    shapes = {"gradient_alignment": (M, M), "validation_alignment": (M, M), "learning_rate": ()}

    def init(key, num_domains, prior=None):
        weights = jnp.full(num_domains, 1 / num_domains) if prior is None else prior
        return SeenState(weights, {name: jnp.zeros(shapes.get(name, (M,)), weights.dtype) for name in needs})

    def learn(key, state, feedback):
        seen = {name: getattr(feedback, name) for name in needs}
        assert all(getattr(feedback, name) is None for name in set(SIGNALS) - set(needs))
        return SeenState(state.weights, seen), MixerInfo(score=jnp.zeros(M), extra={})

    return Mixer(init, learn, lambda state: state.weights, frozenset(needs), Cadence(update, validate), "spy", **others)


def bowls(**options):
    """A small quadratic world with made-up numbers."""
    rng = np.random.default_rng(5)
    factors = rng.normal(size=(M, 6, 6)) / 3
    options = {"learning_rate": 0.05, **options}
    return quadratic_world(np.einsum("mrp,mrq->mpq", factors, factors), rng.normal(size=(M, 6)), np.zeros(6), **options)


@pytest.mark.parametrize(("lag", "update", "validate"), [(0, 1, 1), (1, 1, 3), (0, 4, 2), (2, 3, 4)])
def test_keeps_the_order_of_the_loop(x64, lag, update, validate):
    rng = np.random.default_rng(1)
    a, steps = rng.uniform(0, 0.05, (M, M)), 24
    run = simulate(tilt(Cadence(update, validate)), linear_world(a), key=KEY, num_steps=steps, lag=lag)
    losses, held, history = np.full(M, 5.0), np.full(M, 5.0), [np.full(M, 1 / M)]
    loss_sum, tokens, drawn, seen, path = np.zeros(M), np.zeros(M), [], None, [losses]
    for step in range(steps):
        p = history[max(step - lag, 0)]
        drawn.append(p)
        loss_sum, tokens = loss_sum + p * losses, tokens + p
        losses = losses - a @ p
        path.append(losses)
        if (step + 1) % validate == 0:
            held = losses
        now = history[-1]
        if (step + 1) % update == 0:
            seen = np.stack([loss_sum, tokens, held])
            now = now * np.exp(0.3 * (loss_sum / np.maximum(tokens, 1e-3) + held))
            now = now / now.sum()
            loss_sum, tokens = np.zeros(M), np.zeros(M)
        history.append(now)
    np.testing.assert_allclose(run.weights, drawn, rtol=1e-10)
    np.testing.assert_allclose(run.losses, path, rtol=1e-10)
    np.testing.assert_allclose(run.final_losses, losses, rtol=1e-10)
    np.testing.assert_allclose(run.mixture, history[-1], rtol=1e-10)
    np.testing.assert_allclose(run.state.seen, seen, rtol=1e-10)
    assert run.updates == steps // update
    assert run.evaluations == steps // validate + 1


def test_runs_odm_as_a_plain_loop_does():
    world, mixer, steps = bowls(), odm("repository"), 30
    run = simulate(mixer, world, key=KEY, num_steps=steps)
    mixer_state, world_state = mixer.init(KEY, M), world.init(KEY)
    update, step = jax.jit(mixer.update), jax.jit(world.step)
    for i in range(steps):
        p = mixer.weights(mixer_state)
        np.testing.assert_allclose(run.weights[i], p, rtol=2e-6)
        feedback = Feedback(loss_sum=p * world.losses(world_state), token_count=p)
        world_state = step(KEY, world_state, p)
        mixer_state, _ = update(KEY, mixer_state, feedback)
    np.testing.assert_allclose(run.final_losses, world.losses(world_state), rtol=1e-5)


def test_a_mixer_without_needs_has_no_lag():
    schedule = odm()._replace(
        needs=frozenset(), update=lambda key, state, feedback: (state, MixerInfo(jnp.zeros(M), {}))
    )
    blind = schedule._replace(
        init=lambda key, m, prior=None: jnp.float32(0.0),
        update=lambda key, state, feedback: (state + 1.0, MixerInfo(jnp.zeros(M), {})),
        weights=lambda state: jax.nn.softmax(state * jnp.arange(M, dtype=jnp.float32)),
        final=None,
    )
    run = simulate(blind, linear_world(np.eye(M)), key=KEY, num_steps=3, lag=1)
    np.testing.assert_allclose(run.weights[1], jax.nn.softmax(jnp.arange(M, dtype=jnp.float32)), rtol=1e-6)


def test_signals_equal_their_definitions(x64):
    world = bowls(learning_rate=lambda step: 0.1 / (1 + step).astype(float))
    reference = np.asarray([0.1, 9.0, 0.2, 9.0])
    prior = np.asarray([0.5, 0.5, 0.0, 0.0])
    run = simulate(spy(), world, key=KEY, num_steps=3, prior=prior, reference_losses=reference, reward=lambda x: 1 - x)
    seen = run.state.seen
    before = jax.tree.map(np.asarray, run.losses[2])  # the last batch's losses: before its step
    np.testing.assert_allclose(seen["token_count"], prior)
    np.testing.assert_allclose(seen["loss_sum"], prior * before, rtol=1e-12)
    np.testing.assert_allclose(seen["reference_loss_sum"], prior * reference)
    np.testing.assert_allclose(seen["clipped_excess_sum"], prior * np.maximum(before - reference, 0), rtol=1e-12)
    np.testing.assert_allclose(seen["validation_loss"], run.losses[3])
    np.testing.assert_allclose(seen["reward"], 1 - before, rtol=1e-12)
    np.testing.assert_allclose(seen["learning_rate"], 0.1 / 3, rtol=1e-7)
    state = world.init(KEY)
    for _ in range(2):
        state = world.step(KEY, state, jnp.asarray(prior))
    g = np.asarray(world.gradients(state).train)
    drawn = g * (prior > 0)[:, None]
    np.testing.assert_allclose(seen["gradient_alignment"], drawn @ drawn.T, rtol=1e-10)
    np.testing.assert_allclose(seen["validation_alignment"], drawn @ g.T, rtol=1e-10)
    np.testing.assert_allclose(seen["gradient_noise"], np.zeros(M))


def test_luck_has_the_stated_spread():
    world = bowls(gradient_noise=np.asarray([1.0, 2.0, 3.0, 4.0]), learning_rate=0.0, noise=0.3, train_noise=0.2)
    prior, rows, runs = np.asarray([0.25, 0.5, 0.0, 0.25]), 8, 4000
    one = lambda key: simulate(
        spy(), world, key=key, num_steps=1, prior=prior, batch_size=rows, reference_losses=0.0, reward=lambda x: x
    )
    seen = jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(jax.random.split(KEY, runs)).state.seen)
    exact = np.asarray(world.losses(world.init(KEY)))
    drawn = prior > 0
    mean_loss = seen["loss_sum"][:, drawn] / (rows * prior[drawn])
    close = {"rtol": 4 / np.sqrt(2 * runs)}  # four standard errors of a standard deviation
    np.testing.assert_allclose(np.std(mean_loss, axis=0), 0.2 / np.sqrt(prior[drawn]), **close)
    np.testing.assert_allclose(np.std(seen["validation_loss"], axis=0), 0.3, **close)
    np.testing.assert_allclose(np.mean(seen["validation_loss"], axis=0), exact, atol=4 * 0.3 / np.sqrt(runs))
    # The reference model saw the same tokens: the excess over it has no noise.
    excess = (seen["loss_sum"] - seen["reference_loss_sum"])[:, drawn] / (rows * prior[drawn])
    np.testing.assert_allclose(excess, np.broadcast_to(exact[drawn], excess.shape), rtol=1e-5)
    # A squared norm is too large by the trace of the noise; products of two domains are right on average.
    gram = np.asarray(world.gradients(world.init(KEY)).train)
    gram = gram @ gram.T
    trace = np.asarray([1.0, 2.0, 3.0, 4.0]) / np.where(drawn, prior, 1.0)
    measured = seen["gradient_alignment"]
    expected = (gram + np.diag(trace)) * drawn[:, None] * drawn[None, :]
    error = 4 * np.std(measured, axis=0) / np.sqrt(runs)
    assert (np.abs(measured.mean(axis=0) - expected) <= error + 1e-6).all()
    np.testing.assert_allclose(seen["gradient_noise"][0], np.where(drawn, rows * np.asarray([1.0, 2, 3, 4]), 0))


def test_what_is_held_and_what_is_summed():
    mixer = spy(("loss_sum", "validation_loss"), update=4, validate=3)
    run = simulate(mixer, bowls(), key=KEY, num_steps=8)
    np.testing.assert_array_equal(run.state.seen["validation_loss"], run.losses[6])
    np.testing.assert_allclose(run.state.seen["loss_sum"], jnp.sum(run.losses[4:8], 0) / M, rtol=1e-5)


def test_validation_without_a_cadence_follows_the_runs_own():
    mixer = spy(("validation_loss",), validate=0)
    assert simulate(mixer, bowls(), key=KEY, num_steps=40).evaluations == 21
    run = simulate(mixer, bowls(), key=KEY, num_steps=10, eval_every=4, observe=lambda losses: 2.0 * losses)
    assert run.evaluations == 3
    np.testing.assert_allclose(run.state.seen["validation_loss"], 2 * run.losses[8])
    assert simulate(static(), bowls(), key=KEY, num_steps=10, eval_every=4).evaluations == 0


def test_loss_weights_act_on_the_gradient_and_not_on_the_draws(x64):
    factors = jnp.asarray([1.0, 2.0, 0.0, 1.0])
    mixer = spy(("token_count",), loss_weights=lambda state: factors)
    a = np.random.default_rng(2).uniform(size=(M, M))
    run = simulate(mixer, linear_world(a), key=KEY, num_steps=1)
    np.testing.assert_allclose(run.state.seen["token_count"], np.full(M, 0.25))
    np.testing.assert_allclose(run.final_losses, 5.0 - a @ [0.25, 0.5, 0.0, 0.25], rtol=1e-12)


def test_stride_thins_what_is_recorded():
    full = simulate(odm(), bowls(), key=KEY, num_steps=12)
    thin = simulate(odm(), bowls(), key=KEY, num_steps=12, stride=4)
    np.testing.assert_array_equal(thin.weights, full.weights[::4])
    np.testing.assert_array_equal(thin.losses, full.losses[::4])
    np.testing.assert_array_equal(thin.scores, full.scores[3::4])


def test_traces_the_update_once():
    traces = []
    mixer = odm()

    def update(key, state, feedback):
        traces.append(1)
        return mixer.update(key, state, feedback)

    run = jax.jit(lambda key: simulate(mixer._replace(update=update), bowls(), key=key, num_steps=50).final_losses)
    for seed in range(3):
        run(jax.random.key(seed))
    assert len(traces) == 1


def test_vmap_over_seeds_and_worlds_equals_single_runs():
    keys = jax.random.split(KEY, 3)
    hessians = np.stack([np.broadcast_to(np.eye(3) * (i + 1), (2, 3, 3)) for i in range(3)])

    def one(key, hessian):
        world = quadratic_world(hessian, np.ones((2, 3)), np.zeros(3), learning_rate=0.1, gradient_noise=0.1, noise=0.1)
        run = simulate(odm(), world, key=key, num_steps=40, batch_size=16)
        return run.weights, run.final_losses

    many, single = jax.jit(jax.vmap(one))(keys, jnp.asarray(hessians, jnp.float32)), jax.jit(one)
    for i in range(3):
        alone = single(keys[i], jnp.asarray(hessians[i], jnp.float32))
        for got, expected in zip(many, alone, strict=True):
            np.testing.assert_allclose(got[i], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_size", [None, 7])
def test_run_static_equals_simulate(batch_size):
    mixture = np.asarray([0.4, 0.3, 0.2, 0.1])
    world = bowls(gradient_noise=0.1)
    run = simulate(static(mixture.tolist()), world, key=KEY, num_steps=30, batch_size=batch_size)
    alone = run_static(world, mixture, key=KEY, num_steps=30, batch_size=batch_size)
    np.testing.assert_allclose(run.final_losses, alone, rtol=1e-5)
    np.testing.assert_allclose(run.mixture, mixture, rtol=1e-6)


@pytest.mark.slow
def test_best_static_is_the_best_of_its_candidates():
    # Domain 0 alone lowers losses: of all candidates the one with most of it wins.
    world = log_linear_world(np.asarray([[2.0, 0.0], [1.0, 0.0]]), irreducible=1.0, reducible=3.0, num_steps=20)
    found = best_static(world, jax.random.split(KEY, 2), num_candidates=30, num_steps=20)
    np.testing.assert_allclose(found.candidates[0], [0.5, 0.5])
    np.testing.assert_allclose(found.candidates.sum(1), 1.0, rtol=1e-5)
    assert found.mixture[0] == found.candidates[:, 0].max()
    expected = 1 + 3 * np.exp(-np.asarray(found.candidates, np.float64) @ [[2.0, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(found.candidate_losses, expected, rtol=1e-5)
    only_first = best_static(
        world._replace(losses=lambda state: jnp.stack([state.total[0], -state.total[0]])),
        KEY[None],
        num_candidates=5,
        num_steps=5,
        weights=np.asarray([0.0, 1.0]),
    )
    assert only_first.mixture[0] == only_first.candidates[:, 0].max()


def test_systematic_counts():
    rng = np.random.default_rng(3)
    for m, rows in ((1, 5), (5, 8), (7, 64), (40, 512)):
        weights = rng.dirichlet(np.full(m, 0.3)).astype(np.float32)
        weights[rng.random(m) < 0.3] = 0
        weights[0] = 1 - weights[1:].sum()
        keys = jax.random.split(jax.random.key(m), 3000)
        draw = functools.partial(systematic_counts, weights=jnp.asarray(weights), batch_size=rows)
        counts = np.asarray(jax.vmap(draw)(keys))
        assert (counts.sum(1) == rows).all()
        assert (counts[:, weights == 0] == 0).all()
        assert (np.abs(counts - rows * weights) < 1 + 1e-3).all()
        np.testing.assert_allclose(counts.mean(0), rows * weights, atol=4 * 0.5 / np.sqrt(len(keys)) + 1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "num_steps must be a whole number ≥ 1"),
        ({"batch_size": 0}, "batch_size must be a whole number ≥ 1"),
        ({"lag": -1}, "lag must be a whole number ≥ 0"),
        ({"stride": 3}, "stride 3 does not divide 10"),
        ({"mixer": spy(("reward",))}, "'reward', which this simulation does not have"),
        ({"mixer": spy(("clipped_excess_sum",))}, "Pass reference_losses="),
        ({"mixer": spy(("gradient_noise",))}, "a world with parameters"),
    ],
)
def test_errors(arguments, message):
    arguments = {"mixer": odm(), "world": linear_world(np.eye(M)), "num_steps": 10, **arguments}
    with pytest.raises(ConfigError, match=message):
        simulate(arguments.pop("mixer"), arguments.pop("world"), key=KEY, **arguments)


def test_a_search_needs_a_candidate():
    with pytest.raises(ConfigError, match="num_candidates must be a whole number ≥ 1"):
        best_static(linear_world(np.eye(2)), KEY[None], num_candidates=0, num_steps=1)
