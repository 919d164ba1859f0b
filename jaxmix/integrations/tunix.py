"""A curriculum for Tunix's `GRPOLearner`: a data set that draws prompts, and a metric function that updates it.

    data = SpaceDataset(space(10), prompts, arms, batch_size=16, columns={"answer": answers})
    GRPOLearner(rl_cluster=…, algo_config=…, reward_fns=…, metric_fns=[data.metrics]).train(data, data.evaluation(test))

Nothing here imports Tunix: both hooks are plain Python objects that the learner calls.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxmix.core.errors import ConfigError, RunError, nearest
from jaxmix.core.pytree import from_nested, state_versions, to_nested
from jaxmix.core.validate import check_count, check_number
from jaxmix.curricula import Bandit, prompt_cursors, rescale_rewards

Batch = dict[str, NDArray]
_OWN = ("prompts", "arm", "example_id", "slot")
_EVALUATION, _SKIPPED = -1, -2
"""What `slot` says of rows that no feedback is expected for."""


class SpaceDataset:
    """Endless batches of prompts, drawn by a bandit that learns from the rewards of earlier ones.

    Every batch is a dict of 1-D NumPy arrays of length `batch_size`: `prompts`, `arm`, `example_id` (number of the
    prompt), `slot` (number of the draw), and `columns` of your own; reward functions get all of them, repeated for each
    generation. `metrics` finds out which draws the rewards belong to by `slot`, so that feedback may come late, split
    into micro-batches, or in another order: what is drawn meanwhile is drawn without it. What a lag costs
    was simulated: 4 batches 3 to 4 % of the gain, 16 batches 16 to 21 % (`experiments/space_simulated/`).

    Args:
        bandit: of `jaxmix.curricula`.
        prompts: as the learner takes them.
        arms: the arm of each prompt, in [0, bandit.num_arms); prompts of arm −1 are never drawn.
        batch_size: prompts of a full batch; stays the same, because the learner reads it off the first batch.
        seed: of arms and prompts.
        kept: i32[k, l], the prompts to draw from, as `reduce` returns them; `None`: all.
        columns: name → one value per prompt; text becomes an array of objects.
        reward_range: what the reward functions' sum lies between.

    Raises:
        ConfigError: lengths or arms that do not fit, or columns that the data set has itself.

    Several processes that train one model must draw the same arms: give them the same seed, and gather the rewards of
    all before `metrics`. Checkpoints: save `state_dict()` whenever the learner saves, see `load_state_dict`.

    References:
        github.com/google/tunix, rl_learner.py of google-tunix 0.1.7.
    """

    def __init__(
        self,
        bandit: Bandit,
        prompts: Sequence[str],
        arms: ArrayLike,
        *,
        batch_size: int,
        seed: int = 0,
        kept: ArrayLike | None = None,
        columns: Mapping[str, Sequence[Any] | NDArray] | None = None,
        reward_range: tuple[float, float] = (0.0, 1.0),
    ):
        check_count("SpaceDataset", "batch_size", batch_size)
        check_count("SpaceDataset", "seed", seed, 0)
        check_number("SpaceDataset", "reward_range", reward_range[1], above=reward_range[0])
        self._bandit, self._batch_size, self._range = bandit, batch_size, reward_range
        self._columns = {"prompts": _column("prompts", prompts, len(prompts))}
        for name, values in (columns or {}).items():
            if name in _OWN:
                raise ConfigError(f"{name!r} is a column of the data set itself", where="SpaceDataset(columns)")
            self._columns[name] = _column(name, values, len(prompts))
        self._arms = np.asarray(arms, np.int32)
        if self._arms.shape != (len(prompts),):
            raise ConfigError(
                f"arms of shape {self._arms.shape} for {len(prompts)} prompts", where="SpaceDataset(arms)"
            )
        if len(prompts) == 0 or self._arms.max() >= bandit.num_arms or self._arms.min() < -1:
            raise ConfigError(f"arms must be in [-1, {bandit.num_arms})", where="SpaceDataset(arms)")
        table = _table(self._arms, bandit.num_arms) if kept is None else np.asarray(kept, np.int32)
        self._check_table(table)
        cursors = prompt_cursors(table)
        self._key = jax.random.key(seed)
        self._cursor = cursors.init(jax.random.fold_in(self._key, 1))
        self._state = bandit.init()
        self._slots = 0  # draws so far, which is the number of the next one
        self._batches = 0  # handed out to be trained on
        self._pending: dict[int, tuple[int, int]] = {}  # slot → (arm, prompt), drawn and without feedback
        self._again: list[tuple[int, int, int]] = []  # (slot, arm, prompt) to hand out once more after a restart
        self._skip = 0
        self._lock = threading.Lock()
        self._sample = jax.jit(bandit.sample, static_argnums=2)
        self._take, self._update = jax.jit(cursors.take), jax.jit(bandit.update)
        self._probabilities, self._scores = jax.jit(bandit.probabilities), jax.jit(bandit.scores)

    def _check_table(self, table: NDArray) -> None:
        if table.ndim != 2 or table.shape[0] != self._bandit.num_arms or table.max() >= len(self._arms):
            raise ConfigError(
                f"kept has shape {table.shape} for {self._bandit.num_arms} arms, or names prompts that are not there",
                where="SpaceDataset(kept)",
            )
        empty = np.flatnonzero((table >= 0).sum(axis=1) == 0)
        if len(empty):
            raise ConfigError(
                f"arm {empty[0]} has no prompts" + (f", and {len(empty) - 1} more" if empty[1:].size else ""),
                where="SpaceDataset(arms)",
                fix="Number the arms without gaps, and make the bandit with as many.",
            )

    # ── hook 1: data ─────────────────────────────────────────────────────────────────────────────

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self._next()

    def _next(self) -> Batch:
        with self._lock:
            if self._skip:
                self._skip -= 1
                rows = np.zeros(self._batch_size, np.int32)
                return self._batch(np.full_like(rows, _SKIPPED), np.full_like(rows, -1), rows)
            entries, self._again = self._again[: self._batch_size], self._again[self._batch_size :]
            entries = entries + self._draw(self._batch_size - len(entries))
            self._batches += 1
            slots, arms, rows = (np.asarray(values) for values in zip(*entries, strict=True))
            return self._batch(slots, arms, rows)

    def _draw(self, count: int) -> list[tuple[int, int, int]]:
        """(slot, arm, prompt) of so many new draws, which then wait for feedback."""
        if count == 0:
            return []
        key = jax.random.fold_in(jax.random.fold_in(self._key, 0), self._slots)
        arms = self._sample(key, self._state, count)
        rows, self._cursor = self._take(self._cursor, arms)
        slots = range(self._slots, self._slots + count)
        entries = list(zip(slots, np.asarray(arms).tolist(), np.asarray(rows).tolist(), strict=True))
        self._slots += count
        self._pending |= {slot: (arm, row) for slot, arm, row in entries}
        return entries

    def _batch(self, slots: NDArray, arms: NDArray, rows: NDArray) -> Batch:
        own = {"arm": arms, "example_id": rows, "slot": slots}
        return {name: values[rows] for name, values in self._columns.items()} | {
            name: values.astype(np.int64) for name, values in own.items()
        }

    def evaluation(
        self, prompts: Sequence[str], *, columns: Mapping[str, Sequence[Any] | NDArray] | None = None
    ) -> list[Batch]:
        """Batches for the learner's `eval_ds`, of which the bandit learns nothing; their arm is −1.

        Args:
            prompts: a last batch that is not full is filled up from the first ones.
            columns: the same names as in training.

        Raises:
            ConfigError: other columns than in training, or none of the prompts.
        """
        given = {"prompts": _column("prompts", prompts, len(prompts))}
        given |= {name: _column(name, values, len(prompts)) for name, values in (columns or {}).items()}
        for name in {*given, *self._columns}:
            if (name in given) != (name in self._columns):
                raise ConfigError(
                    f"evaluation and training differ in the column {name!r}",
                    where="SpaceDataset.evaluation(columns)",
                    fix=nearest(name, self._columns),
                )
        if len(prompts) == 0:
            raise ConfigError("there are no prompts", where="SpaceDataset.evaluation(prompts)")
        count = -(-len(prompts) // self._batch_size) * self._batch_size
        own = {"arm": -1, "example_id": -1, "slot": _EVALUATION}
        batches = []
        for rows in (np.arange(count) % len(prompts)).reshape(-1, self._batch_size):
            batch = {name: values[rows] for name, values in given.items()}
            batches.append(batch | {name: np.full(self._batch_size, value, np.int64) for name, value in own.items()})
        return batches

    # ── hook 2: feedback ─────────────────────────────────────────────────────────────────────────

    def metrics(
        self,
        prompts: Any,
        completions: Any,
        rewards: ArrayLike,
        advantages: Any = None,
        **columns: Any,
    ) -> dict[str, tuple[float, Callable[..., Any]]]:
        """A `metric_fn`: tells the bandit what the rollouts earned, and returns what it makes of it.

        Args:
            prompts, completions, advantages: not used.
            rewards: one per rollout, in `reward_range`; groups with one outside it, or not finite, teach nothing.
            columns: the batch's, `slot` among them, in the order of `rewards`.

        Returns:
            name → (number, aggregator): `space/probability/<arm>`, `space/<score>/<arm>`, the groups' mean solve rate
            and live share; nothing for evaluation batches.

        Raises:
            RunError: rewards of batches that were only there to be skipped, see `load_state_dict`.
        """
        del prompts, completions, advantages
        slots = np.asarray(columns["slot"]).astype(np.int64).ravel()
        values = np.asarray(rewards, np.float32).ravel()
        if slots.shape != values.shape:
            raise ConfigError(f"{values.size} rewards for {slots.size} rows", where="SpaceDataset.metrics(rewards)")
        if (slots == _SKIPPED).any():
            raise RunError(
                "the learner trained on batches that it was expected to skip after a restart",
                fix="Give load_state_dict the number of batches that the learner skips: 0 if it starts anew.",
            )
        with self._lock:
            known = [slot for slot in dict.fromkeys(slots.tolist()) if slot in self._pending]
            if not known:
                return {}
            groups = [values[slots == slot] for slot in known]
            if len({len(group) for group in groups}) != 1:
                raise ConfigError("groups of different sizes", where="SpaceDataset.metrics(rewards)")
            arms = np.asarray([self._pending.pop(slot)[0] for slot in known], np.int32)
            table = np.asarray(rescale_rewards(jnp.asarray(np.stack(groups)), *self._range), np.float32)
            self._state = self._update(self._state, arms, table)
            return self._statistics(table)

    def _statistics(self, rewards: NDArray) -> dict[str, tuple[float, Callable[..., Any]]]:
        is_live = (rewards != rewards[:, :1]).any(axis=1)
        statistics = {"space/solve_rate": float(rewards.mean()), "space/live_share": float(is_live.mean())}
        tables = {"probability": self._probabilities(self._state), **self._scores(self._state)}
        for name, table in tables.items():
            row = np.asarray(table, np.float64)
            statistics |= {f"space/{name}/{arm}": float(row[arm]) for arm in range(self._bandit.num_arms)}
        return {name: (value, np.mean) for name, value in statistics.items()}

    # ── checkpoints ──────────────────────────────────────────────────────────────────────────────

    def state_dict(self) -> dict[str, Any]:
        """All that a restart needs, of plain numbers and lists: `json.dump` takes it."""
        with self._lock:
            tree = {"bandit": self._state, "cursor": self._cursor}
            pending = [(slot, arm, row) for slot, (arm, row) in self._pending.items()]
            return {
                "version": 1,
                "batch_size": self._batch_size,
                "num_prompts": len(self._arms),
                "slots": self._slots,
                "batches": self._batches,
                "pending": [list(entry) for entry in pending],
                "state": jax.tree.map(_plain, to_nested(tree)),
                "state_versions": state_versions(tree),
            }

    def load_state_dict(self, state: Mapping[str, Any], *, skip: int | None = None) -> None:
        """Goes on where `state_dict` was taken.

        Args:
            state: of a data set with the same prompts, bandit and batch size.
            skip: full batches that the learner will ask for and throw away before it trains: a learner that restored
                its own checkpoint calls `next` for every past batch. They are not drawn here. `None`:
                all batches that had their feedback, as it is where both were saved together; 0 for a learner that
                starts anew.

        Batches that were out without feedback are handed out again, as they were.

        Raises:
            RunError: the state is of another data set.
        """
        for name, own in (("batch_size", self._batch_size), ("num_prompts", len(self._arms))):
            if state[name] != own:
                raise RunError(f"the state has {name} {state[name]}, the data set has {own}")
        with self._lock:
            tree = {"bandit": self._state, "cursor": self._cursor}
            shapes = to_nested(tree)
            stored = jax.tree.map(
                lambda own, plain: np.asarray(plain, own.dtype), shapes, state["state"], is_leaf=_is_leaf
            )
            restored = jax.tree.map(jnp.asarray, from_nested(tree, stored, state["state_versions"]))
            self._state, self._cursor = restored["bandit"], restored["cursor"]
            self._again = [(int(slot), int(arm), int(row)) for slot, arm, row in state["pending"]]
            self._pending = {slot: (arm, row) for slot, arm, row in self._again}
            self._slots = int(state["slots"])
            self._batches = int(state["batches"]) - -(-len(self._again) // self._batch_size)
            self._skip = self._batches if skip is None else skip


def _plain(leaf: Any) -> Any:
    return np.asarray(leaf).tolist()


def _is_leaf(node: Any) -> bool:
    return not isinstance(node, dict)


def _column(name: str, values: Any, length: int) -> NDArray:
    """1-D, because learners repeat and flatten columns; text as objects, because fixed widths cut it off."""
    array = np.asarray(values, object if len(values) and isinstance(values[0], str) else None)
    if array.shape != (length,):
        raise ConfigError(
            f"the column {name!r} has shape {array.shape}, expected ({length},)",
            where=f"SpaceDataset({'prompts' if name == 'prompts' else 'columns'})",
            fix="Give one text or number per prompt.",
        )
    return array


def _table(arms: NDArray, num_arms: int) -> NDArray:
    """All prompts of every arm, padded with −1."""
    rows = [np.flatnonzero(arms == arm) for arm in range(num_arms)]
    table = np.full((num_arms, max(1, *(len(row) for row in rows))), -1, np.int32)
    for arm, row in enumerate(rows):
        table[arm, : len(row)] = row
    return table
