"""Comparable losses for runs whose domains divide the same corpus differently.

Runs whose domains differ have validation rows that differ. What they share is the corpus: here the training part of a
prepared folder becomes the documents that are divided again, and every run is evaluated on the held-out part of that
folder, which none of them has seen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jaxmix.core.errors import ConfigError
from jaxmix.core.sharding import build_mesh
from jaxmix.data.prepared.store import open_prepared, read_index
from jaxmix.models import transformer
from jaxmix.models.partition import params_template
from jaxmix.train.lm.evaluate import build_evaluate, place, validation_set
from jaxmix.train.run.checkpoint import read_params
from jaxmix.workflows.config.load import load_config
from jaxmix.workflows.config.resolve import resolve_model
from jaxmix.workflows.discover.documents import write_parquet
from jaxmix.workflows.discover.embed import prepared_texts


def write_training_texts(prepared: str | Path, folder: str | Path, *, tokenizer: Any = None) -> dict[str, Path]:
    """Writes the training part of a prepared folder as Parquet files of texts, one per domain, unless they are there.

    Args:
        prepared: what `jaxmix prepare` wrote.
        folder: for the files; made when missing.
        tokenizer: that of the prepared folder; bytes by default.

    Returns:
        The files by domain. A record of the prepared folder, a document or a piece of a long one, is a document there.
    """
    domains = list(read_index(prepared)["domains"])
    files = {name: Path(folder) / f"{name}.parquet" for name in domains}
    missing = [name for name, path in files.items() if not path.is_file()]
    readers = prepared_texts(prepared, tokenizer) if missing else {}
    for name in missing:
        shards = [read for shard, read in readers.items() if shard.rsplit("-", 1)[0] == name]
        texts = [text for read in shards for text in read()]
        write_parquet(files[name], pa.table({"text": pa.array(texts, pa.large_string())}))
    return files


def held_out_losses(run_dir: str | Path, prepared: str | Path, *, rows_per_domain: int) -> dict[str, float]:
    """Mean loss per token (nats) of a finished run's last parameters on the held-out part of another prepared folder.

    Args:
        run_dir: folder of the run.
        prepared: prepared with the same tokenizer.
        rows_per_domain: rows of the run's own length, spread evenly over every domain.

    Raises:
        ConfigError: the folder was prepared with another tokenizer than the run's.
    """
    run_dir = Path(run_dir)
    config = load_config(str(run_dir / "config.yaml"))
    settings = read_index(prepared)["settings"]
    provenance = json.loads((run_dir / "provenance.json").read_text(encoding="utf-8"))
    if provenance["tokenizer_hash"] != settings["tokenizer"]:
        raise ConfigError(f"{run_dir} was trained with another tokenizer than {prepared} has", where="held_out_losses")
    mesh = build_mesh(**dict[str, Any](config.mesh))
    model = transformer(resolve_model(config.model, config.data, vocab_size=settings["vocab_size"]))
    params = read_params(run_dir, params_template(model, mesh))
    rows = validation_set(
        open_prepared(prepared, "validation"), seq_len=config.data.seq_len, rows_per_domain=rows_per_domain
    )
    evaluate = build_evaluate(model.apply, num_domains=len(rows.names), mesh=mesh)
    losses = np.asarray(evaluate(params, place(rows, batch_size=config.data.batch_size, mesh=mesh)))
    return {name: float(loss) for name, loss in zip(rows.names, losses, strict=True)}
