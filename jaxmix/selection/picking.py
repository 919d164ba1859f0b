"""The call that all selectors share: checks, spreads the rows over a mesh where there is one, and runs the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array, PRNGKeyArray
from jaxmix.selection.base import Selection, check_super_batch
from jaxmix.selection.gibbs import Interaction, Rules, choose
from jaxmix.selection.rows import Rows, over_rows

Criterion = Callable[[Rows, PRNGKeyArray, Any, Any, Array], Interaction]
"""`(rows, key, per_row, whole, free) -> Interaction`, in terms of the rows held here."""

_OWN_KEY = 0x7FFFFFFF
"""Folded into the key for the criterion; the loop folds in the number of the turn."""


def pick(
    rules: Rules,
    criterion: Criterion,
    key: PRNGKeyArray,
    per_row: Any,
    whole: Any,
    *,
    name: str,
    count: int,
    gain: Any,
    valid: Array | None = None,
    domain: Array | None = None,
    quota: Array | None = None,
    mesh: Mesh | None = None,
) -> Selection:
    """Checks what is common to all selectors and draws.

    Args:
        rules: static settings of the loop.
        criterion: what is scored.
        key: typed key.
        per_row: tree of arrays with `count` rows, for the criterion.
        whole: tree of other arrays for the criterion.
        name: of the selector.
        count: candidates.
        gain: number or f[].
        valid: bool[count].
        domain: i32[count].
        quota: i32[m].
        mesh: see `over_rows`.

    Raises:
        ConfigError: too few candidates, an array of another length, a quota without domains, domains of which nobody
            says how many there are.
    """
    as_array = lambda value, dtype: None if value is None else jnp.asarray(value, dtype)
    valid, domain, quota = as_array(valid, bool), as_array(domain, jnp.int32), as_array(quota, jnp.int32)
    check_super_batch(name, rules.num_select, count, valid=valid, domain=domain)
    if quota is not None and (domain is None or quota.ndim != 1):
        raise ConfigError(
            "a quota needs the domain of every row, and one number per domain",
            where=f"{name}: quota",
            fix="Pass domain i32[c] and quota i32[m].",
        )
    if domain is not None and quota is None and rules.num_domains is None:
        raise ConfigError(
            "domains without their number",
            where=f"{name}: domain",
            fix="Give the factory num_domains, or pass a quota for each domain.",
        )
    rows_of = {"data": per_row, "free": jnp.ones((count,), bool) if valid is None else valid, "domain": domain}
    all_of = {"data": whole, "key": key, "gain": jnp.asarray(gain), "quota": quota}

    def run(rows: Rows, mine: Any, same: Any) -> Selection:
        own_key = jax.random.fold_in(same["key"], _OWN_KEY)
        interaction = criterion(rows, own_key, mine["data"], same["data"], mine["free"])
        return choose(
            same["key"],
            interaction,
            rows,
            mine["free"],
            rules,
            gain=same["gain"].astype(interaction.own.dtype),
            domain=mine["domain"],
            quota=same["quota"],
        )

    return over_rows(run, mesh, count, jax.lax.stop_gradient(rows_of), jax.lax.stop_gradient(all_of), name=name)
