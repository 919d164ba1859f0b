"""The HTML of every page: elements, whose text is escaped here, and the frame around them.

A page is made of `Html`. Only this module and `charts` make it out of text, so that mypy finds a string that reaches a
page unescaped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NewType

from jaxmix.data.files import write_whole
from jaxmix.report.tables import Table

Html = NewType("Html", str)
"""Markup that may stand in a page as it is."""

_STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem; }
p, figure, pre, ol { max-width: 62rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 0.5rem; }
.verdict { font-size: 1.1rem; border-left: 4px solid #4477aa; padding: 0.3rem 0 0.3rem 0.9rem; margin: 1.2rem 0; }
.scroll { overflow-x: auto; font-size: 0.88rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.45rem; text-align: right; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; } th { vertical-align: bottom; } thead th { border-bottom: 2px solid var(--line); }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: Canvas; }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
tr.total td { font-style: italic; } td.best { font-weight: 700; }
figure { margin: 0.5rem 0 1.2rem; break-inside: avoid; } figcaption, .note { opacity: 0.75; font-size: 0.9rem; }
pre { border: 1px solid var(--line); padding: 0.6rem; white-space: pre-wrap; overflow-wrap: anywhere;
      font-size: 0.85rem; }
svg { max-width: 100%; height: auto; }
@media print { body { max-width: none; margin: 0; font-size: 11px; } details > * { display: block; } }
"""


def heading(text: str, level: int = 2) -> Html:
    return Html(f"<h{level}>{escape(text)}</h{level}>")


def paragraph(text: str, kind: str = "") -> Html:
    """A paragraph.

    Args:
        text: of the paragraph.
        kind: "note" for small print, "verdict" for a result.
    """
    return Html(f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>")


def note(text: str) -> Html:
    return paragraph(text, "note")


def preformatted(text: str) -> Html:
    return Html(f"<pre>{escape(text)}</pre>")


def figure(svg: Html, caption: str = "") -> Html:
    """A chart with its caption."""
    return Html(f"<figure>{svg}" + (f"<figcaption>{escape(caption)}</figcaption>" if caption else "") + "</figure>")


def table(content: Table, title: str) -> Html:
    """A table under its heading."""
    head = "".join(f"<th>{escape(column)}</th>" for column in content.columns)
    rows = []
    for i, cells in enumerate(content.rows):
        classes = ["best" if (i, j) in content.best else "" for j in range(len(cells))]
        tds = "".join(f'<td class="{c}">{escape(cell)}</td>' for c, cell in zip(classes, cells, strict=True))
        is_total = content.first_total is not None and i >= content.first_total
        rows.append(f'<tr class="{"total" if is_total else ""}">{tds}</tr>')
    return Html(
        f'{heading(title)}<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def fact_table(facts: Mapping[str, object]) -> Html:
    """Names and values without a heading; hashes are shortened, and whole where the pointer rests."""
    rows = "".join(f"<tr><td>{escape(str(k))}</td><td>{_fact(v)}</td></tr>" for k, v in facts.items())
    return Html(f'<div class="scroll"><table class="facts">{rows}</table></div>')


def _fact(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{escape(str(k))} {_fact(v)}" for k, v in value.items())
    shorten = lambda found: f'<span title="{found[0]}">{found[0][:12]}…</span>'
    return re.sub(r"\b[0-9a-f]{20,}\b", shorten, escape(str(value)))


def numbered_list(items: Sequence[tuple[str, str]]) -> Html:
    """Texts, each with small print behind it."""
    return Html(
        "<ol>"
        + "".join(f'<li>{escape(text)} <span class="note">{escape(about)}</span></li>' for text, about in items)
        + "</ol>"
    )


def details(summary: str, *parts: Html, is_open: bool = False) -> Html:
    """Parts that are shown on request."""
    return Html(f"<details{' open' * is_open}><summary>{escape(summary)}</summary>{''.join(parts)}</details>")


def page(title: str, subtitle: str, sentences: Sequence[str], body: Sequence[Html]) -> str:
    """A whole page.

    Args:
        title: of window and page.
        subtitle: one line of small print under it.
        sentences: the result, the most important first.
        body: everything below.
    """
    top = [heading(title, 1), note(subtitle), paragraph(sentences[0], "verdict"), *map(paragraph, sentences[1:])]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} | jaxmix</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join([*top, *body])
        + "\n</body></html>\n"
    )


def write_page(target: Path, text: str) -> Path:
    """Writes a page, replaced as a whole."""
    write_whole(target, text)
    return target
