"""Output of the command line: results to standard output, from process 0 alone, in color only on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any


def process_index() -> int | None:
    """This process's number in a run of several, None in a run of one. Never starts a backend."""
    if "jax" not in sys.modules:
        return None
    import jax

    # process_index() would start the backend, so it is asked only where processes have found each other.
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return None
    return jax.process_index()


def say(text: str = "") -> None:
    """Prints a line of the result."""
    if not process_index():
        print(text, flush=True)


def say_json(value: Any) -> None:
    """Prints one JSON object."""
    say(json.dumps(value, indent=2, ensure_ascii=False))


def say_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None, left: int = 1
) -> None:
    """Prints a table; the first `left` columns are text, the others are aligned right."""
    if process_index():
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    # Without a terminal rich assumes 80 columns and would cut numbers off.
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(str(cell).replace("[", r"\[") for cell in row))
    console.print(table)
