"""The cost of training with selection: steps, examples trained, examples scanned and operations, always together.

A method that selects its batches looks good on the axis that its author shows. JEST takes fewer steps than uniform
sampling and scans more examples; whether it takes fewer operations depends on the reference being cached, on the
resolution of scoring and on what is counted. So no function here returns one axis alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from jaxmix.core.errors import ConfigError
from jaxmix.core.validate import check_choice
from jaxmix.selection.base import Selector

REFERENCES = ("online", "cached", "none")
"""Sources of the reference's losses: a forward pass per candidate, read from disk, or not needed."""

_FORWARD_AND_BACKWARD = 3.0
"""Of a training step, in forward passes: one forward, and a backward pass that costs two."""


class SelectionCost(NamedTuple):
    """The four axes of a run, or its ratio to another run on each of them.

    Attributes:
        steps: optimizer steps.
        trained: examples that an optimizer step was taken on, repeats counted.
        scanned: examples that were looked at: scored and perhaps trained on. Equal to `trained` without selection.
        flops: floating-point operations of the models and of the selection, a multiply and an add counted apart.
            The training of the reference is not in it (nor in any published number), nor the filling of a cache.
    """

    steps: float
    trained: float
    scanned: float
    flops: float


def filter_ratio(num_candidates: int, num_select: int) -> float:
    """`f = 1 − b/B`, the share of the candidates that is not trained on.

    Args:
        num_candidates: B, examples scored in a step.
        num_select: b, examples trained on in a step, 1 ≤ b ≤ B.
    """
    _check_sizes(num_candidates, num_select)
    return 1.0 - num_select / num_candidates


def relative_step_cost(
    candidates_per_example: float,
    *,
    reference: str = "online",
    reference_size: float = 1.0,
    score_ratio: float = 1.0,
    low_share: float = 0.0,
    low_ratio: float = 1.0,
    is_forward_reused: bool = False,
) -> float:
    r"""Operations of a step with selection over those of a plain step on as many trained examples.

    With k = B/b, a forward pass of one example at full resolution as the unit, and a backward pass as two:

        ( k·a + k·r + 3·(1 − q + q·a_l) − u ) / 3

    | symbol | argument |
    |---|---|
    | k | candidates_per_example |
    | a | score_ratio: a scoring forward over a full one |
    | r | reference_size for an online reference, 0 for a cached one or none |
    | q | low_share: of the trained examples, how many are trained at low resolution |
    | a_l | low_ratio: an example at low resolution over one at full |
    | u | 1 if the scoring forward is also the forward of training, else 0 |

    The published numbers follow: with u = 1 `(2k + 2)/3` for an online and `(k + 2)/3` for a cached reference, 4.00
    and 2.33 at f = 0.8; with a = a_l = 0.28, q = 1/2 and u = 0 `(a k + 3(1 + a)/2)/3` for Flexi-JEST, 1.11. They
    hence count two conventions at once. A program that runs the forward pass again, as `build_pair_programs` does
    where it gains nothing by keeping the activations of all candidates, pays 4.33 and 2.67. Say which one you show.

    Args:
        candidates_per_example: B/b ≥ 1.
        reference: one of `REFERENCES`.
        reference_size: forward cost of an online reference over the learner's, ≥ 0.
        score_ratio: above 0; 1 without low resolution.
        low_share: in [0, 1].
        low_ratio: above 0.
        is_forward_reused: only at full resolution, on both sides.

    Raises:
        ConfigError: a value out of range, or a forward reused that scored at another resolution than it trains at.

    Example:
        >>> [round(relative_step_cost(k, is_forward_reused=True), 2) for k in (2, 5, 10)]
        [2.0, 4.0, 7.33]
        >>> round(relative_step_cost(5, reference="cached"), 2)
        2.67

    References:
        arXiv 2406.17711; the formulas are derived from its published ratios.
    """
    check_choice("relative_step_cost", "reference", reference, REFERENCES)
    for name, value, low, high in (
        ("candidates_per_example", candidates_per_example, 1.0, math.inf),
        ("reference_size", reference_size, 0.0, math.inf),
        ("score_ratio", score_ratio, 0.0, math.inf),
        ("low_share", low_share, 0.0, 1.0),
        ("low_ratio", low_ratio, 0.0, math.inf),
    ):
        if not (math.isfinite(value) and low <= value <= high):
            raise ConfigError(
                f"{name} must be finite and in [{low}, {high}], got {value}", where=f"relative_step_cost({name})"
            )
    if is_forward_reused and (score_ratio != 1.0 or low_share > 0.0):
        raise ConfigError(
            f"a forward pass at another resolution cannot be reused: score_ratio {score_ratio}, low_share {low_share}",
            where="relative_step_cost(is_forward_reused)",
            fix="Count it as not reused.",
        )
    scoring = candidates_per_example * (score_ratio + (reference_size if reference == "online" else 0.0))
    training = _FORWARD_AND_BACKWARD * (1.0 - low_share + low_share * low_ratio)
    return (scoring + training - float(is_forward_reused)) / _FORWARD_AND_BACKWARD


def selection_products(selector: Selector, num_candidates: int, width: int) -> float:
    """Operations of the matrix products of one selection: `4 · models · B · d · rows`.

    Each of B candidates is multiplied with so many rows, image by text and text by image, for each model: b (1 − 1/N)
    in a pass of JEST with N chunks, b more in every further sweep, B for independent scores in the context of the
    super-batch, none without. The softplus or logsumexp of each product and the draws are not counted.

    Args:
        selector: from `jaxmix.selection`.
        num_candidates: B, at least `selector.num_select`.
        width: d, of the embeddings.

    Example:
        >>> from jaxmix.selection import jest
        >>> f"{selection_products(jest(256), 1280, 64):.3g}"
        '1.57e+08'
    """
    _check_sizes(num_candidates, selector.num_select)
    if width < 1:
        raise ConfigError(f"width must be at least 1, got {width}", where="selection_products(width)")
    return 4.0 * len(selector.needs) * num_candidates * width * selector.compared_rows(num_candidates)


def training_cost(
    steps: int,
    *,
    num_select: int,
    forward_flops: float,
    num_candidates: int | None = None,
    scoring_flops: float | None = None,
    reference_flops: float = 0.0,
    training_flops: float | None = None,
    selection_flops: float = 0.0,
    is_forward_reused: bool = False,
) -> SelectionCost:
    """The four axes of `steps` steps.

        flops = steps · ( B·(scoring + reference) + b·(training − u·forward) + selection )

    Args:
        steps: optimizer steps, ≥ 0.
        num_select: b, examples trained on in a step.
        forward_flops: one forward pass of one example; of a language model a third of `flops_per_token` times the
            tokens of a row.
        num_candidates: B; None or b for a run without selection, which scores nothing.
        scoring_flops: the learner's scoring of one candidate; `forward_flops` if None.
        reference_flops: the reference's scoring of one candidate; 0 if it is cached.
        training_flops: forward and backward pass of one example; three forwards if None.
        selection_flops: of one selection, see `selection_products`.
        is_forward_reused: the scoring forward is also training's.

    Example:
        >>> plain = training_cost(300, num_select=256, forward_flops=1e6)
        >>> jest = training_cost(100, num_select=256, num_candidates=1280, forward_flops=1e6)
        >>> describe_cost(jest, plain)  # doctest: +NORMALIZE_WHITESPACE
        '100 steps (0.33x), 25,600 trained (0.33x), 128,000 scanned (1.67x), 2.05e+11 FLOP (0.89x)'
    """
    candidates = num_select if num_candidates is None else num_candidates
    _check_sizes(candidates, num_select)
    if steps < 0:
        raise ConfigError(f"steps must be at least 0, got {steps}", where="training_cost(steps)")
    scoring = forward_flops if scoring_flops is None else scoring_flops
    training = _FORWARD_AND_BACKWARD * forward_flops if training_flops is None else training_flops
    per_step = num_select * training
    if candidates > num_select:
        per_step += candidates * (scoring + reference_flops) + selection_flops
        per_step -= num_select * forward_flops if is_forward_reused else 0.0
    return SelectionCost(steps, steps * num_select, steps * candidates, steps * per_step)


def cost_ratios(cost: SelectionCost, baseline: SelectionCost) -> SelectionCost:
    """`cost` over `baseline` on each axis; nan where the baseline is 0."""
    return SelectionCost(*(x / y if y else math.nan for x, y in zip(cost, baseline, strict=True)))


def describe_cost(cost: SelectionCost, baseline: SelectionCost | None = None) -> str:
    """All four axes in one line, each with its ratio to `baseline` where one is given."""
    shown = [
        f"{cost.steps:,.0f} steps",
        f"{cost.trained:,.0f} trained",
        f"{cost.scanned:,.0f} scanned",
        f"{cost.flops:.3g} FLOP",
    ]
    if baseline is not None:
        shown = [f"{text} ({ratio:.2f}x)" for text, ratio in zip(shown, cost_ratios(cost, baseline), strict=True)]
    return ", ".join(shown)


def _check_sizes(num_candidates: int, num_select: int) -> None:
    if not 1 <= num_select <= num_candidates:
        raise ConfigError(
            f"num_select must be from 1 to num_candidates: got {num_select} of {num_candidates}",
            where="num_select",
            fix="Score at least as many candidates as are trained on.",
        )
