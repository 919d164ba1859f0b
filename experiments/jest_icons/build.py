"""Builds the pairs of icons and names that run.py trains on; nothing of them is committed.

python experiments/jest_icons/build.py --out data/icons

Fetches npm's @iconify/json (an index of open icon sets), keeps the sets under a permissive license, renders their icons
with resvg, drops blank ones and doubles, and writes images.npy, captions.json, splits.npz and data.json. Needs npm, and
`pip install resvg-py pillow`. About three minutes of one core, 1 GB of disk while it runs.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import io
import json
import re
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PACKAGE = "@iconify/json@2.2.535"
LICENSES = (
    "MIT",
    "Apache-2.0",
    "ISC",
    "OFL-1.1",
    "CC0-1.0",
    "Unlicense",
    "BSD-3-Clause",
    "CC-BY-4.0",
    "CC-BY-3.0",
)
CURATED = (
    "tabler",
    "lucide",
    "ph",
    "mdi",
    "material-symbols",
    "fluent",
    "carbon",
    "solar",
    "iconoir",
    "bi",
    "ri",
    "uil",
    "heroicons",
    "ion",
    "mingcute",
)
"""General-purpose sets that are drawn by one team each and named in plain English: what the reference learns from."""

SIZE = 20
PER_SET, PER_CURATED_SET = 3000, 6000
TEST_ROWS = 2048
REFERENCE_ROWS = 24_576
WORD = re.compile(r"[a-z]{2,}")


class Icon(NamedTuple):
    """One drawing: the set it is from, its name there, and the SVG with its frame made square."""

    collection: str
    name: str
    svg: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/icons"))
    parser.add_argument("--package", type=Path, help="a fetched iconify-json-*.tgz; fetched if not given")
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--per-set", type=int, default=PER_SET, help="fewer for a trial")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    archive = options.package or fetch(options.out)
    icons, licenses = read(archive, options.per_set)
    print(f"{len(icons)} icons of {len(licenses)} sets read, {time.perf_counter() - started:.0f} s", flush=True)
    images, kept, dropped = render(icons, options.size)
    icons = [icons[place] for place in kept]
    captions = [caption(icon.name) for icon in icons]
    parts = split(icons, captions)
    np.save(options.out / "images.npy", images)
    np.savez(options.out / "splits.npz", **parts)
    sets = [icon.collection for icon in icons]
    (options.out / "captions.json").write_text(json.dumps({"captions": captions, "sets": sets}) + "\n")
    record = {
        "package": archive.name,
        "package_sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
        "size": options.size,
        "pairs": len(icons),
        "dropped": dropped,
        "parts": {name: len(rows) for name, rows in parts.items()},
        "distinct_captions": len(set(captions)),
        "distinct_words": len({word for text in captions for word in text.split()}),
        "words_per_caption": round(float(np.mean([len(text.split()) for text in captions])), 2),
        "licenses": dict(collections.Counter(licenses[name] for name in sets)),
        "sets": dict(collections.Counter(sets).most_common()),
        "images_sha256": hashlib.sha256(images.tobytes()).hexdigest(),
        "seconds": round(time.perf_counter() - started, 1),
    }
    (options.out / "data.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({name: value for name, value in record.items() if name != "sets"}, indent=1))


def fetch(folder: Path) -> Path:
    """Downloads the package's archive through npm, once."""
    found = sorted(folder.glob("iconify-json-*.tgz"))
    if not found:
        subprocess.run(["npm", "pack", PACKAGE, "--silent", "--pack-destination", str(folder)], check=True)
        found = sorted(folder.glob("iconify-json-*.tgz"))
    return found[-1]


def read(archive: Path, per_set: int) -> tuple[list[Icon], dict[str, str]]:
    """The icons to render, visible and with a word in their name, a sample of large sets; the license of each set."""
    with tarfile.open(archive) as package:
        members = {member.name: member for member in package.getmembers()}
        load = lambda name: json.loads(package.extractfile(members[f"package/{name}"]).read())  # type: ignore[union-attr]
        collections_file = load("collections.json")
        licenses = {
            name: about["license"]["spdx"]
            for name, about in collections_file.items()
            if about.get("license", {}).get("spdx") in LICENSES and not about.get("hidden")
        }
        icons: list[Icon] = []
        for name in sorted(licenses):
            found = list(_icons_of(load(f"json/{name}.json")))
            most = per_set if name not in CURATED else per_set * PER_CURATED_SET // PER_SET
            found.sort(key=lambda icon: _order(icon.collection, icon.name))
            icons += found[:most]
    used = {icon.collection for icon in icons}
    return icons, {name: spdx for name, spdx in licenses.items() if name in used}


def _icons_of(data: dict[str, Any]) -> Iterator[Icon]:
    for name, icon in data["icons"].items():
        if icon.get("hidden") or not WORD.search(name):
            continue
        value = lambda key, default, icon=icon: icon.get(key, data.get(key, default))
        left, top = value("left", 0), value("top", 0)
        width, height = value("width", 16), value("height", 16)
        side = max(width, height)
        frame = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{frame}" color="#000">{icon["body"]}</svg>'
        )
        yield Icon(data["prefix"], name, svg)


def caption(name: str) -> str:
    """The words of a name: `arrow-left-circle` → `arrow left circle`."""
    return " ".join(re.findall(r"[a-z0-9]+", name.lower()))


def render(icons: list[Icon], size: int) -> tuple[np.ndarray, list[int], dict[str, int]]:
    """RGB on white [n, size, size, 3]; places of the icons kept; how many were dropped, by reason."""
    import resvg_py
    from PIL import Image

    pictures, kept, seen = [], [], set()
    dropped = dict.fromkeys(("broken", "blank", "double"), 0)
    for place, icon in enumerate(icons):
        if place % 20_000 == 0:
            print(f"rendering {place} of {len(icons)}", flush=True)
        try:
            png = bytes(
                resvg_py.svg_to_bytes(
                    svg_string=icon.svg, width=size, height=size, background="white", skip_system_fonts=True
                )
            )
            pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        except (ValueError, OSError):
            dropped["broken"] += 1
            continue
        digest = hashlib.blake2b(pixels.tobytes(), digest_size=12).digest()
        if pixels.shape != (size, size, 3) or int(pixels.max()) - int(pixels.min()) < 32:
            dropped["blank"] += 1
        elif digest in seen:
            dropped["double"] += 1
        else:
            seen.add(digest)
            pictures.append(pixels)
            kept.append(place)
    return np.stack(pictures), kept, dropped


def split(icons: list[Icon], captions: list[str]) -> dict[str, np.ndarray]:
    """Rows of each part; no drawing is in two of them.

    - `curated_test`, `pool_test`: captions all different within each part;
    - `reference`: of the curated sets;
    - `pool`: all the rest, of the curated sets and the others.
    """
    order = sorted(range(len(icons)), key=lambda row: _order("split", icons[row].collection, icons[row].name))
    curated = [row for row in order if icons[row].collection in CURATED]
    tests: dict[str, list[int]] = {"curated_test": [], "pool_test": []}
    taken: set[int] = set()
    for name, rows in (("curated_test", curated), ("pool_test", order)):
        size = min(TEST_ROWS, len(rows) // 8)
        said: set[str] = set()
        for row in rows:
            if len(tests[name]) == size:
                break
            if row not in taken and captions[row] not in said:
                tests[name].append(row)
                said.add(captions[row])
        taken |= set(tests[name])
    left = [row for row in curated if row not in taken]
    reference = left[: min(REFERENCE_ROWS, len(left) // 2)]
    taken |= set(reference)
    pool = [row for row in order if row not in taken]
    parts = {**tests, "reference": reference, "pool": pool}
    return {name: np.asarray(sorted(rows), np.int64) for name, rows in parts.items()}


def _order(*words: str) -> bytes:
    """A place in an order that is random and the same everywhere."""
    return hashlib.blake2b("/".join(words).encode(), digest_size=8).digest()


if __name__ == "__main__":
    main()
