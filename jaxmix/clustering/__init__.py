"""Clustering on the unit sphere: turns embeddings of documents into the domains that a mixer weights."""

from jaxmix.clustering.base import (
    Assignment as Assignment,
    Clusterer as Clusterer,
    FitInfo as FitInfo,
    FitResult as FitResult,
    GemState as GemState,
    Sums as Sums,
    registry as registry,
)
from jaxmix.clustering.build import assign as assign
from jaxmix.clustering.fit import fit as fit
from jaxmix.clustering.gem import gem as gem
from jaxmix.clustering.influence import geometric_influence as geometric_influence
from jaxmix.clustering.lloyd import KMeansFit as KMeansFit, fit_kmeans as fit_kmeans
from jaxmix.clustering.quality import (
    adjusted_rand_index as adjusted_rand_index,
    cluster_sizes as cluster_sizes,
    normalized_mutual_information as normalized_mutual_information,
    purity as purity,
    size_entropy as size_entropy,
)
from jaxmix.clustering.spherical_kmeans import kmeans as kmeans, spherical_kmeans as spherical_kmeans
from jaxmix.clustering.stream import fit_stream as fit_stream
from jaxmix.clustering.vmf_mixture import vmf_mixture as vmf_mixture

make = registry.make
