"""The corpus that comes with jaxmix: real text of eleven domains, public domain or under permissive licenses.

Rebuilt by scripts/build_corpus.py; where each text comes from, and under which license, is in provenance.json, and the
notices that some licenses ask for are in notices.txt beside it.
"""

from __future__ import annotations

import dataclasses
import json
from importlib.resources import files
from pathlib import Path

from jaxmix.core.errors import EnvironmentProblem


@dataclasses.dataclass(frozen=True)
class BundledDomain:
    """One domain of the bundled corpus.

    Attributes:
        name: short name.
        path: its Parquet file, with the columns `document` (origin) and `text`.
        title: one line about it.
        role: why it is in the corpus: easy, noisy, or similar to another domain.
        license: SPDX identifier, or "public domain".
        documents: number of rows.
        num_bytes: UTF-8 bytes of text.
        sha256: of the file.
    """

    name: str
    path: Path
    title: str
    role: str
    license: str
    documents: int
    num_bytes: int
    sha256: str


def bundled_corpus() -> dict[str, BundledDomain]:
    """All domains of the bundled corpus, by name. Opens no text.

    Raises:
        EnvironmentProblem: the installation lacks the files.
    """
    folder = Path(str(files("jaxmix.data.sources").joinpath("corpus")))
    try:
        entries = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EnvironmentProblem(
            "this installation of jaxmix lacks the bundled corpus", where=str(folder), fix="Install jaxmix again."
        ) from error
    return {
        name: BundledDomain(
            name=name,
            path=folder / f"{name}.parquet",
            num_bytes=entry["bytes"],
            **{key: entry[key] for key in ("title", "role", "license", "documents", "sha256")},
        )
        for name, entry in entries.items()
    }


def natural_shares() -> dict[str, float]:
    """Each domain's share of all bytes: its natural weight for a byte tokenizer."""
    corpus = bundled_corpus()
    total = sum(domain.num_bytes for domain in corpus.values())
    return {name: domain.num_bytes / total for name, domain in corpus.items()}
