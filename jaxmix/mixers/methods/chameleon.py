"""Chameleon: weights from the leverage of each domain's mean embedding.

Xie, Tonin, Cevher: "Chameleon: A Flexible Data-mixing Framework for Language Model Pretraining and Finetuning",
arXiv 2505.24844.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array, DomainVector, Float, Weights
from jaxmix.core.validate import Positive, checked

_TEMPERATURE = {"pretraining": 5.0, "finetuning": 0.2}
_LEAST = 1e-12


def leverage_scores(embeddings: Float[Array, "m d"], regularization: float, *, center: bool = True) -> DomainVector:
    """Ridge leverage of each row: `S_i = [K (K + λ m I)⁻¹]_ii` in [0, 1), with `K = X Xᵀ`.

    Args:
        embeddings: X f32[m, d].
        regularization: λ > 0, in units of a squared embedding norm.
        center: subtract the mean row first.

    Numerics: by eigenvalues, each over itself plus λ m: no difference of nearly equal numbers, so that domains
    of little leverage keep their digits.
    """
    x = embeddings - jnp.mean(embeddings, axis=0)[None, :] if center else embeddings
    left, singular, _ = jnp.linalg.svd(x, full_matrices=False)
    square = singular * singular
    return jnp.sum(left * left * (square / (square + regularization * x.shape[0]))[None, :], axis=1)


@checked
def chameleon_weights(
    embeddings: Any,
    *,
    mode: Literal["pretraining", "finetuning"] = "pretraining",
    regularization: Positive = 10.0,
    temperature: Positive | None = None,
    center: bool = True,
    normalize: bool = True,
) -> Weights:
    r"""Weights for a whole run, from one mean embedding per domain.

    With S_i the ridge leverage (`leverage_scores`; divided by Σ_i S_i if `normalize`) and T = temperature:

        pretraining:  p = softmax((1 / S) / T)      more of what domains share
        finetuning:   p = softmax(S / T)            more of what is distinct

    Nothing is trained: a new domain needs only its embedding.

    Args:
        embeddings: [m, d], for each domain the mean of a middle layer's states over its examples (2048 of 512 tokens,
            with an 82M proxy, in the paper).
        mode: "pretraining" or "finetuning".
        regularization: λ > 0; choose it in units of a squared embedding norm.
        temperature: T > 0; 5 for pretraining and 0.2 for finetuning by default.
        center: subtract the domains' mean embedding, as the released code does.
        normalize: divide the leverage by its sum, as the released code does.

    Returns:
        f32[m] on the simplex, for `static(weights)`.

    Raises:
        ConfigError: unknown mode, an argument out of its range, embeddings that are not [m, d] or not finite.

    Numerics: a leverage below 1e-12 counts as 1e-12; if all are, the weights are uniform.

    Differs from the paper: nothing in the formulas; `center=False, normalize=False` is the paper's text. Near
    duplicates have low leverage each, so that "pretraining" gives *every one* of them more weight: of five domains,
    two alike get about 0.33 each and the others 0.11. Remove duplicates first.

    Example:
        >>> weights = chameleon_weights(np.diag([9.0, 9.0, 18.0]), mode="finetuning")
        >>> bool(weights[2] > weights[0])
        True

    References:
        arXiv 2505.24844; github.com/LIONS-EPFL/Chameleon.
        `docs/mixers.md` has the formulas beside the other methods'.
    """
    temperature = _TEMPERATURE[mode] if temperature is None else temperature
    rows = np.asarray(embeddings, np.float64)
    if rows.ndim != 2 or not rows.size or not np.isfinite(rows).all():
        raise ConfigError(
            f"embeddings must be finite numbers [domains, width], got the shape {rows.shape}",
            where="chameleon_weights(embeddings)",
        )
    return _weights(
        jnp.asarray(rows, jnp.result_type(float)), regularization, temperature, mode == "pretraining", center, normalize
    )


def _weights(
    embeddings: Array, regularization: float, temperature: float, is_inverse: bool, center: bool, normalize: bool
) -> Weights:
    leverage = leverage_scores(embeddings, regularization, center=center)
    if normalize:
        leverage = leverage / jnp.maximum(jnp.sum(leverage), _LEAST)
    score = 1.0 / jnp.maximum(leverage, _LEAST) if is_inverse else leverage
    return jax.nn.softmax(score / temperature)
