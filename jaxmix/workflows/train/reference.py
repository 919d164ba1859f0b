"""The reference of a run: frozen parameters of another run, or a table of losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmix.core.errors import ConfigError
from jaxmix.workflows.config.sections import RunConfig

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxmix.train.lm.signals import Reference
    from jaxmix.workflows.train.data import RunData


def load_reference(config: RunConfig, data: RunData, mesh: Mesh, *, pieces: int = 1) -> Reference | None:
    """What `config.reference` names, on the mesh; None where it names nothing.

    The reference model may have another size than the one that is trained: it is built from its own run's
    configuration.

    Args:
        config: the run.
        data: opened data of the run.
        mesh: of the run.
        pieces: into how many the rows of a batch are cut for the model, which bounds its memory.

    Raises:
        ConfigError: a source without a loss, no such run, or one with another tokenizer.
    """
    from jaxmix.core.validate import values_in_order
    from jaxmix.train.lm.signals import reference_table

    names = tuple(data.train)
    if config.reference.losses is not None:
        losses = values_in_order(config.reference.losses, names, where="reference.losses")
        return reference_table(np.asarray(losses), mesh)
    if config.reference.run is None:
        return None
    return _frozen_run(Path(config.reference.run), data, mesh, pieces)


def _frozen_run(run_dir: Path, data: RunData, mesh: Mesh, pieces: int) -> Reference:

    from jaxmix.models import transformer
    from jaxmix.models.partition import params_template
    from jaxmix.train.lm.signals import reference_model
    from jaxmix.train.run.checkpoint import read_params
    from jaxmix.train.selection.super_batch import in_pieces
    from jaxmix.workflows.config.resolve import resolve_model_config
    from jaxmix.workflows.config.sections import load_config

    where = f"reference.run: {run_dir}"
    provenance = _provenance(run_dir, where)
    if provenance.get("tokenizer_hash") != data.tokenizer_hash:
        raise ConfigError(
            "the reference was trained with another tokenizer",
            where=where,
            fix="Train a reference on the same prepared data.",
        )
    model = transformer(resolve_model_config(load_config(str(run_dir / "config.yaml")), vocab_size=data.vocab_size))
    return reference_model(in_pieces(model.apply, pieces), read_params(run_dir, params_template(model, mesh)))


def _provenance(run_dir: Path, where: str) -> dict[str, Any]:
    try:
        return dict(json.loads((run_dir / "provenance.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError):
        raise ConfigError(
            "there is no run to take the reference from", where=where, fix="Name the folder of a finished run."
        ) from None
