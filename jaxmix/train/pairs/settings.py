"""The settings of training on image–text pairs with selection, checked before anything is touched."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from jaxmix.core.errors import ConfigError, nearest
from jaxmix.selection.base import Selector

REUSES = ("auto", "none", "embeddings", "activations")


class OnlineReference(NamedTuple):
    """A frozen model that scores every super-batch as it comes, augmented as the learner sees it.

    Attributes:
        model: bundle with `embed_image`, `embed_text` and `scale`; may be larger than the learner.
        params: its parameters.
        patch_size: of its image tower; None for its own.
    """

    model: Any
    params: Any
    patch_size: int | None = None


@dataclasses.dataclass(frozen=True)
class PairSettings:
    """How candidates are scored and at which resolutions the selected ones are trained.

    Attributes:
        score_patch_size: patch size of the learner's image tower when it scores; None for its own. Larger patches are
            fewer tokens: the cheap scoring of Flexi-JEST.
        train_patch_sizes: patch sizes that equal shares of each batch are trained at, so that scoring at the larger one
            stays a faithful proxy: (16, 32) are the paper's halves, (16, 16, 16, 32) a quarter. Empty for the image
            tower's own.
        reuse: what of the scoring forward serves training too; see `build_pair_programs`.
        is_stale: score step s + 1 with the parameters before step s's update, so that neither waits for the other.
    """

    score_patch_size: int | None = None
    train_patch_sizes: tuple[int, ...] = ()
    reuse: str = "auto"
    is_stale: bool = False

    def __post_init__(self) -> None:
        scoring = () if self.score_patch_size is None else (self.score_patch_size,)
        for name, sizes in (("score_patch_size", scoring), ("train_patch_sizes", self.train_patch_sizes)):
            if any(size < 1 for size in sizes):
                raise ConfigError(f"{name} must be at least 1, got {list(sizes)}", where=f"selection.{name}")
        if self.reuse not in REUSES:
            raise ConfigError(f"unknown reuse {self.reuse!r}", where="selection.reuse", fix=nearest(self.reuse, REUSES))
        if self.reuse in ("embeddings", "activations"):
            self._check_reuse()

    def _check_reuse(self) -> None:
        for is_wrong, why in (
            (self.is_stale, "scores are one step old"),
            (self.score_patch_size is not None, "scores are of another resolution"),
            (bool(self.train_patch_sizes), "the batch is trained at other resolutions"),
        ):
            if is_wrong:
                raise ConfigError(
                    f"the scoring forward cannot be reused: {why}", where="selection.reuse", fix="Set auto or none."
                )

    def resolved_reuse(self, selector: Selector | None, accumulate: int) -> str:
        """`reuse` with "auto" worked out."""
        if selector is None or "learner" not in selector.needs:
            return "none"
        if self.reuse != "auto":
            return self.reuse
        if self.is_stale or self.score_patch_size is not None or self.train_patch_sizes:
            return "none"
        return "embeddings" if accumulate > 1 else "none"


def check_pairs(
    settings: PairSettings,
    selector: Selector | None,
    reference: Any,
    *,
    num_candidates: int,
    num_select: int,
    accumulate: int,
    shards: int,
) -> None:
    """Raises `ConfigError` for what `build_pair_programs` cannot build; `shards` are the devices that share rows."""
    if num_select > num_candidates:
        raise ConfigError(
            f"the selector picks {num_select} of {num_candidates} candidates",
            where="num_candidates",
            fix="Score at least as many as are trained on.",
        )
    if selector is not None and "reference" in selector.needs and reference is None:
        raise ConfigError(
            f"the selector {selector.name!r} needs a reference",
            where="reference",
            fix="Pass an embedding cache or an OnlineReference, or use the hard_learner score.",
        )
    if accumulate < 1:
        raise ConfigError(f"accumulate must be at least 1, got {accumulate}", where="train.accumulate")
    if settings.reuse == "embeddings" and accumulate == 1:
        raise ConfigError(
            "embeddings of the scoring forward save nothing without accumulation",
            where="selection.reuse",
            fix="Set auto.",
        )
    if settings.reuse == "activations" and accumulate > 1:
        raise ConfigError(
            f"activations of all candidates are kept at once, which accumulate = {accumulate} is to avoid",
            where="selection.reuse",
            fix="Set auto.",
        )
    period = max(len(settings.train_patch_sizes), 1)
    for what, number, divisor in (
        ("num_candidates", num_candidates, shards),
        ("num_select", num_select, shards * accumulate * period),
    ):
        if number % divisor:
            raise ConfigError(
                f"{what} {number} is not a multiple of {divisor}",
                where=what,
                fix="It is divided over devices, micro-batches and resolutions.",
            )
