"""Writes embedding stores, shard by shard."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.core.validate import check_choice, check_count
from jaxmix.data.embeddings.files import DTYPES, FORMAT, INDEX, SETTINGS, Shard, stored_dtype
from jaxmix.data.embeddings.read import EmbeddingStore, TextEncoder, open_embedding_store
from jaxmix.data.files import read_json, replaced, write_json

Texts = Sequence[str] | Callable[[], Iterable[str]]


class EmbeddingWriter:
    """Writes the shards of a store, in any order, from any number of processes; `finish` makes the index.

    Args:
        folder: of the store; made when missing.
        sources: names of all shards in order, all different. A later writer may have more of them at the end.
        encoder: see `TextEncoder`.
        dtype: "float16" (a coordinate of a unit vector is off by at most 2.5e-4) or "bfloat16" (2e-3).
        block: texts encoded at a time, ≥ 1. An encoder sorts them by length, so larger blocks waste less padding.

    Raises:
        ConfigError: the folder holds embeddings by another encoder, of another dtype or of other sources, or an
            argument is out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        sources: Sequence[str],
        encoder: TextEncoder,
        dtype: str = "float16",
        block: int = 4096,
    ):
        check_choice("EmbeddingWriter", "dtype", dtype, DTYPES)
        check_count("EmbeddingWriter", "block", block)
        if not sources or len(set(sources)) != len(sources):
            raise ConfigError(
                f"shards need names, all different: {len(sources)} names, {len(set(sources))} different",
                where="EmbeddingWriter(sources)",
            )
        self._folder, self._sources, self._encoder, self._block = Path(folder), tuple(sources), encoder, block
        self._settings = {"format": FORMAT, "dim": encoder.dim, "dtype": dtype, "encoder": encoder.identity}
        stored = read_json(self._folder / SETTINGS)
        if stored is None:
            write_json(self._folder / SETTINGS, self._settings)
        elif stored != self._settings:
            differing = [name for name, value in self._settings.items() if stored.get(name) != value]
            was = ", ".join(f"{name} {stored.get(name)} and not {self._settings[name]}" for name in differing)
            raise ConfigError(
                f"the folder holds embeddings of another kind: {was}",
                where=str(folder),
                fix="Choose another folder, or delete this one to embed again.",
            )
        beyond = self._entry(len(self._sources))
        if beyond is not None:
            raise ConfigError(
                f"the folder has more shards than the {len(self._sources)} of these texts, such as {beyond.source!r}",
                where=str(folder),
                fix="Choose another folder for other texts.",
            )

    def is_done(self, number: int) -> bool:
        """Whether the shard of that number is written."""
        return self._entry(number) is not None

    def write(self, number: int, texts: Iterable[str]) -> Shard:
        """Embeds and writes one shard. If it is there, its texts are compared with those it was made from, by hash.

        Documents whose row is zeros are dropped and named in the entry.

        Raises:
            ConfigError: the shard there was made from other texts.
            RunError: the encoder returned another shape or values that are not finite.
        """
        entry = self._entry(number)
        if entry is not None:
            return self._checked(entry, number, texts)
        name = _file(number)
        digest, content = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
        dropped: list[int] = []
        documents = 0
        with replaced(self._folder / name) as file:
            for block in _blocks(texts, self._block):
                for text in block:
                    _absorb(digest, text)
                rows, is_kept = self._rows(block, number, documents)
                dropped += (documents + np.flatnonzero(~is_kept)).tolist()
                documents += len(block)
                data = rows.astype(stored_dtype(str(self._settings["dtype"]))).tobytes()
                content.update(data)
                file.write(data)
        entry = Shard(
            source=self._sources[number],
            file=name,
            rows=documents - len(dropped),
            documents=documents,
            dropped=tuple(dropped),
            texts=digest.hexdigest(),
            checksum=content.hexdigest(),
        )
        write_json(self._folder / f"{Path(name).stem}.json", dataclasses.asdict(entry))
        for leftover in self._folder.glob(f".{Path(name).stem}.*.partial"):  # of killed processes
            leftover.unlink(missing_ok=True)
        return entry

    def finish(self) -> bool:
        """Writes the index if all shards are there, the same bytes in every process. False: some are missing."""
        entries = [self._entry(number) for number in range(len(self._sources))]
        if any(entry is None for entry in entries):
            return False
        index = {**self._settings, "shards": [dataclasses.asdict(entry) for entry in entries if entry]}
        write_json(self._folder / INDEX, index)
        return True

    def _entry(self, number: int) -> Shard | None:
        plain = read_json(self._folder / f"{Path(_file(number)).stem}.json")
        if plain is None:
            return None
        entry = Shard.from_json(plain)
        if number < len(self._sources) and entry.source != self._sources[number]:
            raise ConfigError(
                f"shard {number} was made from {entry.source!r}, not {self._sources[number]!r}",
                where=str(self._folder),
                fix="Give the sources in their old order, or choose another folder.",
            )
        return entry

    def _checked(self, entry: Shard, number: int, texts: Iterable[str]) -> Shard:
        digest = hashlib.blake2b(digest_size=16)
        count = 0
        for text in texts:
            _absorb(digest, text)
            count += 1
        if digest.hexdigest() != entry.texts:
            raise ConfigError(
                f"the texts of {entry.source!r} are not those it was embedded from "
                f"({count:,} documents, then {entry.documents:,})",
                where=str(self._folder),
                fix=f"Delete {Path(_file(number)).stem}.json to embed that shard again, or choose another folder.",
            )
        return entry

    def _rows(self, block: list[str], number: int, first: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.asarray(self._encoder.encode(block), np.float32)
        where = f"{self._sources[number]}, documents {first} to {first + len(block) - 1}"
        if rows.shape != (len(block), self._encoder.dim):
            raise RunError(
                f"the encoder returned {list(rows.shape)}, not {[len(block), self._encoder.dim]}", where=where
            )
        if not np.isfinite(rows).all():
            raise RunError("the encoder returned values that are not finite", where=where)
        length = np.linalg.norm(rows, axis=1)
        is_kept = length > 0
        return rows[is_kept] / length[is_kept, None], is_kept


def write_embedding_store(
    folder: str | Path,
    *,
    texts_by_shard: Mapping[str, Texts],
    encoder: TextEncoder,
    dtype: str = "float16",
    block: int = 4096,
    part: tuple[int, int] = (0, 1),
    report: Callable[[int, int, Shard], None] | None = None,
) -> EmbeddingStore | None:
    """Embeds texts into a store, continuing where earlier calls stopped, and opens it.

    Args:
        folder, encoder, dtype, block: see `EmbeddingWriter`.
        texts_by_shard: by name of the shard, its texts or a function that yields them; read one shard at a time. A
            shard is what a kill can cost, and what is compared as a whole: some ten thousand texts.
        part: `(i, n)`: this call writes the shards i, i + n, i + 2n, … . Call it with i = 0 … n − 1 at the same time.
        report: called as `report(shards of this part done, shards of this part, shard)`.

    Returns:
        The opened store; None where other parts are not finished yet.

    Raises:
        ConfigError: the folder holds something else (encoder, dtype, texts), or an argument is out of range.
        RunError: the encoder's rows are unusable.

    >>> import tempfile
    >>> from jaxmix.models.encoders.load import load_encoder
    >>> letters = lambda texts: np.array([[text.count(c) for c in "ab"] for text in texts], np.float32)
    >>> encoder = load_encoder(letters, identity="letters", dim=2)
    >>> folder = tempfile.mkdtemp()
    >>> store = write_embedding_store(folder, texts_by_shard={"one": ["aab", "zz"], "two": ["b"]}, encoder=encoder)
    >>> len(store), store.dropped()
    (2, {'one': (1,)})
    >>> [[f"{value:.2f}" for value in row] for row in store.read(0, 2)]
    [['0.89', '0.45'], ['0.00', '1.00']]
    """
    index, count = part
    check_count("write_embedding_store", "part", count)
    if not 0 <= index < count:
        raise ConfigError(f"part {index} of {count}", where="write_embedding_store(part)", fix="Number from 0.")
    writer = EmbeddingWriter(folder, sources=tuple(texts_by_shard), encoder=encoder, dtype=dtype, block=block)
    mine = list(enumerate(texts_by_shard.items()))[index::count]
    for done, (number, (_, texts)) in enumerate(mine, start=1):
        shard = writer.write(number, texts() if callable(texts) else texts)
        if report is not None:
            report(done, len(mine), shard)
    if not writer.finish():
        return None
    return open_embedding_store(folder)


def _file(number: int) -> str:
    return f"shard-{number:05d}.bin"


def _blocks(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(texts)
    while block := list(islice(iterator, size)):
        yield block


def _absorb(digest: Any, text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    digest.update(len(data).to_bytes(8, "little") + data)
