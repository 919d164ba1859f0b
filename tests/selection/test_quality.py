"""What selections are worth on a task with known answers: the order of the methods that the specification measured."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import fast
from synthetic_task import synthetic_task

from jaxmix.selection import Embeddings, independent, jest, selection_objective

SEEDS = 3


@functools.cache
def tasks(count, clusters, zipf):
    return [synthetic_task(s, count=count, batch=count // 4, clusters=clusters, zipf=zipf) for s in range(SEEDS)]


def worth(size, selector):
    """Mean over seeds of F(S)/b, and of the share of corrupted pairs selected."""

    @fast
    def select(key, learner, reference):
        indices = selector(key, learner, reference).indices
        return selection_objective(learner, reference, indices).mean, indices

    values, noisy = [], []
    for seed, task in enumerate(tasks(*size)):
        value, indices = select(jax.random.key(seed), task.learner, task.reference)
        values.append(float(value))
        noisy.append(task.is_corrupted[np.asarray(indices)].mean())
    return np.mean(values), np.mean(noisy)


@pytest.mark.slow
def test_order_of_methods_on_a_small_task():
    size, b = (512, 64, False), 128
    random, noisy_random = worth(size, jest(b, num_chunks=1, gain=0.0))
    alone, noisy_alone = worth(size, independent(b))
    joint, noisy_joint = worth(size, jest(b, num_chunks=16))
    swept, _ = worth(size, jest(b, num_chunks=16, sweeps=1))
    assert 1.15 * random < alone
    assert 1.1 * alone < joint
    assert 1.15 * joint <= swept
    assert max(noisy_alone, noisy_joint) < 0.6 * noisy_random


@pytest.mark.slow
@pytest.mark.parametrize(("clusters", "zipf"), [(512, False), (64, True)])
def test_order_of_methods_at_the_size_of_the_specification(clusters, zipf):
    size, b = (4096, clusters, zipf), 1024
    random, _ = worth(size, jest(b, num_chunks=1, gain=0.0))
    alone, _ = worth(size, independent(b))
    by_chunks = {n: worth(size, jest(b, num_chunks=n))[0] for n in (1, 4, 16, 64, 256)}
    swept, _ = worth(size, jest(b, num_chunks=16, sweeps=1))
    context, _ = worth(size, independent(b, context=True, greedy=True))
    assert random < alone < by_chunks[4] < by_chunks[16] < swept
    assert alone < context
    assert by_chunks[1] < by_chunks[4]
    assert by_chunks[16] >= 0.95 * by_chunks[256]
    assert abs(by_chunks[64] / by_chunks[16] - 1) < 0.05
    assert swept >= 1.15 * by_chunks[16]


def linear_towers(policy, steps, seed, *, pool, held_out, reference, batch=256, candidates=1280, rate=0.02):
    """Recall at 1 of two linear towers trained with Adam on batches that `policy` picks from half-corrupted pairs."""
    image, text = pool

    def embed(params, x, y):
        unit = lambda z: z / jnp.linalg.norm(z, axis=-1, keepdims=True)
        return Embeddings(unit(x @ params["image"]), unit(y @ params["text"]), jnp.exp(params["scale"]), params["bias"])

    def loss(params, x, y):
        emb = embed(params, x, y)
        logits = emb.temperature * emb.image @ emb.text.T + emb.bias
        return jnp.sum(jax.nn.softplus((1.0 - 2.0 * jnp.eye(len(logits))) * logits)) / len(logits)

    def step(carry, n):
        params, first, second = carry
        key = jax.random.fold_in(jax.random.key(seed), n)
        count = candidates if policy == "jest" else batch
        rows = jax.random.choice(key, len(image), (count,), replace=False)
        x, y = image[rows], text[rows]
        if policy == "jest":
            picked = jest(batch)(key, embed(params, x, y), embed(reference, x, y)).indices
            x, y = x[picked], y[picked]
        slope = jax.grad(loss)(params, x, y)
        first = jax.tree.map(lambda a, g: 0.9 * a + 0.1 * g, first, slope)
        second = jax.tree.map(lambda a, g: 0.95 * a + 0.05 * g * g, second, slope)
        at = (n + 1).astype(jnp.float32)
        move = lambda p, a, v: p - rate * a / (1 - 0.9**at) / (jnp.sqrt(v / (1 - 0.95**at)) + 1e-8)
        return (jax.tree.map(move, params, first, second), first, second), None

    width = image.shape[1]
    draw = lambda n: jax.random.normal(jax.random.fold_in(jax.random.key(seed), 10**6 + n), (width, 32)) / width**0.5
    start = {"image": draw(0), "text": draw(1), "scale": jnp.log(10.0), "bias": jnp.float32(-5.0)}
    zeros = jax.tree.map(jnp.zeros_like, start)
    (params, _, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(steps)))((start, zeros, zeros))
    emb = embed(params, *held_out)
    return params, float(jnp.mean(jnp.argmax(emb.image @ emb.text.T, axis=1) == jnp.arange(len(held_out[0]))))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_toy_training_needs_a_quarter_of_the_steps(seed):
    """Half of the captions belong to other images; the reference has seen 8,192 pairs that are right."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(2, 24, 64))

    def pairs(count, is_corrupted):
        latent = rng.normal(size=(count, 24))
        told = np.where(is_corrupted[:, None], latent[rng.permutation(count)], latent)
        noise = rng.normal(size=(2, count, 64))
        return tuple(
            jnp.asarray(x, jnp.float32) for x in (latent @ mix[0] + 2.5 * noise[0], told @ mix[1] + 2.5 * noise[1])
        )

    clean, pool = pairs(8192, np.zeros(8192, bool)), pairs(40_960, np.arange(40_960) % 2 == 0)
    held_out = pairs(2048, np.zeros(2048, bool))
    train = functools.partial(linear_towers, seed=seed, held_out=held_out)
    reference, of_reference = train("iid", 400, pool=clean, reference=None)
    _, of_iid = train("iid", 400, pool=pool, reference=None)
    _, of_jest = train("jest", 100, pool=pool, reference=reference)
    assert of_reference > of_iid > 0.1
    assert of_jest >= of_iid
