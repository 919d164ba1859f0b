"""The mixture of von Mises–Fisher densities with learned weights, the baseline of `gem`."""

from __future__ import annotations

from jaxmix.clustering.base import Clusterer, registry
from jaxmix.clustering.build import build_clusterer
from jaxmix.clustering.gem import check_mixture


@registry.register
def vmf_mixture(num_clusters: int, *, max_concentration: float = 1e5) -> Clusterer:
    r"""Maximum likelihood by expectation maximization, with learned mixing weights α and a concentration a cluster.

        F = Σ_i w_i log Σ_k α_k f(x_i | μ_k, κ_k) − log C_d(0);     α_k = S0_k,  μ, κ as in `gem`

    The biases of the state are `log(K α_k)`. On data whose clusters really differ in size it recovers them best; large
    clusters attract more, the loop that `gem` breaks by freezing α.

    Args:
        num_clusters: K ≥ 1.
        max_concentration: κ is clipped to it.

    Example:
        >>> vmf_mixture(8).has_learned_weights
        True

    References:
        Banerjee, Dhillon, Ghosh, Sra: "Clustering on the unit hypersphere using von Mises-Fisher distributions",
        JMLR 6, 2005.
    """
    check_mixture("vmf_mixture", num_clusters, max_concentration)
    return build_clusterer(
        "vmf_mixture", num_clusters, rule="soft", learned_weights=True, max_concentration=max_concentration
    )
