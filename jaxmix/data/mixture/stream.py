"""The iterator of batches, drawn by weights that may change during training."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from jaxmix.core.errors import ConfigError, RunError, warn_renamed
from jaxmix.core.types import Int
from jaxmix.data.mixture.arguments import (
    UNITS,
    check_arguments,
    check_policies,
    checked_weights,
    one_per_source,
    row_limit,
)
from jaxmix.data.mixture.ledger import Ledger
from jaxmix.data.mixture.packing import PackedRows, RowSource, WholeRows
from jaxmix.data.mixture.permutation import EpochPermutation
from jaxmix.data.mixture.plan import UNLIMITED, BlockPlan, plan_block

__all__ = ["UNITS", "MixtureStream"]

FORMAT = 1


class _Block(NamedTuple):
    """A planned block: its number, the version of its weights, and its rows in the order of delivery."""

    number: int
    version: int
    plan: BlockPlan
    domain: Int[np.ndarray, "batches b"]
    row: Int[np.ndarray, "batches b"]  # its number in its source
    targets: Int[np.ndarray, "batches b"]  # tokens with a target


class MixtureStream:
    """An endless, exactly resumable iterator of batches drawn from several sources by changeable weights.

    Each batch is a dict of NumPy arrays: `tokens` i32[b, t], `targets` i32[b, t] (the next token, −1 where there is
    none), `domain` i32[b] (index into `names`), `weights_version` i32[b] (which `set_weights` drew the row). A row
    comes from one source.

    Weights reach the data at block boundaries. A block's plan is a pure function of the seed, the block's number, the
    weights, and what was drawn before; rows are handed out by largest remainder with carry and laid in the order that
    keeps every domain within one row of what was asked, at every batch, however small its weight
    (`jaxmix.data.mixture.plan`). Each source is read in a new random order every epoch (a permutation of row numbers,
    no buffer).

    Args:
        sources: token sources by name. A source has `__len__` and `__getitem__(i)`, which gives a document as a 1-D
            integer array (or a mapping with one under `tokens`); lists of arrays, 2-D arrays, `PreparedSource` and
            Grain's random-access sources will do.
        batch_size: rows of a batch over all processes.
        seq_len: tokens per row.
        seed: of the permutations.
        unit: of which a weight is a share. "tokens": documents are laid end to end and cut into rows of `seq_len`
            tokens; shares of rows are shares of tokens. "documents": packed likewise, and a source gets rows in
            proportion to weight × its mean rows per document. "rows": each item is one row of at most `seq_len`
            tokens (one more gives the last target), padded.
        block: batches drawn by the same weights, ≥ 1.
        on_exhaust: what happens when a source has been read `max_epochs` times (once, without `max_epochs`), for all
            or by name. "repeat": it continues, and with `max_epochs` it drops out after them; "drop": it drops out and
            the others share its weight; "stop": the stream ends before the first batch it could not fill; "error":
            likewise, with a `RunError`.
        max_epochs: > 0, for all or by name; None for no bound.
        weights: at the start, by name or in order; uniform if None.
        shard: (index, count) of this process; it gets and reads only its share of every batch.
        shuffle: False reads every epoch in order.
        prefetch: batches that are read ahead, ≥ 0. It never changes what is drawn.
        num_threads: of the one reader pool.

    Raises:
        ConfigError: any argument is out of range; raised before a document is read, except by sources without
            `doc_lengths`, which are read once to measure them.

    Example:
        >>> import numpy as np
        >>> sources = {"a": np.zeros((8, 4), np.int32), "b": np.ones((8, 4), np.int32)}
        >>> stream = MixtureStream(sources, batch_size=4, seq_len=4, seed=0, weights={"a": 3, "b": 1})
        >>> next(stream)["domain"].tolist().count(0)
        3
    """

    def __init__(
        self,
        sources: Mapping[str, Any],
        *,
        batch_size: int,
        seq_len: int,
        seed: int,
        unit: str = "tokens",
        block: int = 8,
        on_exhaust: str | Mapping[str, str] = "repeat",
        max_epochs: float | Mapping[str, float | int | None] | None = None,
        weights: Any = None,
        shard: tuple[int, int] = (0, 1),
        shuffle: bool = True,
        prefetch: int = 2,
        num_threads: int = 4,
    ):
        counts = {"seq_len": seq_len, "block": block, "num_threads": num_threads}
        check_arguments(sources, unit, shard, batch_size=batch_size, prefetch=prefetch, **counts)
        self.names: tuple[str, ...] = tuple(sources)
        self.batch_size, self.seq_len, self.unit, self.block = batch_size, seq_len, unit, block
        self._seed, self._shuffle, self._shard, self._prefetch = seed, shuffle, shard, prefetch
        policies = one_per_source(on_exhaust, self.names, "on_exhaust", default="repeat")
        epochs = one_per_source(max_epochs, self.names, "max_epochs", default=None)
        check_policies(self.names, policies, epochs)
        packer = WholeRows if unit == "rows" else PackedRows
        self._rows: list[RowSource] = [packer(source, seq_len, name=name) for name, source in sources.items()]
        self._lengths = np.asarray([len(rows) for rows in self._rows], np.int64)
        documents = np.asarray([rows.num_documents for rows in self._rows], np.float64)
        self._rows_per_unit = self._lengths / np.maximum(documents, 1) if unit == "documents" else np.ones(len(sources))
        self._policies = policies
        self._limits = np.asarray(
            [row_limit(n, p, e) for n, p, e in zip(self._lengths.tolist(), policies, epochs, strict=True)], np.int64
        )
        self._ledger = Ledger.empty(len(self.names))
        # Ledger and rows of sources that are gone, by name.
        self._left: dict[str, dict[str, Any]] = {**Ledger.empty(0).to_json(()), "rows": {}}
        self._weights = self._checked(np.ones(len(self.names)) * (self._lengths > 0) if weights is None else weights)
        self._pending: np.ndarray | None = None
        self._version = self._latest_version = 0
        self._number = self._position = 0
        self._current: _Block | None = None
        self._next: _Block | None = None
        self._reads: dict[tuple[int, int], Future[dict[str, np.ndarray]]] = {}
        self._pool = ThreadPoolExecutor(num_threads, "jaxmix-read") if prefetch else None
        self._permutations = [
            EpochPermutation(n, seed=seed, name=name, shuffle=shuffle)
            for n, name in zip(self._lengths.tolist(), self.names, strict=True)
        ]

    # ── weights ──────────────────────────────────────────────────────────────────────────────────────────────────

    def set_weights(self, weights: Any) -> int:
        """Sets the weights that the next block is drawn by, and returns their version.

        Args:
            weights: one per source, in the order of `names` or by name; finite, ≥ 0, not all 0; they are divided by
                their sum. A source of weight 0 is not drawn.

        Returns:
            The version that rows drawn by these weights carry. Equal weights keep the version.
        """
        checked = self._checked(weights)
        latest = self._weights if self._pending is None else self._pending
        if not np.array_equal(checked, latest):
            self._latest_version += 1
            self._pending = checked
            self._forget_next()
        return self._latest_version

    @property
    def oldest_version(self) -> int:
        """The oldest version of weights that a row still to come may carry."""
        return self._version

    def _checked(self, weights: Any) -> np.ndarray:
        return checked_weights(weights, self.names, self._lengths.tolist())

    # ── iteration ────────────────────────────────────────────────────────────────────────────────────────────────

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        block = self._block_with_a_batch()
        read = self._reads.pop((block.number, self._position), None)
        batch = self._read(block, self._position) if read is None else read.result()
        self._position += 1
        self._read_ahead(block)
        return batch

    def next_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Advances by one batch without reading it, and returns its rows over all processes, in order.

        Returns:
            domain i32[b] and row number within its source i64[b], for a reader that keeps the tokens elsewhere.
        """
        block = self._block_with_a_batch()
        self._position += 1
        return block.domain[self._position - 1], block.row[self._position - 1]

    def _block_with_a_batch(self) -> _Block:
        block = self._block_in_progress()
        if self._position >= len(block.domain):
            self._raise_end(block)
        return block

    def _block_in_progress(self) -> _Block:
        if self._current is None:
            self._adopt_pending()
            self._current = self._plan(self._number, self._weights, self._version, self._ledger)
        if self._position == self.block:
            self._ledger = self._ledger_now()
            self._number += 1
            self._position = 0
            following = self._following()
            self._adopt_pending()
            self._current, self._next = following, None
        return self._current

    def _adopt_pending(self) -> None:
        if self._pending is not None:
            self._weights, self._version, self._pending = self._pending, self._latest_version, None

    def _following(self) -> _Block:
        """The next block, by the weights known now; planned afresh if weights change before it begins."""
        if self._next is None:
            weights = self._weights if self._pending is None else self._pending
            if self._position == 0:
                ledger, number = self._ledger, self._number
            else:
                ledger, number = self._ledger_at(self.block), self._number + 1
            self._next = self._plan(number, weights, self._latest_version, ledger)
        return self._next

    def _forget_next(self) -> None:
        if self._next is not None:
            number, self._next = self._next.number, None
            for key in [key for key in self._reads if key[0] == number]:
                self._reads.pop(key).cancel()

    def _plan(self, number: int, weights: np.ndarray, version: int, ledger: Ledger) -> _Block:
        share = weights * self._rows_per_unit
        plan = plan_block(
            weights=share / share.sum(),
            carry=ledger.carry,
            cursors=ledger.cursors,
            limits=self._limits,
            policies=self._policies,
            rows=self.block * self.batch_size,
        )
        batches = len(plan.domain) // self.batch_size
        domain = plan.domain[: batches * self.batch_size]
        row, targets = np.empty(len(domain), np.int64), np.empty(len(domain), np.int64)
        for j, places in _by_domain(domain):
            row[places] = self._permutations[j](plan.cursor[places])
            targets[places] = self._rows[j].count_targets(row[places])
        # Rows of a batch are mixed, so that every device and process sees all domains.
        shape = (batches, self.batch_size)
        mixed = np.random.Generator(np.random.Philox(key=[self._seed % 2**64, number])).random(shape).argsort(axis=1)
        domain, row, targets = (np.take_along_axis(x.reshape(shape), mixed, axis=1) for x in (domain, row, targets))
        return _Block(number, version, plan, domain, row, targets)

    def _read_ahead(self, block: _Block) -> None:
        if self._pool is None:
            return
        for position in range(self._position, self._position + self._prefetch):
            if position < self.block:
                source, local = block, position
            elif block.plan.ended is None:
                source, local = self._following(), position - self.block
            else:
                return
            key = (source.number, local)
            if local < len(source.domain) and key not in self._reads:
                self._reads[key] = self._pool.submit(self._read, source, local)

    def _read(self, block: _Block, position: int) -> dict[str, np.ndarray]:
        """Reads this process's rows of one batch, one request per source."""
        index, count = self._shard
        share = self.batch_size // count
        mine = slice(index * share, (index + 1) * share)
        domain, row = block.domain[position, mine], block.row[position, mine]
        tokens = np.empty((share, self.seq_len), np.int32)
        targets = np.empty((share, self.seq_len), np.int32)
        for j, places in _by_domain(domain):
            self._rows[j].read_into(row[places].tolist(), tokens, targets, places.tolist())
        return {
            "tokens": tokens,
            "targets": targets,
            "domain": domain.copy(),
            "weights_version": np.full(share, block.version, np.int32),
        }

    def _raise_end(self, block: _Block) -> None:
        assert block.plan.ended is not None
        policy, source = block.plan.ended
        if source < 0:
            raise StopIteration("every source is used up")
        reason = (
            f"source {self.names[source]!r} is used up after {self._limits[source]} rows "
            f"({self._limits[source] / max(int(self._lengths[source]), 1):g} epochs)"
        )
        if policy == "error":
            raise RunError(
                reason,
                where="on_exhaust: error",
                fix="Lower its weight, shorten the run, raise max_epochs or choose another on_exhaust.",
            )
        raise StopIteration(f"{reason}, on_exhaust: {policy}")

    # ── what was drawn ───────────────────────────────────────────────────────────────────────────────────────────

    def _ledger_at(self, position: int) -> Ledger:
        """The ledger after `position` batches of the block in progress."""
        block, start = self._current, self._ledger
        if block is None or position == 0:
            return start
        rows = min(position * self.batch_size, len(block.plan.domain))
        m = len(self.names)
        drawn = np.bincount(block.plan.domain[:rows], minlength=m)
        asked = block.plan.asked(rows)
        is_whole = rows == len(block.plan.domain)
        done = block.domain[:position].reshape(-1)
        tokens = np.bincount(done, weights=block.targets[:position].reshape(-1), minlength=m).astype(np.int64)
        return Ledger(
            cursors=start.cursors + drawn,
            carry=block.plan.carry if is_whole else start.carry + asked - drawn,
            asked=start.asked + asked,
            tokens=start.tokens + tokens,
        )

    def _ledger_now(self) -> Ledger:
        return self._ledger_at(self._position)

    def realised(self) -> dict[str, dict[str, Any]]:
        """The old spelling of `realized`, deprecated."""
        warn_renamed("MixtureStream.realised", "MixtureStream.realized")
        return self.realized()

    def realized(self) -> dict[str, dict[str, Any]]:
        """Rows and tokens delivered so far (over all processes), by source name; sources that left come last.

        Returns:
            `rows`, `tokens` (with a target), `epochs`, `share` of rows, `asked_rows`, `asked_share`.
        """
        left = tuple(self._left["rows"])
        now, then = self._ledger_now(), Ledger.from_json(self._left, left)
        lengths = [*self._lengths.tolist(), *self._left["rows"].values()]
        cursors, asked = np.concatenate([now.cursors, then.cursors]), np.concatenate([now.asked, then.asked])
        tokens = np.concatenate([now.tokens, then.tokens])
        return {
            name: {
                "rows": int(cursors[j]),
                "tokens": int(tokens[j]),
                "epochs": float(cursors[j] / max(lengths[j], 1)),
                "share": float(cursors[j] / max(int(cursors.sum()), 1)),
                "asked_rows": float(asked[j]),
                "asked_share": float(asked[j] / max(float(asked.sum()), 1.0)),
            }
            for j, name in enumerate((*self.names, *left))
        }

    def used_up(self) -> tuple[str, ...]:
        """Sources that have dropped out, because they have given all they may (see `on_exhaust`)."""
        if (self._limits == UNLIMITED).all():
            return ()
        cursors = self._ledger_now().cursors
        is_used_up = (cursors >= self._limits) & ((cursors > 0) | (self._weights > 0))
        columns = zip(self.names, is_used_up.tolist(), self._policies, strict=True)
        return tuple(name for name, is_out, policy in columns if is_out and policy in ("repeat", "drop"))

    # ── checkpoints ──────────────────────────────────────────────────────────────────────────────────────────────

    def get_state(self) -> dict[str, Any]:
        """Everything needed to continue exactly here, as plain JSON values. The same on every process."""
        return {
            "format": FORMAT,
            "seed": self._seed,
            "batch_size": self.batch_size,
            "seq_len": self.seq_len,
            "unit": self.unit,
            "block": self.block,
            "shuffle": self._shuffle,
            "rows": dict(zip(self.names, self._lengths.tolist(), strict=True)),
            "limits": dict(zip(self.names, self._limits.tolist(), strict=True)),
            "policies": dict(zip(self.names, self._policies, strict=True)),
            "number": self._number,
            "position": self._position,
            "version": self._version,
            "latest_version": self._latest_version,
            "weights": dict(zip(self.names, self._weights.tolist(), strict=True)),
            "pending": None if self._pending is None else dict(zip(self.names, self._pending.tolist(), strict=True)),
            "start": self._ledger.to_json(self.names),
            "now": self._ledger_now().to_json(self.names),
            "left": self._left,
        }

    def set_state(
        self, state: Mapping[str, Any], allow_changed_sources: bool = False, allow_changed_rows: bool = False
    ) -> bool:
        """Continues from a state of `get_state`, on any number of processes.

        Args:
            state: from `get_state`.
            allow_changed_sources: sources may have been added (they start at their beginning), dropped, or bounded
                otherwise, and `block` may differ. The block in progress then ends where it was; sources that stay or
                come back go on where they were, nothing repeated or lost, and the weights are the new stream's own.
            allow_changed_rows: sources may have another number of rows: these begin again, and so do their epochs. The
                block in progress and the weights are as with changed sources.

        Returns:
            Whether the sources are those of the state, so that all goes on as if there had been no interruption.

        Raises:
            ConfigError: the state belongs to a stream with another seed, batch size, row length or unit, or with
                other sources or rows that are not allowed.
        """
        if state["format"] != FORMAT:
            raise ConfigError(f"unknown format {state['format']} of a stream's state", fix="Upgrade jaxmix to read it.")
        mine = self.get_state()
        for field in ("seed", "batch_size", "seq_len", "unit", "shuffle"):
            if state[field] != mine[field]:
                raise ConfigError(
                    f"the state was saved with {field} {state[field]}, this stream has {mine[field]}",
                    where="MixtureStream.set_state",
                    fix="Use the same value to continue, or start afresh.",
                )
        left = state.get("left", {})  # states of earlier versions do not have it
        then = {k: {**left.get(k, {}), **values} for k, values in {**state["now"], "rows": state["rows"]}.items()}
        changed_rows = [n for n in self.names if then["rows"].get(n, mine["rows"][n]) != mine["rows"][n]]
        if changed_rows and not allow_changed_rows:
            name = changed_rows[0]
            raise ConfigError(
                f"source {name!r} had {then['rows'][name]} rows in the saved state, and has {mine['rows'][name]} now",
                where="MixtureStream",
                fix="Give the changed source another name, start afresh, or allow changed rows: it then begins again.",
            )
        then["cursors"] |= dict.fromkeys(changed_rows, 0)
        same = ("rows", "limits", "policies", "block")
        is_same = all(state[field] == mine[field] for field in same) and list(state["rows"]) == list(self.names)
        if not is_same and not (allow_changed_sources or changed_rows):
            changed = next(f for f in (*same, "rows") if state[f] != mine[f] or f == "rows")
            raise ConfigError(
                f"the stream's {changed} differ from the saved ones: {state[changed]} then, {mine[changed]} now",
                where="MixtureStream.set_state",
                fix="Allow changed sources to continue all the same.",
            )
        self._reset()
        self._latest_version = state["latest_version"]
        self._left = {k: {n: x for n, x in values.items() if n not in self.names} for k, values in then.items()}
        if is_same:
            self._number, self._position, self._version = state["number"], state["position"], state["version"]
            self._weights = np.asarray([state["weights"][name] for name in self.names])
            pending = state["pending"]
            self._pending = None if pending is None else np.asarray([pending[name] for name in self.names])
            self._ledger = Ledger.from_json(state["start"], self.names)
            if self._position:
                self._current = self._plan(self._number, self._weights, self._version, self._ledger)
            return True
        now = Ledger.from_json(then, self.names)
        # What is owed to sources that left, or by them, is forgotten; the rest must add to 0 again.
        carry = now.carry - now.carry.mean()
        self._ledger = Ledger(now.cursors, carry, now.asked, now.tokens)
        self._number, self._position = state["number"] + 1, 0
        self._latest_version += 1
        self._version = self._latest_version
        return False

    def _reset(self) -> None:
        for read in self._reads.values():
            read.cancel()
        self._reads.clear()
        self._current = self._next = None

    def close(self) -> None:
        """Ends the reader pool; later batches are read when they are asked for."""
        self._reset()
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None

    def __enter__(self) -> MixtureStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _by_domain(domain: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each domain that occurs, and where, in order."""
    order = np.argsort(domain, kind="stable")
    bounds = [*np.flatnonzero(np.diff(domain[order], prepend=-1)).tolist(), len(order)]
    for start, end in itertools.pairwise(bounds):
        yield int(domain[order[start]]), order[start:end]
