"""Clustering on the unit sphere: turns embeddings of documents into the domains that a mixer weights."""

from jaxmix.clustering.base import Assignment, Clusterer, FitInfo, FitResult, GemState, Sums, registry
from jaxmix.clustering.build import assign
from jaxmix.clustering.fit import fit
from jaxmix.clustering.gem import gem
from jaxmix.clustering.influence import geometric_influence
from jaxmix.clustering.lloyd import KMeansFit, fit_kmeans
from jaxmix.clustering.quality import (
    adjusted_rand_index,
    cluster_sizes,
    normalized_mutual_information,
    purity,
    size_entropy,
)
from jaxmix.clustering.spherical_kmeans import kmeans, spherical_kmeans
from jaxmix.clustering.stream import fit_stream
from jaxmix.clustering.vmf_mixture import vmf_mixture

make = registry.make

__all__ = [
    "Assignment",
    "Clusterer",
    "FitInfo",
    "FitResult",
    "GemState",
    "KMeansFit",
    "Sums",
    "adjusted_rand_index",
    "assign",
    "cluster_sizes",
    "fit",
    "fit_kmeans",
    "fit_stream",
    "gem",
    "geometric_influence",
    "kmeans",
    "make",
    "normalized_mutual_information",
    "purity",
    "registry",
    "size_entropy",
    "spherical_kmeans",
    "vmf_mixture",
]
