"""Decoding with kept keys and values against encoding everything again."""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_decoder import attend, feed_forward, rms_norm
from tolerance import float32_tolerance

from jaxmix.core.errors import ConfigError
from jaxmix.models import TransformerConfig, transformer
from jaxmix.models.lm.cache import Part, joint_attention
from jaxmix.models.lm.generation import generate, is_prompt_token
from jaxmix.models.lm.sampling import Sampling

WORDS, PAD, EOS = 13, 0, 1
# Grouped heads, each activation, both readouts, stacked blocks, chunks of the loss, recomputation.
CONFIGS = {
    "stacked": {
        "num_heads": 4,
        "num_kv_heads": 2,
        "activation": "swiglu",
        "tie_embeddings": False,
        "scan_layers": True,
        "loss_chunk": 2,
    },
    "relu2": {"num_heads": 4, "head_dim": 6, "activation": "relu2", "remat": "block"},
    "one key head": {"num_heads": 4, "num_kv_heads": 1, "activation": "gelu", "scan_layers": True, "remat": "dots"},
}


@functools.cache
def model_of(name):
    model = transformer(TransformerConfig(num_layers=2, width=24, vocab_size=WORDS, **CONFIGS[name]))
    leaves, structure = jax.tree.flatten(model.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [0.2 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return model, jax.tree.unflatten(structure, [leaf + extra for leaf, extra in zip(leaves, noise, strict=True)])


def batch(rows=2, prompt=6, count=2, length=4):
    """Prompts, the second with three slots of padding on the left, and any continuations."""
    prompts = np.random.default_rng(0).integers(2, WORDS, (rows, prompt))
    for row in range(rows):
        prompts[row, : 3 * row] = PAD
    return jnp.asarray(prompts), jnp.asarray(np.random.default_rng(1).integers(0, WORDS, (rows, count, length)))


def encoded_again(model, params, prompts, continuations):
    """log softmax f64[b, n, t, v] of the token at each place: every row whole and unpadded, through the NumPy model."""
    config = model.config
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    result = np.zeros((*continuations.shape, WORDS))
    for b, n in np.ndindex(*continuations.shape[:2]):
        prompt = np.asarray(prompts[b])
        x = params["table"][np.concatenate([prompt[np.argmax(prompt != PAD) :], np.asarray(continuations[b, n])])[:-1]]
        for i in range(config.num_layers):
            block = params["blocks"] if config.is_scanned else params[f"block_{i:02d}"]
            block = jax.tree.map(lambda leaf, i=i: leaf[i], block) if config.is_scanned else block
            x = x + attend(block["attention"], x, config)
            x = x + feed_forward(block["feed_forward"], x, config)
        readout = params["table" if config.tie_embeddings else "readout"]
        logits = rms_norm(x, params["final_norm"]["scale"], config.norm_epsilon) @ readout.T
        result[b, n] = (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[-continuations.shape[2] :]
    return result


def at(log_softmax, tokens):
    return np.take_along_axis(log_softmax, np.asarray(tokens)[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize(
    "name", ["stacked", *(pytest.param(n, marks=pytest.mark.slow) for n in ("relu2", "one key head"))]
)
def test_decoding_equals_encoding_again(name):
    model, params = model_of(name)
    prompts, continuations = batch()
    length = continuations.shape[2]
    counted = jnp.asarray(np.random.default_rng(2).random(continuations.shape) < 0.8)
    expected = encoded_again(model, params, prompts, continuations)

    @jax.jit
    def run(params, prompts, continuations):
        valid = is_prompt_token(prompts, PAD)
        logits, cache = model.decoding.prefill(params, prompts, valid, continuations.shape[1], length)
        logits = jnp.broadcast_to(logits[:, None], (*continuations.shape[:2], WORDS))

        def step(cache, place):
            index, token = place
            logits, cache = model.decoding.extend(params, token, index, cache)
            return cache, logits

        places = jnp.arange(length - 1), jnp.moveaxis(continuations, 2, 0)[:-1]
        rest = jax.lax.scan(step, cache, places)[1]
        scores = model.decoding.score(params, prompts, valid, continuations, counted, 0.7)
        return jax.nn.log_softmax(jnp.concatenate([logits[None], rest]), axis=-1), scores

    decoded, scores = run(params, prompts, continuations)
    np.testing.assert_allclose(np.moveaxis(np.asarray(decoded), 0, 2), expected, atol=1e-5)
    cold = expected / 0.7
    cold -= np.log(np.exp(cold).sum(-1, keepdims=True))
    np.testing.assert_allclose(scores, np.where(counted, at(cold, continuations), 0.0), atol=1.5e-5)


@pytest.mark.slow
def test_gradients_of_scores_equal_those_of_the_model():
    model, params = model_of("stacked")
    prompts, continuations = batch(rows=2, prompt=3, count=2, length=4)
    prompts = jnp.maximum(prompts, 2)  # no padding, so that `apply` takes all rows at once
    counted = jnp.ones(continuations.shape, bool)

    def by_score(params):
        return jnp.sum(model.decoding.score(params, prompts, prompts >= 0, continuations, counted))

    def by_apply(params):
        rows = jnp.concatenate([jnp.repeat(prompts, 2, axis=0), continuations.reshape(4, 4)], axis=1)
        targets = rows[:, 1:].at[:, :2].set(-1)
        return -jnp.sum(model.apply(params, {"tokens": rows[:, :-1], "targets": targets}))

    found, expected = jax.grad(by_score)(params), jax.grad(by_apply)(params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5), found, expected)


def test_parts_share_one_softmax():
    rng = np.random.default_rng(0)
    b, n, s, h, q, k = 2, 3, 2, 4, 2, 5
    query = rng.normal(size=(b, n, s, h, k))
    shared, own = rng.normal(size=(2, b, q, 4, k)), rng.normal(size=(2, b, n, q, 3, k))
    sees_shared = rng.random((b, 4)) < 0.7
    sees_own = np.tril(np.ones((s, 3), bool), 1)
    expected = np.zeros(query.shape)
    for i, j, place, head in np.ndindex(b, n, s, h):
        g = head // (h // q)
        keys = np.concatenate([shared[0, i, g][sees_shared[i]], own[0, i, j, g][sees_own[place]]])
        values = np.concatenate([shared[1, i, g][sees_shared[i]], own[1, i, j, g][sees_own[place]]])
        weights = np.exp(keys @ query[i, j, place, head] / np.sqrt(k))
        expected[i, j, place, head] = weights @ values / weights.sum()
    single = lambda x: jnp.asarray(x, jnp.float32)
    parts = [
        Part(single(shared[0]), single(shared[1]), jnp.asarray(sees_shared)[:, None, None]),
        Part(single(own[0]), single(own[1]), jnp.asarray(sees_own)[None, None]),
    ]
    atol = float32_tolerance(own, 4 + 3 + k)
    np.testing.assert_allclose(joint_attention(single(query), parts), expected, rtol=0, atol=atol)


@functools.cache
def drawn(**sampling):
    model, params = model_of("stacked")
    prompts, _ = batch()
    settings = Sampling(**sampling)

    @jax.jit
    def run(params, key, prompts):
        return generate(
            model, params, key, prompts, num_rollouts=4, length=7, eos_id=EOS, pad_id=PAD, sampling=settings
        )

    return run, params, prompts


def test_rollouts_report_what_the_policy_says_of_them():
    run, params, prompts = drawn(temperature=1.3, policy_temperature=0.8)
    made = run(params, jax.random.key(3), prompts)
    tokens, mask = np.asarray(made.tokens), np.asarray(made.mask)
    for row, counted in zip(tokens.reshape(-1, 7), mask.reshape(-1, 7), strict=True):
        ends = np.flatnonzero((row == EOS) & counted)
        length = ends[0] + 1 if len(ends) else 7
        assert counted.tolist() == [True] * length + [False] * (7 - length)
        assert (row[length:] == PAD).all()
    assert (mask.sum(2) < 7).any()
    model, _ = model_of("stacked")
    cold = encoded_again(model, params, prompts, made.tokens) / 0.8
    cold -= np.log(np.exp(cold).sum(-1, keepdims=True))
    np.testing.assert_allclose(made.logp, np.where(mask, at(cold, tokens), 0.0), atol=1.5e-5)
    assert (np.asarray(made.logp)[~mask] == 0).all()
    again = run(params, jax.random.key(3), prompts)
    np.testing.assert_array_equal(again.tokens, tokens)
    assert (np.asarray(run(params, jax.random.key(4), prompts).tokens) != tokens).any()
    assert run._cache_size() == 1


@pytest.mark.slow
def test_greedy_rollouts_are_all_the_same():
    run, params, prompts = drawn(temperature=0.0)
    made = run(params, jax.random.key(3), prompts)
    np.testing.assert_array_equal(made.tokens, jnp.broadcast_to(made.tokens[:, :1], made.tokens.shape))
    best = encoded_again(model_of("stacked")[0], params, prompts, made.tokens[:, :1]).argmax(-1)
    counted = np.asarray(made.mask[:, :1])
    np.testing.assert_array_equal(np.asarray(made.tokens[:, :1])[counted], best[counted])


def test_a_model_that_cannot_generate_is_named():
    model, params = model_of("stacked")
    with pytest.raises(ConfigError, match="cannot generate"):
        generate(
            model._replace(decoding=None),
            params,
            jax.random.key(0),
            batch()[0],
            num_rollouts=1,
            length=1,
            eos_id=1,
            pad_id=0,
        )
