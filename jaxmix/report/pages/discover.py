"""The page of a discovery: what the clusters are about, how large they are, how well the student knows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jaxmix.report import charts
from jaxmix.report.html import html_page, write_page
from jaxmix.report.tables import Table
from jaxmix.report.widgets import figure_html, table_html

_MOST_CONFUSED = 10


def write_discovery_page(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Writes report.html into the folder of a discovery; `summary` as of discovery.json."""
    return write_page(folder / "report.html", discovery_page(summary, title=folder.resolve().name))


def discovery_verdict(summary: Mapping[str, Any]) -> list[str]:
    """The result in sentences."""
    clusters, student = summary["clusters"], summary["student"]
    entropy = clusters["size_entropy"]
    sentences = [
        f"{len(summary['taxonomy']['clusters'])} clusters of {summary['embeddings']['rows']:,} documents: the largest "
        f"holds {_percent(clusters['largest_share'])}, the smallest {_percent(clusters['smallest_share'])}; entropy of "
        f"sizes {entropy['documents']:.3f} by documents, {entropy['words']:.3f} by words, "
        f"{entropy['posterior']:.3f} by posterior mass (1: all equal)."
    ]
    if not clusters["converged"]:
        sentences.append(f"The fit had not come to rest after {clusters['iterations']} iterations.")
    if clusters["largest_bias"] < 1e-3 and summary["config"]["clusterer"]["name"] == "gem":
        sentences.append("No bias is above 0.001 nats: the balance did nothing, a larger one is needed for it to act.")
    if "accuracy" in student:
        sentences.append(
            f"The student finds the cluster of {_percent(student['accuracy'])} of {student['documents']:,} held-out "
            f"documents from their words alone (mean over clusters {_percent(student['macro_recall'])}; drift of the "
            f"shares {student['mass_drift']:.3f})."
        )
    if summary["embeddings"]["dropped"]:
        sentences.append(
            f"{summary['embeddings']['dropped']:,} documents had nothing to encode and took the student's label."
        )
    return sentences


def cluster_table(summary: Mapping[str, Any]) -> Table:
    """One row per cluster."""
    clusters = summary["taxonomy"]["clusters"]
    documents, words = sum(c["documents"] for c in clusters), sum(c["words"] for c in clusters)
    sizes = summary["sources"]["domains"]
    columns = ("domain", "documents", "share", "words", "share of words", "concentration", "bias", "in all sources")
    rows = [
        (
            c["name"],
            f"{c['documents']:,}",
            _percent(c["documents"] / documents),
            f"{c['words']:,}",
            _percent(c["words"] / max(words, 1)),
            f"{c['concentration']:.1f}",
            f"{c['bias']:+.2f}",
            f"{sizes[c['name']]['documents']:,}",
        )
        for c in clusters
    ]
    return Table(columns, tuple(rows))


def student_table(student: Mapping[str, Any], names: Sequence[str]) -> Table:
    """The student by cluster: shares of both, recall, precision, and what it takes a cluster for most often."""
    columns = ("domain", "share, teacher", "share, student", "recall", "precision", "most often taken for")
    rows = []
    for k, name in enumerate(names):
        row = student["confusion"][k]
        column = sum(other[k] for other in student["confusion"])
        others = [value if j != k else 0.0 for j, value in enumerate(row)]
        worst = max(range(len(row)), key=others.__getitem__)
        rows.append(
            (
                name,
                _percent(student["mass_teacher"][k]),
                _percent(student["mass_student"][k]),
                _percent(row[k] / sum(row)) if sum(row) else "-",
                _percent(row[k] / column) if column else "-",
                f"{names[worst]} ({_percent(others[worst] / sum(row))})" if others[worst] > 0 else "-",
            )
        )
    return Table(columns, tuple(rows))


def discovery_page(summary: Mapping[str, Any], *, title: str) -> str:
    """The page's HTML; `summary` as of discovery.json."""
    first, *others = discovery_verdict(summary)
    clusters, student = summary["taxonomy"]["clusters"], summary["student"]
    names = [c["name"] for c in clusters]
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="note">{len(clusters)} domains · {summary["documents"]["documents"]:,} documents · '
        f"{escape(str(summary['provenance']['finished']))}</p>",
        f'<p class="verdict">{escape(first)}</p>',
        *(f"<p>{escape(s)}</p>" for s in others),
        table_html(cluster_table(summary), "Domains"),
    ]
    shares = {
        "documents": _shares([c["documents"] for c in clusters]),
        "words": _shares([c["words"] for c in clusters]),
    }
    if "mass_student" in student:
        shares["student, held out"] = student["mass_student"]
    numbers = [name.split("-")[0] for name in names]
    body.append(figure_html(charts.bars(numbers, shares, name="sizes", y_label="share"), "Domains by their numbers."))
    body += ["<h2>What they are about</h2>", *(_cluster_html(c) for c in clusters)]
    if "confusion" in student:
        body += [
            table_html(student_table(student, names), "The student"),
            '<p class="note">On held-out documents as they come, none of which it learned from.</p>',
            *_confused(student["confusion"], names),
        ]
    objective = summary["clusters"]["objective"]
    curve = charts.Line("objective", list(range(1, len(objective) + 1)), objective, 0)
    body += [
        "<h2>The fit</h2>",
        figure_html(charts.lines([curve], name="objective", x_label="iteration", y_label="objective, nats")),
        *_origin(summary),
    ]
    return html_page(title, body)


def _cluster_html(cluster: Mapping[str, Any]) -> str:
    def listed(kind: str) -> str:
        return "".join(
            f"<li>{escape(d['text'])} <span class='note'>{escape(d['shard'])}, {d['document']}</span></li>"
            for d in cluster[kind]
        )

    terms = ", ".join(cluster["terms"]) or "no word stands out"
    return (
        f"<details><summary><b>{escape(cluster['name'])}</b>: {escape(terms)}</summary>"
        f"<p>Representatives (by influence):</p><ol>{listed('representatives')}</ol>"
        f"<p>Nearest to the mean direction:</p><ol>{listed('nearest')}</ol></details>"
    )


def _confused(confusion: Sequence[Sequence[float]], names: Sequence[str]) -> list[str]:
    pairs = [(v, i, j) for i, row in enumerate(confusion) for j, v in enumerate(row) if i != j and v > 0]
    if not pairs:
        return []
    rows = tuple((names[i], names[j], _percent(v)) for v, i, j in sorted(pairs, reverse=True)[:_MOST_CONFUSED])
    table = Table(("teacher", "student", "share of all documents"), rows)
    return [table_html(table, "Most often confused")]


def _origin(summary: Mapping[str, Any]) -> list[str]:
    import yaml

    provenance = summary["provenance"]
    versions = ", ".join(f"{k} {v}" for k, v in provenance["versions"].items())
    facts = {"devices": provenance["devices"], "commit": provenance["commit"], **provenance["identities"]}
    rows = "".join(f"<tr><td>{escape(str(k))}</td><td>{escape(str(v))}</td></tr>" for k, v in facts.items())
    text = yaml.safe_dump(summary["config"], sort_keys=False, allow_unicode=True, width=100)
    return [
        "<h2>How this was made</h2>",
        f"<pre>{escape(str(provenance['command']))}</pre>",
        f"<p>Versions: {escape(versions)}.</p>",
        f'<div class="scroll"><table>{rows}</table></div>',
        f"<details><summary>Configuration</summary><pre>{escape(text)}</pre></details>",
    ]


def _shares(values: Sequence[float]) -> list[float]:
    total = sum(values) or 1
    return [value / total for value in values]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
