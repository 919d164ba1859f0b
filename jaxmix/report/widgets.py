"""Parts that several pages show: the domains in charts, curves of a run's metrics, where a result came from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmix.report import html
from jaxmix.report.charts import Line
from jaxmix.report.html import Html
from jaxmix.report.run_folder import RunRecord
from jaxmix.report.tables import RunGroups

_MAX_POINTS = 400
_MAX_DOMAINS = 12


def domains_shown(*runs: RunRecord) -> list[str]:
    """The domains that charts show: all that a run has, or those of the largest average weight."""
    names = list(dict.fromkeys(name for run in runs for name in run.domains))
    if len(names) <= _MAX_DOMAINS:
        return names
    average = [run.average_weights() for run in runs]
    largest = sorted(names, key=lambda n: -max(weights.get(n, 0.0) for weights in average))[:_MAX_DOMAINS]
    return [n for n in names if n in largest]


def note_shown(*runs: RunRecord) -> list[Html]:
    """Says how many domains the charts leave out, if any."""
    hidden = len({name for run in runs for name in run.domains}) - _MAX_DOMAINS
    text = f"Charts show the {_MAX_DOMAINS} domains with the largest average weight; {hidden} more are in the table."
    return [html.note(text)] if hidden > 0 else []


def curve(run: RunRecord, kind: str, key: str, label: str, style: int, *, thin: bool = False) -> Line:
    """A metric as a curve, thinned evenly to at most `_MAX_POINTS` points; the last point always stays."""
    x, y = run.series(kind, key)
    stride = math.ceil(len(x) / _MAX_POINTS)
    if stride > 1:
        kept = sorted({*range(0, len(x), stride), len(x) - 1})
        x, y = [x[i] for i in kept], [y[i] for i in kept]
    return Line(label, x, y, style, thin)


def trained(line: Line) -> Line:
    """A loss curve without step 0, if enough points remain: an untrained model's loss would flatten the rest."""
    return line._replace(x=line.x[1:], y=line.y[1:]) if len(line.x) > 2 and line.x[0] == 0 else line


def seed_curves(groups: RunGroups, kind: str, key: str) -> list[Line]:
    """A loss of all runs: one curve per seed, one style per variant."""
    return [
        trained(curve(run, kind, key, variant, style, thin=len(group) > 1))
        for style, (variant, group) in enumerate(groups.items())
        for run in group
    ]


def domain_values(run: RunRecord, domains: Sequence[str], prefix: str) -> list[float]:
    """The latest value of a metric of every domain, 0 where it was never measured."""
    return [run.final("train", f"{prefix}/{name}") or 0.0 for name in domains]


def origin(provenance: Mapping[str, Any], facts: Mapping[str, object], configs: Mapping[str, Any]) -> list[Html]:
    """Everything needed to reproduce a result.

    Args:
        provenance: the command and the versions, where they are known.
        facts: anything else, by name.
        configs: title → configuration; a single one is shown open.
    """
    import yaml

    parts = [html.heading("How this was made")]
    if provenance.get("command"):
        parts.append(html.preformatted(str(provenance["command"])))
    if provenance.get("versions"):
        parts.append(html.paragraph(f"Versions: {', '.join(f'{k} {v}' for k, v in provenance['versions'].items())}."))
    if facts:
        parts.append(html.fact_table(facts))
    for title, config in configs.items():
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100)
        parts.append(html.details(title, html.preformatted(text), is_open=len(configs) == 1))
    return parts
