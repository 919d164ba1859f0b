"""Hard clusters: spherical k-means, and k-means with squared distances, on the same rows."""

from __future__ import annotations

from jaxmix.clustering.base import Clusterer, registry
from jaxmix.clustering.build import build_clusterer
from jaxmix.core.validate import check_count

_MAX_CONCENTRATION = 1e5


@registry.register
def spherical_kmeans(num_clusters: int) -> Clusterer:
    r"""Every row to the direction of largest cosine, every direction to the mean of its rows.

        F = Σ_i w_i max_k μ_k·x_i,     μ_k = Σ_{i in k} w_i x_i / |…|

    The state's concentrations are one shared maximum likelihood value, its biases 0: labels do not depend on them, and
    `Assignment.log_posterior` is that of a mixture with equal weights and that concentration.

    Args:
        num_clusters: K ≥ 1.

    Example:
        >>> spherical_kmeans(8).rule
        'cosine'

    References:
        Dhillon, Modha: "Concept decompositions for large sparse text data using clustering", Machine Learning 42, 2001.
    """
    check_count("spherical_kmeans", "num_clusters", num_clusters)
    return build_clusterer("spherical_kmeans", num_clusters, rule="cosine", max_concentration=_MAX_CONCENTRATION)


@registry.register
def kmeans(num_clusters: int) -> Clusterer:
    r"""Lloyd's k-means on unit rows, centroids inside the ball: the baseline that most tools compute.

        F = −Σ_i w_i min_k |x_i − c_k|²,     c_k = Σ_{i in k} w_i x_i / Σ_{i in k} w_i

    In the state `κ_k = s |c_k|`, `g(κ_k) + b_k = −s |c_k|²/2` with s = d / (−F): the linear rule is then the nearest
    centroid, and `log_posterior` that of a Gaussian mixture of that variance.

    Args:
        num_clusters: K ≥ 1.

    Example:
        >>> kmeans(8).rule
        'distance'
    """
    check_count("kmeans", "num_clusters", num_clusters)
    return build_clusterer("kmeans", num_clusters, rule="distance", max_concentration=_MAX_CONCENTRATION)
