"""The settings of training with selection, checked before any file or device is touched."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from jaxmix.core.errors import ConfigError
from jaxmix.core.settings import check_fields, setting
from jaxmix.mixers.base import REFERENCE_SIGNALS, Mixer
from jaxmix.train.lm.signals import GRADIENT_SIGNALS

_OF_BOTH_LEVELS, _OF_TOKENS = ("method", "level", "feedback"), ("keep",)
"""Settings that have an effect at both levels, and those at the level of tokens alone; the others are of sequences."""


@dataclasses.dataclass(frozen=True)
class SelectionSettings:
    """Selection of the rows or tokens that a step trains on, out of those that the mixture draws.

    At the level of sequences the stream draws `B = b / (1 − filter_ratio)` rows a step (the super-batch), shared out
    over the domains by the mixer's weights as ever, and b = batch_size of them are trained on; `data.block`, epochs and
    realized shares count what is drawn. With ℓ the learner's and
    ℓ* the reference's loss of a token, a row's score is the mean over its tokens (see `reduce`) of

        learnability     ℓ − ℓ*       what is not learned yet, and can be
        easy_reference      −ℓ*       what the reference finds easy
        hard_learner     ℓ            what the learner finds hard: noise too
        uniform          0            the control: the same scanning, picked at random

    and rows are drawn without replacement in proportion to exp(gain · score), or the best taken (`greedy`). At the
    level of tokens there is no super-batch: the best `keep` of the batch's tokens enter the loss, the others remain as
    context only. `learnability` is then Rho-1; `hard_learner`, which needs no reference, is ESLM's rule on losses. The
    mask is made over the whole batch, by the losses of the training pass itself; with micro-batches (accumulate above
    1) no single pass sees them all, and the choice needs its own forward pass.

    Gain is per nat of a row's mean loss: JEST's 1 is meant for sums over the pairs of a batch; mean losses of rows
    differ by tenths of a nat, so that a gain of 1 selects weakly. With `diversity` above 0 rows are drawn in chunks,
    and a row that resembles those chosen already (hashed byte or token trigrams, see `row_features`) loses score.
    Mixers learn from all rows that were drawn ("scanned", an unbiased sample of each domain) or from the chosen rows or
    tokens ("trained", whose losses the choice biases).
    """

    method: Literal["learnability", "easy_reference", "hard_learner", "uniform"] = setting(help="Set selection.method.")
    level: Literal["sequence", "token"] = setting("sequence", help="what is selected: rows, or tokens of the batch")
    filter_ratio: float = setting(
        0.8, at_least=0, below=1, help="share of the drawn rows that is not trained on; b / (1 - filter_ratio) is whole"
    )
    gain: float = setting(10.0, at_least=0, below=math.inf, help="inverse temperature of the draw, per nat")
    greedy: bool = setting(False, help="take the best rows instead of drawing; gain then has no effect")
    reduce: Literal["mean", "sum", "top"] = setting(
        "mean", help="a row's score from its tokens': mean, sum, or top (the mean over the largest `top` of them)"
    )
    top: float = setting(0.2, above=0, at_most=1, help="share of a row's tokens, for reduce: top")
    diversity: float = setting(0.0, at_least=0, below=math.inf, help="penalty on rows that resemble chosen ones")
    kernel: Literal["linear", "squared", "near_duplicate"] = setting(
        "near_duplicate", help="of the resemblance, see `jaxmix.selection.diverse`"
    )
    num_chunks: int = setting(16, at_least=1, help="for diversity: a divisor of the batch size")
    hold_shares: bool = setting(
        False, help="select within every domain, so that trained shares equal drawn ones up to a row a step"
    )
    keep: float = setting(0.6, above=0, at_most=1, help="share of the tokens that enter the loss, at level: token")
    feedback: Literal["scanned", "trained"] | None = setting(
        None, help="what mixers learn from: scanned or trained rows; empty: scanned, but trained for uniform"
    )

    def __post_init__(self) -> None:
        check_fields(self, "selection")
        for f in dataclasses.fields(self):
            if not self._has_effect(f.name) and getattr(self, f.name) != f.default:
                raise ConfigError(
                    f"{f.name} has no effect at the level of a {self.level}",
                    where=f"selection.{f.name}",
                    fix="Leave it out, or change selection.level.",
                )

    def _has_effect(self, name: str) -> bool:
        return name in _OF_BOTH_LEVELS or (name in _OF_TOKENS) == (self.level == "token")

    @property
    def feedback_from(self) -> str:
        """`feedback` with its default resolved."""
        return self.feedback or ("trained" if self.method == "uniform" else "scanned")

    @property
    def needs_reference(self) -> bool:
        """Whether the scores measure against a reference."""
        return self.method in ("learnability", "easy_reference")

    @property
    def relevant(self) -> dict[str, Any]:
        """The settings that have an effect at this level, by name, as a configuration file holds them."""
        names = [f.name for f in dataclasses.fields(self) if self._has_effect(f.name)]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def candidates(self, batch_size: int, *, multiple: int = 1, where: str = "selection.filter_ratio") -> int:
        """Rows that the stream draws in a step for `batch_size` trained ones; see `candidate_rows`."""
        if self.level == "token":
            return batch_size
        return candidate_rows(batch_size, self.filter_ratio, multiple=multiple, where=where)


def candidate_rows(
    batch_size: int, filter_ratio: float, *, multiple: int = 1, where: str = "selection.filter_ratio"
) -> int:
    """`B = b / (1 − f)`, which must be a whole number of rows.

    Args:
        batch_size: b ≥ 1.
        filter_ratio: f in [0, 1).
        multiple: B must be a multiple of it: the devices and processes that rows are spread over. It divides b.
        where: the setting, for the message.

    Raises:
        ConfigError: names the nearest ratios that would do.

    Example:
        >>> candidate_rows(32, 0.8)
        160
    """
    exact = batch_size / (1.0 - filter_ratio)
    rows = round(exact / multiple) * multiple
    if abs(exact - rows) <= 1e-6 * exact:
        return rows
    below = max(math.floor(exact / multiple) * multiple, batch_size)
    above = below + multiple
    nearby = sorted({below, above}, key=lambda n: (abs(n - exact), n))
    shown = " or ".join(f"{_ratio(batch_size, n)} ({n} rows)" for n in nearby)
    kind = "" if multiple == 1 else f", to be spread over {multiple} devices"
    raise ConfigError(
        f"filter_ratio {filter_ratio:g} makes {exact:.6g} rows of a super-batch for a batch_size of {batch_size}{kind}",
        where=where,
        fix=f"Use {shown}, or another data.batch_size.",
    )


def _ratio(batch_size: int, rows: int) -> str:
    """The ratio that makes `rows` of `batch_size`, in as few digits as `candidate_rows` takes for it."""
    ratio = 1.0 - batch_size / rows
    for digits in range(1, 16):
        text = f"{ratio:.{digits}f}"
        if abs(batch_size / (1.0 - float(text)) - rows) <= 1e-6 * rows:
            return text
    return repr(ratio)


class ForwardPasses(NamedTuple):
    """The forward passes of a step with selection besides those of training.

    Attributes:
        learner: the learner scores all rows that were drawn.
        reference: the reference scores them.
        trained_reference: the reference's losses of the chosen rows go into the step's own sums; where `reference` is
            False that is a separate pass over the chosen rows.
    """

    learner: bool
    reference: bool
    trained_reference: bool


def forward_passes_of(settings: SelectionSettings, needs: frozenset[str]) -> ForwardPasses:
    """The forward passes that the selection and the mixer need.

    Args:
        settings: of the selection.
        needs: signals of the mixer.
    """
    wants_reference = bool(needs & set(REFERENCE_SIGNALS))
    is_scanned = settings.feedback_from == "scanned"
    sums = bool(needs & {"loss_sum", *REFERENCE_SIGNALS})
    return ForwardPasses(
        learner=settings.method in ("learnability", "hard_learner") or (is_scanned and sums),
        reference=settings.needs_reference or (is_scanned and wants_reference),
        trained_reference=wants_reference and not is_scanned,
    )


def chooses_in_step(settings: SelectionSettings, forward_passes: ForwardPasses, *, accumulate: int) -> bool:
    """Whether tokens are chosen inside the train step, by the losses of its own forward pass.

    They are where that saves a pass of the learner and one pass sees all tokens: without micro-batches.
    """
    return settings.level == "token" and settings.method != "uniform" and forward_passes.learner and accumulate == 1


def check_rows(selection: SelectionSettings | None, *, drawn: int, batch_size: int | None) -> int:
    """Rows trained on in a step, checked against those that the stream draws.

    Args:
        selection: None for none: all that is drawn is trained on.
        drawn: rows that the stream draws.
        batch_size: requested rows; None for `drawn`, which a selection of tokens allows.
    """
    rows = drawn if batch_size is None else batch_size
    wanted = rows if selection is None else selection.candidates(rows)
    if wanted != drawn:
        raise ConfigError(
            f"the stream draws {drawn} rows, and training on {rows} of them needs {wanted}",
            where="batch_size",
            fix="Give the rows to train on, and make the stream with batch_size=selection.candidates(batch_size).",
        )
    return rows


def check_selection(
    settings: SelectionSettings,
    mixer: Mixer,
    *,
    reference: str | None,
    batch_size: int,
    origin: Callable[[str], str] = str,
) -> None:
    """Raises `ConfigError` for a selection that the run cannot make, or that would have no effect.

    Args:
        settings: of the selection.
        mixer: with its wrappers.
        reference: "model", "table" (one loss per domain), or None.
        batch_size: rows trained on in a step.
        origin: where a setting was written, for the message.
    """
    if settings.needs_reference and reference is None:
        raise ConfigError(
            f"selection by {settings.method} measures the loss against a reference, and the run has none",
            where=origin("reference"),
            fix="Set reference.run to the folder of a run on clean text, or selection.method to hard_learner.",
        )
    if settings.method == "easy_reference" and reference == "table":
        raise ConfigError(
            "selection by easy_reference cannot tell rows apart by a table of one loss per source",
            where=origin("reference.losses"),
            fix="Set reference.run to the folder of a finished run.",
        )
    if gradients := sorted(mixer.needs & GRADIENT_SIGNALS):
        raise ConfigError(
            f"mixer {mixer.name!r} measures {gradients[0]} on the rows of a step, and selection chooses those rows",
            where=origin("selection.method"),
            fix="Use a mixer that works on losses, or leave selection out.",
        )
    settings.candidates(batch_size, where=origin("selection.filter_ratio"))
    if settings.level == "sequence" and settings.diversity > 0 and batch_size % settings.num_chunks:
        raise ConfigError(
            f"data.batch_size {batch_size} cannot be cut into num_chunks {settings.num_chunks} equal chunks",
            where=origin("selection.num_chunks"),
            fix="Choose a divisor of data.batch_size.",
        )
