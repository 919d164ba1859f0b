"""Mixing laws: predict losses from mixtures, from a table of finished runs, and propose the mixture that is best."""

from __future__ import annotations

from jaxmix.laws.additive import additive, joint
from jaxmix.laws.auto import CANDIDATES, auto, parse
from jaxmix.laws.autoscale import autoscale
from jaxmix.laws.base import Estimate, Form, Law, Parameter, RunTable, Shape, make, registry
from jaxmix.laws.bimix import bimix
from jaxmix.laws.bootstrap import Bootstrap, bootstrap
from jaxmix.laws.capacity import allocate_capacity
from jaxmix.laws.capacity_law import capacity, capacity_only
from jaxmix.laws.dcpt import dcpt
from jaxmix.laws.design import d_optimal, dirichlet_designs, law_features, sample_mixtures, sobol_designs
from jaxmix.laws.diagnose import Diagnosis, Extrapolation, Selection, cross_validate, extrapolation, select
from jaxmix.laws.fit import LawFit, fit
from jaxmix.laws.gaussian_process import gaussian_process
from jaxmix.laws.hierarchical import hierarchical
from jaxmix.laws.linear import linear, mean, quadratic
from jaxmix.laws.loglinear import loglinear
from jaxmix.laws.power import power
from jaxmix.laws.proposal import Proposal
from jaxmix.laws.propose import ScalePath, propose, scale_path
from jaxmix.laws.regmix import propose_regmix
from jaxmix.laws.repetition import caps_from_tokens, effective_mixture, effective_tokens
from jaxmix.laws.simulate import simulate
from jaxmix.laws.transfer import transfer
from jaxmix.laws.trees import lightgbm

__all__ = [
    "CANDIDATES",
    "Bootstrap",
    "Diagnosis",
    "Estimate",
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
    "additive",
    "allocate_capacity",
    "auto",
    "autoscale",
    "bimix",
    "bootstrap",
    "capacity",
    "capacity_only",
    "caps_from_tokens",
    "cross_validate",
    "d_optimal",
    "dcpt",
    "dirichlet_designs",
    "effective_mixture",
    "effective_tokens",
    "extrapolation",
    "fit",
    "gaussian_process",
    "hierarchical",
    "joint",
    "law_features",
    "lightgbm",
    "linear",
    "loglinear",
    "make",
    "mean",
    "parse",
    "power",
    "propose",
    "propose_regmix",
    "quadratic",
    "registry",
    "sample_mixtures",
    "scale_path",
    "select",
    "simulate",
    "sobol_designs",
    "transfer",
]
