"""The frame of every page: style, head and body of one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from jaxmix.data.files import write_whole

_STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 0.5rem; }
.verdict { font-size: 1.1rem; border-left: 4px solid #4477aa; padding: 0.3rem 0 0.3rem 0.9rem; margin: 1.2rem 0; }
.scroll { overflow-x: auto; font-size: 0.88rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.45rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid var(--line); }
tr.total td { font-style: italic; } td.best { font-weight: 700; }
figure { margin: 0.5rem 0 1.2rem; break-inside: avoid; } figcaption, .note { opacity: 0.75; font-size: 0.9rem; }
pre { border: 1px solid var(--line); padding: 0.6rem; white-space: pre-wrap; overflow-wrap: anywhere;
      font-size: 0.85rem; }
svg { max-width: 100%; height: auto; }
@media print { body { max-width: none; margin: 0; font-size: 11px; } details > * { display: block; } }
"""


def html_page(title: str, body: Sequence[str]) -> str:
    """The page's HTML from the parts of its body."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} | jaxmix</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def write_page(target: Path, page: str) -> Path:
    """Writes a page, replaced as a whole."""
    write_whole(target, page)
    return target
