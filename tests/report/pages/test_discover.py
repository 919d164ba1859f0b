"""The page of a discovery, from a summary whose values can be worked out by hand."""

import pytest

from jaxmix.report.pages.discover import cluster_table, discovery_page, discovery_verdict, student_table

HOSTILE = "<script>alert(1)</script>"


def cluster(name, documents, words):
    document = {"text": f"about {name}", "shard": "web-00000", "document": 3}
    return {"name": name, "documents": documents, "words": words, "concentration": 12.34, "bias": -0.5,
            "terms": ["one", HOSTILE], "representatives": [document], "nearest": [document]}  # fmt: skip


@pytest.fixture
def summary():
    names = ["0-rocks", f"1-{HOSTILE}"]
    return {
        "taxonomy": {"clusters": [cluster(names[0], 30, 100), cluster(names[1], 10, 300)]},
        "sources": {"domains": {names[0]: {"documents": 60}, names[1]: {"documents": 20}}},
        "documents": {"documents": 1234},
        "embeddings": {"rows": 40, "dropped": 2},
        "clusters": {
            "largest_share": 0.75, "smallest_share": 0.25, "converged": False, "iterations": 7, "largest_bias": 1e-4,
            "size_entropy": {"documents": 0.811, "words": 0.8, "posterior": 0.9}, "objective": [1.0, 2.0, 2.5],
        },
        "student": {
            "accuracy": 0.8, "macro_recall": 0.75, "documents": 20, "mass_drift": 0.05,
            "mass_teacher": [0.7, 0.3], "mass_student": [0.6, 0.4], "confusion": [[0.5, 0.2], [0.1, 0.2]],
        },
        "config": {"clusterer": {"name": "gem"}, "note": HOSTILE},
        "provenance": {
            "command": f"jaxmix discover {HOSTILE}", "versions": {"jax": "0"}, "devices": "8 CPUs", "commit": "abc",
            "identities": {"encoder": "e"}, "finished": "today",
        },
    }  # fmt: skip


def test_the_verdict_names_what_failed(summary):
    first, *others = discovery_verdict(summary)
    assert "2 clusters of 40 documents: the largest holds 75.0 %, the smallest 25.0 %" in first
    assert "The fit had not converged after 7 iterations." in others
    assert any("balance had no effect" in text for text in others)
    assert any("80.0 % of 20 held-out documents" in text for text in others)
    assert "2 documents had no text to encode and got the student's label." in others
    summary["clusters"] |= {"converged": True, "largest_bias": 1.0}
    summary["embeddings"]["dropped"] = 0
    summary["student"] = {}
    assert len(discovery_verdict(summary)) == 1


def test_clusters_and_student_in_tables(summary):
    rows = [dict(zip(cluster_table(summary).columns, row, strict=True)) for row in cluster_table(summary).rows]
    assert (rows[0]["share"], rows[0]["share of words"], rows[0]["in all sources"]) == ("75.0 %", "25.0 %", "60")
    assert (rows[1]["concentration"], rows[1]["bias"]) == ("12.3", "-0.50")
    table = student_table(summary["student"], ["a", "b"])
    a, b = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert (a["recall"], a["precision"]) == ("71.4 %", "83.3 %")  # 0.5 / 0.7, 0.5 / 0.6
    assert a["most often mistaken for"] == "b (28.6 %)"
    assert b["most often mistaken for"] == "a (33.3 %)"
    perfect = {**summary["student"], "confusion": [[1.0, 0.0], [0.0, 0.0]]}
    assert [row[3:] for row in student_table(perfect, ["a", "b"]).rows] == [
        ("100.0 %", "100.0 %", "-"),
        ("-", "-", "-"),
    ]


def test_the_page_is_whole_and_escapes_names_terms_and_documents(summary):
    page = discovery_page(summary, title=HOSTILE)
    assert "<script" not in page
    assert page.count("<svg") == 2
    for text in ("2 domains · 1,234 documents · today", "The student", "Most often confused", "How this was made"):
        assert text in page
    assert "about 1-&lt;script&gt;" in page
    summary["student"] = {}
    assert "The student" not in discovery_page(summary, title="x")
