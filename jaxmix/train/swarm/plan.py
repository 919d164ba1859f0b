"""The host's half of a swarm: the rows that every proxy sees, planned by the code of the stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Integer

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.data.mixture.packing import PackedRows, WholeRows, document_tokens
from jaxmix.data.mixture.stream import MixtureStream

_READ_AT_ONCE = 4096


class Proxy(NamedTuple):
    """One model of a swarm.

    Attributes:
        name: of the run, different for every proxy.
        weights: f64[m] ≥ 0, the static mixture it is trained on; divided by its sum.
        seed: of parameters and data order.
    """

    name: str
    weights: np.ndarray
    seed: int = 0


class RowTable(NamedTuple):
    """Rows of tokens in the smallest type that holds them.

    Attributes:
        tokens: u8, u16 or i32; the last column is the target of the last position.
        targets: how many positions have a target, counted from the first.
    """

    tokens: Integer[np.ndarray, "n t+1"]
    targets: Int[np.ndarray, " n"]


def drawing_weights(weights: np.ndarray) -> np.ndarray:
    """f32[m]: the weights that a lone run with the prior `weights` and a static mixer draws by, to the last bit."""
    from jaxmix.mixers import static

    prior = np.asarray(weights, np.float64)
    prior = (prior / prior.sum()).astype(np.float32)
    mixer = static()
    state = jax.jit(lambda x: mixer.init(jax.random.key(0), len(prior), x))(jnp.asarray(prior))
    return np.asarray(jax.device_get(jax.jit(mixer.weights)(state)))


class SwarmPlan:
    """Plans the rows of every proxy, batch by batch, as a `MixtureStream` of its own would draw them.

    The streams plan and never read: they hold stand-ins of the sources that know their lengths only, so that a
    thousand proxies share one corpus.

    Args:
        proxies: mixtures and seeds.
        sources: token sources by name.
        vocab_size: token ids are below it; decides the type of rows.
        batch_size, seq_len, unit, stream: arguments of `MixtureStream`.
    """

    def __init__(
        self,
        proxies: Sequence[Proxy],
        sources: Mapping[str, Any],
        *,
        vocab_size: int,
        batch_size: int,
        seq_len: int,
        unit: str = "tokens",
        **stream: Any,
    ):
        self.names, self.batch_size, self.seq_len = tuple(sources), batch_size, seq_len
        self._proxies = tuple(proxies)
        packer = WholeRows if unit == "rows" else PackedRows
        self._rows: list[PackedRows | WholeRows] = [
            packer(source, seq_len, name=name) for name, source in sources.items()
        ]
        self._first = np.cumsum([0, *(len(rows) for rows in self._rows)])
        self._dtype = np.uint8 if vocab_size <= 2**8 else np.uint16 if vocab_size <= 2**16 else np.int32
        outlines = {n: _outline(s, rows, unit) for (n, s), rows in zip(sources.items(), self._rows, strict=True)}
        self._streams = [
            MixtureStream(
                outlines,
                batch_size=batch_size,
                seq_len=seq_len,
                seed=proxy.seed,
                unit=unit,
                weights=drawing_weights(proxy.weights),
                prefetch=0,
                **stream,
            )
            for proxy in proxies
        ]

    @property
    def num_rows(self) -> int:
        """Rows of all sources."""
        return int(self._first[-1])

    @property
    def bytes_per_row(self) -> int:
        return (self.seq_len + 1) * np.dtype(self._dtype).itemsize + 4

    def next(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """The next `steps` batches of every proxy: (domain i32[r, s, b], number in `table()` i64[r, s, b])."""
        shape = (len(self._streams), steps, self.batch_size)
        domain, row = np.empty(shape, np.int32), np.empty(shape, np.int64)
        for r, stream in enumerate(self._streams):
            for s in range(steps):
                try:
                    domain[r, s], row[r, s] = stream.next_rows()
                except StopIteration:
                    raise RunError(
                        f"the sources of proxy {self._proxies[r].name!r} are used up before its last step",
                        where="max_epochs",
                        fix="Raise max_epochs, shorten the runs, or bound the weights of small sources.",
                    ) from None
        return domain, row + self._first[domain]

    def table(self) -> RowTable:
        """Every row of every source, in order."""
        return self.read(np.arange(self.num_rows))

    def read(self, numbers: np.ndarray) -> RowTable:
        """The rows of the given numbers i64[n]; one that occurs twice is read once."""
        wanted, place = np.unique(numbers, return_inverse=True)
        tokens, targets = np.zeros((len(wanted), self.seq_len + 1), self._dtype), np.zeros(len(wanted), np.int32)
        source = np.searchsorted(self._first, wanted, side="right") - 1
        for start in range(0, len(wanted), _READ_AT_ONCE):
            part = slice(start, start + _READ_AT_ONCE)
            for j in np.unique(source[part]).tolist():
                mine = start + np.flatnonzero(source[part] == j)
                read = read_rows(self._rows[j], wanted[mine] - self._first[j], self.seq_len)
                tokens[mine], targets[mine] = read
        if len(wanted) == len(numbers) and np.array_equal(wanted, numbers):
            return RowTable(tokens, targets)
        return RowTable(tokens[place], targets[place])

    def get_state(self) -> list[dict[str, Any]]:
        """The streams' states, as plain JSON values."""
        return [stream.get_state() for stream in self._streams]

    def set_state(self, states: Sequence[Mapping[str, Any]]) -> None:
        for stream, state in zip(self._streams, states, strict=True):
            stream.set_state(state)

    def tokens(self) -> list[int]:
        """Tokens with a target that every proxy has drawn."""
        return [sum(drawn["tokens"] for drawn in stream.realized().values()) for stream in self._streams]


def read_rows(rows: PackedRows | WholeRows, numbers: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows as one array i32[n, t + 1] of tokens with the last target, and how many targets each has, i32[n]."""
    tokens = np.zeros((len(numbers), seq_len + 1), np.int32)
    targets = np.empty((len(numbers), seq_len), np.int32)
    rows.read_into(numbers.tolist(), tokens[:, :-1], targets, range(len(numbers)))
    tokens[:, -1] = np.maximum(targets[:, -1], 0)
    return tokens, (targets >= 0).sum(axis=1).astype(np.int32)


class _Outline:
    """A token source that knows only the lengths of its documents."""

    def __init__(self, doc_lengths: np.ndarray):
        self.doc_lengths = doc_lengths

    def __len__(self) -> int:
        return len(self.doc_lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        raise ConfigError("the plan of a swarm reads no tokens", where=f"document {index}")


def _outline(source: Any, rows: PackedRows | WholeRows, unit: str) -> _Outline:
    if unit == "tokens" and isinstance(rows, PackedRows):  # documents do not matter then, only how much there is
        return _Outline(np.asarray([rows.num_tokens], np.int64))
    if isinstance(source, np.ndarray):
        return _Outline(np.full(len(source), source.shape[1], np.int64))
    lengths = getattr(source, "doc_lengths", None)
    if lengths is None:
        lengths = [len(document_tokens(source[i], where="swarm")) for i in range(len(source))]
    return _Outline(np.asarray(lengths, np.int64))
