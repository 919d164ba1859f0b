"""The page of a discovery: the topics and sizes of the clusters, and how well the student predicts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmix.report import charts, html
from jaxmix.report.html import Html
from jaxmix.report.numbers import percent
from jaxmix.report.tables import Table
from jaxmix.report.widgets import origin

_MOST_CONFUSED = 10


def write_discovery_page(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Writes report.html into the folder of a discovery; `summary` as in discovery.json."""
    return html.write_page(folder / "report.html", discovery_page(summary, title=folder.resolve().name))


def discovery_verdict(summary: Mapping[str, Any]) -> list[str]:
    """The result in sentences."""
    clusters, student = summary["clusters"], summary["student"]
    entropy = clusters["size_entropy"]
    sentences = [
        f"{len(summary['taxonomy']['clusters'])} clusters of {summary['embeddings']['rows']:,} documents: the largest "
        f"holds {percent(clusters['largest_share'])}, the smallest {percent(clusters['smallest_share'])}; entropy of "
        f"sizes {entropy['documents']:.3f} by documents, {entropy['words']:.3f} by words, "
        f"{entropy['posterior']:.3f} by posterior mass (1: all equal)."
    ]
    if not clusters["converged"]:
        sentences.append(f"The fit had not converged after {clusters['iterations']} iterations.")
    if clusters["largest_bias"] < 1e-3 and summary["config"]["clusterer"]["name"] == "gem":
        sentences.append("No bias exceeds 0.001 nats, so balance had no effect: a larger one is needed.")
    if "accuracy" in student:
        sentences.append(
            f"The student finds the cluster of {percent(student['accuracy'])} of {student['documents']:,} held-out "
            f"documents from their words alone (mean over clusters {percent(student['macro_recall'])}; drift of the "
            f"shares {student['mass_drift']:.3f})."
        )
    if summary["embeddings"]["dropped"]:
        sentences.append(
            f"{summary['embeddings']['dropped']:,} documents had no text to encode and got the student's label."
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
            percent(c["documents"] / documents),
            f"{c['words']:,}",
            percent(c["words"] / max(words, 1)),
            f"{c['concentration']:.1f}",
            f"{c['bias']:+.2f}",
            f"{sizes[c['name']]['documents']:,}",
        )
        for c in clusters
    ]
    return Table(columns, tuple(rows))


def student_table(student: Mapping[str, Any], names: Sequence[str]) -> Table:
    """The student by cluster: shares of both, recall, precision, and the cluster that it most often mistakes it for."""
    columns = ("domain", "share, teacher", "share, student", "recall", "precision", "most often mistaken for")
    rows = []
    for k, name in enumerate(names):
        row = student["confusion"][k]
        column = sum(other[k] for other in student["confusion"])
        others = [value if j != k else 0.0 for j, value in enumerate(row)]
        worst = max(range(len(row)), key=others.__getitem__)
        rows.append(
            (
                name,
                percent(student["mass_teacher"][k]),
                percent(student["mass_student"][k]),
                percent(row[k] / sum(row)) if sum(row) else "-",
                percent(row[k] / column) if column else "-",
                f"{names[worst]} ({percent(others[worst] / sum(row))})" if others[worst] > 0 else "-",
            )
        )
    return Table(columns, tuple(rows))


def discovery_page(summary: Mapping[str, Any], *, title: str) -> str:
    """The page's HTML; `summary` as in discovery.json."""
    clusters, student = summary["taxonomy"]["clusters"], summary["student"]
    names = [c["name"] for c in clusters]
    shares = {
        "documents": _shares([c["documents"] for c in clusters]),
        "words": _shares([c["words"] for c in clusters]),
    }
    if "mass_student" in student:
        shares["student, held out"] = student["mass_student"]
    objective = summary["clusters"]["objective"]
    curve = charts.Line("objective", list(range(1, len(objective) + 1)), objective, 0)
    sizes = charts.bars([name.split("-")[0] for name in names], shares, name="sizes", y_label="share")
    body = [
        html.table(cluster_table(summary), "Domains"),
        html.figure(sizes, "Domains by their numbers."),
        html.heading("What they are about"),
        *map(_cluster, clusters),
    ]
    if "confusion" in student:
        body += [
            html.table(student_table(student, names), "The student"),
            html.note("On held-out documents as they come, none of which it was trained on."),
            *_confused(student["confusion"], names),
        ]
    provenance = summary["provenance"]
    facts = {"devices": provenance["devices"], "commit": provenance["commit"], **provenance["identities"]}
    body += [
        html.heading("The fit"),
        html.figure(charts.lines([curve], name="objective", x_label="iteration", y_label="objective, nats")),
        *origin(provenance, facts, {"Configuration": summary["config"]}),
    ]
    documents = summary["documents"]["documents"]
    subtitle = f"{len(clusters)} domains · {documents:,} documents · {provenance['finished']}"
    return html.page(title, subtitle, discovery_verdict(summary), body)


def _cluster(cluster: Mapping[str, Any]) -> Html:
    nearest, representatives = (
        html.numbered_list([(d["text"], f"{d['shard']}, {d['document']}") for d in cluster[kind]])
        for kind in ("nearest", "representatives")
    )
    return html.details(
        f"{cluster['name']}: {', '.join(cluster['terms']) or 'no word stands out'}",
        html.paragraph("Representatives (by influence):"),
        representatives,
        html.paragraph("Nearest to the mean direction:"),
        nearest,
    )


def _confused(confusion: Sequence[Sequence[float]], names: Sequence[str]) -> list[Html]:
    pairs = [(v, i, j) for i, row in enumerate(confusion) for j, v in enumerate(row) if i != j and v > 0]
    if not pairs:
        return []
    rows = tuple((names[i], names[j], percent(v)) for v, i, j in sorted(pairs, reverse=True)[:_MOST_CONFUSED])
    table = Table(("teacher", "student", "share of all documents"), rows)
    return [html.table(table, "Most often confused")]


def _shares(values: Sequence[float]) -> list[float]:
    total = sum(values) or 1
    return [value / total for value in values]
