"""Online data mixers: feedback per domain in, sampling weights out."""

from jaxmix.mixers.base import Cadence, Feedback, Mixer, MixerInfo, make, registry

__all__ = ["Cadence", "Feedback", "Mixer", "MixerInfo", "make", "registry"]
