"""Decoding with kept keys and values against encoding everything again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.models import TransformerConfig, transformer
from jaxmix.models.cache import Part, joint_attention
from jaxmix.models.generation import generate, is_prompt_token
from jaxmix.models.sampling import Sampling

WORDS, PAD, EOS = 13, 0, 1
# Together they have every setting that the model has: grouped heads, each activation, both readouts, stacked blocks,
# chunks of the loss, recomputation.
CONFIGS = {
    "relu2": {"num_heads": 4, "head_dim": 6, "activation": "relu2", "remat": "block"},
    "grouped": {"num_heads": 4, "num_kv_heads": 2, "activation": "swiglu", "tie_embeddings": False, "loss_chunk": 2},
    "stacked": {"num_heads": 4, "num_kv_heads": 1, "activation": "gelu", "scan_layers": True, "remat": "dots"},
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
    """log softmax f64[b, n, t, v] of the token at each place, by `apply` on one unpadded row after another."""
    rows, count, length = continuations.shape
    result = np.zeros((rows, count, length, WORDS))
    apply = jax.jit(model.apply)
    for b in range(rows):
        prompt = np.asarray(prompts[b])
        prompt = prompt[np.argmax(prompt != PAD) :]
        for n in range(count):
            tokens = np.concatenate([prompt, np.asarray(continuations[b, n])])[:-1]
            # Every word as the target of every place: −loss is then the whole log softmax.
            targets = np.broadcast_to(np.arange(WORDS)[:, None], (WORDS, len(tokens)))
            given = jnp.asarray(np.broadcast_to(tokens, targets.shape)), jnp.asarray(targets)
            losses = apply(params, dict(zip(("tokens", "targets"), given, strict=True)))
            result[b, n] = -np.asarray(losses, np.float64).T[-length:]
    return result


@pytest.mark.parametrize("name", [pytest.param("relu2", marks=pytest.mark.slow), "grouped", "stacked"])
def test_decoding_equals_encoding_again(name):
    model, params = model_of(name)
    prompts, continuations = batch()
    length = continuations.shape[2]
    expected = encoded_again(model, params, prompts, continuations)
    valid = is_prompt_token(prompts, PAD)

    @jax.jit
    def decode(params, prompts, continuations):
        logits, cache = model.decoding.prefill(params, prompts, valid, continuations.shape[1], length)
        logits = jnp.broadcast_to(logits[:, None], (*continuations.shape[:2], WORDS))

        def step(cache, place):
            index, token = place
            logits, cache = model.decoding.extend(params, token, index, cache)
            return cache, logits

        places = jnp.arange(length - 1), jnp.moveaxis(continuations, 2, 0)[:-1]
        rest = jax.lax.scan(step, cache, places)[1]
        return jax.nn.log_softmax(jnp.concatenate([logits[None], rest]), axis=-1)

    found = np.moveaxis(np.asarray(decode(params, prompts, continuations)), 0, 2)
    np.testing.assert_allclose(found, expected, atol=1e-5)

    counted = jnp.asarray(np.random.default_rng(2).random(continuations.shape) < 0.8)
    score = jax.jit(model.decoding.score, static_argnames="temperature")
    at_tokens = np.take_along_axis(expected, np.asarray(continuations)[..., None], axis=-1)[..., 0]
    scores = score(params, prompts, valid, continuations, counted)
    np.testing.assert_allclose(scores, np.where(counted, at_tokens, 0.0), atol=1e-5)

    if name == "grouped":
        return
    cold = expected / 0.7
    cold -= np.log(np.exp(cold).sum(-1, keepdims=True))
    cold = np.take_along_axis(cold, np.asarray(continuations)[..., None], axis=-1)[..., 0]
    scores = score(params, prompts, valid, continuations, counted, temperature=0.7)
    np.testing.assert_allclose(scores, np.where(counted, cold, 0.0), atol=2e-5)


@pytest.mark.slow
def test_gradients_of_scores_equal_those_of_the_model():
    model, params = model_of("grouped")
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
    np.testing.assert_allclose(joint_attention(single(query), parts), expected, atol=1e-6)


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
    valid = is_prompt_token(prompts, PAD)
    scores = model.decoding.score(params, prompts, valid, made.tokens, made.mask, 0.8)
    np.testing.assert_allclose(made.logp, scores, atol=1e-5)
    assert (np.asarray(made.logp)[~mask] == 0).all()
    again = run(params, jax.random.key(3), prompts)
    np.testing.assert_array_equal(again.tokens, tokens)
    assert (np.asarray(run(params, jax.random.key(4), prompts).tokens) != tokens).any()
    assert run._cache_size() == 1


def test_greedy_rollouts_are_all_the_same():
    run, params, prompts = drawn(temperature=0.0)
    made = run(params, jax.random.key(3), prompts)
    np.testing.assert_array_equal(made.tokens, jnp.broadcast_to(made.tokens[:, :1], made.tokens.shape))
    best = encoded_again(model_of("stacked")[0], params, prompts, made.tokens[:, :1]).argmax(-1)
    counted = np.asarray(made.mask[:, :1])
    np.testing.assert_array_equal(np.asarray(made.tokens[:, :1])[counted], best[counted])


def test_a_model_that_cannot_generate_is_named():
    model, params = model_of("relu2")
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
