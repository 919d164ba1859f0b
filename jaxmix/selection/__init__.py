"""Online data selection: from a super-batch of candidates, the examples, sequences or tokens to train on."""

from jaxmix.selection.base import (
    Embeddings as Embeddings,
    Selection as Selection,
    SelectionInfo as SelectionInfo,
    Selector as Selector,
)
from jaxmix.selection.baselines import independent as independent, top_learnability as top_learnability
from jaxmix.selection.diversity import diverse as diverse, greats as greats
from jaxmix.selection.jest import jest as jest
from jaxmix.selection.language import (
    DomainSums as DomainSums,
    domain_learnability as domain_learnability,
    sequence_loss as sequence_loss,
    token_entropy as token_entropy,
    token_mask as token_mask,
)
from jaxmix.selection.objective import (
    SelectionObjective as SelectionObjective,
    selection_objective as selection_objective,
)
