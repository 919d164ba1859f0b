"""Every mixer in random worlds: percent of reducible loss against even shares.

    python experiments/mixers_simulated/run.py                       # all of it, a few minutes on two cores
    python experiments/mixers_simulated/run.py --only r_and_b doremi # rows whose name contains one of these

Each row runs one mixer in 24 quadratic problems (5 domains, 800 noisy SGD steps) or in 32 log-linear worlds (4
domains, 4000 steps, 0.003 nats of noise on evaluations), all worlds of a row as one compiled program. Worlds and
noise are the same for all rows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix import mixers
from jaxmix.mixers.methods.skillit import skill_graph
from jaxmix.simulate.mixers import best_static, run_static, simulate
from jaxmix.simulate.random_worlds import random_log_linear_world, random_quadratic_world
from jaxmix.simulate.replay import fit_log_linear
from jaxmix.simulate.worlds import World

LEARNING_RATE = 0.02
BATCH_SIZE = 64


class Problem(NamedTuple):
    """One world, and what a user would have had to measure for methods that ask for targets."""

    world: World
    key: Any
    num_steps: int
    even: Any  # f[m], final losses under even shares
    start: Any  # f[m], losses before training

    def static(self, mixture: Any, key: Any = None) -> Any:
        key = self.key if key is None else key
        return run_static(self.world, mixture, key=key, num_steps=self.num_steps, batch_size=BATCH_SIZE)

    def run(self, mixer: mixers.Mixer, **options: Any) -> Any:
        """Final losses of a run steered by the mixer."""
        return self._simulate(mixer, **options).final_losses

    def proxy(self, mixer: mixers.Mixer, **options: Any) -> Any:
        """Final losses of a static run on the mixture that a proxy run recommends."""
        return self.static(self._simulate(mixer, **options).mixture)

    def graph(self) -> Any:
        """Skill-It's graph from one run per domain."""
        return skill_graph(self.start, jax.vmap(self.static)(jnp.eye(self.world.num_domains)))

    def _simulate(self, mixer: mixers.Mixer, **options: Any) -> Any:
        return simulate(mixer, self.world, key=self.key, num_steps=self.num_steps, batch_size=BATCH_SIZE, **options)


Row = Callable[[Problem], Any]


def searches() -> dict[str, Row]:
    def best_of(count: int) -> Row:
        # The first candidate is even shares: a search that may also keep them.
        return lambda p: (
            best_static(p.world, p.key[None], num_candidates=count, num_steps=p.num_steps, batch_size=BATCH_SIZE).losses
        )

    def grid(p: Problem) -> Any:
        runs = best_static(p.world, p.key[None], num_candidates=11, num_steps=p.num_steps, batch_size=BATCH_SIZE)
        totals = jnp.sum(runs.candidate_losses[1:], axis=1)
        return runs.candidate_losses[1:][jnp.argmin(totals)]

    def law(p: Problem) -> Any:
        runs = best_static(p.world, p.key[None], num_candidates=11, num_steps=p.num_steps, batch_size=BATCH_SIZE)
        fit = fit_log_linear(runs.candidates[1:], runs.candidate_losses[1:])
        tries = jax.random.dirichlet(jax.random.key(1), jnp.ones(p.world.num_domains), (4096,))
        predicted = fit.irreducible[None] + fit.scale[None] * jnp.exp(-tries @ fit.interaction.T)
        return p.static(tries[jnp.argmin(jnp.sum(predicted, axis=1))])

    return {
        "stratified, other seed": lambda p: p.static(p.even * 0 + 1.0, jax.random.fold_in(p.key, 1)),
        "best fixed of 65 runs": best_of(65),
        "grid search of 10 runs": grid,
        "log-linear law of 10 runs": law,
    }


def loss_driven(unit: int) -> dict[str, Row]:
    """Methods that see losses only; `unit` is a fortieth of the run."""

    # Targets and graphs differ from world to world, and a mixer's arguments do not: the mixers are shown losses from
    # which the targets are taken already (Velocitune is invariant to that), or that the graph has been applied to.
    def above_even(p: Problem) -> dict[str, Any]:
        return {"observe": lambda losses: losses - p.even}

    def share_of_the_way(p: Problem) -> dict[str, Any]:
        return {"observe": lambda losses: (losses - p.even) / (p.start - p.even)}

    def through_graph(p: Problem) -> dict[str, Any]:
        graph = p.graph()
        return {"observe": lambda losses: graph @ losses}

    def aioli(rounds: int = 8, **options: Any) -> Row:
        settings = {
            "sweeps": 2,
            "interval": unit // 5,
            "smoothing": 0.5,
            "lead": 0,
            "round_length": 40 * unit // rounds,
        }
        return lambda p: p.run(mixers.make("aioli", **{**settings, **options}))

    rows: dict[str, Row] = {}
    for eta in (0.2, 1.0):
        skillit = mixers.make("skillit", 0.0, step_size=eta, evaluate_every=2 * unit, update_every=2 * unit)
        rows[f"skillit {eta:g}"] = lambda p, mixer=skillit: p.run(mixer, **through_graph(p))
    for eta in (0.2, 0.5, 1.0, 2.0):
        rows[f"aioli paper {eta:g}"] = aioli(step_size=eta)
    for eta in (0.2, 1.0, 5.0):
        rows[f"aioli released {eta:g}"] = aioli(variant="released", step_size=eta)
    rows["aioli diagonal 0.5"] = aioli(estimator="diagonal", step_size=0.5)
    rows["aioli one LearnParams 1"] = aioli(rounds=1, sweeps=4, step_size=1.0)
    rows["aioli probes only"] = aioli(step_size=0.0)
    for variant in ("paper", "repository"):
        rows[f"odm {variant}"] = lambda p, variant=variant: p.run(mixers.odm(variant))
    for eta in (1.0, 0.2):
        sheared = mixers.make("dynamic_batch_loading", 0.0, step_size=eta, every=unit)
        rows[f"dynamic_batch_loading {eta:g}"] = lambda p, mixer=sheared: p.run(mixer, **above_even(p))
    velocitune = mixers.make("velocitune", 0.0, initial_losses=1.0, every=unit)
    rows["velocitune"] = lambda p: p.run(velocitune, **share_of_the_way(p))
    ado = mixers.make(
        "ado",
        refit_every=4 * unit,
        ignore=2 * unit,
        start=8 * unit,
        min_irreducible=0.0,
        subsample=unit // 20,
        window=11,
    )
    rows["ado"] = lambda p: p.run(ado)
    rows["foresight"] = lambda p: p.run(mixers.make("foresight", p.num_steps))
    rows["foresight, horizon 0"] = lambda p: p.run(mixers.make("foresight", p.num_steps, least_horizon=0.0))
    rows["loss_proportional"] = lambda p: p.run(mixers.make("loss_proportional"))
    for eta in (1.0, 0.1):
        doremi = mixers.make("doremi", step_size=eta, mode="proxy")
        rows[f"doremi {eta:g}"] = lambda p, mixer=doremi: p.proxy(mixer, reference_losses=p.even)
    rows["learnability 0.1"] = lambda p: p.run(mixers.make("learnability", step_size=0.1), reference_losses=p.even)
    return rows


def gradient_driven(unit: int) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for ratio in (0.05, 0.01):  # learning rate over regularization, 0.05 in the paper's configuration
        doge = mixers.make("doge", mode="proxy", regularization=LEARNING_RATE / ratio)
        rows[f"doge {ratio:g}"] = lambda p, mixer=doge: p.proxy(mixer)
    for gain in (0.05, 0.2):
        pike = mixers.make("pike", BATCH_SIZE, norm_gain=gain, noise_gain=gain, every=unit)
        rows[f"pike {gain:g}"] = lambda p, mixer=pike: p.run(mixer)
    for eta in (0.2, 1.0, 5.0):
        rows[f"dga {eta:g}"] = lambda p, eta=eta: p.run(mixers.make("dga", step_size=eta, every=unit))
    for eta in (0.2, 1.0):
        grape = mixers.make("grape", "repository", step_size=eta, task_step_size=eta, every=unit)
        rows[f"grape {eta:g}"] = lambda p, mixer=grape: p.run(mixer)
    for sharpness in (1.0, 3.0):
        r_and_b = mixers.make("r_and_b", sharpness=sharpness, round_updates=unit)
        rows[f"r_and_b {sharpness:g}"] = lambda p, mixer=r_and_b: p.run(mixer)
    return rows


class Setting(NamedTuple):
    build: Callable[[Any], World]
    num_worlds: int
    num_steps: int
    rows: dict[str, Row]


def settings() -> dict[str, Setting]:
    return {
        "quadratic": Setting(
            lambda key: random_quadratic_world(key, learning_rate=LEARNING_RATE),
            24,
            800,
            {**searches(), **loss_driven(20), **gradient_driven(20)},
        ),
        "log_linear": Setting(
            lambda key: random_log_linear_world(key, num_steps=4000), 32, 4000, {**searches(), **loss_driven(100)}
        ),
    }


def changes(setting: Setting, row: Row) -> np.ndarray:
    """Percent change of the summed reducible loss against even shares, one number per world."""

    def one(key: Any) -> Any:
        world = setting.build(key)
        run_key = jax.random.fold_in(key, 1)
        uniform = jnp.full(world.num_domains, 1.0 / world.num_domains)
        even = run_static(world, uniform, key=run_key, num_steps=setting.num_steps, batch_size=BATCH_SIZE)
        problem = Problem(world, run_key, setting.num_steps, even, world.losses(world.init(run_key)))
        reducible = lambda losses: jnp.sum(losses - world.irreducible)
        return 100 * (reducible(row(problem)) / reducible(even) - 1)

    keys = jax.random.split(jax.random.key(11), setting.num_worlds)
    return np.asarray(jax.jit(jax.vmap(one))(keys), np.float64)


def summary(change: np.ndarray) -> dict[str, float]:
    """Mean, its standard error, the worst world, and in how many the row is better than even shares."""
    return {
        "mean": float(change.mean()),
        "standard_error": float(change.std(ddof=1) / np.sqrt(len(change))),
        "worst": float(change.max()),
        "better": int((change < 0).sum()),
        "worlds": len(change),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[""], help="parts of row names")
    parser.add_argument("--settings", nargs="*", default=list(settings()), help="quadratic, log_linear")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name in arguments.settings:
        setting = settings()[name]
        print(f"\n{name}: {setting.num_worlds} worlds, {setting.num_steps} steps")
        print(f"{'':28} {'mean %':>8} {'se':>6} {'worst':>8}  better")
        for label, row in setting.rows.items():
            if not any(part in label for part in arguments.only):
                continue
            began = time.perf_counter()
            got = summary(changes(setting, row))
            results.setdefault(name, {})[label] = got
            line = f"{label:28} {got['mean']:+8.2f} {got['standard_error']:6.2f} {got['worst']:+8.1f}"
            print(f"{line}  {got['better']:2}/{got['worlds']}   {time.perf_counter() - began:5.1f} s", flush=True)
    if arguments.only == [""]:
        written = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "results": results}
        arguments.out.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
