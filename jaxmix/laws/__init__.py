"""Mixing laws: predict losses from mixtures, from a table of finished runs, and propose the mixture that is best."""

from __future__ import annotations

from jaxmix.laws.base import Form, Law, Parameter, RunTable, Shape, make, registry

__all__ = ["Form", "Law", "Parameter", "RunTable", "Shape", "make", "registry"]
