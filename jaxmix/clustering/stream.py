"""Fits a clusterer to a store that is larger than memory, block by block."""

from __future__ import annotations

from typing import Any


def fit_stream(clusterer: Any, blocks: Any, *, key: Any, **options: Any) -> Any:
    raise NotImplementedError
