"""Online data selection: from a super-batch of candidates, the examples, sequences or tokens to train on."""

from jaxmix.selection.base import Embeddings, Selection, SelectionInfo, Selector
from jaxmix.selection.baselines import independent, top_learnability
from jaxmix.selection.diversity import diverse, greats
from jaxmix.selection.jest import jest
from jaxmix.selection.language import DomainSums, domain_learnability, sequence_loss, token_entropy, token_mask
from jaxmix.selection.objective import SelectionObjective, selection_objective

__all__ = [
    "DomainSums",
    "Embeddings",
    "Selection",
    "SelectionInfo",
    "SelectionObjective",
    "Selector",
    "diverse",
    "domain_learnability",
    "greats",
    "independent",
    "jest",
    "selection_objective",
    "sequence_loss",
    "token_entropy",
    "token_mask",
    "top_learnability",
]
