"""Pieces that sections of a page are made of: which domains are shown, curves, figures, tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from jaxmix.report.charts import Line
from jaxmix.report.run_folder import RunRecord
from jaxmix.report.tables import Table

_MAX_POINTS = 400
_MAX_DOMAINS = 12


def domains_shown(run: RunRecord) -> list[str]:
    """The domains that charts show: all, or those of the largest average weight."""
    if len(run.domains) <= _MAX_DOMAINS:
        return list(run.domains)
    average: Mapping[str, float] = run.average_weights()
    largest = sorted(run.domains, key=lambda n: -average.get(n, 0.0))[:_MAX_DOMAINS]
    return [n for n in run.domains if n in largest]


def note_shown(run: RunRecord) -> str:
    """Says which domains charts leave out, empty if none."""
    hidden = len(run.domains) - _MAX_DOMAINS
    if hidden <= 0:
        return ""
    text = f"Charts show the {_MAX_DOMAINS} domains of the largest weight; {hidden} more are in the table."
    return f'<p class="note">{text}</p>'


def curve(run: RunRecord, kind: str, key: str, label: str, style: int) -> Line:
    """A metric as a curve, thinned evenly to at most `_MAX_POINTS` points; the last point always stays."""
    x, y = run.series(kind, key)
    stride = math.ceil(len(x) / _MAX_POINTS)
    if stride > 1:
        kept = sorted({*range(0, len(x), stride), len(x) - 1})
        x, y = [x[i] for i in kept], [y[i] for i in kept]
    return Line(label, x, y, style)


def trained(line: Line) -> Line:
    """A loss curve without step 0, where there are points to spare: an untrained model's loss hides all the rest."""
    return line._replace(x=line.x[1:], y=line.y[1:]) if len(line.x) > 2 and line.x[0] == 0 else line


def moves(run: RunRecord) -> bool:
    """Whether the weights changed during the run, or before its first record left the prior."""
    prior = run.provenance.get("prior", {})
    for name in run.domains:
        values = run.series("train", f"mix/weight/{name}")[1]
        start = [float(prior[name])] if values and name in prior else []
        if values and max([*values, *start]) - min([*values, *start]) > 1e-6:
            return True
    return False


def figure_html(svg: str, caption: str = "") -> str:
    """A chart with its caption."""
    return f"<figure>{svg}" + (f"<figcaption>{escape(caption)}</figcaption>" if caption else "") + "</figure>"


def table_html(table: Table, heading: str) -> str:
    """A table under its heading."""
    head = "".join(f"<th>{escape(c)}</th>" for c in table.columns)
    rows = []
    for i, cells in enumerate(table.rows):
        is_total = table.first_total is not None and i >= table.first_total
        classes = ["best" if (i, j) in table.best else "" for j in range(len(cells))]
        tds = "".join(f'<td class="{c}">{escape(cell)}</td>' for c, cell in zip(classes, cells, strict=True))
        rows.append(f'<tr class="{"total" if is_total else ""}">{tds}</tr>')
    return (
        f'<h2>{escape(heading)}</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
