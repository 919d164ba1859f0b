"""Both towers against NumPy in float64, and what must hold of any pair of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import float32_tolerance

from jaxmix.core.errors import ConfigError
from jaxmix.models import ImageTowerConfig, TextTowerConfig, TwoTowersConfig, embed_mixed, two_towers
from jaxmix.models.towers.flexi import bilinear_matrix

IMAGE = {"num_layers": 1, "width": 24, "num_heads": 4, "image_size": 16, "patch_size": 4}
TEXT = {"num_layers": 1, "width": 16, "num_heads": 2, "vocab_size": 32, "length": 6}
ROUNDING = float32_tolerance(1.0, 8 * 8 * 3 + 2 * (4 * 24 + 16) + 12)
"""Of a row of unit length: a patch, then width and tokens of at most two layers, then the embedding's norm."""


def tiny(*, image=None, text=None, **settings):
    return TwoTowersConfig(
        image=ImageTowerConfig(**{**IMAGE, **(image or {})}),
        text=TextTowerConfig(**{**TEXT, **(text or {})}),
        **{"embedding_dim": 12, **settings},
    )


def random_params(towers, seed=0):
    """Larger than at the start of a run, so that every part matters; gains differ from one. NumPy compiles nothing."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        mean = {"scale": 1.0, "log_temperature": 2.0, "bias": -3.0}.get(name, 0.0)
        return jnp.asarray(mean + 0.2 * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(towers.init, jax.random.key(0)))


def random_images(rows=3, height=16, width=16, seed=1):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 256, (rows, height, width, 3), np.uint8))


def random_tokens(rows=3, length=6, seed=2):
    """Row 0 is full, the others end with padding."""
    tokens = np.random.default_rng(seed).integers(1, 32, (rows, length), np.int32)
    return jnp.asarray(np.where(np.arange(length)[None, :] < length - np.arange(rows)[:, None], tokens, 0))


# ── the oracle ───────────────────────────────────────────────────────────────────────────────────


def normed(x, scale, epsilon=1e-6):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


def softmax(x):
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def rotate(x, base=10_000.0):
    half = x.shape[1] // 2
    z = (x[:, :half] + 1j * x[:, half:]) * np.exp(
        1j * np.arange(len(x))[:, None] * base ** (-np.arange(half) / half)[None, :]
    )
    return np.concatenate([z.real, z.imag], axis=1)


def feed_forward(p, x):
    inner = np.einsum("td,dif->itf", normed(x, p["norm"]["scale"]), p["input"])
    return np.maximum(inner[0], 0) ** 2 @ p["output"]


def attend(p, x, turn):
    y, out = normed(x, p["norm"]["scale"]), 0
    for h in range(p["output"].shape[0]):
        query, key, value = (y @ p["input"][:, h, j] for j in range(3))
        if turn:
            query, key = rotate(query), rotate(key)
        out = out + softmax(query @ key.T / np.sqrt(key.shape[1])) @ value @ p["output"][h]
    return out


def pool(p, x, scale):
    y = normed(x, scale)
    if "pool" not in p:
        return y.mean(0)
    p = p["pool"]
    out = np.zeros(x.shape[1])
    for h, query in enumerate(p["query"]):
        key, value = y @ p["input"][:, h, 0], y @ p["input"][:, h, 1]
        out += softmax(key @ query / np.sqrt(len(query))) @ value @ p["output"][h]
    return out + feed_forward(p["feed_forward"], out[None])[0]


def finish(p, x, turn):
    layers = len(p["blocks"]["attention"]["input"]) if "blocks" in p else sum("block_" in name for name in p)
    for i in range(layers):
        block = p[f"block_{i:02d}"] if "blocks" not in p else jax.tree.map(lambda leaf, i=i: leaf[i], p["blocks"])
        x = x + attend(block["attention"], x, turn)
        x = x + feed_forward(block["feed_forward"], x)
    embedding = pool(p, x, p["final_norm"]["scale"]) @ p["projection"]
    return embedding / np.linalg.norm(embedding)


def image_oracle(params, images, patch, mean=0.0):
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["image"])
    stored, grid = p["patch"].shape[0], p["position"].shape[0]
    resize = bilinear_matrix(stored, patch)
    joint = np.linalg.pinv(np.kron(resize, resize).T)
    kernel = (joint @ p["patch"].reshape(stored * stored, -1)).reshape(patch, patch, 3, -1)
    rows = []
    for image in np.asarray(images, np.float64) / 127.5 - 1 - mean:
        down, across = image.shape[0] // patch, image.shape[1] // patch
        tokens = []
        for i in range(down):
            for j in range(across):
                square = image[i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
                place = np.einsum(
                    "g,h,ghd->d", bilinear_matrix(grid, down)[i], bilinear_matrix(grid, across)[j], p["position"]
                )
                tokens.append(np.einsum("pqc,pqcd->d", square, kernel) + place)
        rows.append(finish(p, np.stack(tokens), turn=False))
    return np.stack(rows)


def text_oracle(params, tokens):
    """Without padding: only the tokens themselves."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["text"])
    return np.stack([finish(p, p["table"][row[row > 0]], turn=True) for row in np.asarray(tokens)])


# ── values ───────────────────────────────────────────────────────────────────────────────────────

VARIANTS = [
    {"image": {"base_grid": 3, "pixel_mean": 0.25}},
    {
        "image": {"pool": "attention", "base_patch_size": 8, "num_layers": 2, "scan_layers": True, "remat": "block"},
        "text": {"pool": "attention", "num_layers": 2},
    },
    {"image": {"base_patch_size": 2, "remat": "dots"}, "text": {"num_layers": 2, "scan_layers": True}},
]
SEEN_AT = [[(4, 16, 16)], [(8, 16, 16), (4, 8, 12)], [(2, 8, 4)]]
"""Per variant (patch size, height, width): smaller than the stored kernel, larger, and its own size."""


@pytest.mark.parametrize(
    ("settings", "seen_at"), list(zip(VARIANTS, SEEN_AT, strict=True)), ids=["mean", "pool", "scan"]
)
def test_embeddings_equal_numpy(settings, seen_at):
    towers = two_towers(tiny(**settings))
    params = random_params(towers)
    embed = jax.jit(towers.embed_image, static_argnames="patch_size")
    for patch, height, width in seen_at:
        images = random_images(height=height, width=width)
        result = embed(params, images, patch_size=patch)
        assert result.dtype == jnp.float32
        expected = image_oracle(params, images, patch, towers.config.image.pixel_mean)
        np.testing.assert_allclose(result, expected, rtol=0, atol=ROUNDING)
    tokens = random_tokens()
    result = jax.jit(towers.embed_text)(params, tokens)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, text_oracle(params, tokens), rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(jnp.linalg.norm(result, axis=1), 1, rtol=0, atol=float32_tolerance(1.0, 12))


def test_one_patch_size_is_traced_once_and_floats_are_images_already_scaled():
    towers = two_towers(tiny(image={"image_size": 8}))
    params = random_params(towers)
    embed = jax.jit(towers.embed_image, static_argnames="patch_size")
    for seed in range(2):
        for patch in (2, 4):
            embed(params, random_images(height=8, width=8, seed=seed), patch_size=patch)
    assert embed._cache_size() == 2
    images = random_images(height=8, width=8)
    default = embed(params, images.astype(jnp.float32) / 127.5 - 1.0)
    np.testing.assert_allclose(default, embed(params, images, patch_size=4), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_padding_does_not_matter_wherever_it_stands(pool):
    towers = two_towers(tiny(text={"pool": pool}))
    params, tokens = random_params(towers), random_tokens()
    embed = jax.jit(towers.embed_text)
    expected = text_oracle(params, tokens)
    for padding in (
        {"pad_width": ((0, 0), (0, 3))},
        {"pad_width": ((0, 0), (0, 3)), "constant_values": -1},
        {"pad_width": ((0, 0), (3, 0))},  # positions are rotary: only distances count
    ):
        np.testing.assert_allclose(embed(params, jnp.pad(tokens, **padding)), expected, rtol=0, atol=ROUNDING)
    padded = jnp.pad(tokens, ((0, 0), (0, 3)))
    longer = embed(params, padded.at[:, 8].set(7)) - expected
    swapped = embed(params, padded[:, jnp.array([1, 0, *range(2, 9)])]) - expected
    for change in (longer, swapped):
        assert np.abs(change).max(axis=1).min() > 1e-3
    assert embed._cache_size() == 1


@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_a_row_of_padding_becomes_zeros_and_breaks_no_gradient(pool):
    towers = two_towers(tiny(text={"pool": pool}))
    params, tokens = random_params(towers), random_tokens().at[1].set(0)

    def objective(params, tokens, weights):
        embedding = towers.embed_text(params, tokens)
        return jnp.sum(weights * embedding[:, 0]), embedding

    gradient = jax.jit(jax.grad(objective, has_aux=True))
    slopes, embedding = gradient(params, tokens, jnp.ones(3))
    np.testing.assert_array_equal(embedding[1], 0)
    without, _ = gradient(params, random_tokens(), jnp.array([1.0, 0.0, 1.0]))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), slopes, without)


# ── precision ────────────────────────────────────────────────────────────────────────────────────


def test_bfloat16_gives_single_precision_unit_vectors_near_those_of_float64():
    towers = two_towers(tiny(compute_dtype="bfloat16"))
    params, images, tokens = random_params(towers), random_images(), random_tokens()
    embed = jax.jit(lambda *a: (towers.embed_image(*a[:2], patch_size=8), towers.embed_text(a[0], a[2])))
    oracles = image_oracle(params, images, 8), text_oracle(params, tokens)
    for result, expected in zip(embed(params, images, tokens), oracles, strict=True):
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(jnp.linalg.norm(result, axis=1), 1, rtol=0, atol=float32_tolerance(1.0, 12))
        np.testing.assert_allclose(result, expected, atol=0.02)
    assert "bf16" in jax.jit(towers.embed_image).lower(params, images).as_text()
    slopes = jax.eval_shape(jax.grad(lambda p: jnp.sum(towers.embed_image(p, images))), params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(slopes))


def test_gradient_reaches_every_parameter_and_equals_finite_differences():
    with jax.enable_x64(True):
        image = {"pool": "attention", "base_patch_size": 8}
        towers = two_towers(tiny(compute_dtype="float64", image=image, text={"activation": "swiglu", "mlp_width": 8}))
        params = jax.tree.map(lambda x: x.astype(jnp.float64), random_params(towers))
        images, tokens = random_images(height=8, width=8), random_tokens()

        @jax.jit
        def slope(params):
            def objective(params):
                image, text = towers.embed_image(params, images), towers.embed_text(params, tokens)
                return towers.loss(image, text, *towers.scale(params))

            return jax.value_and_grad(objective)(params)

        gradient = slope(params)[1]
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
            assert float(jnp.max(jnp.abs(leaf))) > 0, path
        rng = np.random.default_rng(5)
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
        ahead, behind = (
            float(slope(jax.tree.map(lambda x, d, s=sign * 1e-5: x + s * d, params, direction))[0])
            for sign in (1.0, -1.0)
        )
        pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
        expected = sum(np.vdot(np.asarray(g), d) for g, d in pairs)
        np.testing.assert_allclose(expected, (ahead - behind) / 2e-5, rtol=1e-6)


# ── the bundle ───────────────────────────────────────────────────────────────────────────────────


def test_scale_is_the_factor_itself_and_a_softmax_has_no_bias():
    for settings, expected in (
        ({}, (10.0, -10.0)),
        ({"loss": "softmax"}, (1 / 0.07, 0.0)),
        ({"temperature": 5.0, "bias": -2.71}, (5.0, -2.71)),
    ):
        towers = two_towers(tiny(**settings))
        # Compiled together: what makes all other parameters is then left out.
        scale = jax.jit(lambda key, towers=towers: towers.scale(towers.init(key)))(jax.random.key(0))
        np.testing.assert_allclose(scale, expected, rtol=1e-6)
        assert ("bias" in towers.partition) == ("loss" not in settings)


def test_every_parameter_is_counted_and_has_a_specification_of_its_rank():
    for settings in (VARIANTS[1], {"loss": "softmax", "text": {"activation": "swiglu"}}):
        towers = two_towers(tiny(**settings))
        shapes = jax.eval_shape(towers.init, jax.random.key(0))
        assert towers.num_params == sum(leaf.size for leaf in jax.tree.leaves(shapes))
        fits = jax.tree.map(lambda leaf, spec: len(spec) == leaf.ndim, shapes, towers.partition)
        assert all(jax.tree.leaves(fits))


def test_float64_needs_64_bit_mode():
    with pytest.raises(ConfigError, match="needs JAX's 64-bit mode"):
        two_towers(tiny(compute_dtype="float64"))


def test_wrong_arrays_are_refused():
    towers = two_towers(tiny())
    params = random_params(towers)
    with pytest.raises(ConfigError, match="patches of 5 pixels do not fill an image of 16 x 16"):
        towers.embed_image(params, random_images(), patch_size=5)
    with pytest.raises(ConfigError, match=r"images must be uint8 or float32 \[b, h, w, 3\], got uint8\[3, 16, 16\]"):
        towers.embed_image(params, random_images()[..., 0])
    with pytest.raises(ConfigError, match=r"tokens must be integers \[b, t\], got float32\[3, 6\]"):
        towers.embed_text(params, random_tokens().astype(jnp.float32))


def test_settings_are_checked_where_they_are_written_down():
    for change, words in (
        ({"image": {"patch_size": 5}}, "patches of 5 pixels do not fill"),
        ({"image": {"num_heads": 5}}, r"5 heads do not divide the width 24 \(model.image.num_heads\)"),
        ({"text": {"pool": "men"}}, "unknown text.pool 'men'.*Did you mean 'mean'"),
        ({"text": {"vocab_size": 1}}, "text.vocab_size must be at least 2, got 1"),
        ({"image": {"pixel_mean": 128.0}}, "lies between them, got 128.0"),
        ({"loss": "sigmod"}, "unknown loss 'sigmod'"),
        ({"temperature": 0.0}, "temperature must be finite and above 0, got 0.0"),
        ({"bias": float("nan")}, "bias must be finite"),
    ):
        with pytest.raises(ConfigError, match=words):
            tiny(**change)


# ── it learns ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_it_learns_which_name_belongs_to_which_picture_at_both_patch_sizes():
    """Sixteen names: which quarter of the picture is bright, in which of four colors; half the rows at each size."""
    towers = two_towers(tiny(embedding_dim=16, bias=-3.0, image={"base_patch_size": 8}))
    classes, rng = np.arange(16), np.random.default_rng(0)
    colors = np.array([[2, 0, 0], [0, 2, 0], [0, 0, 2], [2, 2, 2]])
    bright = np.zeros((16, 2, 2, 3))
    bright[classes, classes // 8, classes // 4 % 2] = colors[classes % 4]
    names = jnp.asarray(np.stack([1 + classes // 4, 5 + classes % 4], axis=1))

    def pictures():
        clean = bright.repeat(8, axis=1).repeat(8, axis=2) - 1
        return jnp.asarray(clean + 0.3 * rng.normal(size=clean.shape), jnp.float32)

    @jax.jit
    def step(params, state, images, key):
        def objective(params):
            image = embed_mixed(towers.embed_image, params, images, patch_sizes=(4, 8), key=key)
            text = towers.embed_text(params, names)
            return towers.loss(image, text, *towers.scale(params)), image @ text.T

        slopes, cosines = jax.grad(objective, has_aux=True)(params)
        state = jax.tree.map(lambda v, g: 0.9 * v + 0.1 * g**2, state, slopes)
        params = jax.tree.map(lambda p, g, v: p - 2e-3 * g / (jnp.sqrt(v) + 1e-8), params, slopes, state)
        return params, state, jnp.mean(jnp.argmax(cosines, axis=1) == classes)

    params = jax.jit(towers.init)(jax.random.key(0))
    state, found = jax.tree.map(jnp.zeros_like, params), []
    for key in jax.random.split(jax.random.key(1), 220):
        params, state, share = step(params, state, pictures(), key)
        found.append(float(share))
    assert np.mean(found[:10]) < 0.3
    assert np.mean(found[-10:]) > 0.9, found[::10]
