"""The place of a domain's documents, and their division into units of work."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import glob
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmix.core.errors import ConfigError, EnvironmentProblem, RunError, nearest
from jaxmix.data.files import check_folder_name
from jaxmix.data.sources.readers import FORMATS, Trouble, Unit, detect_format, read_unit, shown, split_file

LABELS = ".labels.parquet"
"""Ending of the files that `jaxmix label` writes beside documents: no documents themselves."""

UNKNOWN_ENDING = "files not read, whose ending names no format (format: text reads them)"

PREPARED = "folders that jaxmix prepared, which are not read"
_NO_FILE = "links that lead nowhere, and what is no file"

_GROUP_BYTES, _GROUP_FILES = 8_000_000, 2000
_GROUP_RECORDS = 20_000
_HASHED_WHOLE = 1_000_000_000
_SAMPLE = 65_536


@dataclasses.dataclass(frozen=True)
class SourceSpec:
    """One domain's documents. Exactly one of `path`, `tfds`, `hf` and `documents` is given.

    Attributes:
        name: of the domain.
        path: file, folder (all files below it that have a known ending) or glob pattern, or several.
        tfds: name of a tensorflow-datasets dataset that is on disk; read through `tfds.data_source`, without
            TensorFlow.
        hf: name or path of a Hugging Face dataset (the extra `hf`).
        documents: texts in memory, `str` or UTF-8 `bytes`.
        config_name: of `hf`: which of the configurations (subsets) of the dataset.
        split: of `tfds` or `hf`.
        format: "auto" (by ending), or a key of `readers.FORMATS`.
        text_field: field or column that holds the text.
    """

    name: str
    path: str | Path | tuple[str | Path, ...] | None = None
    tfds: str | None = None
    hf: str | None = None
    documents: Sequence[str | bytes] | None = None
    split: str = "train"
    format: str = "auto"
    text_field: str = "text"
    config_name: str | None = None
    _listing: tuple[list[Path], Trouble] | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        where = f"sources.{self.name}"
        check_folder_name(self.name, "a source", where="sources")
        given = [key for key in ("path", "tfds", "hf", "documents") if getattr(self, key) is not None]
        if len(given) != 1:
            what = f"it has {' and '.join(given)}" if given else "it does not say where its documents are"
            raise ConfigError(f"source {self.name!r}: {what}", where=where, fix="Set exactly one of path, tfds and hf.")
        paths = self.path if isinstance(self.path, tuple) else (self.path,)
        if (self.path is not None and not all(paths)) or paths == ():
            what = f"source {self.name!r} has an empty path"
            raise ConfigError(what, where=f"{where}.path", fix="Name a file or folder; . is this one.")
        if self.config_name is not None and self.hf is None:
            fix = "Write it into the name: dataset/config." if self.tfds else "Leave it out."
            raise ConfigError("config_name is of Hugging Face datasets alone", where=f"{where}.config_name", fix=fix)
        if self.format != "auto" and self.format not in FORMATS:
            raise ConfigError(
                f"unknown format {self.format!r}", where=f"{where}.format", fix=nearest(self.format, ("auto", *FORMATS))
            )

    def files(self) -> list[Path]:
        """The files of a `path` source, sorted. Raises `ConfigError` where there are none."""
        return self.listing()[0]

    def listed(self) -> SourceSpec:
        """The source with the files that it has now: whatever appears later is not part of it."""
        return dataclasses.replace(self, _listing=self.listing())

    def listing(self) -> tuple[list[Path], Trouble]:
        """The files of a `path` source, sorted, and what lies beside them and is not read.

        Below a folder, files and folders with a leading dot (.git, .ipynb_checkpoints, .cache) are no data, and neither
        are files whose ending names no format, unless `format` is set. Folders that a pattern matches are read like
        folders that are named. Links are followed, and a file that is reached in two ways is read once. What jaxmix
        prepared is left out.

        Raises:
            ConfigError: a path or pattern finds no file.
        """
        if self.path is None:
            return [], Trouble()
        if self._listing is not None:
            return self._listing
        found: dict[Path, Path] = {}
        passed = Trouble()
        for pattern in self.path if isinstance(self.path, tuple) else (self.path,):
            matches, beside = self._matches(str(pattern))
            if not matches:
                raise self._no_file(str(pattern), beside)
            passed.merge(beside)
            for file in matches:
                if (real := file.resolve()) in found:
                    passed.add("files that were named twice, and are read once", shown(file))
                else:
                    found[real] = file
        return sorted(found.values()), passed

    def _matches(self, pattern: str) -> tuple[list[Path], Trouble]:
        """The files of one path or pattern, and what lies beside them and is not read."""
        found: list[Path] = []
        walked: set[Path] = set()
        prepared: set[Path] = set()
        passed = Trouble()

        @functools.cache
        def home_of(folder: Path) -> Path | None:
            """The folder, or the nearest above it, in which jaxmix has prepared data."""
            folder = folder.resolve()
            return folder if _is_prepared(folder) else None if folder == folder.parent else home_of(folder.parent)

        for place in sorted(map(Path, [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True))):
            if not walked.isdisjoint(place.parents):
                continue
            if place.is_dir():
                walked.add(place)
            for file in _below(place, passed) if place in walked else [place]:
                if home := home_of(file.parent):
                    prepared.add(home)
                elif not file.is_file():
                    passed.add(_NO_FILE, shown(file))
                elif place in walked and self.format == "auto" and detect_format(file) is None:
                    passed.add(UNKNOWN_ENDING, shown(file))
                elif not file.name.endswith(LABELS):
                    found.append(file)
        passed.add(PREPARED, *(shown(str(home)) for home in sorted(prepared)))
        return found, passed

    def _no_file(self, pattern: str, passed: Trouble) -> ConfigError:
        endings = ", ".join(e for endings in FORMATS.values() for e in endings)
        pattern = shown(pattern if len(pattern) <= 200 else f"{pattern[:200]}…")
        what, fix, beside = f"no file at {pattern}", f"Known endings: {endings}.", passed.to_json()
        if unknown := beside.get(UNKNOWN_ENDING):
            what = f"{pattern} has files of unknown endings alone: {unknown['count']}, such as {unknown['first'][0]}"
            fix = f"Set format: text to read every file as one document. {fix}"
        elif PREPARED in beside:
            what = f"{pattern} holds what jaxmix prepared alone, which is no source"
            fix = "Leave sources out and set data.prepared to use it."
        return ConfigError(f"source {self.name!r}: {what}", where=f"sources.{self.name}.path", fix=fix)

    def units(self) -> list[Unit]:
        """The source as units of work, whose number depends on the data alone."""
        if self.path is None:
            kind = "tfds" if self.tfds is not None else "hf" if self.hf is not None else "memory"
            count = len(self._indexed())
            return [
                Unit(kind, (), start, min(start + _GROUP_RECORDS, count)) for start in range(0, count, _GROUP_RECORDS)
            ] or [Unit(kind, (), 0, 0)]
        units: list[Unit] = []
        group: list[Path] = []  # text files of one unit
        size = 0
        for path in self.files():
            ending = self.format if self.format != "auto" else detect_format(path)
            if ending is None:
                raise ConfigError(
                    f"{shown(str(path))} has an ending that names no format",
                    where=f"sources.{self.name}.format",
                    fix=f"Set format to one of {', '.join(FORMATS)}.",
                )
            if group and (ending != "text" or size >= _GROUP_BYTES or len(group) >= _GROUP_FILES):
                units.append(Unit("text", tuple(group)))
                group, size = [], 0
            if ending == "text":
                group.append(path)
                size += _size(path)
            else:
                units += split_file(path, ending)
        return [*units, Unit("text", tuple(group))] if group else units

    def read(self, unit: Unit, trouble: Trouble) -> Iterator[tuple[str, bytes]]:
        """Yields (place, UTF-8 bytes as found) of every document of a unit."""
        if unit.kind in FORMATS:
            yield from read_unit(unit, self.text_field, trouble)
            return
        items = self._indexed()
        for index in range(unit.start, unit.stop):
            where = f"{unit.kind} record {index}"
            item = items[index]
            value = item.get(self.text_field) if isinstance(item, Mapping) else item
            if value is None:
                trouble.add(f"records without {self.text_field!r}", where)
            elif isinstance(value, str):
                yield where, value.encode("utf-8", errors="surrogatepass")
            elif isinstance(value, bytes):
                yield where, value
            else:
                trouble.add(f"records whose {self.text_field!r} is not text", where)

    def decoded(self, unit: Unit, trouble: Trouble) -> Iterator[tuple[str, str]]:
        """Yields (place, text) of every document; what is not UTF-8 is replaced and counted."""
        for where, data in self.read(unit, trouble):
            try:
                text = data.decode("utf-8")
            except UnicodeDecodeError:
                trouble.add("documents with invalid UTF-8", where)
                text = data.decode("utf-8", errors="replace")
            yield where, text

    def texts(self, unit: Unit, trouble: Trouble) -> Iterator[tuple[int, str, str]]:
        """Yields (number within the unit, place, text) of every document with something in it; counts the others."""
        for number, (where, text) in enumerate(self.decoded(unit, trouble)):
            if text.strip():
                yield number, where, text
            else:
                trouble.add("empty documents", where)

    def _indexed(self) -> Any:
        if self.documents is not None:
            return self.documents
        return _open_tfds(self) if self.tfds is not None else _open_hf(self)

    def fingerprint(self) -> str:
        """Hash of what the source holds: every byte of up to 1 GB of files; beyond that, of each file its size and
        ends, and where the ends are not all of it the time of its last change.

        Data sets by name are known by it, their split and their length; texts in memory by every byte.
        """
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{self.format}/{self.text_field}/{self.split}".encode())
        files = self.files()
        is_small = sum(_size(path) for path in files) <= _HASHED_WHOLE
        for path in files:
            digest.update(b"\0%s\0%d\0" % (os.fsencode(path.name), _size(path)))
            try:
                with path.open("rb") as file:
                    if is_small:
                        while chunk := file.read(1 << 20):
                            digest.update(chunk)
                    else:
                        state = os.fstat(file.fileno())
                        digest.update(file.read(_SAMPLE))
                        file.seek(max(state.st_size - _SAMPLE, 0))
                        digest.update(file.read(_SAMPLE))
                        if state.st_size > 2 * _SAMPLE:
                            digest.update(b"%d" % state.st_mtime_ns)
            except OSError:
                digest.update(b"unreadable")
        if self.documents is not None:
            for document in self.documents:
                data = document.encode("utf-8", "surrogatepass") if isinstance(document, str) else document
                digest.update(len(data).to_bytes(8, "little") + data)
        elif not files:
            config = "" if self.config_name is None else f"/{self.config_name}"
            digest.update(f"{self.tfds}/{self.hf}{config}/{len(self._indexed())}".encode())
        return digest.hexdigest()


def _is_prepared(folder: Path) -> bool:
    """Whether jaxmix has prepared data in the folder, or begun to."""
    with contextlib.suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
        return "max_record_tokens" in json.loads((folder / "plan.json").read_bytes())["settings"]
    return False


def _below(folder: Path, passed: Trouble) -> list[Path]:
    """All files below a folder but hidden ones, in order; a folder that links lead to twice is read once."""
    files: list[Path] = []
    seen = set()

    def failed(error: OSError) -> None:
        where = shown(str(error.filename))
        if not isinstance(error, PermissionError):
            raise RunError(f"the folder cannot be read: {error.strerror}", where=where, fix="Try again.") from error
        passed.add("folders without permission", where)

    for place, folders, names in os.walk(folder, followlinks=True, onerror=failed):
        state = os.stat(place)
        if (state.st_dev, state.st_ino) in seen:
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders.sort()
        names.sort()
        for kind, entries in (("hidden folders", folders), ("hidden files", names)):
            hidden = [name for name in entries if name.startswith(".")]
            passed.add(kind, *map(shown, hidden))
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(place, name) for name in names if not name.startswith(".")]
        nothing = [path for path in paths if not path.is_file()]
        passed.add(_NO_FILE, *map(shown, nothing))
        files += [path for path in paths if path.is_file()]
    return files


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _open_tfds(spec: SourceSpec) -> Any:
    where = f"sources.{spec.name}.tfds"
    try:
        import tensorflow_datasets as tfds

        return tfds.data_source(spec.tfds, split=spec.split, download=False)
    except ModuleNotFoundError as error:
        what = f"reading {spec.tfds!r} needs the package {error.name!r}, which is not installed"
        raise EnvironmentProblem(what, where=where, fix=f"Run: pip install {error.name}") from error
    except Exception as error:  # tfds raises many kinds
        raise ConfigError(
            f"tensorflow-datasets cannot open {spec.tfds!r}: {str(error).strip().splitlines()[0]}",
            where=where,
            fix="It must be on disk already, prepared with file_format='array_record'.",
        ) from error


def _open_hf(spec: SourceSpec) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            "reading Hugging Face datasets needs the package 'datasets', which is not installed",
            where=f"sources.{spec.name}.hf",
            fix='Run: pip install "jaxmix[hf]"',
        ) from error
    assert spec.hf is not None
    where, path = f"sources.{spec.name}", Path(spec.hf)
    is_saved = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        if not is_saved:
            return datasets.load_dataset(spec.hf, spec.config_name, split=spec.split)
        found = datasets.load_from_disk(spec.hf)
    except Exception as error:  # datasets raises many kinds
        configs = [] if is_saved else _hf_configs(datasets, spec.hf)
        if len(configs) > 1 and spec.config_name not in configs:
            what = "no configuration is chosen" if spec.config_name is None else f"no {spec.config_name!r}"
            raise ConfigError(
                f"{spec.hf!r} has {len(configs)} configurations: {what}",
                where=f"{where}.config_name",
                fix=nearest(spec.config_name or "", configs),
            ) from error
        raise ConfigError(
            f"datasets cannot open {spec.hf!r}: {str(error).strip().splitlines()[0]}",
            where=f"{where}.hf",
            fix="Check the name, config_name and split, or download it first.",
        ) from error
    if spec.config_name is not None:
        what = "a folder of save_to_disk has no configurations"
        raise ConfigError(what, where=f"{where}.config_name", fix="Leave it out.")
    if isinstance(found, datasets.DatasetDict):
        if spec.split not in found:
            raise ConfigError(
                f"{path} has no split {spec.split!r}", where=f"{where}.split", fix=nearest(spec.split, found)
            )
        return found[spec.split]
    known = str(found.split or "train")  # of a single split, which `train` means as well
    if spec.split not in ("train", known):
        raise ConfigError(f"{path} holds one split, {known!r}, and no {spec.split!r}", where=f"{where}.split")
    return found


def _hf_configs(datasets: Any, name: str) -> list[str]:
    """The configurations of a dataset, none where they cannot be found."""
    try:
        return list(datasets.get_dataset_config_names(name))
    except Exception:  # datasets raises many kinds; the first error is told
        return []
