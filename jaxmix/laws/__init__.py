"""Mixing laws: predict losses from mixtures, from a table of finished runs, and propose the mixture that is best."""

from __future__ import annotations

from jaxmix.laws.base import (
    FitOptions as FitOptions,
    Form as Form,
    Law as Law,
    Parameter as Parameter,
    RunTable as RunTable,
    Shape as Shape,
    make as make,
    registry as registry,
)
from jaxmix.laws.design import (
    d_optimal as d_optimal,
    dirichlet_designs as dirichlet_designs,
    law_features as law_features,
    sample_mixtures as sample_mixtures,
    sobol_designs as sobol_designs,
)
from jaxmix.laws.fit import LawFit as LawFit, fit as fit, regressor as regressor
from jaxmix.laws.forms.additive import additive as additive, joint as joint
from jaxmix.laws.forms.autoscale import autoscale as autoscale
from jaxmix.laws.forms.bimix import bimix as bimix
from jaxmix.laws.forms.capacity import allocate_capacity as allocate_capacity
from jaxmix.laws.forms.capacity_law import capacity as capacity, capacity_only as capacity_only
from jaxmix.laws.forms.dcpt import dcpt as dcpt
from jaxmix.laws.forms.gaussian_process import gaussian_process as gaussian_process
from jaxmix.laws.forms.linear import linear as linear, mean as mean, quadratic as quadratic
from jaxmix.laws.forms.loglinear import loglinear as loglinear
from jaxmix.laws.forms.power import power as power
from jaxmix.laws.forms.transfer import transfer as transfer
from jaxmix.laws.forms.trees import lightgbm as lightgbm
from jaxmix.laws.hierarchy.law import hierarchical as hierarchical
from jaxmix.laws.judge.auto import AUTO_CANDIDATES as AUTO_CANDIDATES, auto as auto
from jaxmix.laws.judge.bootstrap import Bootstrap as Bootstrap, bootstrap as bootstrap
from jaxmix.laws.judge.candidates import parse as parse
from jaxmix.laws.judge.diagnose import (
    Diagnosis as Diagnosis,
    Extrapolation as Extrapolation,
    LawSelection as LawSelection,
    cross_validate as cross_validate,
    extrapolation as extrapolation,
    select as select,
)
from jaxmix.laws.proposals.base import Proposal as Proposal
from jaxmix.laws.proposals.propose import ScalePath as ScalePath, propose as propose, scale_path as scale_path
from jaxmix.laws.proposals.regmix import propose_regmix as propose_regmix
from jaxmix.laws.proposals.repetition import (
    caps_from_tokens as caps_from_tokens,
    effective_mixture as effective_mixture,
    effective_tokens as effective_tokens,
)
from jaxmix.laws.proposals.simulate import simulate as simulate
from jaxmix.laws.solve.least_squares import least_squares as least_squares
