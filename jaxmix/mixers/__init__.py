"""Online data mixers: feedback per domain in, sampling weights out."""

from jaxmix.mixers.base import Cadence, Feedback, Mixer, MixerInfo, make, registry
from jaxmix.mixers.odm import odm
from jaxmix.mixers.scheduled import scheduled
from jaxmix.mixers.static import static
from jaxmix.mixers.wrappers import build, ema, epoch_cap, floor, kl_to_prior, wrap_with
from jaxmix.mixers.wrappers import registry as wrapper_registry

__all__ = [
    "Cadence",
    "Feedback",
    "Mixer",
    "MixerInfo",
    "build",
    "ema",
    "epoch_cap",
    "floor",
    "kl_to_prior",
    "make",
    "odm",
    "registry",
    "scheduled",
    "static",
    "wrap_with",
    "wrapper_registry",
]
