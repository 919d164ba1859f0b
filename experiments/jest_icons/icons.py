"""What build.py wrote, as pools of pairs: the parts, the noise, the towers, and the test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.models import ImageTowerConfig, TextTowerConfig, TwoTowersConfig, caption_tokens, two_towers
from jaxmix.train.pairs.retrieval import recall
from jaxmix.train.pairs.stream import PairPool

TRIGRAMS, VOCABULARY = 20, 16_384
TABLE_SCALE = 0.02
PIXEL_MEAN = 0.6
EDGE = 1
"""Pixels cut off on each side: 20 x 20 as rendered, 18 x 18 as used, which is 3 x 3 patches or 2 x 2 coarse ones."""

SIZE, PATCH, LOW_PATCH = 18, 6, 9


class Icons(NamedTuple):
    """All pairs, and the rows of each part."""

    images: np.ndarray
    tokens: np.ndarray
    captions: list[str]
    sets: list[str]
    parts: dict[str, np.ndarray]
    digest: str


def load(folder: Path) -> Icons:
    about = json.loads((folder / "captions.json").read_text())
    images = np.load(folder / "images.npy", mmap_mode="r")[:, EDGE:-EDGE, EDGE:-EDGE]
    tokens = caption_tokens(about["captions"], TRIGRAMS, unit="trigram", vocab_size=VOCABULARY)
    with np.load(folder / "splits.npz") as parts:
        rows = {name: parts[name] for name in parts.files}
    digest = json.loads((folder / "data.json").read_text())["images_sha256"]
    return Icons(images, tokens, about["captions"], about["sets"], rows, digest)


def pool_of(icons: Icons, rows: np.ndarray, *, shuffled: float = 0.0, seed: int = 0) -> tuple[PairPool, np.ndarray]:
    """The pairs of `rows`, the captions of a share of them dealt anew; and which rows those are, bool[n]."""
    rng = np.random.default_rng([seed, 7])
    is_shuffled = np.zeros(len(rows), bool)
    is_shuffled[rng.permutation(len(rows))[: int(shuffled * len(rows))]] = True
    captions = rows.copy()
    captions[is_shuffled] = rng.permutation(rows[is_shuffled])
    tokens = icons.tokens[captions]
    # Equal captions are no negatives of each other: they have one number.
    _, group = np.unique(tokens, axis=0, return_inverse=True)
    return PairPool(np.ascontiguousarray(icons.images[rows]), tokens, group.astype(np.int32).ravel()), is_shuffled


def towers(*, width: int = 64, batch_size: int = 256) -> Any:
    """Two layers for 9 patches of 6 x 6 pixels (4 of 9 x 9 at low resolution), one for 20 words and their trigrams."""
    image = ImageTowerConfig(
        num_layers=2,
        width=width,
        num_heads=2,
        mlp_width=2 * width,
        image_size=SIZE,
        patch_size=PATCH,
        base_patch_size=LOW_PATCH,
        base_grid=SIZE // PATCH,
        pixel_mean=PIXEL_MEAN,
    )
    text = TextTowerConfig(
        num_layers=1, width=width, num_heads=2, mlp_width=2 * width, vocab_size=VOCABULARY, length=TRIGRAMS
    )
    config = TwoTowersConfig(image=image, text=text, embedding_dim=width, bias=-float(np.log(batch_size)))
    model = two_towers(config)

    def init(key: jax.Array) -> Any:
        params = model.init(key)
        # Most words are rare: large rows would stay where they began for the length of these runs.
        table = params["text"]["table"]
        params["text"]["table"] = table * (TABLE_SCALE / jnp.std(table))
        return params

    return model._replace(init=init)


Embed = Callable[..., tuple[jax.Array, jax.Array]]


def embed_rows(embed: Embed, params: Any, pool: PairPool, *, block: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of all pairs of a pool, a block at a time; the last block is filled up."""
    found = []
    for start in range(0, len(pool.images), block):
        stop = min(start + block, len(pool.images))
        rows = np.arange(start, start + block) % len(pool.images)
        pieces = embed(params, np.asarray(pool.images[rows]), pool.tokens[rows])
        found.append([np.asarray(piece)[: stop - start] for piece in pieces])
    image, text = (np.concatenate(pieces) for pieces in zip(*found, strict=True))
    return image, text


def tester(icons: Icons, part: str, embed: Embed) -> Callable[[Any], dict[str, float]]:
    """`params -> recall@1, recall@10` on the held-out pairs of a part."""
    rows = icons.parts[part]
    pool = PairPool(np.ascontiguousarray(icons.images[rows]), icons.tokens[rows])

    def test(params: Any) -> dict[str, float]:
        found = recall(*embed_rows(embed, params, pool), at=(1, 10))
        return {name: found[name] for name in ("recall@1", "recall@10")}

    return test


_STYLE_WORDS = """
outline outlined filled fill solid bold thin light duotone linear sharp rounded round twotone tone broken line
regular alt small large square circle off slash plus minus add remove check x
"""
STYLES = frozenset(_STYLE_WORDS.split())


def style_parts(icons: Icons, *, least: int = 4, test_rows: int = 2048, reference_rows: int = 24_576) -> dict[str, Any]:
    """Parts of hard negatives alone: drawings of one thing in one set that differ by style words, `least` or more.

    All drawings of a thing are in the same part.
    """
    families: dict[tuple[str, str], list[int]] = {}
    for row, (name, text) in enumerate(zip(icons.sets, icons.captions, strict=True)):
        words = [word for word in text.split() if word not in STYLES and not word.isdigit()]
        families.setdefault((name, " ".join(words)), []).append(row)
    families = {key: rows for key, rows in families.items() if len(rows) >= least and key[1]}
    keys = sorted(families)
    order = np.random.default_rng(11).permutation(len(keys))
    parts: dict[str, list[int]] = {"styles_test": [], "styles_reference": [], "styles_pool": []}
    sizes = {"styles_test": test_rows, "styles_reference": reference_rows}
    total = sum(len(rows) for rows in families.values())
    sizes["styles_reference"] = min(reference_rows, (total - test_rows) // 3)
    for place in order:
        part = next((name for name, size in sizes.items() if len(parts[name]) < size), "styles_pool")
        parts[part] += families[keys[place]]
    return {name: np.asarray(sorted(rows), np.int64) for name, rows in parts.items()}
