"""The reference of a run: frozen parameters of another run, or a table of losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxmix.core.errors import ConfigError
from jaxmix.core.validate import values_in_order
from jaxmix.models import transformer
from jaxmix.models.partition import params_template
from jaxmix.train.lm.signals import Reference, reference_model, reference_table
from jaxmix.train.run.checkpoint import read_params
from jaxmix.train.selection.super_batch import losses_in_micro_batches
from jaxmix.workflows.config.load import model_of_run
from jaxmix.workflows.config.sections import ReferenceConfig
from jaxmix.workflows.train.data import RunData


def load_reference(section: ReferenceConfig, data: RunData, mesh: Mesh, *, pieces: int = 1) -> Reference | None:
    """What the section names, on the mesh; None where it names nothing.

    The reference model may have another size than the one that is trained: it is built from its own run's
    configuration.

    Args:
        section: `reference` of the configuration.
        data: opened data of the run.
        mesh: of the run.
        pieces: into how many the rows of a batch are divided for the model, which bounds its memory.

    Raises:
        ConfigError: a source without a loss, no such run, or one with another tokenizer.
    """
    if section.losses is not None:
        losses = values_in_order(section.losses, tuple(data.train), "reference.losses", "loss")
        return reference_table(np.asarray(losses), mesh)
    if section.run is None:
        return None
    run_dir, where = Path(section.run), f"reference.run: {section.run}"
    if _provenance(run_dir, where).get("tokenizer_hash") != data.tokenizer_hash:
        raise ConfigError(
            "the reference was trained with another tokenizer",
            where=where,
            fix="Train a reference on the same prepared data.",
        )
    model = transformer(model_of_run(run_dir, vocab_size=data.vocab_size))
    return reference_model(
        losses_in_micro_batches(model.apply, pieces), read_params(run_dir, params_template(model, mesh))
    )


def _provenance(run_dir: Path, where: str) -> dict[str, Any]:
    try:
        return dict(json.loads((run_dir / "provenance.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError):
        raise ConfigError(
            "there is no run to take the reference from", where=where, fix="Name the folder of a finished run."
        ) from None
