"""Every element escapes what it is given, and pages of runs with hostile names run no script."""

import re

import pytest

from jaxmix.report import html, write_report

HOSTILE = "<script>alert(1)</script>\"'&"
ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&amp;"


@pytest.mark.parametrize(
    "element",
    [
        html.heading(HOSTILE),
        html.paragraph(HOSTILE),
        html.paragraph(HOSTILE, "verdict"),
        html.note(HOSTILE),
        html.preformatted(HOSTILE),
        html.figure(html.Html("<svg/>"), HOSTILE),
        html.fact_table({HOSTILE: HOSTILE}),
        html.numbered_list([(HOSTILE, HOSTILE)]),
        html.details(HOSTILE, html.note("x")),
        html.page(HOSTILE, HOSTILE, [HOSTILE, HOSTILE], []),
    ],
)
def test_elements_escape_their_text(element):
    assert "<script" not in element
    assert ESCAPED in element


def test_details_and_figures_keep_their_parts_and_omit_what_is_empty():
    assert (
        html.details("s", html.note("n"), is_open=True)
        == '<details open><summary>s</summary><p class="note">n</p></details>'
    )
    assert html.figure(html.Html("<svg/>")) == "<figure><svg/></figure>"


def test_pages_of_runs_with_hostile_names_hold_no_script(tmp_path, write_run):
    losses = {"<script>alert(1)</script>": 1.0, 'a" onload="x': 2.0}
    extra = {"command": "jaxmix <script>", "versions": {"<script>": "<script>"}, "commit": "<script>"}
    given = {"note": "</pre><script>"}
    for variant in ("<script>v", "w"):
        for seed in (0, 1):
            name = f"run {variant.strip('<>')}{seed}"
            write_run(
                tmp_path / "runs" / name, losses, variant=variant, seed=seed, moving=True, extra=extra, given=given
            )
    for folder in (tmp_path / "runs", tmp_path / "runs" / "run w0"):
        text = write_report(folder).read_text()
        assert "<script" not in text
        assert not re.search(r"<[^>]*\sonload=", text)
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
