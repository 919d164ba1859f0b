"""The kernels on this machine's device against float64 on its CPU, each within a bound that its sums allow.

u = 2⁻²⁴ is the rounding unit of float32, 2⁻⁸ that of bfloat16. A sum of n products whose absolute values add up to S
is wrong by about λ √n u S at most, λ = 4 (Higham and Mary 2019, "A new approach to probabilistic rounding error
analysis": the bound n u S of the worst case never happens with independent roundings). Every bound below is built
from this one and from the accuracy that a function's docstring states.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import internal
import jax
import jax.numpy as jnp
import numpy as np

import jaxmix.curricula  # registers the mixer that is any bandit  # noqa: F401
from jaxmix import mixers
from jaxmix.clustering import GemState, assign, fit, gem
from jaxmix.models import TransformerConfig, transformer
from jaxmix.selection import Embeddings, jest, selection_objective
from jaxmix.train import grpo_loss

U = 2.0**-24
U16 = 2.0**-8
LAMBDA = 4.0


class Check(NamedTuple):
    """Attributes:
    name: of what was compared.
    error: the largest deviation found.
    bound: what rounding allows.
    note: how both are measured.
    """

    name: str
    error: float
    bound: float
    note: str

    @property
    def is_ok(self) -> bool:
        return bool(self.error <= self.bound)

    def as_json(self) -> dict[str, Any]:
        return {**self._asdict(), "ok": self.is_ok}


def in_float64(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's values on the CPU in float64, as NumPy arrays; the arguments' floats are taken to it."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        wide = lambda x: jnp.asarray(np.asarray(x, np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x)
        return jax.tree.map(np.asarray, function(*jax.tree.map(lambda x: wide(np.asarray(x)), arguments)))


def largest(a: Any, b: Any) -> float:
    """max |a − b|; infinite where a value is not finite."""
    difference = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))
    return float(np.max(np.where(np.isfinite(difference), difference, np.inf), initial=0.0))


def unit_rows(key: jax.Array, rows: int, width: int) -> jax.Array:
    x = jax.random.normal(key, (rows, width))
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


# ── special functions ────────────────────────────────────────────────────────────────────────────

KAPPAS = np.geomspace(1e-6, 1e5, 200).astype(np.float32)
DIMS = (2, 34, 64, 768, 8192)


def special_functions(is_tiny: bool) -> Iterator[Check]:
    """Relative errors within those that the docstrings state for float32."""
    found = {"log_vmf_normalizer": 0.0, "bessel_ratio": 0.0, "inverse": 0.0}
    for d in DIMS[:2] if is_tiny else DIMS:
        normalizer = functools.partial(internal.log_vmf_normalizer, dim=d)
        ratio = functools.partial(internal.bessel_ratio, dim=d)
        g, a = normalizer(jnp.asarray(KAPPAS)), ratio(jnp.asarray(KAPPAS))
        g64, a64 = in_float64(normalizer, KAPPAS), in_float64(ratio, KAPPAS)
        relative = lambda x, y: float(np.max(np.abs(np.asarray(x, np.float64) / y - 1)))
        found["log_vmf_normalizer"] = max(found["log_vmf_normalizer"], relative(g, g64))
        found["bessel_ratio"] = max(found["bessel_ratio"], relative(a, a64))
        inside = np.asarray(a, np.float64) < 1 - 16 * U
        kappa = np.asarray(internal.inverse_bessel_ratio(a, d))[inside]
        found["inverse"] = max(found["inverse"], largest(in_float64(ratio, kappa), np.asarray(a)[inside]))
    note = "largest relative error, κ from 1e-6 to 1e5, d from 2 to 8192; the docstring's bound"
    yield Check("special: log_vmf_normalizer", found["log_vmf_normalizer"], 1e-6, note)
    yield Check("special: bessel_ratio", found["bessel_ratio"], 5e-7, note)
    yield Check(
        "special: inverse_bessel_ratio", found["inverse"], 16 * U, "largest error of A at the answer; 16 roundings"
    )


# ── GEM ──────────────────────────────────────────────────────────────────────────────────────────


def gem_iteration(is_tiny: bool) -> Iterator[Check]:
    """Sums, labels and a balanced iteration. Bounds grow from δ, the error of one logit κ μ·x + g(κ) + b."""
    n, d, k, kappa = (2000, 64, 8, 100.0) if is_tiny else (20_000, 384, 32, 300.0)
    keys = jax.random.split(jax.random.key(0), 3)
    directions = unit_rows(keys[0], k, d)
    near = jax.random.randint(keys[1], (n,), 0, k)
    x = directions[near] + jax.random.normal(keys[2], (n, d)) * d**-0.5
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    clusterer = gem(k, balance=5000.0)
    state = GemState(directions, jnp.full(k, kappa), jnp.linspace(-0.5, 0.5, k))

    # NumPy, from the formulas.
    x64, mu64 = np.asarray(x, np.float64), np.asarray(directions, np.float64)
    g = float(in_float64(functools.partial(internal.log_vmf_normalizer, dim=d), np.float32([kappa]))[0])
    logits = kappa * x64 @ mu64.T + g + np.asarray(state.biases, np.float64)
    top = logits.max(1, keepdims=True)
    value = top[:, 0] + np.log(np.exp(logits - top).sum(1))
    posterior = np.exp(logits - value[:, None])
    delta = LAMBDA * d**0.5 * U * kappa + 1e-6 * abs(g) + 4 * U * np.abs(logits).max()

    sums = clusterer.accumulate(state, x)
    mass, resultant = posterior.sum(0), posterior.T @ x64
    yield Check(
        "gem: sums, value",
        largest(sums.value, value.sum()) / n,
        delta,
        "mean log-likelihood against NumPy float64; the error of one logit",
    )
    yield Check(
        "gem: sums, mass",
        float(np.max(np.abs(np.asarray(sums.mass, np.float64) - mass) / mass)),
        2 * delta,
        "relative, against NumPy float64; twice the error of one logit",
    )
    yield Check(
        "gem: sums, resultant",
        float(np.max(np.linalg.norm(np.asarray(sums.resultant, np.float64) - resultant, axis=1) / mass)),
        2 * delta,
        "per unit of mass, against NumPy float64; twice the error of one logit",
    )
    out = assign(clusterer, state, x)
    second = np.partition(logits, -2, axis=1)[:, -2]
    is_close = top[:, 0] - second <= 2 * delta
    wrong = (np.asarray(out.labels) != logits.argmax(1)) & ~is_close
    yield Check("gem: assign, labels", float(wrong.sum()), 0.0, "rows labeled differently whose two best are apart")
    yield Check(
        "gem: assign, log posterior",
        largest(out.log_posterior, logits - value[:, None]),
        2 * delta,
        "against NumPy float64; twice the error of one logit",
    )
    once = lambda start, rows: fit(clusterer, rows, key=jax.random.key(1), init=start, max_iters=1)
    found = once(directions, x)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        expected = jax.tree.map(np.asarray, once(mu64 / np.linalg.norm(mu64, axis=1, keepdims=True), x64))
    yield Check(
        "gem: balanced iteration, objective",
        largest(np.asarray(found.objective)[-1], expected.objective[-1]),
        2 * delta,
        "F after the E- and M-step against CPU float64; stationary in the biases, so that errors of logits remain",
    )
    cosine = np.sum(np.asarray(found.state.mean_directions, np.float64) * expected.state.mean_directions, axis=1)
    yield Check(
        "gem: balanced iteration, directions",
        float(np.max(np.abs(1 - cosine))),
        max((8 * delta) ** 2, 8 * d**0.5 * U),
        "1 less the cosine with those of CPU float64; the square of the posterior's error, or the rounding of a cosine",
    )


# ── JEST ─────────────────────────────────────────────────────────────────────────────────────────


def pair_models(count: int, width: int, dtype: Any) -> list[Embeddings]:
    """Learner and reference: unit vectors in which text leans toward its image, more so for the reference."""

    @functools.partial(jax.jit, static_argnums=1)
    def make(key: jax.Array, noise: float) -> tuple[jax.Array, jax.Array]:
        first, second = jax.random.split(key)
        image = unit_rows(first, count, width)
        text = image + noise * unit_rows(second, count, width)
        text = text / jnp.linalg.norm(text, axis=1, keepdims=True)
        return image.astype(dtype), text.astype(dtype)

    towers = [make(jax.random.key(seed), noise) for seed, noise in ((0, 2.0), (1, 1.0))]
    return [Embeddings(*pair, jnp.float32(10.0), jnp.float32(-5.0)) for pair in towers]


def jest_replay(
    models: list[Embeddings], chunks: np.ndarray, key: jax.Array, block: int = 16_384
) -> tuple[float, float, int]:
    """Replays a sigmoid selection in float64 with the same noise, all pairs written out, in blocks of rows.

    Returns:
        How far the best row that was left lies above the worst that was taken, at most over the chunks (0 or less: it
        is the exact selection); the bound on it; and how many rows differ from the exact choice of their chunk.
    """
    count, width = models[0].image.shape
    size = chunks.shape[1]
    cuts = [slice(i, min(i + block, count)) for i in range(0, count, block)]
    noise_of = lambda n: np.asarray(jax.random.gumbel(jax.random.fold_in(key, n), (count,), jnp.float32), np.float64)
    noises = [noise_of(n) for n in range(len(chunks))]
    scales = [(float(m.temperature), float(m.bias)) for m in models]
    with jax.enable_x64(True):

        @jax.jit
        def pairs(image: Any, text: Any, chunk_image: Any, chunk_text: Any, t: Any, bias: Any) -> jax.Array:
            wide = lambda x: x.astype(jnp.float64)
            softplus = lambda x: jnp.logaddexp(0.0, x)
            return jnp.sum(softplus(t * wide(image) @ wide(chunk_text).T + bias), axis=1) + jnp.sum(
                softplus(t * wide(text) @ wide(chunk_image).T + bias), axis=1
            )

        diagonal = lambda m: np.sum(np.asarray(m.image, np.float64) * np.asarray(m.text, np.float64), axis=1)
        alone = [np.logaddexp(0.0, -(t * diagonal(m) + bias)) for m, (t, bias) in zip(models, scales, strict=True)]
        own, magnitude = alone[0] - alone[1], alone[0] + alone[1]
        shared, free = np.zeros(count), np.ones(count, bool)
        worst, bound, differing = -np.inf, 0.0, 0
        for n, chunk in enumerate(chunks):
            z = np.where(free, own + shared + noises[n], -np.inf)
            left = free.copy()
            left[chunk] = False
            worst = max(worst, float(z[left].max() - z[chunk].min()))
            exact = np.argpartition(-z, size)[:size]
            differing += size - len(np.intersect1d(exact, chunk))
            # One logit is wrong by λ √d u t; 4 n size of them add up independently. A sum of positive terms in a tree
            # of 16 and a logarithm is wrong by 32 roundings of itself at most.
            logit = LAMBDA * width**0.5 * U * max(t for t, _ in scales)
            bound = max(bound, 2 * (logit * (4 * n * size + 2) ** 0.5 + 32 * U * float(magnitude.max())))
            free[chunk] = False
            for sign, model, (t, bias) in zip((1, -1), models, scales, strict=True):
                members = model.image[chunk], model.text[chunk]
                found = [np.asarray(pairs(model.image[c], model.text[c], *members, t, bias)) for c in cuts]
                shared += sign * np.concatenate(found)
                magnitude += np.concatenate(found)
    return worst, bound, differing


def _jest(name: str, count: int, select: int, width: int, dtype: Any) -> Iterator[Check]:
    models, key = pair_models(count, width, dtype), jax.random.key(7)
    found = jest(select, num_chunks=16)(key, *models)
    indices = np.asarray(found.indices)
    label = f"{name} (B = {count}, b = {select}, d = {width}, {jnp.dtype(dtype).name})"
    yield Check(f"{label}, repeats", float(select - len(np.unique(indices))), 0.0, "rows taken twice, or none")
    worst, bound, differing = jest_replay(models, indices.reshape(16, -1), key)
    note = "the best score left over the worst taken, replayed in float64; twice the error of a score"
    yield Check(f"{label}, choice", worst, bound, f"{note}; {differing} of {select} rows are not the exact choice's")
    own = lambda m: np.sum(np.asarray(m.image, np.float64) * np.asarray(m.text, np.float64), axis=1)[indices]
    loss = [np.logaddexp(0.0, -(float(m.temperature) * own(m) + float(m.bias))) for m in models]
    objective = selection_objective(*models, found.indices)
    logit = LAMBDA * width**0.5 * U * 10
    yield Check(
        f"{label}, positive part",
        largest(objective.positive, float(np.mean(loss[0] - loss[1]))),
        logit + 8 * U * float(np.mean(loss[0] + loss[1])),
        "mean s_ii of the chosen against NumPy float64; the error of one logit",
    )


def jest_small(is_tiny: bool) -> Iterator[Check]:
    yield from _jest("jest", *((512, 128, 64) if is_tiny else (4096, 1024, 256)), jnp.float32)


def jest_large(is_tiny: bool) -> Iterator[Check]:
    """The paper's size. Its 3·10¹³ operations are replayed in float64 on the device: no CPU does that in a minute."""
    yield from _jest("jest", *((1024, 256, 64) if is_tiny else (163_840, 32_768, 768)), jnp.bfloat16)


# ── GRPO ─────────────────────────────────────────────────────────────────────────────────────────


def grpo(is_tiny: bool) -> Iterator[Check]:
    b, g, t = (4, 4, 16) if is_tiny else (64, 16, 512)
    rng = np.random.default_rng(0)
    old = rng.uniform(-8, -0.01, (b, g, t)).astype(np.float32)
    logp, reference = (np.minimum(old + rng.normal(0, 0.3, old.shape), 0).astype(np.float32) for _ in range(2))
    rewards = rng.integers(0, 2, (b, g)).astype(np.float32)
    mask = np.arange(t) < rng.integers(1, t + 1, (b, g, 1))
    loss = lambda logp, old, reference, rewards: grpo_loss(
        logp, old, reference, rewards, jnp.asarray(mask), kl_weight=0.05
    )[0]
    arguments = [jnp.asarray(x) for x in (logp, old, reference, rewards)]
    value, gradient = jax.value_and_grad(loss)(*arguments)

    l64, o64, r64, w64 = (np.asarray(x, np.float64) for x in (logp, old, reference, rewards))
    advantage = (w64 - w64.mean(1, keepdims=True)) / (w64.std(1, keepdims=True) + 1e-6)
    ratio = np.exp(l64 - o64)
    policy = -np.minimum(ratio * advantage[..., None], np.clip(ratio, 0.8, 1.28) * advantage[..., None])
    terms = policy + 0.05 * (np.exp(r64 - l64) - (r64 - l64) - 1)
    expected = terms[mask].sum() / mask.sum()
    # Every term is right to 8 roundings; the sum of n of them in a tree to log2 n more.
    scale = float(np.abs(terms[mask]).sum() / mask.sum())
    bound = (8 + np.log2(mask.sum())) * U * scale
    yield Check("grpo: loss", largest(value, expected), bound, "against NumPy float64; roundings of a term and a sum")
    by_cpu = in_float64(jax.grad(loss), *arguments)
    size = float(np.abs(by_cpu).max())
    note = "against CPU float64; 16 roundings of the largest"
    yield Check("grpo: gradient", largest(gradient, by_cpu), 16 * U * size, note)


# ── mixers ───────────────────────────────────────────────────────────────────────────────────────

NUM_DOMAINS = 6
ARGUMENTS: dict[str, dict[str, Any]] = {
    "foresight": {"total_steps": 60, "every": 1},
    "grape": {"task_step_size": 100.0},
    "pike": {"batch_size": 64},
    "aioli": {"round_length": 40, "sweeps": 2, "interval": 2, "initial_steps": 3, "after_initial": "prior"},
    "dynamic_batch_loading": {"target_losses": 1.5},
    "skillit": {"graph": 0.5},
    "velocitune": {"target_losses": 0.5},
    "scheduled": {"points": [{"at": 0, "weights": "prior"}, {"at": 30, "weights": "uniform"}]},
}
"""Of mixers that need some."""


def feedback(step: int, ulps: float) -> mixers.Feedback:
    """Plausible signals of one step, each number moved by at most so many units in its last place."""
    rng, nudge = np.random.default_rng(step), np.random.default_rng(10_000 + step)
    m = NUM_DOMAINS
    counts = rng.integers(1, 200, m).astype(np.float64)
    gradients = rng.normal(size=(m, 8))
    signals = {
        "token_count": counts,
        "loss_sum": counts * rng.uniform(0.5, 4.0, m),
        "reference_loss_sum": counts * rng.uniform(0.5, 4.0, m),
        "clipped_excess_sum": counts * rng.uniform(0.0, 0.5, m),
        "validation_loss": rng.uniform(0.5, 4.0, m),
        "gradient_alignment": gradients @ gradients.T,
        "validation_alignment": gradients @ rng.normal(size=(8, m)),
        "gradient_noise": rng.uniform(0, 9, m),
        "learning_rate": np.float64(1e-3),
        "reward": rng.uniform(0, 1, m),
    }
    move = lambda x: x * (1 + 2 * U * ulps * nudge.choice([-1, 1], np.shape(x)))
    known = {name: jnp.asarray(move(x), jnp.float32) for name, x in signals.items() if name in internal.SIGNALS}
    return mixers.Feedback(**known)


def mixer_updates(is_tiny: bool) -> Iterator[Check]:
    """Twenty updates on the device and on the CPU; the bound is what inputs moved by a rounding change on the CPU.

    An update may solve a system or take a power: how much a rounding can grow is a property of the numbers it gets.
    Moving every input by one unit in the last place measures that.
    """
    cpu = jax.devices("cpu")[0]
    prior = np.asarray([0.3, 0.25, 0.2, 0.15, 0.07, 0.03], np.float32)

    def run(mixer: mixers.Mixer, ulps: float) -> np.ndarray:
        state = mixer.init(jax.random.key(0), NUM_DOMAINS, jnp.asarray(prior))
        update, weights, seen = jax.jit(mixer.update), jax.jit(mixer.weights), []
        for step in range(20):
            state, _ = update(jax.random.fold_in(jax.random.key(0), step), state, feedback(step, ulps))
            seen.append(np.asarray(weights(state)))
        return np.stack(seen)

    names = sorted(mixers.registry)
    for name in names[:3] if is_tiny else names:
        mixer = mixers.make(name, **ARGUMENTS.get(name, {}))
        here = run(mixer, 0.0)
        with jax.default_device(cpu):
            there, moved = run(mixer, 0.0), run(mixer, 1.0)
        bound = 64 * U + 8 * largest(there, moved)
        note = "weights of 20 updates against the CPU; 64 roundings, and 8 times what inputs one ulp away change"
        yield Check(f"mixer: {name}", largest(here, there), bound, note)


# ── model ────────────────────────────────────────────────────────────────────────────────────────


def attention(is_tiny: bool) -> Iterator[Check]:
    """The way "auto" takes, in bfloat16, with its gradient, grouped heads included, against float64."""
    b, t, h, g, k = (1, 32, 2, 1, 64) if is_tiny else (2, 1024, 8, 4, 128)
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((b, t, h, k), (b, t, g, k), (b, t, g, k), (b, t, h, k))
    query, key, value, back = (
        jax.random.normal(i, shape).astype(jnp.bfloat16) for i, shape in zip(keys, shapes, strict=True)
    )
    auto = functools.partial(internal.causal_attention, kind="auto", block=64)
    dense = functools.partial(internal.causal_attention, kind="blocked", block=t)

    def with_gradients(function: Any, query: Any, key: Any, value: Any, back: Any) -> Any:
        out, pull = jax.vjp(function, query, key, value)
        return out, *pull(back)

    found = jax.jit(functools.partial(with_gradients, auto))(query, key, value, back)
    expected = in_float64(functools.partial(with_gradients, dense), query, key, value, back)
    for name, ours, theirs in zip(("output", "query", "key", "value"), found, expected, strict=True):
        error = np.linalg.norm(np.asarray(ours, np.float64) - theirs) / np.linalg.norm(theirs)
        # Weights and the result are rounded to bfloat16 once each, and gradients are made of such results.
        roundings = 2 if name == "output" else 4
        yield Check(
            f"attention: {name}", float(error), roundings * U16, f"‖error‖/‖float64‖; {roundings} roundings to bfloat16"
        )


def loss_gradient(is_tiny: bool) -> Iterator[Check]:
    """Cross-entropy in bfloat16 with its two gradients, in chunks, against float64."""
    b, t, d, v = (2, 16, 32, 64) if is_tiny else (4, 512, 512, 32_768)
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (b, t, d)).astype(jnp.bfloat16)
    readout = (jax.random.normal(keys[1], (v, d)) * d**-0.5).astype(jnp.bfloat16)
    targets = jax.random.randint(keys[2], (b, t), 0, v)
    total = lambda hidden, readout: jnp.sum(internal.token_losses(hidden, readout, targets, chunk=t // 4)[0])
    value, found = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(hidden, readout)
    expected_value, expected = in_float64(jax.value_and_grad(total, argnums=(0, 1)), hidden, readout)
    bound = (LAMBDA * d**0.5 + 16) * U * float(jnp.abs(value))
    yield Check("loss: value", largest(value, expected_value), bound, "sum over tokens; roundings of a logit and a sum")
    for name, ours, theirs, roundings in zip(("hidden", "readout"), found, expected, (2, 4), strict=True):
        error = np.linalg.norm(np.asarray(ours, np.float64) - theirs) / np.linalg.norm(theirs)
        note = f"‖error‖/‖float64‖; {roundings} roundings to bfloat16 (the readout's is added up over 4 chunks)"
        yield Check(f"loss: gradient of {name}", float(error), roundings * U16, note)


def embedding_gradient(is_tiny: bool) -> Iterator[Check]:
    """The embedding's gradient where one word is a fifth of all tokens: thousands of rows added up in one place."""
    rows, length, width, words = (4, 64, 64, 32) if is_tiny else (32, 1024, 256, 1024)
    tokens = jax.random.randint(jax.random.key(1), (rows, length + 1), 0, words)
    tokens = jnp.where(jax.random.uniform(jax.random.key(2), tokens.shape) < 0.2, 7, tokens)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}

    def gradient(dtype: str) -> np.ndarray:
        model = transformer(
            TransformerConfig(1, width, words, tie_embeddings=False, seq_len=length, compute_dtype=dtype)
        )
        total = lambda params: jnp.sum(model.apply(params, batch))
        made = jax.jit(jax.grad(total))(jax.jit(model.init)(jax.random.key(0)))
        return np.asarray(made["table"][7], np.float64)

    half, whole = gradient("bfloat16"), gradient("float32")
    error = np.linalg.norm(half - whole) / np.linalg.norm(whole)
    # A token's gradient passes some eight operations that round to bfloat16; adding many up must not add to that.
    note = "bfloat16 against float32 on the device, ‖error‖/‖float32‖; 8 roundings to bfloat16"
    yield Check("embedding: gradient of a frequent word", float(error), 8 * U16, note)


CHECKS: dict[str, Callable[[bool], Iterator[Check]]] = {
    "special_functions": special_functions,
    "gem_iteration": gem_iteration,
    "grpo": grpo,
    "attention": attention,
    "loss_gradient": loss_gradient,
    "embedding_gradient": embedding_gradient,
    "mixer_updates": mixer_updates,
    "jest_small": jest_small,
    "jest_large": jest_large,
}
