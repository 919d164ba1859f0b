"""Online data mixers: feedback per domain in, sampling weights out."""

from jaxmix.mixers.ado import ado
from jaxmix.mixers.aioli import aioli
from jaxmix.mixers.base import Cadence, Feedback, Mixer, MixerInfo, make, registry
from jaxmix.mixers.chameleon import chameleon_weights
from jaxmix.mixers.dga import dga
from jaxmix.mixers.doge import doge
from jaxmix.mixers.doremi import doremi
from jaxmix.mixers.dynamic_batch_loading import dynamic_batch_loading
from jaxmix.mixers.foresight import foresight
from jaxmix.mixers.grape import grape
from jaxmix.mixers.learnability import learnability
from jaxmix.mixers.loss_proportional import loss_proportional
from jaxmix.mixers.odm import odm
from jaxmix.mixers.pike import pike
from jaxmix.mixers.r_and_b import r_and_b
from jaxmix.mixers.scheduled import scheduled
from jaxmix.mixers.skillit import skill_graph, skillit
from jaxmix.mixers.static import static, stratified
from jaxmix.mixers.tikmix import tikmix_weights
from jaxmix.mixers.velocitune import velocitune
from jaxmix.mixers.wrappers import (
    build,
    ema,
    epoch_cap,
    floor,
    freeze_after,
    hold,
    keep_out,
    kl_to_prior,
    temperature,
    time_average,
    warm_up,
    wrap_with,
)
from jaxmix.mixers.wrappers import registry as wrapper_registry

__all__ = [
    "Cadence",
    "Feedback",
    "Mixer",
    "MixerInfo",
    "ado",
    "aioli",
    "build",
    "chameleon_weights",
    "dga",
    "doge",
    "doremi",
    "dynamic_batch_loading",
    "ema",
    "epoch_cap",
    "floor",
    "foresight",
    "freeze_after",
    "grape",
    "hold",
    "keep_out",
    "kl_to_prior",
    "learnability",
    "loss_proportional",
    "make",
    "odm",
    "pike",
    "r_and_b",
    "registry",
    "scheduled",
    "skill_graph",
    "skillit",
    "static",
    "stratified",
    "temperature",
    "tikmix_weights",
    "time_average",
    "velocitune",
    "warm_up",
    "wrap_with",
    "wrapper_registry",
]
