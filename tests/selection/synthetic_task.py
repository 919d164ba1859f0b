"""A super-batch in which it is known what a good selection is: pairs of known clusters, some corrupted, some learned.

Rebuilt from the description in the specification, which gives the sizes and shares and not the generator: an example's
latent is its cluster's center with a direction of its own; the reference sees image and text as the latent with a
little noise; the learner sees the clusters that it has not learned drawn toward a center that eight of them share, so
that it takes their members for each other; a corrupted pair has the text of another example. Temperature and bias of
each model are fitted to random batches. Levels differ from those of the specification for that reason; the order of
the methods is what it says.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.selection import Embeddings


class Task(NamedTuple):
    learner: Embeddings
    reference: Embeddings
    is_corrupted: np.ndarray


def synthetic_task(
    seed,
    *,
    count=4096,
    batch=1024,
    clusters=512,
    zipf=False,
    width=64,
    corrupted=0.15,
    learned=0.25,
    spread=0.7,
    blur=0.6,
):
    rng = np.random.default_rng(seed)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    noise = lambda scale: scale * rng.normal(size=(count, width)) / np.sqrt(width)
    share = 1.0 / np.arange(1, clusters + 1) if zipf else np.ones(clusters)
    cluster = rng.choice(clusters, size=count, p=share / share.sum())
    center = unit(rng.normal(size=(clusters, width)))
    common = unit(rng.normal(size=(-(-clusters // 8), width)))[np.arange(clusters) // 8]
    latent = unit(center[cluster] + noise(spread))
    is_corrupted = rng.random(count) < corrupted
    text_of = np.arange(count)
    text_of[is_corrupted] = rng.integers(0, count, is_corrupted.sum())
    is_learned = (rng.permutation(clusters) < learned * clusters)[cluster]
    blurred = np.where(is_learned[:, None], latent, unit((1 - blur) * latent + blur * common[cluster]))
    models = []
    for seen in (blurred, latent):
        image, text = unit(seen + noise(0.4)), unit(seen[text_of] + noise(0.4))
        models.append(calibrated(rng, image, text, batch))
    return Task(*models, is_corrupted)


def calibrated(rng, image, text, batch, steps=150):
    """Temperature and bias that minimize the sigmoid loss of random batches, by Adam on their logarithm and value."""
    batches = jnp.asarray(np.stack([rng.permutation(len(image))[:batch] for _ in range(4)]))
    image, text = jnp.asarray(image, jnp.float32), jnp.asarray(text, jnp.float32)
    sign = 1.0 - 2.0 * jnp.eye(batch)

    def loss(scale, products):
        return jnp.sum(jax.nn.softplus(sign * (jnp.exp(scale[0]) * products + scale[1]))) / batch

    def step(carry, n):
        scale, first, second = carry
        slope = jax.grad(loss)(scale, all_products[n % len(batches)])
        first, second = 0.9 * first + 0.1 * slope, 0.99 * second + 0.01 * slope**2
        at = (n + 1).astype(jnp.float32)
        move = first / (1 - 0.9**at) / (jnp.sqrt(second / (1 - 0.99**at)) + 1e-8)
        return (scale - 0.1 * move, first, second), None

    all_products = jnp.einsum("nbd,ncd->nbc", image[batches], text[batches])
    start = jnp.asarray([np.log(10.0), -5.0], jnp.float32)
    (scale, _, _), _ = jax.jit(lambda s: jax.lax.scan(step, (s, 0 * s, 0 * s), jnp.arange(steps)))(start)
    return Embeddings(image, text, jnp.exp(scale[0]), scale[1])
