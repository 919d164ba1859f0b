"""Gradient and reference signals against NumPy in float64, on one device and on several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bigram import VOCAB, bigram, bigram_gradient, bigram_loss
from tolerance import float32_tolerance

from jaxmix.core.sharding import build_mesh, global_batch, replicated, use_mesh
from jaxmix.models import preset, transformer
from jaxmix.train.lm.evaluate import ValidationSet
from jaxmix.train.lm.signals import (
    GRADIENT_SIGNALS,
    build_gradient_signals,
    held_out_rows,
    reference_model,
    reference_table,
)

M, ROWS, LENGTH = 3, 24, 10
KEY = jax.random.key(0)


def make_batch(seed=0, domains=(0, 2)):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (ROWS, LENGTH + 1)).astype(np.int32)
    targets = tokens[:, 1:].copy()
    targets[3, 5:] = -1
    domain = rng.choice(domains, ROWS).astype(np.int32)  # domain 1 is absent by default
    domain[-1] = -1
    tokens = tokens[:, :-1] // (1 + np.maximum(domain, 0)[:, None])  # domains use different rows of the table
    return {"tokens": tokens.astype(np.int32), "targets": targets, "domain": domain}


def make_held_out(seed=5, rows=2):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (M, rows, LENGTH + 1)).astype(np.int32)
    return {"tokens": tokens[..., :-1].copy(), "targets": tokens[..., 1:].copy()}


def mean_gradient(table, tokens, targets):
    count = max((targets >= 0).sum(), 1)
    return bigram_gradient(table, tokens, targets, np.full(len(tokens), 1.0 / count))


def oracle(table, batch, held_out):
    """Gram matrix, alignment with held-out gradients, and the noise of one row from two interleaved halves."""
    own, noise = [], []
    for j in range(M):
        rows = np.flatnonzero(batch["domain"] == j)
        own.append(mean_gradient(table, batch["tokens"][rows], batch["targets"][rows]))
        a, b = rows[0::2], rows[1::2]
        if len(a) == 0 or len(b) == 0:
            noise.append(0.0)
            continue
        halves = [mean_gradient(table, batch["tokens"][h], batch["targets"][h]) for h in (a, b)]
        noise.append(np.sum((halves[0] - halves[1]) ** 2) / (1 / len(a) + 1 / len(b)))
    other = [mean_gradient(table, held_out["tokens"][i], held_out["targets"][i]) for i in range(M)]
    gram = [[np.sum(x * y) for y in own] for x in own]
    align = [[np.sum(x * y) for y in other] for x in own]
    return np.array(gram), np.array(align), np.array(noise)


def measure(batch, held_out, *, devices=1, model=None, needs=GRADIENT_SIGNALS, **options):
    mesh = build_mesh(devices=jax.devices()[:devices])
    model = model or bigram()
    params = jax.device_put(model.init(KEY), replicated(mesh))
    program = build_gradient_signals(model, needs=needs, num_domains=M, mesh=mesh, **options)
    with use_mesh(mesh):
        args = (params, global_batch(mesh, batch), jax.device_put(held_out, replicated(mesh)))
        return jax.device_get(program(*args, jax.device_put(KEY, replicated(mesh)))), params


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_exact_signals_agree_with_float64(devices):
    batch, held_out = make_batch(), make_held_out()
    signals, params = measure(batch, held_out, devices=devices)
    gram, align, noise = oracle(np.asarray(params["table"]["kernel"]), batch, held_out)
    for name, expected in (("gradient_alignment", gram), ("validation_alignment", align)):
        # Inner products of two tables.
        np.testing.assert_allclose(signals[name], expected, rtol=0, atol=float32_tolerance(expected, VOCAB**2))
    np.testing.assert_allclose(signals["gradient_noise"], noise, rtol=1e-5)
    assert signals["gradient_alignment"][1].tolist() == [0.0] * M  # domain 1 was not drawn
    assert signals["gradient_noise"][0] > 0


@pytest.mark.parametrize("devices", [1, 4])
def test_a_sketch_of_all_rows_is_exact_on_average(devices):
    batch, held_out = make_batch(domains=(0, 1, 2)), make_held_out()
    needs = frozenset({"gradient_alignment", "validation_alignment"})
    mesh = build_mesh(devices=jax.devices()[:devices])
    params = jax.device_put(bigram().init(KEY), replicated(mesh))
    options = {"rows_per_domain": ROWS, "sketch_size": 64, "estimator": "sketch"}
    program = build_gradient_signals(bigram(), needs=needs, num_domains=M, mesh=mesh, **options)
    args = (params, global_batch(mesh, batch), jax.device_put(held_out, replicated(mesh)))
    found = [program(*args, jax.device_put(jax.random.key(seed), replicated(mesh))) for seed in range(200)]
    gram, align, _ = oracle(np.asarray(params["table"]["kernel"]), batch, held_out)
    scale = np.sqrt(2 / 64)
    norms = np.sqrt(np.diag(gram))
    grams = np.stack([f["gradient_alignment"] for f in found])
    error = (grams.mean(0) - gram) / np.outer(norms, norms)
    assert np.abs(error).max() < 4 * scale / np.sqrt(200)
    spread = grams.std(0) / np.outer(norms, norms)
    assert 0.3 * scale < spread.max() < 1.5 * scale
    aligns = np.stack([f["validation_alignment"] for f in found])
    assert np.abs(aligns.mean(0) - align).max() < 0.2 * np.abs(align).max()


def test_a_sketch_looks_at_the_first_rows_of_every_domain():
    batch, held_out = make_batch(domains=(0, 1, 2)), make_held_out()
    few = {name: x.copy() for name, x in batch.items()}
    for j in range(M):
        few["domain"][np.flatnonzero(batch["domain"] == j)[4:]] = -1
    options = {"estimator": "sketch", "sketch_size": 256, "rows_per_domain": 4}
    some, _ = measure(batch, held_out, **options)
    same, _ = measure(few, held_out, **options)
    for name in GRADIENT_SIGNALS:
        np.testing.assert_allclose(some[name], same[name], rtol=1e-5, atol=1e-7)
    _, params = measure(batch, held_out, **options)
    _, _, noise = oracle(np.asarray(params["table"]["kernel"]), few, held_out)
    np.testing.assert_allclose(some["gradient_noise"], noise, rtol=0.6)  # two sketched halves


def test_last_layer_is_the_gradient_of_the_readout_alone():
    model = transformer(preset("lm-300k", vocab_size=32, seq_len=LENGTH, num_layers=1, width=64))
    batch, held_out = make_batch(domains=(0, 1, 2)), make_held_out()
    signals, params = measure(batch, held_out, model=model, estimator="last_layer")
    readout = model.readout(params)

    @jax.jit
    def slope(rows):
        def mean(readout):
            loss = model.apply_readout(readout, params, rows)
            return jnp.sum(loss) / jnp.sum((rows["targets"] >= 0).astype(jnp.float32))

        return jax.grad(mean)(readout)

    gradient = lambda rows: np.asarray(slope(rows), np.float64)

    own = [
        gradient({name: jnp.asarray(batch[name][batch["domain"] == j]) for name in ("tokens", "targets")})
        for j in range(M)
    ]
    other = [gradient({name: jnp.asarray(held_out[name][i]) for name in ("tokens", "targets")}) for i in range(M)]
    for name, others in (("gradient_alignment", own), ("validation_alignment", other)):
        expected = [[np.sum(a * b) for b in others] for a in own]
        np.testing.assert_allclose(signals[name], expected, rtol=0, atol=float32_tolerance(expected, readout.size))
    np.testing.assert_array_equal(
        model.apply_readout(readout, params, jax.tree.map(jnp.asarray, batch)),
        model.apply(params, jax.tree.map(jnp.asarray, batch)),
    )


def test_only_what_is_needed_is_returned_and_broken_gradients_count_as_not_drawn():
    batch, held_out = make_batch(), make_held_out()
    signals, _ = measure(batch, held_out, needs=frozenset({"gradient_alignment"}))
    assert list(signals) == ["gradient_alignment"]
    model = bigram()
    broken = model._replace(init=lambda key: jax.tree.map(lambda x: x * jnp.nan, model.init(key)))
    signals, _ = measure(batch, held_out, model=broken)
    for values in signals.values():
        assert (values == 0).all()


def test_held_out_rows_go_round():
    rng = np.random.default_rng(0)
    domain = np.repeat(np.arange(3), [2, 3, 5]).astype(np.int32)
    tokens = rng.integers(0, 9, (10, 4)).astype(np.int32)
    validation = ValidationSet(("a", "b", "c"), tokens, tokens + 1, domain)
    seen = [held_out_rows(validation, rows_per_domain=2, turn=turn)["tokens"] for turn in range(5)]
    assert seen[0].shape == (3, 2, 4)
    np.testing.assert_array_equal(np.concatenate([s[2] for s in seen]), np.tile(tokens[5:], (2, 1)))
    np.testing.assert_array_equal(np.concatenate([s[1] for s in seen[:3]]), np.tile(tokens[2:5], (2, 1)))
    np.testing.assert_array_equal(seen[4][0], tokens[:2])


@pytest.mark.parametrize("devices", [1, 8])
def test_references(devices):
    mesh = build_mesh(devices=jax.devices()[:devices])
    batch = make_batch()
    model = bigram()
    params = jax.device_put(model.init(jax.random.key(9)), replicated(mesh))
    on_mesh = global_batch(mesh, batch)
    loss = np.asarray(reference_model(model.apply, params)(on_mesh))
    expected = bigram_loss(np.asarray(params["table"]["kernel"]), batch["tokens"], batch["targets"])
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
    table = np.asarray(reference_table(np.array([1.0, 2.0, 3.0]), mesh)(on_mesh))
    has_target = batch["targets"] >= 0
    np.testing.assert_array_equal(table[~has_target], 0.0)
    rows = batch["domain"] == 2
    np.testing.assert_array_equal(table[rows][has_target[rows]], 3.0)
