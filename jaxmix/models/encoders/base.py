"""The interface of text encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ENCODER_FILE = "encoder.json"
BUILTIN = "builtin"

Encode = Callable[[Sequence[str]], np.ndarray]


class Encoder(NamedTuple):
    """Turns texts into unit vectors.

    Attributes:
        encode: `texts -> f32[b, d]`, rows of length 1 in the order of the texts. A text in which there is nothing to
            encode (blank, or no word that the encoder knows) becomes a row of zeros.
        dim: d.
        identity: 32 hexadecimal digits: the same for encoders with the same weights, pooling and preprocessing.
        save: `folder -> None`, writes what `load_encoder(folder)` needs to make this encoder again. A checkpoint is
            referred to by its path and not copied. None where that cannot be (functions).
        about: what it is, for provenance; JSON-able.
    """

    encode: Encode
    dim: int
    identity: str
    save: Callable[[Path], None] | None
    about: dict[str, Any]
