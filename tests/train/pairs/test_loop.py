import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pair_models import flip, learnable, linear_towers, pairs

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.core.sharding import build_mesh
from jaxmix.selection import jest
from jaxmix.train.lm.settings import TrainSettings
from jaxmix.train.pairs.embedding_cache import cache_key, write_embeddings
from jaxmix.train.pairs.loop import run_pairs
from jaxmix.train.pairs.retrieval import recall
from jaxmix.train.pairs.step import PairSettings, build_pair_programs
from jaxmix.train.pairs.stream import PairPool, PairStream
from jaxmix.train.run.driver import Hook
from jaxmix.train.run.records import latest_by_step, read_records

TOWERS = linear_towers()
STEPS = 12


class Killed(Exception):
    pass


@functools.cache
def pool(rows=120, corrupted=0.3):
    return PairPool(*pairs(rows, corrupted=corrupted)[:2])


@functools.cache
def reference_params():
    return TOWERS.init(jax.random.key(7))


def cached(folder, data, params=None):
    """The reference's embeddings on disk."""
    params = reference_params() if params is None else params

    def embed(start, stop):
        images, tokens = jnp.asarray(data.images[start:stop]), jnp.asarray(data.tokens[start:stop])
        return TOWERS.embed_image(params, images), TOWERS.embed_text(params, tokens)

    temperature, bias = (float(x) for x in TOWERS.scale(params))
    key = cache_key(model="linear", params=params, data=data.images)
    return write_embeddings(
        folder, key=key, num_rows=len(data.images), embed=embed, temperature=temperature, bias=bias, block=4096
    )


@functools.cache
def programs(devices=1, candidates=32, *, settings=None, accumulate=2):
    return build_pair_programs(
        TOWERS,
        optax.adamw(0.05),
        num_candidates=candidates,
        selector=learnable(8),
        reference=_cache[0],
        settings=settings,
        augment=flip,
        accumulate=accumulate,
        mesh=build_mesh(devices=jax.devices()[:devices]),
    )


_cache = []


@pytest.fixture(scope="module", autouse=True)
def reference_on_disk(tmp_path_factory):
    _cache.append(cached(tmp_path_factory.mktemp("reference"), pool()))


def evaluate(params):
    images, tokens = pool()[:2]
    embedded = TOWERS.embed_image(params, jnp.asarray(images)), TOWERS.embed_text(params, jnp.asarray(tokens))
    return recall(*(np.asarray(x) for x in embedded))


def run(run_dir, built, *, evaluate=evaluate, candidates=32, hooks=(), **settings):
    settings = {"steps": STEPS, "log_every": 2, "eval_every": 5, "checkpoint_every": 4, **settings}
    return run_pairs(
        run_dir,
        model=TOWERS,
        programs=built,
        stream=PairStream(pool(), num_candidates=candidates, seed=3, reference=_cache[0]),
        settings=TrainSettings(**settings),
        evaluate=evaluate,
        hooks=hooks,
        show_progress=False,
    )


def equal(one, other):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), one, other)


def records(run_dir, kind):
    return latest_by_step(read_records(run_dir / "metrics.jsonl"), kind)


@pytest.mark.parametrize("is_stale", [False, True])
def test_interrupted_equals_uninterrupted(tmp_path, is_stale):
    built = programs(settings=PairSettings(is_stale=is_stale))
    bias = lambda view: {"bias": TOWERS.scale(view.params)[1]}
    hooks = [Hook(every=6, run=bias, name="scale")]
    whole = run(tmp_path / "whole", built, hooks=hooks)

    calls = []

    def killing(params):
        calls.append(1)
        if len(calls) == 2:  # at step 5, one step after a checkpoint
            raise Killed
        return evaluate(params)

    with pytest.raises(Killed):
        run(tmp_path / "cut", built, evaluate=killing, hooks=hooks)
    rest = run(tmp_path / "cut", built, hooks=hooks)
    assert (whole.resumed_from, rest.resumed_from, rest.steps) == (None, 4, STEPS)
    equal(rest.params, whole.params)
    assert rest.evaluation == whole.evaluation
    for kind in ("train", "eval", "scale"):
        assert records(tmp_path / "cut", kind) == records(tmp_path / "whole", kind)
    assert [r["step"] for r in records(tmp_path / "cut", "scale")] == [0, 6, 12]
    assert records(tmp_path / "cut", "scale")[-1]["scale/bias"] == float(TOWERS.scale(rest.params)[1])


def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path):
    built = programs(settings=PairSettings(is_stale=True))
    run(tmp_path / "run", built, steps=7)
    longer = run(tmp_path / "run", built)
    assert longer.resumed_from == 7
    equal(longer.params, run(tmp_path / "whole", built).params)


def test_records_show_all_four_axes(tmp_path):
    result = run(tmp_path, programs())
    train, evaluations = records(tmp_path, "train"), records(tmp_path, "eval")
    assert [r["step"] for r in train] == [2, 4, 6, 8, 10, 12]
    assert [r["step"] for r in evaluations] == [0, 5, 10, 12]
    for record in train + evaluations:
        assert (record["trained"], record["scanned"]) == (8 * record["step"], 32 * record["step"])
    assert evaluations[-1]["flops"] == result.cost.flops > 0
    assert {"train/loss", "train/grad_norm", "selection/score", "selection/positive"} <= train[0].keys()
    assert evaluations[-1]["eval/recall@10"] == result.evaluation["recall@10"]
    assert [r["eval/recall@10"] for r in evaluations[1:]] != [evaluations[0]["eval/recall@10"]] * 3


def test_a_checkpoint_of_other_sizes_is_refused(tmp_path):
    run(tmp_path, programs(), steps=2)
    with pytest.raises(ConfigError, match="written with num_candidates 32, this run has 40"):
        run(tmp_path, programs(candidates=40), candidates=40)
    with pytest.raises(ConfigError, match="already holds checkpoints up to step 2"):
        run(tmp_path, programs(), resume="never")
    with pytest.raises(RunError, match="no checkpoint to resume"):
        run(tmp_path / "new", programs(), resume="must")
    with pytest.raises(ConfigError, match="stream has 40 candidates a step, the programs 32"):
        run(tmp_path, programs(), candidates=40)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_toy_training_needs_a_quarter_of_the_steps(tmp_path, seed):
    """The specification's acceptance test: on half-corrupted pairs JEST at 100 steps matches iid at 400."""
    towers = linear_towers(16)
    noisy, clean = (
        PairPool(*pairs(rows, corrupted=c, seed=seed + s)[:2]) for rows, c, s in ((20_000, 0.5, 0), (4096, 0.0, 50))
    )
    images, tokens, _ = pairs(1024, seed=seed + 90)
    mesh = build_mesh(devices=jax.devices()[:1])

    def recall_at_1(params):
        embedded = towers.embed_image(params, jnp.asarray(images)), towers.embed_text(params, jnp.asarray(tokens))
        return recall(*(np.asarray(x) for x in embedded), at=(1,))

    def train(name, data, steps, selector=None, reference=None):
        candidates = 64 if selector is None else 320
        built = build_pair_programs(
            towers, optax.adam(3e-3), num_candidates=candidates, selector=selector, reference=reference, mesh=mesh
        )
        stream = PairStream(data, num_candidates=candidates, seed=seed, reference=reference)
        settings = TrainSettings(steps=steps, seed=seed, eval_every=steps, checkpoint_every=10**6)
        return run_pairs(
            tmp_path / name,
            model=towers,
            programs=built,
            stream=stream,
            settings=settings,
            evaluate=recall_at_1,
            show_progress=False,
        )

    frozen = train("reference", clean, 400).params

    def embed(start, stop):
        part = (jnp.asarray(x[start:stop]) for x in noisy[:2])
        return towers.embed_image(frozen, next(part)), towers.embed_text(frozen, next(part))

    temperature, bias = (float(x) for x in towers.scale(frozen))
    reference = write_embeddings(
        tmp_path / "cache",
        key=cache_key(params=frozen),
        num_rows=len(noisy.images),
        embed=embed,
        temperature=temperature,
        bias=bias,
        block=4096,
    )
    iid = train("iid", noisy, 400).evaluation["recall@1"]
    chosen = train("jest", noisy, 100, jest(64, num_chunks=16), reference).evaluation["recall@1"]
    assert chosen >= iid
