"""Simulators: worlds with known laws in which mixers, clusterers and bandits are tried without training a model.

| module | what is simulated |
|---|---|
| `worlds`, `random_worlds`, `replay` | losses that respond to mixtures by a law, random laws, a table of runs |
| `mixers` | a mixer, or a static mixture, in one of these worlds |
| `clusters` | embeddings with known clusters |
| `learners` | skills that learn from rewards, for bandits |
"""

from __future__ import annotations

from jaxmix.simulate.clusters import Planted, planted_mixture, sample_vmf, zipf_sizes
from jaxmix.simulate.learners import SkillWorld, chains, prompts_to_target, skill_worlds
from jaxmix.simulate.mixers import SimulationResult, StaticSearch, best_static, run_static, simulate, systematic_counts
from jaxmix.simulate.random_worlds import random_log_linear_world, random_quadratic_world
from jaxmix.simulate.replay import LogLinearFit, fit_log_linear, replay_world
from jaxmix.simulate.worlds import (
    Gradients,
    World,
    decaying,
    linear_world,
    log_linear_world,
    power_law_world,
    quadratic_world,
    swapped,
)

__all__ = [
    "Gradients",
    "LogLinearFit",
    "Planted",
    "SimulationResult",
    "SkillWorld",
    "StaticSearch",
    "World",
    "best_static",
    "chains",
    "decaying",
    "fit_log_linear",
    "linear_world",
    "log_linear_world",
    "planted_mixture",
    "power_law_world",
    "prompts_to_target",
    "quadratic_world",
    "random_log_linear_world",
    "random_quadratic_world",
    "replay_world",
    "run_static",
    "sample_vmf",
    "simulate",
    "skill_worlds",
    "swapped",
    "systematic_counts",
    "zipf_sizes",
]
