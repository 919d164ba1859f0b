"""What every mixer must do, one table for all.

A mixer is tested by being registered. One that needs arguments gets a line in `ARGUMENTS`; every wrapper gets one
in `WRAPPERS`, and is driven around `odm`.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from strict_types import assert_fields_hold

import jaxmix.curricula  # registers the mixer that is any bandit  # noqa: F401
import jaxmix.mixers as mixers
from jaxmix.core import sharding
from jaxmix.core.errors import ConfigError
from jaxmix.core.pytree import from_nested, state_versions, to_nested
from jaxmix.mixers import Feedback
from jaxmix.mixers.base import SIGNALS

M = 6  # domains
KEY = jax.random.key(0)
PRIOR = jnp.asarray([0.3, 0.25, 0.2, 0.15, 0.07, 0.03], jnp.float32)

ARGUMENTS = {
    "foresight": {"total_steps": 60, "every": 1},
    # The table's gradients are far longer than a model's; the usual step would move a log-weight by 50 at a time.
    "grape": {"task_step_size": 100.0},
    "pike": {"batch_size": 64},
    "aioli": {"round_length": 40, "sweeps": 2, "interval": 2, "initial_steps": 3, "after_initial": "prior"},
    "dynamic_batch_loading": {"target_losses": 1.5},
    "skillit": {"graph": 0.5},
    "velocitune": {"target_losses": 0.5},
    "scheduled": {
        "points": [{"at": 0, "weights": "prior"}, {"at": 30, "weights": "uniform"}],
        "interpolation": "cosine",
    },
}
"""Arguments of mixers that need some. They must treat all domains alike."""

VARIANTS = {
    "foresight_validation": ("foresight", {"total_steps": 40, "every": 1, "signal": "validation", "transfer": 0.1}),
    "ado_fitting": (
        "ado",
        {
            "variant": "repository",
            "refit_every": 5,
            "ignore": 0,
            "start": 0,
            "min_points": 4,
            "subsample": 1,
            "window": 5,
            "buffer": 16,
        },
    ),
    "dga_ema": ("dga", {"decay": 0.5}),
    "dga_normalize": ("dga", {"normalize": True}),
    "dga_training": ("dga", {"target": "training", "normalize": True}),
    "doge_proxy": ("doge", {"mode": "proxy"}),
    "doge_validation": ("doge", {"target": "validation", "smoothing": 0.01}),
    "grape_ema": ("grape", {"score": "ema", "task_step_size": 100.0}),
    "grape_gap": ("grape", {"variant": "repository", "score": "gap", "step_size": 0.1, "task_step_size": 0.5}),
    "pike_paper": ("pike", {"batch_size": 64, "normalize": False}),
    "r_and_b_rounds": ("r_and_b", {"round_updates": 3}),
    "aioli_filtered": (
        "aioli",
        {"variant": "released", "estimator": "filtered", "round_length": 30, "sweeps": 2, "interval": 2}
        | {"initial_steps": 2, "smoothing": 0.2, "total_steps": 45},
    ),
    "doremi_domain": ("doremi", {"clip": "domain", "initial_score": 5.5}),
    "doremi_proxy": ("doremi", {"mode": "proxy"}),
    "doremi_proxy_domain": ("doremi", {"mode": "proxy", "clip": "domain", "normalizer": "domain"}),
    "dynamic_batch_loading_released": ("dynamic_batch_loading", {"target_losses": 1.5, "clip": False}),
    "dynamic_batch_loading_bandit": ("dynamic_batch_loading", {"target_losses": 1.5, "variant": "bandit"}),
    "learnability_averaged": ("learnability", {"memory": 0.0, "averaging": 0.9, "clip": True}),
    "loss_proportional_cold": ("loss_proportional", {"temperature": 0.01, "smoothing": 0.01}),
    "skillit_anchored": (
        "skillit",
        {"graph": 0.5, "anchored": True, "relative": True, "schedule": "loss_ratio", "update_every": 250},
    ),
    "skillit_mean": ("skillit", {"graph": 0.2, "reduce": "mean", "orientation": "lmo", "window": 1}),
    "velocitune_from": ("velocitune", {"target_losses": 0.5, "initial_losses": 4.0, "step_size": 0.1}),
    "odm_repository": ("odm", {"variant": "repository"}),
    "odm_warmup": ("odm", {"warmup_updates": 10}),
    "scheduled_tokens": (
        "scheduled",
        {"points": [{"at": 0, "weights": "prior"}, {"at": 20_000, "weights": "uniform"}], "unit": "tokens"},
    ),
}
"""Further settings of registered mixers."""

WRAPPERS = {
    "floor": 0.05,
    "ema": 0.5,
    "epoch_cap": {"available_tokens": [3200.0] * M, "total_tokens": 40_000.0, "max_epochs": 4.0},
    "freeze_after": 7,
    "hold": 4,
    "kl_to_prior": 0.5,
    "temperature": 2.0,
    "time_average": {},
    "warm_up": {"updates": 8, "linear": True},
}

CHAINS = {
    "floor_of_ema": [{"ema": 0.9}, {"floor": 0.02}],
    "cap_of_prior_of_floor": [{"floor": 0.02}, {"kl_to_prior": 1.0}, {"epoch_cap": WRAPPERS["epoch_cap"]}],
    "ema_of_cap": [{"epoch_cap": WRAPPERS["epoch_cap"]}, {"ema": 0.3}],
    "floor_of_hold_of_warm_up": [{"warm_up": 3}, {"hold": 2}, {"floor": 0.02}],
    "freeze_of_average_of_temperature": [{"temperature": 0.5}, {"time_average": {}}, {"freeze_after": 10}],
}

CASES = {
    **{name: (name, ARGUMENTS.get(name, {}), []) for name in mixers.registry},
    **{name: (*case, []) for name, case in VARIANTS.items()},
    **{f"{name}(odm)": ("odm", {}, [{name: WRAPPERS[name]}]) for name in mixers.wrapper_registry},
    **{name: ("odm", {}, chain) for name, chain in CHAINS.items()},
}


class Jitted(NamedTuple):
    """A mixer with its two functions compiled: every test of a case shares them."""

    mixer: mixers.Mixer
    update: Any
    weights: Any


@functools.cache
def jitted(case):
    mixer = mixers.build(*CASES[case])
    return Jitted(mixer, jax.jit(mixer.update), jax.jit(mixer.weights))


@pytest.fixture(params=sorted(CASES))
def case(request):
    return request.param


@pytest.fixture
def mixer(case):
    """The case's mixer with compiled functions."""
    made = jitted(case)
    return made.mixer._replace(update=made.update, weights=made.weights)


def feedback(seed, *, only=SIGNALS, present=None, num_domains=M):
    """Random, plausible signals of one step; domains that are not present have no tokens."""
    rng = np.random.default_rng(seed)
    drawn = np.ones(num_domains, bool) if present is None else np.asarray(present)
    counts = np.where(drawn, rng.integers(1, 200, num_domains), 0).astype(np.float32)
    gradients = np.where(drawn[:, None], rng.normal(size=(num_domains, 8)), 0.0)
    signals = {
        "token_count": counts,
        "loss_sum": counts * rng.uniform(0.5, 4.0, num_domains),
        "reference_loss_sum": counts * rng.uniform(0.5, 4.0, num_domains),
        "clipped_excess_sum": counts * rng.uniform(0.0, 0.5, num_domains),
        "validation_loss": rng.uniform(0.5, 4.0, num_domains),
        "gradient_alignment": gradients @ gradients.T,
        "validation_alignment": gradients @ rng.normal(size=(8, num_domains)),
        "gradient_noise": np.where(drawn, rng.uniform(0, 9, num_domains), 0.0),
        "learning_rate": 1e-3,
        "reward": rng.uniform(0, 1, num_domains),
    }
    return Feedback(**{name: jnp.asarray(signals[name], jnp.float32) for name in only})


def signals_of(mixer):
    return tuple(sorted(mixer.needs))


def run(mixer, steps, *, prior=None, state=None, start=0, present=None, only=SIGNALS):
    state = mixer.init(KEY, M, prior) if state is None else state
    weights = [mixer.weights(state)]
    for step in range(start, start + steps):
        state, info = mixer.update(jax.random.fold_in(KEY, step), state, feedback(step, present=present, only=only))
        chex.assert_tree_all_finite(info.score)
        weights.append(mixer.weights(state))
    return state, np.stack(weights)


def assert_simplex(weights):
    weights = np.asarray(weights)
    assert weights.dtype == np.float32
    assert np.isfinite(weights).all()
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(-1, dtype=np.float64), 1.0, atol=1e-6)


def assert_states_equal(a, b):
    chex.assert_trees_all_equal(jax.tree.map(_raw, a), jax.tree.map(_raw, b))


def _raw(x):
    return jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def test_bundle(mixer):
    assert mixer.needs <= set(SIGNALS)
    assert mixer.cadence.update >= 1
    assert mixer.cadence.validate >= 0
    assert mixer.name != "mixer"


@pytest.mark.parametrize("prior", [None, PRIOR], ids=["uniform", "prior"])
def test_weights_lie_on_the_simplex(mixer, prior):
    _, weights = run(mixer, 40, prior=prior)
    assert weights.shape == (41, M)
    assert_simplex(weights)


def test_starts_uniform_without_a_prior(mixer):
    np.testing.assert_allclose(mixer.weights(mixer.init(KEY, M)), np.full(M, 1 / M), atol=1e-6)


def test_starts_from_the_prior(case, mixer):
    if case == "stratified":
        pytest.skip("it takes no prior: see tests/mixers/methods/test_static.py")
    # The same wrappers around constant weights, as there are bounds that PRIOR does not keep.
    expected = mixers.build("static", {}, CASES[case][2])
    start = expected.weights(expected.init(KEY, M, PRIOR))
    np.testing.assert_allclose(mixer.weights(mixer.init(KEY, M, PRIOR)), start, atol=1e-6)


def test_a_wrong_prior_is_refused(mixer):
    with pytest.raises(ConfigError, match="shape"):
        mixer.init(KEY, M, jnp.full(M + 1, 1 / (M + 1)))
    with pytest.raises(ConfigError, match=r"number 1 is -0\.5"):
        mixer.init(KEY, M, jnp.asarray([1.5, -0.5, 0, 0, 0, 0]))


def test_state_keeps_structure_shapes_and_dtypes(mixer):
    state = mixer.init(KEY, M, PRIOR)
    after, _ = mixer.update(KEY, state, feedback(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    assert_fields_hold(state)
    assert_fields_hold(after)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(after))


def test_permuting_the_domains_permutes_the_weights(mixer):
    if mixer.name == "aioli":
        pytest.skip("it probes in random order: see tests/mixers/methods/test_aioli.py")
    order = np.random.default_rng(3).permutation(M)
    permute = lambda tree: jax.tree.map(lambda leaf: leaf[np.ix_(*[order] * leaf.ndim)], tree)
    plain, permuted = mixer.init(KEY, M, PRIOR), mixer.init(KEY, M, PRIOR[order])
    for step in range(20):
        signals = feedback(step, present=np.arange(M) != step % M)
        plain, _ = mixer.update(KEY, plain, signals)
        permuted, _ = mixer.update(KEY, permuted, permute(signals))
        np.testing.assert_allclose(mixer.weights(plain)[order], mixer.weights(permuted), atol=2e-6)


def test_unneeded_signals_are_ignored(mixer):
    with_all, weights = run(mixer, 5)
    with_few, fewer = run(mixer, 5, only=signals_of(mixer))
    assert_states_equal(with_all, with_few)
    np.testing.assert_array_equal(weights, fewer)


def test_a_missing_signal_is_a_configuration_error_when_traced(mixer):
    state = mixer.init(KEY, M)
    for name in mixer.needs:
        rest = feedback(0, only=[signal for signal in SIGNALS if signal != name])
        with pytest.raises(ConfigError, match=f"needs the signal '{name}'"):
            jax.eval_shape(mixer.update, KEY, state, rest)


def test_a_step_without_any_tokens_is_harmless(mixer):
    state, _ = run(mixer, 3)
    nothing = jax.tree.map(jnp.zeros_like, feedback(0))
    after, info = mixer.update(KEY, state, nothing)
    assert_simplex(mixer.weights(after))
    chex.assert_tree_all_finite(info.score)


@pytest.mark.parametrize("bad", [1e6, np.nan, np.inf])
def test_what_an_absent_domain_reports_does_not_act(mixer, bad):
    state, _ = run(mixer, 3)
    quiet = feedback(9, present=np.arange(M) != 2)
    loud = {name: getattr(quiet, name) for name in SIGNALS}
    for name in ("loss_sum", "reference_loss_sum", "clipped_excess_sum"):
        loud[name] = loud[name].at[2].set(bad)
    expected, _ = mixer.update(KEY, state, quiet)
    got, _ = mixer.update(KEY, state, Feedback(**loud))
    np.testing.assert_array_equal(mixer.weights(expected), mixer.weights(got))


@pytest.mark.parametrize("loss", [0.0, 1e-30, 1e30])
def test_finite_under_extreme_losses(mixer, loss):
    state = mixer.init(KEY, M, PRIOR)
    for step in range(30):
        usual = feedback(step)
        extreme = jnp.where(jnp.arange(M) % 2 == step % 2, jnp.float32(loss), usual.loss_sum / usual.token_count)
        signals = Feedback(
            token_count=jnp.ones(M),
            loss_sum=extreme,
            reference_loss_sum=usual.reference_loss_sum / usual.token_count,
            clipped_excess_sum=extreme,
            validation_loss=extreme,
            gradient_alignment=usual.gradient_alignment * loss,
            validation_alignment=usual.validation_alignment * loss,
            gradient_noise=extreme,
            learning_rate=usual.learning_rate,
            reward=usual.reward,
        )
        state, info = mixer.update(KEY, state, signals)
        assert_simplex(mixer.weights(state))
        chex.assert_tree_all_finite(info.score)


def test_one_domain(mixer):
    if "epoch_cap" in mixer.name:
        pytest.skip("its number of domains is an argument")
    state = mixer.init(KEY, 1)
    for step in range(3):
        state, _ = mixer.update(KEY, state, feedback(step, num_domains=1))
        np.testing.assert_allclose(mixer.weights(state), [1.0], atol=1e-6)


def test_fifty_updates_trace_once(case):
    mixer = jitted(case).mixer
    chex.clear_trace_counter()  # it counts by the function's name, which all cases share

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(key, state, signals):
        state, info = mixer.update(key, state, signals)
        return state, info, mixer.weights(state)

    state = mixer.init(KEY, M, PRIOR)
    for i in range(50):
        state, _, _ = step(jax.random.fold_in(KEY, i), state, feedback(i))


def test_replicated_on_eight_devices(mixer):
    mesh = sharding.build_mesh(fsdp=2)
    everywhere = sharding.replicated(mesh)
    one, eight = mixer.init(KEY, M, PRIOR), jax.device_put(mixer.init(KEY, M, PRIOR), everywhere)
    for i in range(3):
        one, _ = mixer.update(KEY, one, feedback(i))
        eight, _ = mixer.update(*jax.device_put((KEY,), everywhere), eight, jax.device_put(feedback(i), everywhere))
    for leaf in jax.tree.leaves(eight):
        assert leaf.sharding.is_equivalent_to(everywhere, leaf.ndim)
    assert_states_equal(one, eight)
    np.testing.assert_array_equal(mixer.weights(one), mixer.weights(eight))


def test_stopped_and_restored_at_any_update(mixer):
    straight = resumed = mixer.init(KEY, M, PRIOR)
    for i in range(25):
        stored = jax.tree.map(np.asarray, to_nested(resumed))
        template = jax.eval_shape(lambda: mixer.init(KEY, M, PRIOR))
        resumed = jax.tree.map(jnp.asarray, from_nested(template, stored, state_versions(resumed)))
        key, signals = jax.random.fold_in(KEY, i), feedback(i)
        straight, _ = mixer.update(key, straight, signals)
        resumed, _ = mixer.update(key, resumed, signals)
        assert_states_equal(straight, resumed)


def test_vmap_over_seeds(mixer):
    keys = jax.random.split(KEY, 3)
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    states = stack([mixer.init(key, M, PRIOR) for key in keys])
    update, weights = jax.vmap(mixer.update), jax.vmap(mixer.weights)
    alone = [mixer.init(key, M, PRIOR) for key in keys]
    for i in range(4):
        signals = [feedback(10 * i + seed) for seed in range(3)]
        states, _ = update(keys, states, stack(signals))
        alone = [mixer.update(*args)[0] for args in zip(keys, alone, signals, strict=True)]
    np.testing.assert_allclose(weights(states), jnp.stack([mixer.weights(s) for s in alone]), atol=2e-6)


def test_weights_are_the_same_compiled_and_not(case, mixer):
    state, _ = run(mixer, 2)
    np.testing.assert_array_equal(mixer.weights(state), jitted(case).mixer.weights(state))


@pytest.mark.parametrize("name", sorted(mixers.registry))
def test_unknown_arguments_are_named(name):
    with pytest.raises(ConfigError, match=f"mixer '{name}' has no argument 'no_such'"):
        mixers.make(name, no_such=1)


@pytest.mark.parametrize("name", sorted(mixers.wrapper_registry))
def test_wrappers_keep_needs_and_cadence(name):
    inner = mixers.make("odm")._replace(gradients="sketch")
    wrapped = mixers.wrap_with(inner, [{name: WRAPPERS[name]}])
    assert wrapped.needs >= inner.needs
    assert wrapped.cadence == inner.cadence
    assert wrapped.gradients == "sketch"
    assert wrapped.name == f"{name}(odm)"
    assert (wrapped.loss_weights, wrapped.final) == (None, None)


@pytest.mark.parametrize("name", sorted(mixers.wrapper_registry))
def test_wrappers_lift_what_reads_the_inner_state(name):
    inner = mixers.make("odm")
    inner = inner._replace(loss_weights=lambda state: 2.0 * state.weights, final=lambda state: state.weights)
    wrapped = mixers.wrap_with(inner, [{name: WRAPPERS[name]}])
    state, _ = run(wrapped, 3)
    np.testing.assert_array_equal(wrapped.loss_weights(state), inner.loss_weights(state.inner))
    assert_simplex(wrapped.final(state))
    if name not in ("floor", "temperature", "kl_to_prior"):  # bounds hold for the recommendation too
        np.testing.assert_array_equal(wrapped.final(state), inner.final(state.inner))
