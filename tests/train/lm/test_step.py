import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bigram import VOCAB, bigram, bigram_gradient, bigram_loss
from tolerance import float32_tolerance

from jaxmix.core.errors import ConfigError
from jaxmix.core.sharding import build_mesh, global_batch, replicated
from jaxmix.train.lm.state import init_train_state, train_state_shardings
from jaxmix.train.lm.step import NORMALIZATIONS, build_train_step

DOMAINS = 3


def make_batch(seed=0, rows=16, length=12):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (rows, length + 1)).astype(np.int32)
    targets = tokens[:, 1:].copy()
    targets[3, 5:] = -1
    domain = rng.choice([0, 2], rows).astype(np.int32)  # domain 1 is absent
    domain[-1] = -1  # a row that does not count
    return {"tokens": tokens[:, :-1], "targets": targets, "domain": domain}


def sgd_step(batch, mesh, **options):
    model, optimizer = bigram(), optax.sgd(1.0)
    state = init_train_state(jax.random.key(0), model, optimizer, mesh)
    before = np.asarray(state.params["table"]["kernel"])
    shardings = (train_state_shardings(model, optimizer, mesh), replicated(mesh))
    step = build_train_step(model.apply, optimizer, num_domains=DOMAINS, out_shardings=shardings, **options)
    state, info = step(state, global_batch(mesh, batch))
    return before, state, info, step


@pytest.mark.parametrize("normalization", sorted(NORMALIZATIONS))
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_step_agrees_with_a_float64_oracle(normalization, accumulate, devices):
    batch = make_batch()
    mesh = build_mesh(devices=jax.devices()[:devices])
    before, state, info, _ = sgd_step(batch, mesh, normalization=normalization, accumulate=accumulate)

    loss = bigram_loss(before, batch["tokens"], batch["targets"])
    counts, sums = np.zeros(DOMAINS), np.zeros(DOMAINS)
    for row, domain in enumerate(batch["domain"]):
        if domain >= 0:
            counts[domain] += (batch["targets"][row] >= 0).sum()
            sums[domain] += loss[row].sum()
    if normalization == "token_mean":
        weight = np.full(DOMAINS, 1.0 / counts.sum())
    else:
        weight = 1.0 / ((counts > 0).sum() * np.maximum(counts, 1))
    row_weight = np.where(batch["domain"] >= 0, weight[batch["domain"]], 0.0)
    gradient = bigram_gradient(before, batch["tokens"], batch["targets"], row_weight)

    terms = batch["targets"].size + VOCAB  # tokens of losses, which sum over words
    np.testing.assert_allclose(info.feedback.loss_sum, sums, rtol=float32_tolerance(1.0, terms))
    np.testing.assert_array_equal(info.feedback.token_count, counts)
    np.testing.assert_allclose(info.loss, sums.sum() / counts.sum(), rtol=float32_tolerance(1.0, terms))
    np.testing.assert_allclose(info.grad_norm, np.linalg.norm(gradient), rtol=1e-5)
    assert_moved_by(gradient, before, state, terms)


def assert_moved_by(gradient, before, state, terms):
    """The difference of two tables has their rounding beside that of the gradient's sum of `terms`."""
    atol = float32_tolerance(before, 1) + float32_tolerance(gradient, terms)
    np.testing.assert_allclose(before - np.asarray(state.params["table"]["kernel"]), gradient, rtol=0, atol=atol)


def test_a_regularizer_moves_parameters_and_not_the_report():
    batch, mesh = make_batch(), build_mesh(devices=jax.devices()[:1])
    model, optimizer = bigram(), optax.sgd(1.0)

    def regularized(params, batch):
        loss = model.apply(params, batch)
        return loss, jnp.where(batch["targets"] >= 0, jnp.sum(params["table"]["kernel"] ** 2), 0.0)

    infos, tables = [], []
    for apply in (model.apply, regularized):
        state = init_train_state(jax.random.key(0), model, optimizer, mesh)
        step = build_train_step(apply, optimizer, num_domains=DOMAINS)
        state, info = step(state, global_batch(mesh, batch))
        infos.append(info)
        tables.append(np.asarray(state.params["table"]["kernel"]))
    np.testing.assert_array_equal(infos[0].feedback.loss_sum, infos[1].feedback.loss_sum)
    assert np.abs(tables[0] - tables[1]).max() > 1e-3


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted():
    mesh = build_mesh(devices=jax.devices()[:2])
    model, optimizer = bigram(), optax.adamw(1e-2)
    shardings = (train_state_shardings(model, optimizer, mesh), replicated(mesh))

    def apply(params, batch):
        broken = jnp.any(batch["tokens"] == VOCAB - 1)
        return model.apply(params, batch) * jnp.where(broken, jnp.nan, 1.0)

    step = build_train_step(apply, optimizer, num_domains=DOMAINS, out_shardings=shardings)
    batch = make_batch()
    batch["tokens"] = np.minimum(batch["tokens"], VOCAB - 2)
    broken = {**batch, "tokens": batch["tokens"].copy()}
    broken["tokens"][0, 0] = VOCAB - 1

    state = init_train_state(jax.random.key(0), model, optimizer, mesh)
    state, info = step(state, global_batch(mesh, batch))
    kept = jax.tree.map(np.asarray, (state.params, state.opt_state))
    seen = []
    for data in (broken, broken, batch):
        state, info = step(state, global_batch(mesh, data))
        seen.append((int(info.skipped), int(info.consecutive_skipped)))
        if data is broken:
            jax.tree.map(np.testing.assert_array_equal, kept, jax.tree.map(np.asarray, (state.params, state.opt_state)))
            np.testing.assert_array_equal(info.feedback.loss_sum, np.zeros(DOMAINS))
            np.testing.assert_array_equal(info.feedback.token_count, np.zeros(DOMAINS))
    assert seen == [(1, 1), (2, 2), (2, 0)]
    assert int(state.step) == 4


def test_one_compilation_and_a_steady_layout_on_eight_devices():
    mesh = build_mesh(data=4, fsdp=2)
    batch = make_batch()
    _, state, _, step = sgd_step(batch, mesh)
    layout = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state)
    for seed in range(1, 4):
        state, _ = step(state, global_batch(mesh, make_batch(seed)))
    assert step._cache_size() == 1
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state) == layout


def test_an_unknown_normalization_names_the_nearest():
    with pytest.raises(ConfigError, match="token_mean"):
        build_train_step(bigram().apply, optax.sgd(1.0), num_domains=2, normalization="token-mean")


@pytest.mark.parametrize("normalization", sorted(NORMALIZATIONS))
@pytest.mark.parametrize("accumulate", [1, 2])
def test_loss_weights_agree_with_a_float64_oracle(normalization, accumulate):
    batch, mesh = make_batch(), build_mesh(devices=jax.devices()[:2])
    model, optimizer = bigram(), optax.sgd(1.0)
    state = init_train_state(jax.random.key(0), model, optimizer, mesh)
    before = np.asarray(state.params["table"]["kernel"])
    step = build_train_step(
        model.apply, optimizer, num_domains=DOMAINS, normalization=normalization, accumulate=accumulate
    )
    given = np.array([0.3, 5.0, 2.0], np.float32)
    state, _ = step(state, global_batch(mesh, batch), jax.device_put(given, replicated(mesh)))
    counts = np.zeros(DOMAINS)
    for row, domain in enumerate(batch["domain"]):
        if domain >= 0:
            counts[domain] += (batch["targets"][row] >= 0).sum()
    if normalization == "token_mean":
        weight = given / (given * counts).sum()
    else:
        weight = given / (np.maximum(counts, 1) * given[counts > 0].sum())
    row_weight = np.where(batch["domain"] >= 0, weight[batch["domain"]], 0.0)
    gradient = bigram_gradient(before, batch["tokens"], batch["targets"], row_weight)
    assert_moved_by(gradient, before, state, batch["targets"].size + VOCAB)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("devices", [1, 8])
def test_excess_over_a_reference_is_clipped_token_by_token(accumulate, devices):
    batch, mesh = make_batch(), build_mesh(devices=jax.devices()[:devices])
    rng = np.random.default_rng(1)
    has_target = batch["targets"] >= 0
    reference = np.where(has_target, rng.uniform(2, 3.5, batch["targets"].shape), 0.0).astype(np.float32)
    model, optimizer = bigram(), optax.sgd(1.0)
    state = init_train_state(jax.random.key(0), model, optimizer, mesh)
    loss = bigram_loss(np.asarray(state.params["table"]["kernel"]), batch["tokens"], batch["targets"])
    step = build_train_step(model.apply, optimizer, num_domains=DOMAINS, accumulate=accumulate)
    placed = jax.device_put(reference, jax.sharding.NamedSharding(mesh, jax.P(("data", "fsdp"))))
    _, info = step(state, {**global_batch(mesh, batch), "reference_loss": placed})
    for domain in range(DOMAINS):
        rows = batch["domain"] == domain
        assert float(info.feedback.reference_loss_sum[domain]) == pytest.approx(reference[rows].sum(), rel=1e-5)
        excess = np.maximum(loss[rows] - reference[rows], 0).sum()
        assert float(info.feedback.clipped_excess_sum[domain]) == pytest.approx(excess, rel=1e-4)
    mean_excess = np.maximum((loss - reference)[batch["domain"] == 0].sum(), 0)
    assert float(info.feedback.clipped_excess_sum[0]) > 1.2 * mean_excess  # clipping an average is not the same
