"""Simulators: worlds with known laws in which mixers, clusterers and bandits are tried without training a model.

| module | what is simulated |
|---|---|
| `worlds`, `random_worlds`, `replay` | losses that respond to mixtures by a law, random laws, a table of runs |
| `mixers` | a mixer, or a static mixture, in one of these worlds |
| `clusters` | embeddings with known clusters |
| `learners` | skills that learn from rewards, for bandits |
"""

from __future__ import annotations

from jaxmix.simulate.clusters import (
    Planted as Planted,
    planted_mixture as planted_mixture,
    sample_vmf as sample_vmf,
    zipf_sizes as zipf_sizes,
)
from jaxmix.simulate.learners import (
    SkillWorld as SkillWorld,
    chains as chains,
    prompts_to_target as prompts_to_target,
    skill_worlds as skill_worlds,
)
from jaxmix.simulate.mixers import (
    SimulationResult as SimulationResult,
    StaticSearch as StaticSearch,
    best_static as best_static,
    run_static as run_static,
    simulate as simulate,
    systematic_counts as systematic_counts,
)
from jaxmix.simulate.random_worlds import (
    random_log_linear_world as random_log_linear_world,
    random_quadratic_world as random_quadratic_world,
)
from jaxmix.simulate.replay import (
    LogLinearFit as LogLinearFit,
    fit_log_linear as fit_log_linear,
    replay_world as replay_world,
)
from jaxmix.simulate.worlds import (
    Gradients as Gradients,
    World as World,
    decaying as decaying,
    linear_world as linear_world,
    log_linear_world as log_linear_world,
    power_law_world as power_law_world,
    quadratic_world as quadratic_world,
    swapped as swapped,
)
