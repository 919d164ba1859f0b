"""A swarm of a few seconds, as a function for tests and as a script for a test that kills it.

python swarms.py RUN_DIR STEPS
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from small_run import NAMES, token_sources

STREAM = {"batch_size": 8, "seq_len": 8, "block": 2}


def proxies(count=5):
    from jaxmix.train.swarm.run import Proxy

    mixtures = np.random.default_rng(0).dirichlet(np.ones(len(NAMES)), count)
    mixtures[0] = [0.0, 0.25, 0.75]
    return [Proxy(f"p{i}", weights, i % 3) for i, weights in enumerate(mixtures)]


def settings(steps=24, **changes):
    from jaxmix.train import TrainSettings

    base = {"learning_rate": 0.05, "log_every": 3, "eval_every": 8, "checkpoint_every": 5, "warmup_steps": 2}
    return TrainSettings(steps=steps, **{**base, **changes})


def assert_same_losses(found, expected):
    """Equal but for rounding: a loss is the mean over 80 tokens of a sum over 16 words, at parameters of 24 steps.

    A token's loss moves by at most twice as much as the parameters do: its gradient's absolute values add up to less.
    """
    from tolerance import adam_tolerance, float32_tolerance

    drift = adam_tolerance(steps=24, rate=0.05, terms=64 + 16)
    np.testing.assert_allclose(found, expected, rtol=float32_tolerance(1.0, 80 + 16), atol=2 * drift)


def held_out():
    from jaxmix.train import validation_set

    return validation_set(token_sources(seed=1), seq_len=8, rows_per_domain=10)


_PROGRAMS = {}


def programs(chosen, mesh=None):
    """Compiled functions of the bigram model, shared between tests of equal settings and devices."""
    from bigram import bigram

    from jaxmix.core.sharding import proxy_mesh
    from jaxmix.train.swarm.step import build_swarm_programs

    mesh = mesh or proxy_mesh()
    key = (repr(chosen), mesh.devices.size)
    if key not in _PROGRAMS:
        _PROGRAMS[key] = build_swarm_programs(
            bigram(), chosen, num_domains=len(NAMES), batch_size=8, seq_len=8, mesh=mesh
        )
    return _PROGRAMS[key]


def small_swarm(run_dir, *, model=None, members=None, steps=24, sources=None, changes=None, **options):
    """Trains bigram models; `changes` override `TrainSettings`, `options` the arguments of `run_swarm`."""
    from bigram import bigram

    from jaxmix.train.swarm.run import run_swarm

    chosen = settings(steps, **(changes or {}))
    if model is None and sources is None and not set(options) - {"chunk", "mesh", "label"}:
        options["programs"] = programs(chosen, options.pop("mesh", None))
    return run_swarm(
        run_dir,
        **{
            "model": model or bigram(),
            "proxies": proxies() if members is None else members,
            "sources": token_sources() if sources is None else sources,
            "validation": held_out(),
            "settings": chosen,
            "vocab_size": 16,
            "show_progress": False,
            **STREAM,
            **options,
        },
    )


def main():
    import jax

    jax.config.update("jax_num_cpu_devices", 2)
    result = small_swarm(Path(sys.argv[1]), steps=int(sys.argv[2]), chunk=3, changes={"schedule": "constant"})
    np.save(Path(sys.argv[1]) / "losses.npy", np.stack([proxy.curve for proxy in result.proxies]))


if __name__ == "__main__":
    main()
