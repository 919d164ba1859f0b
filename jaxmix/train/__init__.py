"""The sharded training loop: one step, one loop, checkpoints, records."""

from __future__ import annotations

from jaxmix.core.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "EmbeddingCache": "pairs.embedding_cache",
        "FinetuneResult": "rl.loop",
        "FinetuneSettings": "rl.settings",
        "Hook": "run.driver",
        "OnlineReference": "pairs.settings",
        "PairPool": "pairs.stream",
        "PairSettings": "pairs.settings",
        "PairStream": "pairs.stream",
        "RunResult": "lm.loop",
        "SelectionCost": "selection.cost",
        "SelectionSettings": "selection.settings",
        "TrainSettings": "lm.settings",
        "ValidationSet": "lm.evaluate",
        "build_pair_programs": "pairs.step",
        "build_policy_programs": "rl.step",
        "build_programs": "lm.programs",
        "build_train_step": "lm.step",
        "cache_key": "pairs.embedding_cache",
        "describe_cost": "selection.cost",
        "grpo_loss": "grpo",
        "latest_by_step": "run.records",
        "open_embeddings": "pairs.embedding_cache",
        "random_shift": "pairs.stream",
        "read_records": "run.records",
        "recall": "pairs.retrieval",
        "relative_step_cost": "selection.cost",
        "run_finetuning": "rl.loop",
        "run_pairs": "pairs.loop",
        "run_training": "lm.loop",
        "training_cost": "selection.cost",
        "validation_set": "lm.evaluate",
        "warm_start": "rl.start",
        "write_embeddings": "pairs.embedding_cache",
    },
)
