"""GEM: a von Mises–Fisher mixture whose clusters are balanced to given sizes.

Min, Qiao, Chen, Li: "GEM: Geometric Entropy Mixing for Optimal LLM Data Curation", arXiv 2605.26121.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxmix.clustering.base import Balance, Clusterer, registry
from jaxmix.clustering.build import build_clusterer
from jaxmix.core.errors import ConfigError
from jaxmix.core.validate import check_choice, check_count

PENALTIES = ("per_sample", "summed")
E_STEPS = ("dual", "mirror")


@registry.register
def gem(
    num_clusters: int,
    *,
    balance: float = 5000.0,
    target: Sequence[float] | None = None,
    penalty: str = "per_sample",
    max_concentration: float = 1e5,
    e_step: str = "dual",
    mirror_steps: int = 5,
) -> Clusterer:
    r"""A mixture on the sphere with frozen equal weights, its soft masses held to a target by a quadratic penalty.

    Rows x_i of length 1, with weights w_i that sum to 1; `l_ik = κ_k μ_k·x_i + g(κ_k)` (1), g the relative
    log-normalizer. It maximizes over posterior weights γ and over (μ, κ)

        F = Σ_i w_i [Σ_k γ_ik l_ik + H(γ_i)] − log K − (λ/2) |π − u|²,     π_k = Σ_i w_i γ_ik            (3)

    by turns. E-step: γ_i = softmax(l_i + b) with the K biases b that minimize the dual (9) by Newton's method. M-step,
    with S0 = Σ w γ and S1 = Σ w γ x:

        μ_k = S1_k / |S1_k|,     A_d(κ_k) = |S1_k| / S0_k,     κ_k ≤ κ_max                                 (16)–(21)

    F never falls by more than `FitResult.info.gap` (14). It is a local optimum that depends on the start: see
    `fit(init=…)`. `docs/gem.md` derives the numbered equations, and says how to choose λ.

    λ = `balance`, u = `target`, K = `num_clusters`, κ_max = `max_concentration`, μ, κ, b = `mean_directions`,
    `concentrations`, `biases` of `GemState`. The biases belong to the model: without them labels differ.

    Where topics really have unequal sizes, a high λ cuts the large ones and fuses small ones; `vmf_mixture`, which
    learns its weights, then recovers best. A fair comparison shows `kmeans` on unit rows and `vmf_mixture` beside it.

    Args:
        num_clusters: K ≥ 1.
        balance: λ ≥ 0 in nats; a relative imbalance ε is left where about τ = λ ε / K nats of bias have to move rows.
            0 for equal frozen weights, infinity for exact balance.
        target: K positive numbers, normalized here to sum 1; `None` for equal sizes.
        penalty: "per_sample" as above, or "summed": λ is divided by the number of rows, as in the printed objective
            that sums the likelihood over rows and adds the penalty once. 5000 "summed" over millions of documents does
            nothing at all.
        max_concentration: κ_max > 0. Near-duplicate documents drive κ up without limit: remove duplicates first.
        e_step: "dual", or "mirror": the majorization of the sources, `mirror_steps` mirror steps of size
            1/(1 + λ/2) a row from the weights of the iteration before (7). For comparison: it is monotone too, keeps
            N × K numbers between iterations, has no certificate (the gap is nan), and at λ = 5000 hardly moves.
        mirror_steps: ≥ 1, only for "mirror"; with 1 it is the closed form (8).

    Returns:
        A clusterer for `fit`, `fit_stream` and `assign`.

    Raises:
        ConfigError: an argument outside its range.

    Numerics: rows in float64, or else everything in float32 with float32 products; half-precision rows are brought
    back to length 1 block by block. The dual is solved to 1e-13 |D| in float64 and 1e-11 |D| in float32 (1e-9 for more
    than 64 clusters), its line search on differences per row. Sums over blocks carry their rounding error.

    Differs from the paper, whose text was not available: the sources leave open whether λ acts per sample (its 5000
    "matched to κ ≈ 900" makes sense only so; both are here), the inner step size and number, the start, the stopping
    rule and whether rows are centered (they are not). The dual E-step, the concentrations by Newton's method instead of
    Banerjee's estimate (which can lower F), sample weights, the target, λ = ∞ and the re-seeding are additions.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmix.clustering import assign, fit, gem
        >>> centers = jnp.eye(8)[:3]
        >>> rows = centers[jnp.arange(300) % 3] + 0.1 * jax.random.normal(jax.random.key(1), (300, 8))
        >>> rows = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
        >>> clusterer = gem(3, balance=100.0)
        >>> result = fit(clusterer, rows, key=jax.random.key(0), init=centers)
        >>> labels = assign(clusterer, result.state, rows).labels
        >>> jnp.bincount(labels, length=3).tolist()
        [100, 100, 100]

    References:
        arXiv 2605.26121, equation 3; Banerjee et al. 2005; Sra 2012. Equation numbers are those of `docs/gem.md`.
    """
    check_mixture("gem", num_clusters, max_concentration)
    check_choice("gem", "penalty", penalty, PENALTIES)
    check_choice("gem", "e_step", e_step, E_STEPS)
    check_count("gem", "mirror_steps", mirror_steps)
    if math.isnan(balance) or balance < 0:
        raise ConfigError(
            f"balance must be at least 0, got {balance}", where="gem(balance)", fix="Use 0 for no balance."
        )
    if e_step == "mirror" and math.isinf(balance):
        raise ConfigError(
            "the mirror E-step has a step of size 0 at infinite balance", where="gem(e_step)", fix='Use "dual".'
        )
    return build_clusterer(
        "gem",
        num_clusters,
        rule="soft",
        max_concentration=max_concentration,
        balance=Balance(float(balance), _check_target(target, num_clusters), penalty, e_step, mirror_steps),
    )


def check_mixture(name: str, num_clusters: int, max_concentration: float) -> None:
    check_count(name, "num_clusters", num_clusters)
    if not 0 < max_concentration < math.inf:
        raise ConfigError(
            f"max_concentration must be positive and finite, got {max_concentration}",
            where=f"{name}(max_concentration)",
            fix="The default is 1e5.",
        )


def _check_target(target: Sequence[float] | None, num_clusters: int) -> tuple[float, ...] | None:
    if target is None:
        return None
    shares = [float(share) for share in target]
    if len(shares) != num_clusters or not all(0 < share < math.inf for share in shares):
        raise ConfigError(
            f"target must be {num_clusters} positive numbers, got {shares}",
            where="gem(target)",
            fix="Give every cluster a share above 0.",
        )
    return tuple(share / sum(shares) for share in shares)
