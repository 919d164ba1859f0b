"""Mixing laws: predict losses from mixtures, from a table of finished runs, and propose the mixture that is best."""

from __future__ import annotations

from jaxmix.laws.base import FitOptions, Form, Law, Parameter, RunTable, Shape, make, registry
from jaxmix.laws.design import d_optimal, dirichlet_designs, law_features, sample_mixtures, sobol_designs
from jaxmix.laws.fit import LawFit, fit, regressor
from jaxmix.laws.forms.additive import additive, joint
from jaxmix.laws.forms.autoscale import autoscale
from jaxmix.laws.forms.bimix import bimix
from jaxmix.laws.forms.capacity import allocate_capacity
from jaxmix.laws.forms.capacity_law import capacity, capacity_only
from jaxmix.laws.forms.dcpt import dcpt
from jaxmix.laws.forms.gaussian_process import gaussian_process
from jaxmix.laws.forms.linear import linear, mean, quadratic
from jaxmix.laws.forms.loglinear import loglinear
from jaxmix.laws.forms.power import power
from jaxmix.laws.forms.transfer import transfer
from jaxmix.laws.forms.trees import lightgbm
from jaxmix.laws.hierarchy.law import hierarchical
from jaxmix.laws.judge.auto import AUTO_CANDIDATES, auto
from jaxmix.laws.judge.bootstrap import Bootstrap, bootstrap
from jaxmix.laws.judge.candidates import parse
from jaxmix.laws.judge.diagnose import Diagnosis, Extrapolation, LawSelection, cross_validate, extrapolation, select
from jaxmix.laws.proposals.base import Proposal
from jaxmix.laws.proposals.propose import ScalePath, propose, scale_path
from jaxmix.laws.proposals.regmix import propose_regmix
from jaxmix.laws.proposals.repetition import caps_from_tokens, effective_mixture, effective_tokens
from jaxmix.laws.proposals.simulate import simulate
from jaxmix.laws.solve.least_squares import least_squares

__all__ = [
    "AUTO_CANDIDATES",
    "Bootstrap",
    "Diagnosis",
    "Extrapolation",
    "FitOptions",
    "Form",
    "Law",
    "LawFit",
    "LawSelection",
    "Parameter",
    "Proposal",
    "RunTable",
    "ScalePath",
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
    "least_squares",
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
    "regressor",
    "sample_mixtures",
    "scale_path",
    "select",
    "simulate",
    "sobol_designs",
    "transfer",
]
