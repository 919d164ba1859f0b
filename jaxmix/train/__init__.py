"""The sharded training loop: one step, one loop, checkpoints, records."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "EmbeddingCache": "embedding_cache",
    "FinetuneResult": "finetune_loop",
    "FinetuneSettings": "finetune_settings",
    "OnlineReference": "pair_step",
    "PairPool": "pairs",
    "PairSettings": "pair_step",
    "PairStream": "pairs",
    "RunResult": "loop",
    "SelectionCost": "selection_cost",
    "SelectionSettings": "selection_settings",
    "TrainSettings": "settings",
    "ValidationSet": "evaluate",
    "build_pair_programs": "pair_step",
    "build_policy_programs": "finetune_step",
    "build_programs": "programs",
    "build_train_step": "step",
    "cache_key": "embedding_cache",
    "describe_cost": "selection_cost",
    "grpo_loss": "grpo",
    "latest_by_step": "records",
    "open_embeddings": "embedding_cache",
    "random_shift": "pairs",
    "read_records": "records",
    "recall": "retrieval",
    "relative_step_cost": "selection_cost",
    "run_finetuning": "finetune_loop",
    "run_pairs": "pair_loop",
    "run_training": "loop",
    "training_cost": "selection_cost",
    "validation_set": "evaluate",
    "warm_start": "finetune_start",
    "write_embeddings": "embedding_cache",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"jaxmix.train.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'jaxmix.train' has no attribute {name!r}")
