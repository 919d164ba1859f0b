"""Curricula for reinforcement fine-tuning: choose the prompts of the next rollouts.

Two phases: `reduce` turns a pool of prompts into clusters with few prompts each; a bandit (`space` and others) then
draws the clusters of every batch by the rewards so far, and `prompt_cursors` the prompts inside them.
"""

from jaxmix.curricula.advantage import dump as dump, sec as sec
from jaxmix.curricula.as_mixer import as_mixer as as_mixer, curriculum as curriculum
from jaxmix.curricula.base import (
    Bandit as Bandit,
    make as make,
    registry as registry,
    rescale_rewards as rescale_rewards,
)
from jaxmix.curricula.cursors import (
    CursorState as CursorState,
    PromptCursors as PromptCursors,
    prompt_cursors as prompt_cursors,
)
from jaxmix.curricula.difficulty import adarft as adarft, dots as dots, staged as staged
from jaxmix.curricula.posterior import bots as bots, lilo as lilo, mopps as mopps
from jaxmix.curricula.reduction import (
    Reduction as Reduction,
    difficulty_from_attempts as difficulty_from_attempts,
    reduce as reduce,
)
from jaxmix.curricula.space import space as space, sparft_v1 as sparft_v1
from jaxmix.curricula.uniform import dapo as dapo, live_groups as live_groups, uniform as uniform
