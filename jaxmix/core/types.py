"""The letters used in shapes, in docstrings and in jaxtyping strings alike.

| letter | axis |
|---|---|
| m | domains |
| n | points |
| d | embedding width |
| k | clusters, arms |
| b | rows of a batch |
| c | candidates (super-batch) |
| t | tokens of a row |
| j | chunks |
| r | runs |
| e | metrics |
| p | law parameters |
| s | starts, seeds |
"""

from __future__ import annotations

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

__all__ = ["Array", "Bool", "DomainIds", "DomainVector", "Float", "Int", "PRNGKeyArray", "TokenIds", "Weights"]

Weights = Float[Array, " m"]
DomainVector = Float[Array, " m"]
DomainIds = Int[Array, " b"]
TokenIds = Int[Array, "b t"]
