"""A new random order of a source's rows for every epoch, with random access and little memory."""

from __future__ import annotations

import hashlib

import numpy as np

_LARGEST_TABLE = 2**16


class EpochPermutation:
    """Maps places in a source's endless sequence to row numbers; each epoch is a permutation of all rows.

    Sources of up to 65,536 rows keep the tables of the two latest epochs (a block may span the border). Larger ones
    use Grain's `index_shuffle`, which needs no memory; for small ranges that function walks long cycles (measured:
    55 µs an index at 500 rows, 3.5 µs at 10⁶).

    Args:
        num_rows: length of an epoch.
        seed: of the run.
        name: of the source; sources of the same length get different orders.
        shuffle: False keeps the order of the source.
    """

    def __init__(self, num_rows: int, *, seed: int, name: str, shuffle: bool = True):
        self._num_rows, self._seed, self._name, self._shuffle = num_rows, seed, name, shuffle
        self._tables: dict[int, np.ndarray] = {}

    def __call__(self, cursors: np.ndarray) -> np.ndarray:
        """Row numbers i64[n] for places i64[n] ≥ 0."""
        epochs, places = np.divmod(cursors, self._num_rows)
        if not self._shuffle or self._num_rows == 1:
            return places
        if self._num_rows > _LARGEST_TABLE:
            return self._compute(epochs, places)
        if len(epochs) and np.all(epochs == epochs[0]):
            return self._table(int(epochs[0]))[places].astype(np.int64)
        rows = np.empty(len(places), np.int64)
        for epoch in np.unique(epochs).tolist():
            mine = epochs == epoch
            rows[mine] = self._table(epoch)[places[mine]]
        return rows

    def _table(self, epoch: int) -> np.ndarray:
        table = self._tables.get(epoch)
        if table is None:
            # Raw bits of a counter-based generator are the same in every NumPy; `permutation` may not be.
            bits = np.random.Philox(key=self._epoch_seed(epoch, 16)).random_raw(self._num_rows)
            table = np.argsort(bits, kind="stable").astype(np.uint16)
            self._tables = {e: t for e, t in self._tables.items() if e == epoch - 1} | {epoch: table}
        return table

    def _compute(self, epochs: np.ndarray, places: np.ndarray) -> np.ndarray:
        from grain.experimental import index_shuffle

        last = self._num_rows - 1
        seeds = {epoch: self._epoch_seed(epoch, 4) for epoch in np.unique(epochs).tolist()}
        pairs = zip(places.tolist(), epochs.tolist(), strict=True)
        return np.fromiter(
            (index_shuffle(place, max_index=last, seed=seeds[epoch], rounds=4) for place, epoch in pairs),
            np.int64,
            len(places),
        )

    def _epoch_seed(self, epoch: int, size: int) -> int:
        text = f"{self._seed}/{self._name}/{epoch}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=size).digest(), "little")
