"""A fine-tuning run of a few seconds, as a function for tests and as a script for a test that kills it.

python finetuning.py RUN_DIR STEPS [PROCESSES INDEX PORT]
"""

import functools
import sys
from pathlib import Path

import numpy as np

PAD, EOS = 0, 1
ARMS = ("constant", "copy", "never")


def toy_prompts(per_arm=12, seed=0):
    """Arm 0: begin with 2; arm 1: with the prompt's last token; arm 2: nothing is ever right."""
    from jaxmix.data.tasks.prompts import PromptSet

    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, 7, (3 * per_arm, 4))
    tokens[rng.random(len(tokens)) < 0.5, 0] = PAD
    arms = np.repeat(np.arange(3), per_arm)
    tokens[:, 1] = 3 + arms
    targets = np.full((len(tokens), 3), PAD)
    targets[:, 0] = np.where(arms == 0, 2, tokens[:, -1])
    targets[:, 1] = EOS

    def reward(rows, completions):
        is_right = completions[:, :, 0] == targets[rows][:, None, 0]
        return (is_right & (arms[rows] < 2)[:, None]).astype(np.float32)

    return PromptSet(
        tokens=tokens,
        targets=targets,
        arms=arms,
        arm_names=ARMS,
        families=ARMS,
        levels=(0, 0, 0),
        reward=reward,
        decode=lambda ids: " ".join(map(str, ids)),
        pad_id=PAD,
        eos_id=EOS,
        vocab_size=8,
        completion_length=3,
    )


@functools.cache
def toy_model():
    from jaxmix.models import TransformerConfig, transformer

    return transformer(TransformerConfig(num_layers=1, width=16, num_heads=2, mlp_width=32, vocab_size=8))


@functools.cache
def toy_params(seed=0):
    """By NumPy: compiling `init` takes longer than a run."""
    import jax

    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(toy_model().init, jax.random.key(0))
    draw = lambda x: np.ones(x.shape, np.float32) if x.ndim == 1 else 0.2 * rng.normal(size=x.shape).astype(np.float32)
    return jax.tree.map(draw, shapes)


def toy_settings(**changes):
    from jaxmix.train import FinetuneSettings

    base = {
        "steps": 12,
        "batch_size": 8,
        "rollouts": 4,
        "groups_per_update": 4,
        "learning_rate": 0.01,
        "eval_every": 5,
        "eval_batch": 16,
        "log_every": 3,
        "checkpoint_every": 4,
    }
    return FinetuneSettings(**{**base, **changes})


def toy_programs(settings, devices=1):
    """Compiled once for each kind of settings."""
    return _programs(settings, devices)


@functools.cache
def _programs(settings, devices):
    import jax

    from jaxmix.core.sharding import build_mesh
    from jaxmix.train.rl.step import build_policy_programs

    mesh = build_mesh(devices=jax.devices()[:devices])
    return build_policy_programs(toy_model(), settings, completion_length=3, eos_id=EOS, pad_id=PAD, mesh=mesh)


# What the programs are built from; all else may change between runs that share them.
_LOOP_ONLY = (
    "steps",
    "eval_every",
    "log_every",
    "checkpoint_every",
    "resume",
    "seed",
    "max_wait",
    "max_consecutive_skipped",
)


def toy_run(run_dir, *, prompts=None, bandit=None, devices=1, initial_params=None, kept=None, hooks=(), **changes):
    from jaxmix.curricula import space
    from jaxmix.train import run_finetuning

    built = toy_settings(**{k: v for k, v in changes.items() if k not in _LOOP_ONLY})
    return run_finetuning(
        run_dir,
        model=toy_model(),
        prompts=prompts or toy_prompts(),
        bandit=bandit or space(3),
        kept=kept,
        evaluation=toy_prompts(per_arm=7, seed=1),
        settings=toy_settings(**changes),
        initial_params=toy_params() if initial_params is None else initial_params,
        programs=toy_programs(built, devices),
        hooks=hooks,
        show_progress=False,
    )


def main():
    run_dir, steps = Path(sys.argv[1]), int(sys.argv[2])
    if len(sys.argv) > 3:
        from jaxmix.core.sharding import initialize_distributed

        processes, index, port = map(int, sys.argv[3:6])
        initialize_distributed(f"127.0.0.1:{port}", processes, index)
    import jax

    result = toy_run(run_dir, devices=jax.device_count(), steps=steps)
    np.save(run_dir / "params.npy", np.asarray(result.params["table"]))


if __name__ == "__main__":
    main()
