"""The whole transformer against NumPy in float64, and what must hold of any causal language model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.models import TransformerConfig, transformer


def tiny(**settings):
    defaults = {"num_layers": 2, "width": 24, "vocab_size": 17, "num_heads": 4, "head_dim": 6, "attention_block": 4}
    return TransformerConfig(**{**defaults, **settings})


def random_batch(rows=3, length=11, words=17, seed=1):
    tokens = jax.random.randint(jax.random.key(seed), (rows, length + 1), 0, words)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}


def random_params(model, seed=0, spread=0.3):
    """Larger than at the start of a run, so that every part matters; gains differ from one."""
    params = model.init(jax.random.key(seed))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noise = [spread * jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, [leaf + extra for leaf, extra in zip(leaves, noise, strict=True)])


def rms_norm(x, scale, epsilon):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


def rotate(x, base):
    """x [t, k]: the pair (i, i + k/2) at position p as a complex number times exp(i p base^(-2i/k))."""
    half = x.shape[1] // 2
    turn = np.exp(1j * np.arange(len(x))[:, None] * base ** (-np.arange(half) / half)[None, :])
    z = (x[:, :half] + 1j * x[:, half:]) * turn
    return np.concatenate([z.real, z.imag], axis=1)


def attend(p, x, config):
    y = rms_norm(x, p["norm"]["scale"], config.norm_epsilon)
    groups, per_group = config.key_heads, config.query_heads // config.key_heads
    mixed = np.zeros_like(x)
    for g in range(groups):
        key = rotate(y @ p["input"][:, g, per_group], config.rope_base)
        value = y @ p["input"][:, g, per_group + 1]
        for r in range(per_group):
            query = rotate(y @ p["input"][:, g, r], config.rope_base)
            scores = query @ key.T / np.sqrt(config.size_of_head)
            scores[np.triu_indices(len(x), 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            mixed += weights @ value @ p["output"][g * per_group + r]
    return mixed


def feed_forward(p, x, config):
    inner = np.einsum("td,dif->itf", rms_norm(x, p["norm"]["scale"], config.norm_epsilon), p["input"])
    if config.activation == "swiglu":
        active = inner[0] / (1 + np.exp(-inner[0])) * inner[1]
    elif config.activation == "gelu":
        active = 0.5 * inner[0] * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner[0] + 0.044715 * inner[0] ** 3)))
    else:
        active = np.where(inner[0] > 0, inner[0], 0.0) ** 2
    return active @ p["output"]


def oracle(params, batch, config):
    """(loss, log normalizer) in float64, row by row."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    losses, normalizers = [], []
    for tokens, targets in zip(np.asarray(batch["tokens"]), np.asarray(batch["targets"]), strict=True):
        x = params["table"][tokens]
        for i in range(config.num_layers):
            p = (
                jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
                if config.is_scanned
                else params[f"block_{i:02d}"]
            )
            x = x + attend(p["attention"], x, config)
            x = x + feed_forward(p["feed_forward"], x, config)
        x = rms_norm(x, params["final_norm"]["scale"], config.norm_epsilon)
        logits = x @ (params["table"] if config.tie_embeddings else params["readout"]).T
        normalizer = np.log(np.exp(logits).sum(-1))
        loss = normalizer - logits[np.arange(len(targets)), np.maximum(targets, 0)]
        losses.append(np.where(targets < 0, 0, loss))
        normalizers.append(np.where(targets < 0, 0, normalizer))
    return np.stack(losses), np.stack(normalizers)


VARIANTS = [
    {},
    {"activation": "gelu"},
    {"activation": "swiglu", "mlp_width": 20},
    {"num_kv_heads": 2},
    {"num_kv_heads": 1, "attention": "dot_product"},
    {"tie_embeddings": False},
    {"scan_layers": True, "remat": "block"},
    {"remat": "dots"},
    {"loss_chunk": 3, "z_loss": 0.01},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_forward_equals_numpy(settings):
    config = tiny(**settings)
    model = transformer(config)
    params, batch = random_params(model, spread=0.1), random_batch()
    batch["targets"] = batch["targets"].at[1, 3].set(-1)
    result = jax.jit(model.apply)(params, batch)
    expected, normalizer = oracle(params, batch, config)
    loss, regularizer = result if config.z_loss else (result, None)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)
    assert loss[1, 3] == 0
    if config.z_loss:
        np.testing.assert_allclose(regularizer, config.z_loss * normalizer**2, rtol=1e-5, atol=1e-5)


def test_gradient_equals_finite_differences():
    with jax.enable_x64(True):
        config = tiny(compute_dtype="float64", num_kv_heads=2, activation="swiglu", mlp_width=8, z_loss=0.1)
        model = transformer(config)
        params = jax.tree.map(lambda x: x.astype(jnp.float64), random_params(model))
        batch = random_batch(rows=1, length=6)
        objective = jax.jit(lambda p: sum(jnp.sum(part) for part in model.apply(p, batch)))
        gradient = jax.grad(objective)(params)
        leaves, structure = jax.tree.flatten(params)
        for seed in range(3):
            keys = jax.random.split(jax.random.key(seed), len(leaves))
            direction = jax.tree.unflatten(
                structure, [jax.random.normal(k, x.shape, jnp.float64) for k, x in zip(keys, leaves, strict=True)]
            )
            step = 1e-5
            ahead, behind = (
                objective(jax.tree.map(lambda x, d, s=sign * step: x + s * d, params, direction))
                for sign in (1.0, -1.0)
            )
            slope = sum(
                jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
            )
            np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-6)


@pytest.mark.parametrize(
    ("remat", "scan_layers"),
    [
        ("dots", False),
        ("block", True),
        pytest.param("dots", True, marks=pytest.mark.slow),
        pytest.param("block", False, marks=pytest.mark.slow),
    ],
)
def test_remat_and_scan_change_no_gradient(remat, scan_layers):
    batch = random_batch()

    def gradient(**settings):
        model = transformer(tiny(**settings))
        params = random_params(transformer(tiny()), spread=0.1)
        if settings.get("scan_layers"):
            blocks = [params.pop(f"block_{i:02d}") for i in range(2)]
            params["blocks"] = jax.tree.map(lambda *x: jnp.stack(x), *blocks)
        grads = jax.jit(jax.grad(lambda p: jnp.sum(model.apply(p, batch))))(params)
        if "blocks" in grads:
            stacked = grads.pop("blocks")
            for i in range(2):
                grads[f"block_{i:02d}"] = jax.tree.map(lambda x, i=i: x[i], stacked)
        return grads

    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5),
        gradient(),
        gradient(remat=remat, scan_layers=scan_layers),
    )


def test_stacked_blocks_start_from_the_same_parameters():
    key = jax.random.key(3)
    loose, stacked = transformer(tiny()).init(key), transformer(tiny(scan_layers=True)).init(key)
    for i in range(2):
        jax.tree.map(
            np.testing.assert_array_equal, loose[f"block_{i:02d}"], jax.tree.map(lambda x, i=i: x[i], stacked["blocks"])
        )


def test_a_later_token_changes_no_earlier_loss():
    model = transformer(tiny())
    params, batch = random_params(model), random_batch()
    changed = {**batch, "tokens": batch["tokens"].at[:, 7].set((batch["tokens"][:, 7] + 1) % 17)}
    before, after = model.apply(params, batch), model.apply(params, changed)
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert np.abs(np.asarray(before[:, 7:] - after[:, 7:])).min(axis=0).max() > 1e-3


def test_loss_starts_near_that_of_guessing():
    model = transformer(TransformerConfig(num_layers=4, width=128))
    batch = random_batch(rows=8, length=64, words=256)
    loss = jax.jit(model.apply)(model.init(jax.random.key(0)), batch)
    assert abs(float(jnp.mean(loss)) - np.log(256)) < 0.1


def test_bfloat16_is_finite_and_near_float32():
    settings = {"num_layers": 3, "width": 64, "num_heads": 2, "head_dim": 32}
    single, half = (transformer(tiny(**settings, compute_dtype=dtype)) for dtype in ("float32", "bfloat16"))
    params, batch = single.init(jax.random.key(0)), random_batch()
    loss = jax.jit(half.apply)(params, batch)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, jax.jit(single.apply)(params, batch), atol=0.05)
    gradient = jax.jit(jax.grad(lambda p: jnp.mean(half.apply(p, batch))))(params)
    assert all(leaf.dtype == jnp.float32 and bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))


def test_gradient_reaches_every_parameter_and_is_finite_without_targets():
    model = transformer(tiny(tie_embeddings=False, activation="swiglu", z_loss=1e-3))
    params, batch = model.init(jax.random.key(0)), random_batch()

    def objective(params, batch):
        return sum(jnp.sum(part) for part in model.apply(params, batch))

    gradient = jax.jit(jax.grad(objective))
    for leaf in jax.tree.leaves(gradient(params, batch)):
        assert bool(jnp.all(jnp.isfinite(leaf)))
        assert float(jnp.max(jnp.abs(leaf))) > 0
    empty = {**batch, "targets": jnp.full_like(batch["targets"], -1)}
    assert all(float(jnp.max(jnp.abs(leaf))) == 0 for leaf in jax.tree.leaves(gradient(params, empty)))


@pytest.mark.parametrize("scan_layers", [pytest.param(False, marks=pytest.mark.slow), True])
def test_runs_under_vmap_over_stacked_params(scan_layers):
    model = transformer(tiny(scan_layers=scan_layers))
    keys = jax.random.split(jax.random.key(0), 3)
    batch = random_batch()
    together = jax.jit(jax.vmap(model.apply, in_axes=(0, None)))(jax.vmap(model.init)(keys), batch)
    for i in range(3):
        np.testing.assert_allclose(together[i], model.apply(model.init(keys[i]), batch), atol=1e-5)


def test_forward_mode_gives_the_same_slope():
    """Mixers may ask for the alignment of a domain's gradient with a direction, which is one forward-mode pass."""
    model = transformer(tiny())
    params, batch = random_params(model), random_batch()
    objective = lambda p: jnp.mean(model.apply(p, batch))
    direction = random_params(model, seed=5)
    slope = jax.jit(lambda p, d: jax.jvp(objective, (p,), (d,))[1])(params, direction)
    gradient = jax.jit(jax.grad(objective))(params)
    expected = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
    np.testing.assert_allclose(slope, expected, rtol=1e-4)


def test_one_trace_for_one_shape():
    model = transformer(tiny())
    params = model.init(jax.random.key(0))
    apply = jax.jit(model.apply)
    for seed in range(3):
        apply(params, random_batch(seed=seed))
    assert apply._cache_size() == 1


def test_parameters_are_plain_nested_dictionaries_of_float32():
    params = transformer(tiny()).init(jax.random.key(0))

    def walk(node):
        for name, child in node.items():
            assert isinstance(name, str)
            if isinstance(child, dict):
                walk(child)
            else:
                assert isinstance(child, jax.Array)
                assert child.dtype == jnp.float32

    walk(params)


@pytest.mark.slow
def test_it_learns_to_copy_what_repeats():
    """Rows of period 3: the third token back tells the next one, which needs attention and positions."""
    model = transformer(TransformerConfig(num_layers=2, width=32, num_heads=2, vocab_size=16))
    params = model.init(jax.random.key(0))

    @jax.jit
    def step(params, key):
        tokens = jnp.tile(jax.random.randint(key, (32, 3), 0, 16), (1, 6))
        batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
        loss, gradient = jax.value_and_grad(lambda p: jnp.mean(model.apply(p, batch)[:, 3:]))(params)
        return jax.tree.map(lambda p, g: p - 0.02 * jnp.sign(g), params, gradient), loss

    for key in jax.random.split(jax.random.key(1), 150):
        params, loss = step(params, key)
    assert float(loss) < 0.5 * np.log(16)


def test_float64_needs_64_bit_mode():
    with pytest.raises(ConfigError, match="needs JAX's 64-bit mode"):
        transformer(tiny(compute_dtype="float64"))


def test_the_tables_gradient_is_added_up_in_float32():
    """A frequent word's rows are thousands; on a GPU a sum of so many bfloat16 stands still."""
    model = transformer(TransformerConfig(1, 64, 32, tie_embeddings=False, compute_dtype="bfloat16"))
    params = jax.eval_shape(model.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    total = lambda params, tokens: jnp.sum(model.apply(params, {"tokens": tokens, "targets": tokens}))
    lines = str(jax.make_jaxpr(jax.grad(total))(params, tokens)).splitlines()
    assert [line.split()[0].split(":")[1] for line in lines if "= scatter-add" in line] == ["f32[32,64]"]
