"""Online data mixers: feedback per domain in, sampling weights out."""

from jaxmix.mixers.aioli import aioli
from jaxmix.mixers.base import Cadence, Feedback, Mixer, MixerInfo, make, registry
from jaxmix.mixers.chameleon import chameleon_weights
from jaxmix.mixers.dga import dga
from jaxmix.mixers.doge import doge
from jaxmix.mixers.grape import grape
from jaxmix.mixers.odm import odm
from jaxmix.mixers.pike import pike
from jaxmix.mixers.r_and_b import r_and_b
from jaxmix.mixers.scheduled import scheduled
from jaxmix.mixers.static import static
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
    "aioli",
    "build",
    "chameleon_weights",
    "dga",
    "doge",
    "ema",
    "epoch_cap",
    "floor",
    "freeze_after",
    "grape",
    "hold",
    "keep_out",
    "kl_to_prior",
    "make",
    "odm",
    "pike",
    "r_and_b",
    "registry",
    "scheduled",
    "static",
    "temperature",
    "time_average",
    "warm_up",
    "wrap_with",
    "wrapper_registry",
]
