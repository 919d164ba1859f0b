"""Aioli as its public code runs it, for comparison: eager bookkeeping around the same compiled train step.

What it does like that code: the training data is shuffled, cut and joined anew whenever the mixture changes; every
loss is fetched as a Python number; validation goes domain by domain and batch by batch; the matrix and the weights
are NumPy. Written for this benchmark from the description of the method.
"""

import time

import jax
import numpy as np

from jaxmix.core.sharding import global_batch
from jaxmix.data.mixture.packing import PackedRows
from jaxmix.train.lm.state import init_train_state


def build_dataset(rows, mixture, size, rng):
    """`size` rows in the proportions of the mixture, drawn without replacement and shuffled."""
    chosen = []
    for j, share in enumerate(mixture):
        order = rng.permutation(len(rows[j]))
        chosen += [(j, int(k)) for k in order[: max(1, int(share * size))]]
    rng.shuffle(chosen)
    return chosen


def batches(rows, chosen, batch_size, length):
    for start in range(0, len(chosen) - batch_size + 1, batch_size):
        tokens, targets = np.zeros((batch_size, length), np.int32), np.zeros((batch_size, length), np.int32)
        picked = chosen[start : start + batch_size]
        for place, (j, k) in enumerate(picked):
            rows[j].read_into([k], tokens, targets, [place])
        yield {"tokens": tokens, "targets": targets, "domain": np.asarray([j for j, _ in picked], np.int32)}


def run_eager_aioli(bench, seed, *, sweeps, interval, smoothing=0.75, step_size=0.2, round_length=250):
    """(wall, CPU) seconds of a run of the bench's length, compilation left out as for the others."""
    rng, m = np.random.default_rng(seed), len(bench.names)
    rows = [PackedRows(source, bench.validation.tokens.shape[1]) for source in bench.train.values()]
    batch_size, length = 16, bench.validation.tokens.shape[1]
    state = init_train_state(jax.random.key(seed), bench.model, bench.programs.optimizer, bench.mesh)
    control, step, started = bench.control, 0, None
    evaluate = jax.jit(bench.model.apply)

    def validate():
        losses = []
        for j in range(m):
            own = np.flatnonzero(control.domain == j)
            total = count = 0.0
            for start in range(0, len(own), batch_size):
                picked = own[start : start + batch_size]
                fill = np.resize(picked, batch_size)
                batch = {"tokens": control.tokens[fill], "targets": control.targets[fill].copy()}
                batch["targets"][len(picked) :] = -1
                loss = np.asarray(evaluate(state.params, jax.tree.map(jax.numpy.asarray, batch)))
                total += float(loss.sum())
                count += float((batch["targets"] >= 0).sum())
            losses.append(total / count)
        return np.asarray(losses)

    def train(mixture, steps):
        nonlocal state, step, started
        done = 0
        while done < steps:
            for batch in batches(rows, build_dataset(rows, mixture, 2 * steps * batch_size, rng), batch_size, length):
                state, info = bench.programs.train_step(state, global_batch(bench.mesh, batch))
                float(info.loss)
                done, step = done + 1, step + 1
                if step == 50:
                    started = (time.perf_counter(), time.process_time())
                if done == steps or step == bench.arguments.steps:
                    break
            if step == bench.arguments.steps:
                return

    weights, average = np.full(m, 1 / m), None
    probes = (1 - smoothing) * np.eye(m) + smoothing / m
    while step < bench.arguments.steps:
        beta, before = np.zeros((m, m)), validate()
        for _ in range(sweeps):
            for j in rng.permutation(m):
                train(probes[j], interval)
                after = validate()
                beta[:, j] += (before - after) / sweeps
                before = after
        found = np.linalg.solve(probes, beta.T).T
        found = (found - min(found.min(), 0)) / (found - min(found.min(), 0)).sum()
        average = found
        weights = weights * np.exp(step_size * average.sum(0))
        weights /= weights.sum()
        train(weights, round_length - m * sweeps * interval)
    ended, steps = (time.perf_counter(), time.process_time()), bench.arguments.steps
    return [(b - a) / (steps - 50) * steps for a, b in zip(started, ended, strict=True)]
