"""Curricula for reinforcement fine-tuning: choose the prompts of the next rollouts.

Two phases: `reduce` turns a pool of prompts into clusters with few prompts each; a bandit (`space` and others) then
draws the clusters of every batch by the rewards so far, and `prompt_cursors` the prompts inside them.
"""

from jaxmix.curricula.advantage import dump, sec
from jaxmix.curricula.as_mixer import as_mixer, curriculum
from jaxmix.curricula.base import Bandit, make, registry, rescale_rewards
from jaxmix.curricula.cursors import CursorState, PromptCursors, prompt_cursors
from jaxmix.curricula.difficulty import adarft, dots, staged
from jaxmix.curricula.posterior import bots, lilo, mopps
from jaxmix.curricula.reduction import Reduction, difficulty_from_attempts, reduce
from jaxmix.curricula.space import space, sparft_v1
from jaxmix.curricula.uniform import dapo, live_groups, uniform

__all__ = [
    "Bandit",
    "CursorState",
    "PromptCursors",
    "Reduction",
    "adarft",
    "as_mixer",
    "bots",
    "curriculum",
    "dapo",
    "difficulty_from_attempts",
    "dots",
    "dump",
    "lilo",
    "live_groups",
    "make",
    "mopps",
    "prompt_cursors",
    "reduce",
    "registry",
    "rescale_rewards",
    "sec",
    "space",
    "sparft_v1",
    "staged",
    "uniform",
]
