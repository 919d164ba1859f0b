"""Online data mixers: feedback per domain in, sampling weights out."""

from jaxmix.mixers.base import (
    Cadence as Cadence,
    Feedback as Feedback,
    Mixer as Mixer,
    MixerInfo as MixerInfo,
    make as make,
    registry as registry,
)
from jaxmix.mixers.methods.ado import ado as ado
from jaxmix.mixers.methods.aioli import aioli as aioli
from jaxmix.mixers.methods.chameleon import chameleon_weights as chameleon_weights
from jaxmix.mixers.methods.dga import dga as dga
from jaxmix.mixers.methods.doge import doge as doge
from jaxmix.mixers.methods.doremi import doremi as doremi
from jaxmix.mixers.methods.dynamic_batch_loading import dynamic_batch_loading as dynamic_batch_loading
from jaxmix.mixers.methods.foresight import foresight as foresight
from jaxmix.mixers.methods.grape import grape as grape
from jaxmix.mixers.methods.learnability import learnability as learnability
from jaxmix.mixers.methods.loss_proportional import loss_proportional as loss_proportional
from jaxmix.mixers.methods.odm import odm as odm
from jaxmix.mixers.methods.pike import pike as pike
from jaxmix.mixers.methods.r_and_b import r_and_b as r_and_b
from jaxmix.mixers.methods.scheduled import scheduled as scheduled
from jaxmix.mixers.methods.skillit import skill_graph as skill_graph, skillit as skillit
from jaxmix.mixers.methods.static import static as static, stratified as stratified
from jaxmix.mixers.methods.tikmix import tikmix_weights as tikmix_weights
from jaxmix.mixers.methods.velocitune import velocitune as velocitune
from jaxmix.mixers.wrappers.base import registry as wrapper_registry  # noqa: F401
from jaxmix.mixers.wrappers.bounds import floor as floor, kl_to_prior as kl_to_prior, temperature as temperature
from jaxmix.mixers.wrappers.build import build as build, wrap_with as wrap_with
from jaxmix.mixers.wrappers.epoch_cap import epoch_cap as epoch_cap
from jaxmix.mixers.wrappers.mask import mask as mask
from jaxmix.mixers.wrappers.smoothing import ema as ema, time_average as time_average
from jaxmix.mixers.wrappers.timing import freeze_after as freeze_after, hold as hold, warm_up as warm_up
