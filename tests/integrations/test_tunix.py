"""The Tunix plug against a learner that makes the calls of google-tunix 0.1.7, and against the package where it is."""

import itertools
import json
from concurrent import futures

import jax
import numpy as np
import pytest

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.curricula import dump, space
from jaxmix.integrations.tunix import SpaceDataset

ARMS = np.repeat(np.arange(3), 8)
PROMPTS = [f"arm {arm}, prompt {i}" + " of many words" * (i % 3) for i, arm in enumerate(ARMS)]
ANSWERS = np.arange(24)
CHANCE = (0.95, 0.5, 0.0)


def dataset(**changes):
    arguments = {"batch_size": 6, "columns": {"answer": ANSWERS, "topic": PROMPTS}, "seed": 5}
    return SpaceDataset(changes.pop("bandit", space(3)), PROMPTS, ARMS, **arguments | changes)


def rewards_of(prompts, answer, **columns):
    """A reward function: what a rollout earns follows from the prompt, its answer and its place in the group."""
    noise = np.random.default_rng(np.asarray(answer).tolist()).random(len(prompts))
    return (noise < [CHANCE[int(p.split()[1][0])] for p in prompts]).astype(float)


class FakeLearner:
    """The calls that RLLearner.train and _prepare_data of google-tunix 0.1.7 make of a data set and a metric function.

    In their order and from their thread: one batch before training; columns cut into micro-batches by way of lists;
    past micro-batches thrown away; every column repeated for each generation by `jax.tree.map`; a column of trajectory
    ids added; micro-batches merged until there are enough to roll out; metric functions for evaluation batches too.
    """

    def __init__(self, metric_fns, *, generations=4, micro_batch=None, merge=None, restored=0):
        self.metric_fns, self.generations, self.micro_batch, self.merge = metric_fns, generations, micro_batch, merge
        self.past = restored
        self.logged, self.seen = [], []

    def micro_batches(self, batches, size):
        buffer = {}
        for batch in batches:
            for key, values in batch.items():
                buffer.setdefault(key, []).extend(list(values.flatten()))
            while len(next(iter(buffer.values()))) >= size:
                yield {key: np.array(values[:size]) for key, values in buffer.items()}
                buffer = {key: values[size:] for key, values in buffer.items()}

    def step(self, iterator, merge, mode="train"):
        parts = []
        for _ in range(merge):
            part = jax.tree.map(lambda x: np.repeat(x, self.generations, axis=0), next(iterator))
            part["trajectory_ids"] = [f"{i}" for i in range(len(part["prompts"]))]
            parts.append(part)
        ids = list(itertools.chain.from_iterable(part.pop("trajectory_ids") for part in parts))
        batch = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} | {"trajectory_ids": ids}
        prompts = list(batch.pop("prompts"))
        rewards = rewards_of(prompts, mode=mode, **batch)
        for metric_fn in self.metric_fns:
            found = metric_fn(
                prompts=prompts, completions=["?"] * len(prompts), advantages=rewards - 0.5, rewards=rewards, **batch
            )
            for name, (value, aggregate) in found.items():
                assert isinstance(name, str)
                assert np.isfinite(aggregate(np.stack([value, value])))
            self.logged.append((mode, {name: value for name, (value, _) in found.items()}))
        self.seen.append((mode, batch))

    def train(self, train_ds, eval_ds=None, *, steps):
        batches = iter(train_ds)
        first = next(batches)
        size = len(first["prompts"])
        batches = itertools.chain([first], batches)
        micro = self.micro_batch or size
        iterator = batches if micro == size else self.micro_batches(batches, micro)
        for _ in range(self.past):
            next(iterator)
        with futures.ThreadPoolExecutor(max_workers=1) as executor:
            for step in range(steps):
                executor.submit(self.step, iterator, self.merge or 1).result()
                if eval_ds and step % 2 == 0:
                    for batch in eval_ds:
                        self.step(iter([batch]), 1, "eval")


def test_the_bandit_learns_what_the_learner_measured():
    data = dataset()
    learner = FakeLearner([data.metrics])
    learner.train(data, data.evaluation(["arm 0, held out"], columns={"answer": [1], "topic": ["x"]}), steps=40)
    trained = [figures for mode, figures in learner.logged if mode == "train"]
    assert all(figures == {} for mode, figures in learner.logged if mode == "eval")
    probability = [[figures[f"space/probability/{arm}"] for arm in range(3)] for figures in trained]
    assert np.argmax(probability[-1]) == 1  # the one whose groups disagree
    np.testing.assert_allclose(np.sum(probability, 1), 1.0, atol=1e-5)
    assert {"space/solve_rate", "space/live_share", "space/solve_rate/0"} <= set(trained[0])
    pulls = np.bincount(np.concatenate([b["arm"][::4] for m, b in learner.seen if m == "train"]), minlength=3)
    assert pulls.sum() == 240
    assert pulls[1] > 100


def test_columns_are_flat_arrays_of_constant_size():
    batches = list(itertools.islice(dataset(), 4))
    for batch in batches:
        assert set(batch) == {"prompts", "arm", "example_id", "slot", "answer", "topic"}
        for values in batch.values():
            assert isinstance(values, np.ndarray)
            assert values.shape == (6,)
        assert batch["prompts"].dtype == object
        np.testing.assert_array_equal(ARMS[batch["example_id"]], batch["arm"])
        np.testing.assert_array_equal(batch["answer"], ANSWERS[batch["example_id"]])
        assert batch["prompts"].tolist() == [PROMPTS[i] for i in batch["example_id"]]
    np.testing.assert_array_equal(np.concatenate([b["slot"] for b in batches]), np.arange(24))


@pytest.mark.parametrize(("micro_batch", "merge"), [pytest.param(2, 1, marks=pytest.mark.slow), (3, 2)])
def test_micro_batches_teach_the_same_draws(micro_batch, merge):
    data = dataset()
    learner = FakeLearner([data.metrics], micro_batch=micro_batch, merge=merge)
    learner.train(data, steps=12 // merge)
    assert data.state_dict()["state"]["bandit"]["step"] == 12 // merge
    slots = np.concatenate([batch["slot"][::4] for _, batch in learner.seen])
    np.testing.assert_array_equal(slots, np.arange(len(slots)))


def feed(data, batch, generations=4):
    batch = {key: np.repeat(values, generations) for key, values in batch.items()}
    return data.metrics(completions=[], rewards=rewards_of(**batch), **batch)


def test_late_feedback_goes_to_the_arms_it_is_of():
    """With a bandit whose update does not depend on the order, three batches at once teach what they teach in turn."""
    bandit = dump(3)
    early, late = dataset(bandit=bandit), dataset(bandit=bandit)
    fixed = list(itertools.islice(early, 3))
    for batch in fixed:
        feed(early, batch)
    again = list(itertools.islice(late, 3))
    assert [b["example_id"].tolist() for b in again] == [b["example_id"].tolist() for b in fixed]
    for batch in reversed(again):
        feed(late, batch)
    assert late.state_dict()["state"]["bandit"]["pulls"] == early.state_dict()["state"]["bandit"]["pulls"]
    assert late.state_dict()["pending"] == []


def test_rewards_out_of_range_teach_nothing_and_ranges_are_scaled():
    data, scaled = dataset(), dataset(reward_range=(-1.0, 3.0))
    batch = {key: np.repeat(values, 2) for key, values in next(iter(data)).items()}
    next(iter(scaled))
    rewards = np.tile([0.0, 1.0], 6)
    data.metrics(completions=[], rewards=rewards, **batch)
    scaled.metrics(completions=[], rewards=4 * rewards - 1, **batch)
    assert data.state_dict()["state"]["bandit"] == scaled.state_dict()["state"]["bandit"]
    assert sum(data.state_dict()["state"]["bandit"]["pulls"]) == 6
    other = dataset()
    next(iter(other))
    other.metrics(completions=[], rewards=np.where(np.arange(12) < 2, np.nan, rewards + (np.arange(12) < 4)), **batch)
    assert sum(other.state_dict()["state"]["bandit"]["pulls"]) == 4


def through_json(data):
    return json.loads(json.dumps(data.state_dict()))


@pytest.mark.parametrize("lag", [0, 2])
def test_a_restart_with_fast_forward_goes_on_exactly(lag):
    """Saved with `lag` batches out; the learner that restored its own checkpoint first throws the past ones away."""
    straight = dataset()
    source, out, history = iter(straight), [], []
    for step in range(14):
        out.append(next(source))
        history.append(out[-1])
        if len(out) > lag:
            feed(straight, out.pop(0))
        if step == 8:
            saved, done = through_json(straight), len(history) - len(out)
    resumed = dataset()
    resumed.load_state_dict(saved)
    source, waiting = iter(resumed), []
    for _ in range(done):
        skipped = next(source)
        assert len(skipped["prompts"]) == 6
        assert set(skipped["arm"].tolist()) == {-1}
    for expected in history[done : done + lag]:  # what was out is handed out again before anything is learned
        waiting.append(next(source))
        np.testing.assert_array_equal(waiting[-1]["slot"], expected["slot"])
    for expected in history[done + lag :]:
        waiting.append(next(source))
        assert {key: waiting[-1][key].tolist() for key in expected} == {k: v.tolist() for k, v in expected.items()}
        feed(resumed, waiting.pop(0))
    assert resumed.state_dict() == straight.state_dict()


def test_a_restart_within_a_batch_hands_the_rest_out_again():
    data = dataset()
    batch = next(iter(data))
    feed(data, {key: values[:4] for key, values in batch.items()})
    resumed = dataset()
    resumed.load_state_dict(through_json(data), skip=0)
    again = next(iter(resumed))
    np.testing.assert_array_equal(again["slot"], [4, 5, 6, 7, 8, 9])
    np.testing.assert_array_equal(again["example_id"][:2], batch["example_id"][4:])


def test_training_on_batches_that_were_to_be_skipped_is_an_error():
    data = dataset()
    feed(data, next(iter(data)))
    anew = dataset()
    anew.load_state_dict(through_json(data), skip=0)
    feed(anew, next(iter(anew)))
    wrong = dataset()
    wrong.load_state_dict(through_json(data))
    with pytest.raises(RunError, match="expected to skip"):
        feed(wrong, next(iter(wrong)))


def test_states_of_other_data_are_refused():
    with pytest.raises(RunError, match="batch_size 6, the data set has 4"):
        dataset(batch_size=4).load_state_dict(through_json(dataset()))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"columns": {"arm": ARMS}}, "column of the data set itself"),
        ({"columns": {"answer": [1, 2]}}, r"shape \(2,\), expected \(24,\)"),
        ({"columns": {"answer": np.zeros((24, 2))}}, "expected"),
        ({"bandit": space(2)}, r"arms must be in \[-1, 2\)"),
        ({"bandit": space(4)}, "arm 3 has no prompts"),
        ({"kept": [[0], [8]]}, "kept has shape"),
        ({"kept": [[0], [8], [24]]}, "kept has shape"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"reward_range": (1.0, 1.0)}, "reward_range must be"),
    ],
)
def test_wrong_arguments_are_named(changes, match):
    with pytest.raises(ConfigError, match=match):
        dataset(**changes)


def test_evaluation_needs_the_columns_of_training():
    with pytest.raises(ConfigError, match="differ in the column 'topic'"):
        dataset().evaluation(["x"], columns={"answer": [1]})
    batches = dataset().evaluation(["x"] * 7, columns={"answer": range(7), "topic": ["y"] * 7})
    assert [len(batch["prompts"]) for batch in batches] == [6, 6]
    assert batches[1]["answer"].tolist() == [6, 0, 1, 2, 3, 4]
    assert set(batches[0]["arm"].tolist()) == {-1}


def test_kept_limits_what_is_drawn():
    data = dataset(kept=[[1, -1], [8, 9], [16, -1]])
    drawn = {int(i) for batch in itertools.islice(data, 10) for i in batch["example_id"]}
    assert drawn == {1, 8, 9, 16}


@pytest.fixture
def lenient_promotion():
    """Tunix mixes dtypes; it works in a thread of its own, which context managers do not reach."""
    names = ("jax_numpy_dtype_promotion", "jax_numpy_rank_promotion")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, ("standard", "allow"), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("lenient_promotion")
def test_the_real_learner():
    """google-tunix's own learner on its toy model."""
    pytest.importorskip("tunix", reason="google-tunix is not installed")
    import optax
    from flax import nnx
    from jax.interpreters import pxla
    from tunix.rl import rl_cluster as clusters
    from tunix.rl.grpo import grpo_learner
    from tunix.rl.rollout import base_rollout
    from tunix.tests import test_common

    words = ["input string", "hello world", "My name", "hello there"] * 6
    calls = []

    def reward(prompts, completions, answer, mode, **columns):
        calls.append((mode, len(prompts), set(columns)))
        return [float(len(c) % 2) for c in completions]

    data = SpaceDataset(space(3), words, ARMS, batch_size=2, columns={"answer": ANSWERS})
    vocabulary = test_common.MockVocab()
    make = lambda: test_common.ToyTransformer(
        config=test_common.ModelConfig(vocab_size=vocabulary.GetPieceSize()), rngs=nnx.Rngs(0)
    )
    mesh = pxla.thread_resources.env.physical_mesh
    roles = (clusters.Role.ACTOR, clusters.Role.REFERENCE, clusters.Role.ROLLOUT)
    cluster = clusters.RLCluster(
        actor=make(),
        reference=make(),
        tokenizer=vocabulary,
        cluster_config=clusters.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            rollout_engine="vanilla",
            offload_to_cpu=False,
            training_config=clusters.RLTrainingConfig(
                actor_optimizer=optax.sgd(1e-3), eval_every_n_steps=2, max_steps=4
            ),
            rollout_config=base_rollout.RolloutConfig(max_tokens_to_generate=6, max_prompt_length=16, kv_cache_size=64),
        ),
    )
    learner = grpo_learner.GRPOLearner(
        rl_cluster=cluster,
        reward_fns=reward,
        algo_config=grpo_learner.GRPOConfig(num_generations=4, num_iterations=1),
        metric_fns=[data.metrics],
    )
    learner.train(data, data.evaluation(words[:2], columns={"answer": ANSWERS[:2]}))
    state = data.state_dict()
    assert state["state"]["bandit"]["step"] == 4
    assert sum(state["state"]["bandit"]["pulls"]) == 8
    assert {(mode, size) for mode, size, _ in calls} == {("train", 8), ("eval", 8)}
    history = cluster._rl_metrics_logger.get_metric_history("space", "probability/1", "train")
    assert len(history) >= 3
