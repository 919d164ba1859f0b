"""The step on pairs against the same step written out, and its variants against each other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pair_models import flip, learnable, linear_towers, pairs
from tolerance import float32_tolerance

from jaxmix.core.errors import ConfigError
from jaxmix.core.sharding import build_mesh, global_batch, replicated, use_mesh
from jaxmix.selection import Embeddings, independent, jest
from jaxmix.train.pairs.embedding_cache import EmbeddingCache
from jaxmix.train.pairs.step import (
    OnlineReference,
    PairSettings,
    PairState,
    build_pair_programs,
    init_pair_state,
    shuffled,
)
from jaxmix.train.pairs.stream import PairPool, PairStream

TOWERS = linear_towers()
CANDIDATES, CHOSEN = 48, 16
REFERENCE = OnlineReference(TOWERS, TOWERS.init(jax.random.key(7)))
STEPS, RATE = 3, 2.0


@functools.cache
def pool(rows=100):
    images, tokens, _ = pairs(rows, corrupted=0.3)
    return PairPool(images, tokens)


@functools.cache
def cache():
    """The reference's embeddings of the pool as it is stored."""
    images, tokens = (jnp.asarray(x) for x in pool()[:2])
    embedded = (TOWERS.embed_image(REFERENCE.params, images), TOWERS.embed_text(REFERENCE.params, tokens))
    return EmbeddingCache(*(np.asarray(x) for x in embedded), *(float(x) for x in TOWERS.scale(REFERENCE.params)))


def programs(devices=1, *, selector="learnable", reference=REFERENCE, settings=None, **options):
    options = {"num_candidates": CANDIDATES, "augment": flip, **options}
    return build_pair_programs(
        TOWERS,
        optax.sgd(RATE),
        selector=learnable(CHOSEN) if selector == "learnable" else selector,
        reference=reference,
        settings=settings,
        mesh=build_mesh(devices=jax.devices()[:devices]),
        **options,
    )


@functools.cache
def initial():
    built = programs()
    with use_mesh(built.mesh):
        return jax.device_get(init_pair_state(jax.random.key(0), TOWERS, built).train)


def start(built):
    """The state of a new run, initialized once for all programs."""
    everywhere = replicated(built.mesh)
    next_rows = jnp.full(built.num_select if built.is_stale else 1, -1, jnp.int32)
    return jax.device_put(PairState(initial(), jax.random.split(jax.random.key(0))[1], next_rows), everywhere)


def run(built, steps=STEPS, reference=None):
    """Trains from seed 0; returns the final parameters and the rows that each step trained on."""
    stream = PairStream(pool(), num_candidates=built.num_candidates, seed=0, reference=reference)
    with use_mesh(built.mesh):
        batches = [global_batch(built.mesh, stream.batch(step)) for step in range(steps + 1)]
        state, chosen = start(built), []
        if built.is_stale:
            next_rows, _ = built.select(state.train.params, state.key, state.train.step, batches[0])
            state = dataclasses.replace(state, next_rows=next_rows)
        for step in range(steps):
            following = (batches[step + 1],) if built.is_stale else ()
            state, info = built.step(state, batches[step], *following)
            chosen.append(np.asarray(info.indices))
    assert int(state.train.step) == steps
    return jax.device_get(state.train.params), np.stack(chosen)


@functools.cache
def plain_run():
    return run(programs())


def batch_loss(params, images, tokens):
    return TOWERS.loss(TOWERS.embed_image(params, images), TOWERS.embed_text(params, tokens), *TOWERS.scale(params))


def written_out(is_stale=False):
    """The same training, one operation after the other."""
    init_key, base = jax.random.split(jax.random.key(0))
    stream, select = PairStream(pool(), num_candidates=CANDIDATES, seed=0), jax.jit(learnable(CHOSEN).select)
    mirror, gradient = jax.jit(flip), jax.jit(jax.grad(batch_loss))
    params = before = TOWERS.init(init_key)
    rows = []
    for step in range(STEPS):
        batch = stream.batch(step)
        key = jax.random.fold_in(jax.random.fold_in(base, 2), step)
        images, tokens = jnp.asarray(batch["images"]), jnp.asarray(batch["tokens"])
        images = jnp.stack([mirror(jax.random.fold_in(key, r), x) for r, x in zip(batch["row"], images, strict=True)])
        seen = [
            Embeddings(TOWERS.embed_image(p, images), TOWERS.embed_text(p, tokens), *TOWERS.scale(p))
            for p in (before if is_stale else params, REFERENCE.params)
        ]
        keys = [jax.random.fold_in(jax.random.fold_in(base, stream), step) for stream in (0, 1)]
        indices = select(keys[0], *seen, valid=jnp.asarray(batch["valid"])).indices
        indices = shuffled(keys[1], indices)

        before = params
        params = jax.tree.map(lambda x, g: x - RATE * g, params, gradient(params, images[indices], tokens[indices]))
        rows.append(np.asarray(indices))
    return params, np.stack(rows)


def same(found, expected):
    """The same rows, and parameters that differ only by the order in which float32 sums were added up."""
    (params, rows), (expected_params, expected_rows) = found, expected
    np.testing.assert_array_equal(rows, expected_rows)
    # A step sums over pixels and the embedding for the logits, over both sides of the batch for the gradient.
    terms = len(rows) * (pool().images[0].size + TOWERS.config.embedding_dim + 2 * CHOSEN)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=float32_tolerance(y, terms)), params, expected_params
    )


def test_step_against_the_step_written_out():
    same(plain_run(), written_out())


def test_stale_scores_are_those_of_the_parameters_before():
    stale = run(programs(settings=PairSettings(is_stale=True)))
    same(stale, written_out(is_stale=True))
    np.testing.assert_array_equal(stale[1][0], plain_run()[1][0])  # the first selection has nothing older
    assert (stale[1][1:] != plain_run()[1][1:]).any()


def test_jest_trains_on_what_it_selects():
    built = programs(selector=jest(CHOSEN, num_chunks=4), augment=None)
    params, rows = run(built, steps=1)
    batch = jax.tree.map(jnp.asarray, PairStream(pool(), num_candidates=CANDIDATES, seed=0).batch(0))
    start = TOWERS.init(jax.random.split(jax.random.key(0))[0])
    assert len(set(rows[0])) == CHOSEN
    grads = jax.jit(jax.grad(batch_loss))(start, batch["images"][rows[0]], batch["tokens"][rows[0]])
    same((params, rows), (jax.tree.map(lambda x, g: x - RATE * g, start, grads), rows))


def test_accumulation_trains_on_the_same_batch():
    built = programs(accumulate=4)
    assert built.reuse == "embeddings"
    same(run(built), plain_run())


def test_training_through_the_scoring_forward_is_the_same():
    same(run(programs(settings=PairSettings(reuse="activations"))), plain_run())


@pytest.mark.parametrize(
    ("devices", "accumulate"), [(8, 2), *(pytest.param(n, 1, marks=pytest.mark.slow) for n in (2, 4))]
)
def test_any_number_of_devices_trains_alike(devices, accumulate):
    built = programs(devices, accumulate=accumulate, settings=PairSettings(reuse="none"))
    same(run(built), plain_run())


def test_no_device_holds_the_logits_of_the_batch():
    def lowered(devices):
        built = programs(devices, selector=None, num_candidates=CHOSEN, reference=None)
        batch = PairStream(pool(), num_candidates=CHOSEN, seed=0).batch(0)
        with use_mesh(built.mesh):
            return jax.jit(built.step).lower(start(built), global_batch(built.mesh, batch)).as_text()

    logits = f"tensor<{CHOSEN}x{CHOSEN}xf32>"
    assert logits in lowered(1)
    assert logits not in lowered(2)


def test_a_cached_reference_is_the_online_one():
    online = run(programs(augment=None))
    same(run(programs(augment=None, reference=cache()), reference=cache()), online)


def test_every_row_is_trained_on_without_a_selector():
    built = programs(selector=None, reference=None, num_candidates=CHOSEN)
    _, rows = run(built)
    np.testing.assert_array_equal(rows, np.tile(np.arange(CHOSEN), (STEPS, 1)))


def test_scores_and_training_at_other_resolutions():
    """Scoring at patch 2 changes what is selected, training at patch 2 what is learned, neither the other."""
    scored = run(programs(settings=PairSettings(score_patch_size=2)))
    assert set(scored[1][0]) != set(plain_run()[1][0])
    mixed = run(programs(settings=PairSettings(train_patch_sizes=(1, 2))))
    np.testing.assert_array_equal(mixed[1][0], plain_run()[1][0])
    assert np.abs(mixed[0]["image"]["kernel"] - plain_run()[0]["image"]["kernel"]).max() > 1e-3


def test_a_model_that_is_not_needed_is_not_run():
    built = programs(selector=learnable(CHOSEN, {"learner"}))  # it looks at what it is given
    _, rows = run(built, steps=1)
    assert len(set(rows[0])) == CHOSEN
    one = TOWERS.flops_per_image() + TOWERS.flops_per_text
    assert built.cost(1).flops == one * (3 * CHOSEN + CANDIDATES)


def test_a_step_that_is_not_finite_changes_nothing():
    built = programs(selector=None, reference=None, num_candidates=CHOSEN, augment=None)
    stream = PairStream(pool(), num_candidates=CHOSEN, seed=0)
    with use_mesh(built.mesh):
        state = start(built)
        broken = jax.tree.map(lambda x: x.at[...].set(jnp.nan), state.train.params["bias"])
        params = {**state.train.params, "bias": broken}
        before = np.asarray(params["image"]["kernel"])
        state = dataclasses.replace(state, train=dataclasses.replace(state.train, params=params))
        state, info = built.step(state, global_batch(built.mesh, stream.batch(0)))
    assert int(info.skipped) == int(info.consecutive_skipped) == 1
    np.testing.assert_array_equal(state.train.params["image"]["kernel"], before)


def test_cost_is_that_of_the_program():
    image, text = TOWERS.flops_per_image(), TOWERS.flops_per_text
    one, k = image + text, CANDIDATES / CHOSEN

    def per_example(**options):
        return programs(**options).cost(2).flops / 2 / CHOSEN / one

    assert per_example() == pytest.approx(2 * k + 3)
    assert per_example(reference=cache()) == pytest.approx(k + 3)
    assert per_example(reference=cache(), accumulate=2) == pytest.approx(k + 3)
    assert per_example(reference=cache(), accumulate=2, settings=PairSettings(reuse="none")) == pytest.approx(k + 4)
    assert per_example(reference=cache(), settings=PairSettings(reuse="activations")) == pytest.approx(3 * k)
    low = (image / 4 + text) / one
    flexi = PairSettings(score_patch_size=2, train_patch_sizes=(1, 2))
    assert per_example(reference=cache(), settings=flexi) == pytest.approx(low * k + 3 * (1 + low) / 2)
    chunked = programs(selector=jest(CHOSEN, num_chunks=4)).cost(1).flops - programs().cost(1).flops
    assert chunked == pytest.approx(8 * CANDIDATES * CHOSEN * 8 * (1 - 1 / 4))
    context = programs(selector=independent(CHOSEN, context=True)).cost(1).flops
    assert context - programs(selector=independent(CHOSEN)).cost(1).flops == pytest.approx(8 * CANDIDATES**2 * 8)
    assert programs().cost(5)[:3] == (5, 5 * CHOSEN, 5 * CANDIDATES)


def test_auto_reuses_where_it_pays():
    resolved = lambda accumulate, **options: PairSettings(**options).resolved_reuse(jest(CHOSEN), accumulate)
    assert resolved(1) == "none"
    assert resolved(2) == "embeddings"
    for options in ({"is_stale": True}, {"score_patch_size": 2}, {"train_patch_sizes": (1, 2)}):
        assert resolved(2, **options) == "none"
    assert PairSettings().resolved_reuse(None, 2) == "none"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PairSettings(score_patch_size=0), "score_patch_size must be at least 1"),
        (lambda: PairSettings(reuse="all"), "unknown reuse 'all'"),
        (lambda: PairSettings(reuse="activations", is_stale=True), "cannot be reused: scores are one step old"),
        (lambda: PairSettings(reuse="embeddings", score_patch_size=2), "scores are of another resolution"),
        (lambda: programs(num_candidates=8), "picks 16 of 8 candidates"),
        (lambda: programs(reference=None), "selector 'learnable' needs a reference"),
        (lambda: programs(8, num_candidates=CANDIDATES + 4), "num_candidates 52 is not a multiple of 8"),
        (lambda: programs(accumulate=5), "num_select 16 is not a multiple of 5"),
        (lambda: programs(settings=PairSettings(reuse="embeddings")), "save nothing without accumulation"),
        (lambda: programs(settings=PairSettings(reuse="activations"), accumulate=2), "is to avoid"),
    ],
)
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
