"""Mixing laws: predict losses from mixtures, from a table of finished runs, and propose the mixture that is best."""

from __future__ import annotations

from jaxmix.laws.base import Form, Law, Parameter, RunTable, Shape, make, registry
from jaxmix.laws.bootstrap import Bootstrap, bootstrap
from jaxmix.laws.capacity import allocate_capacity
from jaxmix.laws.capacity_law import capacity, capacity_only
from jaxmix.laws.design import d_optimal, dirichlet_designs, law_features, sample_mixtures, sobol_designs
from jaxmix.laws.diagnose import Diagnosis, Extrapolation, Selection, cross_validate, extrapolation, select
from jaxmix.laws.fit import LawFit, fit
from jaxmix.laws.proposal import Proposal
from jaxmix.laws.propose import ScalePath, propose, scale_path
from jaxmix.laws.regmix import propose_regmix
from jaxmix.laws.repetition import caps_from_tokens, effective_mixture, effective_tokens
from jaxmix.laws.simulate import simulate

__all__ = [
    "Bootstrap",
    "Diagnosis",
    "Extrapolation",
    "Form",
    "Law",
    "LawFit",
    "Parameter",
    "Proposal",
    "RunTable",
    "ScalePath",
    "Selection",
    "Shape",
    "allocate_capacity",
    "bootstrap",
    "capacity",
    "capacity_only",
    "caps_from_tokens",
    "cross_validate",
    "d_optimal",
    "dirichlet_designs",
    "effective_mixture",
    "effective_tokens",
    "extrapolation",
    "fit",
    "law_features",
    "make",
    "propose",
    "propose_regmix",
    "registry",
    "sample_mixtures",
    "scale_path",
    "select",
    "simulate",
    "sobol_designs",
]
