"""Output of the command line: results to standard output, from process 0 alone, in color only on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from jaxmix.cli.arguments import Arguments


def process_index() -> int | None:
    """This process's number in a run of several, None in a run of one. Never starts a backend."""
    if "jax" not in sys.modules:
        return None
    import jax

    # process_index() would start the backend, so it is asked only where processes have found each other.
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return None
    return jax.process_index()


def show(*items: Any) -> None:
    """Prints lines of text and tables of `table`."""
    if process_index():
        return
    for item in items:
        if isinstance(item, str):
            print(item, flush=True)
        else:
            from rich.console import Console

            # Without a terminal rich assumes 80 columns and would cut numbers off.
            Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(item)


def table(content: Sequence[Any], *, title: str | None = None, left: int = 1) -> Any:
    """A table for `show`; the first `left` columns are text, the others are aligned right.

    Args:
        content: headings, then rows; what follows, as in a `jaxmix.report.tables.Table`, is for pages.
        title: above it.
        left: number of columns of text.
    """
    from rich import box
    from rich.table import Table

    columns, rows = content[:2]
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, name in enumerate(columns):
        shown.add_column(name, justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        shown.add_row(*(str(cell).replace("[", r"\[") for cell in row))
    return shown


def answer(arguments: Arguments, value: Any, *items: Any) -> int:
    """Prints the result of a command, with `--json` as one JSON object; returns the exit code of success.

    Args:
        arguments: what was typed.
        value: the result as plain values.
        items: the result for a reader, see `show`.
    """
    show(*([json.dumps(value, indent=2, ensure_ascii=False)] if arguments.json else items))
    return 0
