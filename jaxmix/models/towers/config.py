"""Settings of an image tower, a text tower and the pair of them, checked on construction."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from jaxmix.core.errors import ConfigError
from jaxmix.core.settings import check_fields, setting
from jaxmix.models.lm.config import Activation, ComputeDtype, Remat, TransformerConfig

Pool = Literal["mean", "attention"]

_SIGMOID_TEMPERATURE = 10.0
_SOFTMAX_TEMPERATURE = 1 / 0.07


@dataclasses.dataclass(frozen=True)
class ImageTowerConfig:
    """Settings of the vision transformer.

    Attributes:
        num_layers: blocks, ≥ 1.
        width: size of the residual stream, d.
        image_size: pixels of a side that training uses; a multiple of patch_size. Images of other sizes, also not
            square ones, are taken too: their sides must be multiples of the patch size.
        patch_size: pixels of a patch's side where a call names none.
        base_patch_size: side of the stored patch kernel. None: patch_size. Choose the largest patch size in use: a
            kernel grown from a smaller one can express only what the smaller one could.
        base_grid: side of the grid of stored position embeddings. None: image_size / patch_size.
        pixel_mean: subtracted from the pixels after they were scaled to [−1, 1], in (−1, 1). The mean of the data makes
            a blank patch nearly zero: icons, mostly white, are learned about a fifth faster with 0.6.
        num_heads, head_dim, mlp_width, activation, norm_epsilon, remat, scan_layers: as in `TransformerConfig`.
        pool: how tokens become one vector. "mean", or "attention" (one learned query and a feed-forward part:
            SigLIP's MAP head).
    """

    num_layers: int
    width: int
    image_size: int = setting(32, at_least=1)
    patch_size: int = setting(4, at_least=1)
    base_patch_size: int | None = setting(None, at_least=1)
    base_grid: int | None = setting(None, at_least=1)
    pixel_mean: float = 0.0
    num_heads: int | None = None
    head_dim: int | None = None
    mlp_width: int | None = None
    activation: Activation = "relu2"
    pool: Pool = "mean"
    norm_epsilon: float = 1e-6
    remat: Remat = "none"
    scan_layers: bool | None = None

    def __post_init__(self) -> None:
        _check_tower("image", self)
        if not -1 < self.pixel_mean < 1:
            raise ConfigError(
                f"the mean of pixels in [-1, 1] lies between them, got {self.pixel_mean}",
                where="model.image.pixel_mean",
                fix="Take the mean of images / 127.5 - 1.",
            )
        grid_of(self.image_size, self.image_size, self.patch_size)

    @property
    def stored_patch_size(self) -> int:
        """base_patch_size with its default worked out."""
        return self.patch_size if self.base_patch_size is None else self.base_patch_size

    @property
    def stored_grid(self) -> int:
        """base_grid with its default worked out."""
        return self.image_size // self.patch_size if self.base_grid is None else self.base_grid


@dataclasses.dataclass(frozen=True)
class TextTowerConfig:
    """Settings of the text transformer. Positions are rotary: rows of any length are taken.

    Attributes:
        num_layers: blocks, ≥ 1.
        width: size of the residual stream, d.
        vocab_size: v; tokens are from 1 to v − 1, and 0 or less is padding. As in `caption_tokens`.
        length: tokens of a row, padding included, that `flops_per_text` assumes.
        num_heads, head_dim, mlp_width, activation, norm_epsilon, remat, scan_layers: as in `TransformerConfig`.
        rope_base: base of the rotary frequencies, > 0.
        pool: as in `ImageTowerConfig`, over the tokens that are not padding.
    """

    num_layers: int
    width: int
    vocab_size: int = setting(256, at_least=2)
    length: int = setting(32, at_least=1)
    num_heads: int | None = None
    head_dim: int | None = None
    mlp_width: int | None = None
    activation: Activation = "relu2"
    rope_base: float = 10_000.0
    pool: Pool = "mean"
    norm_epsilon: float = 1e-6
    remat: Remat = "none"
    scan_layers: bool | None = None

    def __post_init__(self) -> None:
        _check_tower("text", self)


@dataclasses.dataclass(frozen=True)
class TwoTowersConfig:
    """Settings of `jaxmix.models.two_towers`.

    Attributes:
        image, text: the towers.
        embedding_dim: size e of the common space, ≥ 1.
        loss: "sigmoid" (SigLIP) or "softmax" (CLIP).
        temperature: factor t of the cosines when training starts, > 0. None: 10 for "sigmoid" (SigLIP), 1 / 0.07 for
            "softmax" (CLIP).
        bias: added to the logits when training starts; "sigmoid" only. −10 is the SigLIP paper's, at which random
            pairs cost next to nothing. Logits then lie in [−20, 0], and Adam at a learning rate η moves the bias by
            at most η a step: for short runs on small batches −log(b) (cosines of 0 then give a pair the
            probability 1/b) or big_vision's −2.71 starts nearer to where it ends.
        compute_dtype: of matrix products and activations, as in `TransformerConfig`. Parameters, norms, softmax,
            pooling, the projections to the common space, embeddings and the loss are float32 whatever it is.
    """

    image: ImageTowerConfig
    text: TextTowerConfig
    embedding_dim: int = setting(64, at_least=1)
    loss: Literal["sigmoid", "softmax"] = "sigmoid"
    temperature: float | None = setting(None, above=0, below=math.inf)
    bias: float = -10.0
    compute_dtype: ComputeDtype = "auto"

    def __post_init__(self) -> None:
        check_fields(self, "model")
        if not math.isfinite(self.bias):
            raise ConfigError(f"the bias must be finite, got {self.bias}", where="model.bias")

    @property
    def initial_temperature(self) -> float:
        """temperature with its default worked out."""
        if self.temperature is not None:
            return self.temperature
        return _SIGMOID_TEMPERATURE if self.loss == "sigmoid" else _SOFTMAX_TEMPERATURE

    @property
    def image_trunk(self) -> TransformerConfig:
        """The image tower's blocks in the terms of `TransformerConfig`."""
        return _trunk(self.image, self.compute_dtype)

    @property
    def text_trunk(self) -> TransformerConfig:
        """The text tower's blocks in the terms of `TransformerConfig`."""
        return _trunk(self.text, self.compute_dtype)


def grid_of(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """Tokens of an image along its two sides.

    Raises:
        ConfigError: the patches do not fill the image.
    """
    if patch_size < 1:
        raise ConfigError(f"a patch has at least 1 pixel a side, got {patch_size}", where="patch_size")
    if height % patch_size or width % patch_size:
        raise ConfigError(
            f"patches of {patch_size} pixels do not fill an image of {height} x {width}",
            where="patch_size",
            fix="Choose a patch size that divides both sides, or resize the images.",
        )
    return height // patch_size, width // patch_size


_SHARED = ("num_layers", "width", "num_heads", "head_dim", "mlp_width", "activation", "norm_epsilon", "remat",
           "scan_layers")  # fmt: skip
"""Settings of a tower that its blocks take as they are."""


def _trunk(tower: ImageTowerConfig | TextTowerConfig, compute_dtype: ComputeDtype) -> TransformerConfig:
    rope: dict[str, Any] = {"rope_base": tower.rope_base} if isinstance(tower, TextTowerConfig) else {}
    return TransformerConfig(**{name: getattr(tower, name) for name in _SHARED}, **rope, compute_dtype=compute_dtype)


def _check_tower(name: str, tower: ImageTowerConfig | TextTowerConfig) -> None:
    check_fields(tower, "model", f"{name}.")
    try:
        _trunk(tower, "auto")
    except ConfigError as error:
        where = str(error.where).replace("model.", f"model.{name}.", 1)
        raise ConfigError(error.what, where=where, fix=error.fix) from None
