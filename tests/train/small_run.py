"""A run of a few seconds, as a function for tests and as a script for tests that kill it.

python small_run.py RUN_DIR STEPS [PROCESSES INDEX PORT]
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

NAMES = ("plain", "dense", "rare")


def token_sources(names=NAMES, seed=0, documents=12):
    """Domains of documents of unequal length over a 16-token vocabulary, each with a bigram law of its own."""
    sources = {}
    for name in names:
        rng = np.random.default_rng([seed, *name.encode()])
        law = np.random.default_rng(list(name.encode())).dirichlet(np.full(16, 0.05 * len(name)), size=16)
        lengths = rng.integers(5, 60, documents * (3 if name == "plain" else 1))
        docs = []
        for length in lengths:
            tokens = [int(rng.integers(16))]
            while len(tokens) < length:
                tokens.append(int(rng.choice(16, p=law[tokens[-1]])))
            docs.append(np.asarray(tokens, np.int32))
        sources[name] = docs
    return sources


def small_run(
    run_dir,
    *,
    names=NAMES,
    steps=24,
    mixer=None,
    model=None,
    mesh=None,
    stream_options=None,
    selection=None,
    reference=None,
    programs=None,
    hooks=(),
    on_start=lambda: None,
    show_progress=False,
    **settings,
):
    """Trains the bigram model with ODM; keyword arguments override `TrainSettings`. Returns the result."""
    from bigram import bigram

    import jaxmix
    from jaxmix.core.sharding import process_shard
    from jaxmix.data.mixture.stream import MixtureStream
    from jaxmix.train import TrainSettings, run_training, validation_set

    defaults = {
        "steps": steps,
        "learning_rate": 0.05,
        "log_every": 3,
        "eval_every": 8,
        "checkpoint_every": 5,
        "warmup_steps": 2,
    }
    rows = 8 if selection is None else selection.candidates(8)
    options = {
        "batch_size": rows,
        "seq_len": 8,
        "seed": 3,
        "block": 2,
        "shard": process_shard(),
        **(stream_options or {}),
    }
    with MixtureStream(token_sources(names), **options) as stream:
        result = run_training(
            run_dir,
            model=model or bigram(),
            mixer=mixer or jaxmix.mixers.make("odm"),
            stream=stream,
            validation=validation_set(token_sources(names, seed=1), seq_len=8, rows_per_domain=10),
            settings=TrainSettings(**{**defaults, **settings}),
            selection=selection,
            batch_size=None if selection is None else 8,
            reference=reference,
            mesh=mesh,
            programs=programs,
            hooks=hooks,
            on_start=on_start,
            show_progress=show_progress,
        )
    return result


def main():
    run_dir, steps = Path(sys.argv[1]), int(sys.argv[2])
    if len(sys.argv) > 3:
        from jaxmix.core.sharding import initialize_distributed

        processes, index, port = map(int, sys.argv[3:6])
        initialize_distributed(f"127.0.0.1:{port}", processes, index)
    # A rate that does not depend on the length, so that a run of 12 steps is the beginning of one of 24.
    result = small_run(run_dir, steps=steps, schedule="constant")
    np.save(run_dir / "params.npy", np.asarray(result.params["table"]["kernel"]))


if __name__ == "__main__":
    main()
