"""The settings of training on image–text pairs with selection, checked before any file or device is touched."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from jaxmix.core.errors import ConfigError, nearest
from jaxmix.core.settings import check_fields, setting
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
    """Settings of scoring, and the resolutions at which selected examples are trained.

    Attributes:
        score_patch_size: patch size of the learner's image tower when it scores; None for its own. Larger patches are
            fewer tokens: the cheap scoring of Flexi-JEST.
        train_patch_sizes: patch sizes that equal shares of each batch are trained at, so that scoring at the larger one
            stays a faithful proxy: (16, 32) are the paper's halves, (16, 16, 16, 32) a quarter. Empty for the image
            tower's own.
        reuse: the part of the scoring forward pass that training reuses; see `build_pair_programs`.
        is_stale: score step s + 1 with the parameters before step s's update, so that neither waits for the other.
    """

    score_patch_size: int | None = setting(None, at_least=1)
    train_patch_sizes: tuple[int, ...] = ()
    reuse: str = "auto"
    is_stale: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "selection")
        if self.reuse not in REUSES:
            raise ConfigError(f"unknown reuse {self.reuse!r}", where="selection.reuse", fix=nearest(self.reuse, REUSES))
        if any(size < 1 for size in self.train_patch_sizes):
            raise ConfigError(
                f"train_patch_sizes must be at least 1, got {list(self.train_patch_sizes)}",
                where="selection.train_patch_sizes",
            )
        if self.reuse in ("embeddings", "activations") and (reason := self._why_no_reuse):
            raise ConfigError(
                f"the scoring forward pass cannot be reused: {reason}", where="selection.reuse", fix="Set auto or none."
            )

    @property
    def _why_no_reuse(self) -> str:
        if self.is_stale:
            return "scores are one step old"
        if self.score_patch_size is not None:
            return "scores are of another resolution"
        return "the batch is trained at other resolutions" if self.train_patch_sizes else ""

    def resolved_reuse(self, selector: Selector | None, accumulate: int) -> str:
        """`reuse` with "auto" resolved."""
        if selector is None or "learner" not in selector.needs:
            return "none"
        if self.reuse != "auto":
            return self.reuse
        return "embeddings" if accumulate > 1 and not self._why_no_reuse else "none"


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
