"""Mixing laws: predict losses from mixtures, from a table of finished runs, and propose the mixture that is best."""

from __future__ import annotations

from jaxmix.laws.base import Form, Law, Parameter, RunTable, Shape, make, registry
from jaxmix.laws.capacity import allocate_capacity
from jaxmix.laws.capacity_law import capacity, capacity_only
from jaxmix.laws.fit import LawFit, fit

__all__ = [
    "Form",
    "Law",
    "LawFit",
    "Parameter",
    "RunTable",
    "Shape",
    "allocate_capacity",
    "capacity",
    "capacity_only",
    "fit",
    "make",
    "registry",
]
