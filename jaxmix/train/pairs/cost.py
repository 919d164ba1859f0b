"""What training on pairs costs, as its programs run it."""

from __future__ import annotations

import math
from typing import Any

from jaxmix.selection.base import Selector
from jaxmix.train.pairs.settings import OnlineReference, PairSettings
from jaxmix.train.selection.cost import SelectionCost, selection_products, training_cost


def pair_cost(
    steps: int,
    *,
    model: Any,
    settings: PairSettings,
    selector: Selector | None,
    reference: Any,
    num_candidates: int,
    num_select: int,
    accumulate: int,
    reuse: str,
) -> SelectionCost:
    """What `steps` steps of programs built from these arguments cost; `reuse` is worked out."""
    if not hasattr(model, "flops_per_image"):
        return training_cost(steps, num_select=num_select, num_candidates=num_candidates, forward_flops=float("nan"))
    one = lambda model, patch_size: model.flops_per_image(patch_size) + model.flops_per_text
    full, sizes = one(model, None), settings.train_patch_sizes or (None,)
    mixed = math.fsum(one(model, size) for size in sizes) / len(sizes)
    passes = 4.0 if accumulate > 1 and reuse != "embeddings" else 3.0
    scoring, online, products = 0.0, 0.0, 0.0
    training = passes * mixed
    if selector is not None:
        scoring = one(model, settings.score_patch_size) if "learner" in selector.needs else 0.0
        if isinstance(reference, OnlineReference) and "reference" in selector.needs:
            online = one(reference.model, reference.patch_size)
        products = selection_products(selector, num_candidates, int(getattr(model.config, "embedding_dim", 1)))
        if reuse == "activations":  # the backward pass runs over all candidates, the forward pass is the scoring one
            training = 2.0 * full * num_candidates / num_select
    return training_cost(
        steps,
        num_select=num_select,
        num_candidates=num_candidates,
        forward_flops=full,
        scoring_flops=scoring,
        reference_flops=online,
        training_flops=training,
        selection_flops=products,
    )
