"""Phase 1 of SPaCe: clusters of the prompts by text and difficulty, with a few prompts kept of each."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxmix.core.errors import RunError
from jaxmix.curricula import difficulty_from_attempts, reduce
from jaxmix.data.files import write_whole
from jaxmix.data.tasks import PromptSet
from jaxmix.models import generate
from jaxmix.models.base import Model
from jaxmix.models.encoders.load import load_encoder
from jaxmix.workflows.finetune.config import ReductionConfig

_BATCH = 256


def reduce_prompts(
    section: ReductionConfig,
    prompts: PromptSet,
    path: Path,
    *,
    model: Model,
    params: Any,
    seed: int,
    is_suite: bool,
    say: Callable[[str], None],
) -> tuple[PromptSet, NDArray[np.int32]]:
    """The prompts with clusters as arms, and the kept ones: computed once, then read from `path`.

    Args:
        section: how many clusters, how many prompts of each, what difficulty is.
        prompts: to be clustered.
        path: JSON file of labels and kept prompts.
        model, params: the policy at its start; None, with difficulty "level" only.
        seed: of the clusters and of the attempts.
        is_suite: whether the prompts are those of a suite, in which characters are words.
        say: receives one line.

    Raises:
        RunError: the file is of other prompts or settings.
    """
    settings = dataclasses.asdict(section)
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        labels, kept = np.asarray(stored["labels"], np.int32), np.asarray(stored["kept"], np.int32)
        if stored.get("settings", settings) != settings:
            what = f"the prompts were reduced by other settings: {stored['settings']}"
            raise RunError(what, where=str(path), fix="Remove the file.")
        if len(labels) != len(prompts):
            raise RunError(f"{len(labels)} labels for {len(prompts)} prompts", where=str(path), fix="Remove the file.")
        return prompts.with_clusters(labels, len(kept)), kept
    texts = [prompts.decode(row) for row in prompts.tokens]
    # The characters of a suite's questions mean something each; encoders would take a question for one long word.
    words = [" ".join(text) for text in texts] if is_suite else texts
    encoder = load_encoder(section.encoder, sample=words if section.encoder == "builtin" else None)
    if section.difficulty == "level":
        difficulty = np.asarray(prompts.levels, np.float32)[prompts.arms]
    else:
        solved = count_solved(prompts, model, params, attempts=section.attempts, seed=seed)
        difficulty = np.asarray(difficulty_from_attempts(solved, section.attempts))
    assert section.num_clusters is not None
    found = reduce(
        encoder.encode(words),
        difficulty,
        num_clusters=section.num_clusters,
        per_cluster=section.per_cluster,
        difficulty_weight=section.difficulty_weight,
        key=jax.random.key(seed),
        texts=texts,
    )
    labels, kept = np.asarray(found.labels, np.int32), np.asarray(found.kept, np.int32)
    say(f"reduction: {int((kept >= 0).sum())} of {len(prompts)} prompts kept, in {len(kept)} clusters")
    found_here = {"labels": labels.tolist(), "kept": kept.tolist(), "encoder": encoder.identity}
    write_whole(path, json.dumps({"settings": settings, **found_here}) + "\n")
    return prompts.with_clusters(labels, len(kept)), kept


def count_solved(prompts: PromptSet, model: Model, params: Any, *, attempts: int, seed: int) -> NDArray[np.float64]:
    """f[n], the summed reward of `attempts` completions of every prompt, at temperature 1."""

    @jax.jit
    def complete(key: Any, tokens: Any) -> Any:
        return generate(
            model,
            params,
            key,
            tokens,
            num_rollouts=attempts,
            length=prompts.completion_length,
            eos_id=prompts.eos_id,
            pad_id=prompts.pad_id,
        ).tokens

    solved = np.zeros(len(prompts))
    for number, start in enumerate(range(0, len(prompts), _BATCH)):
        rows = np.arange(start, start + _BATCH) % len(prompts)  # the last batch is filled up: one compiled shape
        key = jax.random.fold_in(jax.random.key(seed), number)
        made = np.asarray(complete(key, jnp.asarray(prompts.tokens[rows])))
        solved[rows] = prompts.reward(rows, made).sum(axis=1)
    return solved
