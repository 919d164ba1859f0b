"""Online data mixers: feedback per domain in, sampling weights out."""

from jaxmix.mixers.base import Cadence, Feedback, Mixer, MixerInfo, make, registry
from jaxmix.mixers.methods.ado import ado
from jaxmix.mixers.methods.aioli import aioli
from jaxmix.mixers.methods.chameleon import chameleon_weights
from jaxmix.mixers.methods.dga import dga
from jaxmix.mixers.methods.doge import doge
from jaxmix.mixers.methods.doremi import doremi
from jaxmix.mixers.methods.dynamic_batch_loading import dynamic_batch_loading
from jaxmix.mixers.methods.foresight import foresight
from jaxmix.mixers.methods.grape import grape
from jaxmix.mixers.methods.learnability import learnability
from jaxmix.mixers.methods.loss_proportional import loss_proportional
from jaxmix.mixers.methods.odm import odm
from jaxmix.mixers.methods.pike import pike
from jaxmix.mixers.methods.r_and_b import r_and_b
from jaxmix.mixers.methods.scheduled import scheduled
from jaxmix.mixers.methods.skillit import skill_graph, skillit
from jaxmix.mixers.methods.static import static, stratified
from jaxmix.mixers.methods.tikmix import tikmix_weights
from jaxmix.mixers.methods.velocitune import velocitune
from jaxmix.mixers.wrappers.base import registry as wrapper_registry
from jaxmix.mixers.wrappers.bounds import floor, kl_to_prior, temperature
from jaxmix.mixers.wrappers.build import build, wrap_with
from jaxmix.mixers.wrappers.epoch_cap import epoch_cap
from jaxmix.mixers.wrappers.mask import mask
from jaxmix.mixers.wrappers.smoothing import ema, time_average
from jaxmix.mixers.wrappers.timing import freeze_after, hold, warm_up

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
    "kl_to_prior",
    "learnability",
    "loss_proportional",
    "make",
    "mask",
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
