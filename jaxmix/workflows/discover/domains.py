"""The results of a discovery that labeling needs: clusters with their biases, encoder, student, names of the domains.

clusters/state.npz     mean_directions f32[k, d], concentrations f32[k], biases f32[k]
clusters/clusters.json clusterer and its arguments, identity of the encoder, identity of the state
encoder/               what `load_encoder` reads
student/model/         what `load_student` reads
domains.json           names of the domains in the order of the clusters, identities; written last
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.clustering import GemState, make
from jaxmix.core.errors import ConfigError
from jaxmix.core.sharding import build_mesh
from jaxmix.data.files import write_whole
from jaxmix.models.encoders.base import ENCODER_FILE
from jaxmix.models.encoders.load import load_encoder
from jaxmix.models.student.model import load_student
from jaxmix.workflows.provenance import write_json

FORMAT = 1
DOMAINS = "domains.json"
_STATE, _CLUSTERS = "state.npz", "clusters.json"
_FIELDS = ("mean_directions", "concentrations", "biases")
ROWS_AT_ONCE = 4096


class Labels(NamedTuple):
    """Labels of texts with their confidence.

    Attributes:
        labels: i32[n]; −1 where there is nothing to read.
        confidence: f32[n], posterior probability of the label; 0 where there is none.
    """

    labels: np.ndarray
    confidence: np.ndarray


def save_clusters(
    folder: Path, state: Any, *, clusterer: str, num_clusters: int, options: dict[str, Any], encoder: str
) -> str:
    """Writes a clustering and returns its identity: a hash of the state and of the encoder its vectors come from."""
    arrays = {name: np.asarray(getattr(state, name), np.float32) for name in _FIELDS}
    identity = _identity(arrays, encoder)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_whole(folder / _STATE, buffer.getvalue())
    write_json(
        folder / _CLUSTERS,
        {
            "format": FORMAT,
            "clusterer": clusterer,
            "num_clusters": num_clusters,
            "options": options,
            "encoder": encoder,
            "identity": identity,
        },
    )
    return identity


def load_clusters(folder: Path) -> tuple[Any, Any]:
    """The clusterer and its state. Raises `ConfigError` where files are missing or damaged."""
    try:
        about = json.loads((folder / _CLUSTERS).read_text(encoding="utf-8"))
        with np.load(folder / _STATE, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in _FIELDS}
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"there are no clusters in {folder}: {error}", where="domains", fix="Let `jaxmix discover` finish."
        ) from error
    if _identity(arrays, about["encoder"]) != about["identity"]:
        raise ConfigError(f"the clusters in {folder} are damaged", where="domains", fix="Copy or fit them again.")
    return make(about["clusterer"], about["num_clusters"], **about["options"]), GemState(
        **jax.tree.map(jnp.asarray, arrays)
    )


def _identity(arrays: dict[str, np.ndarray], encoder: str) -> str:
    digest = hashlib.blake2b(f"{FORMAT} {encoder}".encode(), digest_size=16)
    for name in _FIELDS:
        digest.update(f" {name} {arrays[name].shape} ".encode())
        digest.update(np.ascontiguousarray(arrays[name], "<f4").tobytes())
    return digest.hexdigest()


def label_rows(clusterer: Any, state: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels i32[n] and log posteriors f32[n, k] of vectors, in blocks of one size, so that one program serves."""
    state = jax.tree.map(jnp.asarray, state)
    labels, posterior = [np.zeros(0, np.int32)], [np.zeros((0, state.mean_directions.shape[0]), np.float32)]
    for start in range(0, len(rows), ROWS_AT_ONCE):
        block = rows[start : start + ROWS_AT_ONCE]
        filled = np.concatenate([block, np.repeat(block[:1], ROWS_AT_ONCE - len(block), axis=0)])
        found = clusterer.assign(state, jnp.asarray(filled), with_posterior=True)
        labels.append(np.asarray(found.labels)[: len(block)])
        posterior.append(np.asarray(found.log_posterior, np.float32)[: len(block)])
    return np.concatenate(labels), np.concatenate(posterior)


def open_encoder(folder: Path) -> Any:
    """The saved encoder; a checkpoint's batches are split over this process's devices where these are no CPUs."""
    kind = json.loads((folder / ENCODER_FILE).read_text(encoding="utf-8"))["kind"]
    mesh = accelerators()
    return load_encoder(folder) if kind != "checkpoint" or mesh is None else load_encoder(folder, mesh=mesh)


def accelerators() -> Any:
    """A mesh of this process's devices, or None on CPUs."""
    return None if jax.default_backend() == "cpu" else build_mesh(devices=jax.local_devices())


@dataclasses.dataclass(frozen=True)
class Domains:
    """An opened discovery. Encoder, clusters and student are read when they are first needed.

    Attributes:
        folder: where.
        names: of the domains, in the order of the clusters.
        identities: of encoder, clusters and student, by these words.
    """

    folder: Path
    names: tuple[str, ...]
    identities: dict[str, str]

    @cached_property
    def encoder(self) -> Any:
        encoder = open_encoder(self.folder / "encoder")
        if encoder.identity != self.identities["encoder"]:
            raise ConfigError("the encoder is no longer the one of the discovery", where=str(self.folder / "encoder"))
        return encoder

    @cached_property
    def student(self) -> Any:
        return load_student(self.folder / "student" / "model")

    @cached_property
    def clusters(self) -> tuple[Any, Any]:
        return load_clusters(self.folder / "clusters")

    def identity(self, method: str) -> str:
        """A text that identifies the models behind labels by `method`."""
        parts = ("student",) if method == "student" else ("encoder", "clusters")
        return "-".join([method, *(self.identities[part] for part in parts)])

    def label(self, texts: Sequence[str], method: str) -> Labels:
        """Labels of raw texts.

        Args:
            texts: any.
            method: "student" (from the words alone), or "teacher" (embed and assign).
        """
        labels, confidence = np.full(len(texts), -1, np.int32), np.zeros(len(texts), np.float32)
        kept = [i for i, text in enumerate(texts) if text.strip()]
        if not kept:
            return Labels(labels, confidence)
        readable = [texts[i] for i in kept]
        if method == "student":
            labels[kept], probabilities = self.student.predict(readable)
            confidence[kept] = probabilities.max(axis=1)
        else:
            rows = self.encoder.encode(readable)
            has_row = np.linalg.norm(rows, axis=1) > 0
            places = np.asarray(kept)[has_row]
            labels[places], posterior = label_rows(*self.clusters, rows[has_row])
            confidence[places] = np.exp(posterior.max(axis=1))
        return Labels(labels, confidence)


def open_domains(folder: str | Path) -> Domains:
    """Opens the folder of a finished `jaxmix discover`. Raises `ConfigError` if it is not finished."""
    folder = Path(folder)
    try:
        about = json.loads((folder / DOMAINS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(
            f"there is no finished discovery in {str(folder)!r}", where="domains", fix="Run `jaxmix discover` first."
        ) from None
    return Domains(folder, tuple(about["names"]), dict(about["identities"]))
