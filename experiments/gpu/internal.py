"""What these checks use of jaxmix that is no public name, all in one place."""

from jaxmix.clustering.em.iteration import WeightedRows, Workspace, build_iteration, em_config
from jaxmix.clustering.fit import penalty_of
from jaxmix.core.sharding import build_mesh, global_batch, use_mesh
from jaxmix.core.special import bessel_ratio, inverse_bessel_ratio, log_vmf_normalizer
from jaxmix.mixers.base import SIGNALS
from jaxmix.models.lm.attention import causal_attention
from jaxmix.models.lm.loss import token_losses
from jaxmix.train.lm.state import init_train_state
from jaxmix.train.swarm.run import Proxy, run_swarm
from jaxmix.workflows.config.load import from_mapping
from jaxmix.workflows.train.data import prepare_and_open
from jaxmix.workflows.train.plan import estimate_memory

__all__ = [
    "SIGNALS",
    "Proxy",
    "WeightedRows",
    "Workspace",
    "bessel_ratio",
    "build_iteration",
    "build_mesh",
    "causal_attention",
    "em_config",
    "estimate_memory",
    "from_mapping",
    "global_batch",
    "init_train_state",
    "inverse_bessel_ratio",
    "log_vmf_normalizer",
    "penalty_of",
    "prepare_and_open",
    "run_swarm",
    "token_losses",
    "use_mesh",
]
