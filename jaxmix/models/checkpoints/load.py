"""Published language models, read into sharded device arrays and written back."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmix.core.errors import ConfigError
from jaxmix.core.sharding import build_mesh
from jaxmix.models.base import Model
from jaxmix.models.checkpoints.config import family_of, read_config, write_config
from jaxmix.models.checkpoints.families import FAMILIES, Family
from jaxmix.models.checkpoints.files import CheckpointFiles
from jaxmix.models.checkpoints.layouts import Layout
from jaxmix.models.checkpoints.safetensors import WEIGHTS, StoredArrays, write_safetensors
from jaxmix.models.lm.config import TransformerConfig
from jaxmix.models.lm.decoder import transformer
from jaxmix.models.partition import params_template

SHARD_BYTES = 5 * 10**9


class Pretrained(NamedTuple):
    """A model that was read from a checkpoint.

    Attributes:
        model: the bundle.
        params: on the mesh.
    """

    model: Model
    params: Any


def load_checkpoint(folder: str | Path, *, mesh: Mesh | None = None, dtype: Any = None, **settings: Any) -> Pretrained:
    """Reads a language model in the form of Hugging Face: `config.json` and safetensors, in one file or several.

    Each device gets its part of each parameter as soon as this is read; the host never holds the whole model.

    Args:
        folder: Llama, Mistral, SmolLM, Qwen2 and 3, OLMo2, GPT-NeoX (Pythia) or GPT-2.
        mesh: all devices along "data" by default.
        dtype: of the parameters, float32 by default; with bfloat16 a frozen model needs half of the memory.
        **settings: how the model is computed: `compute_dtype`, `attention`, `remat`, `scan_layers`, `loss_chunk`, …

    Raises:
        ConfigError: another architecture, a file is missing or damaged, or an array is missing, has another shape than
            `config.json` says, or belongs to no parameter.
    """
    files = CheckpointFiles(folder, where="model.checkpoint")
    config = read_config(files.config, str(files.folder / "config.json"), **settings)
    family = family_of(files.config, str(folder))
    model = transformer(config)
    template = params_template(model, build_mesh() if mesh is None else mesh)
    stored = StoredArrays(files.folder / WEIGHTS)
    names = _Names(family, stored)
    read = functools.partial(_read, config, stored, names, dtype)
    params = jax.tree_util.tree_map_with_path(lambda path, leaf: read(*_layout(family, path), leaf), template)
    names.check_all_used(config)
    return Pretrained(model, params)


def save_checkpoint(
    folder: str | Path,
    config: TransformerConfig,
    params: Any,
    *,
    kind: str | None = None,
    dtype: Any = np.float32,
    extra: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes `config.json` and the weights in the form of Hugging Face, the inverse of `load_checkpoint`.

    Args:
        folder: is made.
        config: of the model.
        params: its parameters.
        kind: `model_type` of the architecture; None: the first one that has these settings.
        dtype: of the stored arrays; with the dtype they were read from, they are the same bit by bit.
        extra: further keys of `config.json`, such as `eos_token_id`; those that follow from `config` go before them.
        shard_bytes: size from which another file is begun.

    Raises:
        ConfigError: no published architecture has these settings, or not the one asked for.
    """
    kind, plain = write_config(config, kind)
    dtype = np.dtype(dtype)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = functools.partial(_arrays, FAMILIES[kind], config, params)
    sizes = {name: math.prod(x.shape) * dtype.itemsize for name, x in arrays(_empty)}
    written = ((name, x.astype(dtype)) for name, x in arrays(_on_host))
    write_safetensors(folder / WEIGHTS, written, sizes, shard_bytes=shard_bytes)
    plain = {**(extra or {}), **plain, "torch_dtype": dtype.name}
    (folder / "config.json").write_text(json.dumps(plain, indent=2) + "\n")


class _Names:
    """Names of a checkpoint's arrays, and which of them were used."""

    def __init__(self, family: Family, stored: StoredArrays):
        self.family, self.stored, self.used = family, stored, set[str]()

    def find(self, name: str) -> str:
        """The stored name; checkpoints of the trunk alone leave the prefix out."""
        for found in (name, name.removeprefix(self.family.prefix)):
            if found in self.stored.shapes:
                self.used.add(found)
                return found
        raise ConfigError(f"there is no array {name!r}", where=WEIGHTS, fix="Is the checkpoint whole?")

    def check_all_used(self, config: TransformerConfig) -> None:
        """Raises `ConfigError` where arrays belong to no parameter."""
        rest = {name for name in self.stored.shapes if not name.endswith(self.family.unread)} - self.used
        if config.tie_embeddings:  # some write the tied table a second time
            rest -= set(self.family.layouts["readout"].names)
        if rest:
            raise ConfigError(
                f"{len(rest)} arrays belong to no parameter, the first {min(rest)!r}",
                where=WEIGHTS,
                fix="Does the checkpoint hold adapters or a further head? Merge them, or take them out.",
            )


def _layout(family: Family, path: Any) -> tuple[Layout, int | None]:
    """The layout of a parameter, and the block it belongs to: −1 for stacked blocks, None for none."""
    block, _, rest = jax.tree_util.keystr(path, simple=True, separator="/").partition("/")
    if not block.startswith("block"):
        return family.layouts[f"{block}/{rest}" if rest else block], None
    return family.layouts[rest], -1 if block == "blocks" else int(block.removeprefix("block_"))


def _read(
    config: TransformerConfig,
    stored: StoredArrays,
    names: _Names,
    dtype: Any,
    layout: Layout,
    block: int | None,
    leaf: Any,
) -> Any:
    """A parameter with the shape and sharding of `leaf`."""
    blocks = range(leaf.shape[0]) if block == -1 else [block]
    found = [[names.find(name.format(i)) for name in layout.names] for i in blocks]
    shape = leaf.shape[1:] if block == -1 else leaf.shape

    @functools.lru_cache(maxsize=1)
    def whole(place: int) -> np.ndarray:
        arrays = [stored[name] for name in found[place]]
        try:
            joined = layout.join(config, arrays)
        except ValueError:
            joined = None
        if joined is None or joined.shape != shape:
            shapes = " and ".join(str(list(x.shape)) for x in arrays)
            raise ConfigError(
                f"{' and '.join(found[place])} of shape {shapes} do not make up {list(shape)}, as config.json says",
                where=WEIGHTS,
            )
        return joined

    def part(index: Any) -> np.ndarray:
        if block != -1:
            return np.asarray(whole(0)[index], dtype or leaf.dtype)
        chosen = range(leaf.shape[0])[index[0]]
        return np.stack([np.asarray(whole(i)[index[1:]], dtype or leaf.dtype) for i in chosen])

    return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)


def _arrays(family: Family, config: TransformerConfig, params: Any, fetch: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Every array of the checkpoint with its name, one parameter after the other."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        layout, block = _layout(family, path)
        x = fetch(leaf)
        for i, part in enumerate(x) if block == -1 else [(block, x)]:
            for name, array in zip(layout.names, layout.split(config, part), strict=True):
                yield name.format(i), array


def _empty(leaf: Any) -> np.ndarray:
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def _on_host(leaf: Any) -> np.ndarray:
    """The whole parameter; every process gathers it."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        from jax.experimental import multihost_utils

        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(jax.device_get(leaf))
