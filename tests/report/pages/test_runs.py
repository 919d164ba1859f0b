import json
import re
from html.parser import HTMLParser

import pytest

from jaxmix.report import charts, describe_result, load_run, write_report
from jaxmix.report.paired import domain_tables
from jaxmix.report.tables import comparison_table, run_table
from jaxmix.report.widgets import curve, trained

VOID = {"meta", "br", "img", "path", "use", "rect", "line", "circle"}


class Page(HTMLParser):
    """Collects what a self-contained page must not have, and checks that elements nest."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.links, self.ids, self.text = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for key, value in attrs:
            if key in ("src", "href", "xlink:href"):
                self.links.append(value)
            if key == "id":
                self.ids.append(value)
        if tag not in VOID or (not self.get_starttag_text().endswith("/>") and tag not in ("meta", "br", "img")):
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.stack and self.stack[-1] == tag:
            self.stack.pop()

    def handle_endtag(self, tag):
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def six_runs(tmp_path, write_run):
    """Three variants with two seeds; odm is ahead of natural, and ties with uniform."""
    folder = tmp_path / "quickstart"
    for order, (variant, losses) in enumerate(
        {"natural": (2.5, 2.6), "uniform": (2.0, 2.2), "odm": (1.9, 2.1)}.items()
    ):
        for seed, loss in enumerate(losses):
            write_run(
                folder / f"{variant}-seed{seed}",
                {"bible": loss - 0.5, "code & <tags>": loss + 0.5},
                variant=variant,
                seed=seed,
                moving=variant == "odm",
                extra={"order": order},
            )
    return folder


def test_the_page_of_one_run_is_self_contained_and_complete(tmp_path, write_run):
    folder = write_run(tmp_path / "run", {"bible": 1.0, "code & <tags>": 2.0, "prix en $": 3.0}, moving=True)
    target = write_report(folder)
    assert target == folder / "report.html"
    text = target.read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert all(link.startswith("#") for link in page.links)
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text).replace("http-equiv", "")
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} <= set(page.ids)
    words = " ".join(page.text)
    assert "Mean validation loss over 3 domains: 2.0000 nats per token, from 5.0000 at step 0." in words
    assert "bible moved most, from 0.333 to 0.500" in words
    for heading in ("Mixture weights", "Validation loss by domain", "Training loss by domain", "Epochs", "Throughput"):
        assert heading in words
    assert "jaxmix train configs/<train>.yaml" in words
    assert "jax 0.10.2" in words
    assert "code & <tags>" in words


def test_ink_follows_the_page_so_that_dark_pages_can_be_read(tmp_path, write_run):
    text = write_report(write_run(tmp_path / "run", {"a": 1.0, "b": 2.0})).read_text()
    assert "currentColor" in text
    assert "color-scheme: light dark" in text
    for fixed in ("#000000", "#ffffff", "#010203", "#040506"):
        assert fixed not in text


def test_the_page_of_several_runs_says_who_won_and_who_is_not_separated(six_runs):
    first, *others = describe_result([load_run(p) for p in sorted(six_runs.iterdir())])
    assert first.startswith("odm has the lowest mean validation loss over domains, 2.0000 nats per token")
    assert "is not separated from natural, so" in first
    assert "natural: 2.5500, +0.5500; by seed +0.6000, +0.5000 (not separated)." in first  # 0.55 +- 0.64
    # Shares 1/3 and 2/3 of losses l − 0.5 and l + 0.5 give l + 1/6.
    assert others == ["Weighted by the sizes of the domains instead: odm 2.1667; uniform 2.2667; natural 2.7167."]
    page = Page(write_report(six_runs).read_text())
    words = " ".join(page.text)
    assert "no clear winner" in words
    assert "Mixture weights: odm" in words
    assert "Mixture weights: natural" not in words
    assert len(page.ids) == len(set(page.ids))


def test_unfinished_runs_and_unequal_budgets_are_said(six_runs, write_run):
    write_run(six_runs / "odm-seed2", {"bible": 0.1, "code & <tags>": 0.1}, variant="odm", seed=2, planned=500)
    write_run(six_runs / "long-seed0", {"bible": 0.2, "code & <tags>": 0.2}, variant="long", seed=0, steps=200)
    sentences = describe_result([load_run(p) for p in sorted(six_runs.iterdir())])
    assert "Not finished, and left out: odm-seed2." in sentences
    assert any("different numbers of tokens" in s and "long-seed0 102,400" in s for s in sentences)


def test_the_untrained_model_does_not_set_the_scale(tmp_path, write_run):
    line = curve(load_run(write_run(tmp_path / "run", {"x": 1.0})), "eval", "eval/loss/x", "x", 0)
    assert list(line.x) == [0, 50, 100]
    assert list(trained(line).x) == [50, 100]
    assert list(trained(line).y) == pytest.approx([2.5, 1.0])
    short = line._replace(x=[0, 50], y=[4.0, 2.5])
    assert trained(short) == short


def test_the_comparison_table_holds_the_means_and_marks_the_lowest(six_runs):
    table = comparison_table([load_run(p) for p in sorted(six_runs.iterdir())])
    assert table.columns == (
        "domain", "natural loss", "share", "epochs", "uniform loss", "share", "epochs", "odm loss", "share", "epochs",
    )  # fmt: skip
    rows = {row[0].strip(): row for row in table.rows}
    assert rows["bible"] == (
        "bible",
        "2.0500",
        "50.0 %",
        "0.50",
        "1.6000",
        "50.0 %",
        "0.50",
        "1.5000",
        "75.0 %",
        "0.50",
    )
    assert rows["mean over domains"][1::3] == ("2.5500", "2.1000", "2.0000")
    assert rows["seed 1"][1::3] == ("2.6000", "2.2000", "2.1000")
    assert rows["worst domain"][1::3] == ("3.0500", "2.6000", "2.5000")
    assert rows["tokens/s"][1::3] == ("5,120", "5,120", "5,120")
    best = {table.rows[i][0].strip(): j for i, j in table.best}
    assert set(best.values()) == {7}
    assert "tokens/s" not in best


def test_the_table_of_one_run(tmp_path, write_run):
    run = load_run(write_run(tmp_path / "run", {"a": 1.0, "b": 2.0}))
    table = run_table(run)
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert rows["a"]["validation loss"] == "1.0000"
    assert rows["a"]["perplexity"] == "2.72"
    assert rows["b"]["epochs"] == "1.00"
    assert rows["mean over domains"]["validation loss"] == "1.5000"
    assert rows["worst domain"]["validation loss"] == "2.0000"


def test_many_domains_are_all_in_the_table_and_the_largest_in_the_charts(tmp_path, write_run):
    folder = write_run(tmp_path / "run", {f"d{i:03d}": 1.0 + i / 100 for i in range(40)})
    text = write_report(folder).read_text()
    assert "28 more are in the table" in text
    assert all(f"d{i:03d}" in text for i in range(40))


def test_a_run_that_has_only_begun_has_a_page(tmp_path, write_run):
    folder = write_run(tmp_path / "run", {"a": 1.0, "b": 2.0})
    (folder / "metrics.jsonl").write_text("")
    (folder / "timing.jsonl").unlink()
    assert "Step 0 of 100" in write_report(folder).read_text()


def test_a_long_run_stays_small_and_keeps_its_last_point(tmp_path, write_run):
    folder = write_run(tmp_path / "run", {"a": 1.0, "b": 2.0}, steps=50_000)
    assert len(write_report(folder, out=tmp_path / "sub" / "page.html").read_text()) < 1_000_000


def test_the_page_of_an_online_run_says_what_its_mixer_did(tmp_path, write_run, add_records):
    losses = {"bible": 1.0, "code & <tags>": 2.0, "prix en $": 3.0}
    given = {"train": {"steps": 100, "eval_every": 100}, "data": {"validation_rows": 8, "seq_len": 64}}
    needs = {"mixer": {"name": "doge", "needs": ["gradient_alignment"], "update_every": 4}}
    folder = write_run(tmp_path / "run", losses, moving=True, given=given, extra=needs)
    matrix = {f"mix/interaction/{a}/{b}": i - 0.5 * j for i, a in enumerate(losses) for j, b in enumerate(losses)}
    add_records(folder, {**load_run(folder).train[-1], **matrix})
    page = Page(write_report(folder).read_text())
    words = " ".join(page.text)
    assert "What the mixer did" in words
    assert "the weights that batches were drawn with were 1.3 optimizer steps old on average, 4 at most." in words
    assert (
        "1 evaluation of at most 1,536 tokens each (1 % of the training's computation) besides the run's own 2" in words
    )
    assert "25 measurements of gradients" in words
    assert "steps 0 to 100" in words
    assert "Warning" not in words
    assert "image" not in page.tags  # heat maps are shapes, not bitmaps
    assert len(page.ids) == len(set(page.ids))


def test_a_collapsed_mixture_is_warned_of_with_remedies(tmp_path, write_run, add_records):
    folder = write_run(tmp_path / "run", {"a": 1.0, "b": 2.0, "c": 3.0}, moving=True)
    last = load_run(folder).train[-1]
    add_records(folder, {**last, "mix/weight/a": 0.98, "mix/weight/b": 0.01, "mix/weight/c": 0.01})
    words = " ".join(Page(write_report(folder).read_text()).text)
    assert "near one-hot. Over the last tenth of the run a had 98.0 % of the weight" in words
    assert all(remedy in words for remedy in ("smaller step size", "floor or kl_to_prior", "natural proportions"))
    other = write_run(tmp_path / "other", {"a": 1.0, "b": 2.0, "c": 3.0})
    sentences = describe_result([load_run(folder), load_run(other)])
    assert "The mixture ended near one-hot, almost all of it one domain, in run." in sentences


def test_written_weights_have_no_section_of_a_mixer(tmp_path, write_run):
    assert "What the mixer did" not in write_report(write_run(tmp_path / "run", {"a": 1.0, "b": 2.0})).read_text()


def test_the_page_of_several_runs_shows_paired_differences(six_runs):
    page = Page(write_report(six_runs).read_text())
    words = " ".join(page.text)
    assert "Differences to natural over paired seeds" in words
    assert "uniform minus natural: -0.4500 [-1.0853, +0.1853], not told apart." in words
    assert "95% intervals" in words
    assert "What the mixer did: odm-seed0" in words
    assert len(page.ids) == len(set(page.ids))


def test_test_rows_are_what_runs_are_judged_by(tmp_path, write_run, add_records):
    for seed, loss in enumerate((1.5, 1.7)):
        folder = write_run(tmp_path / f"x-seed{seed}", {"a": 1.0, "b": 2.0}, variant="x", seed=seed)
        add_records(folder, {"kind": "test", "step": 100, "test/loss/a": loss, "test/loss/b": loss + 1})
    run = load_run(folder)
    assert (run.judged_by, run.final_losses(), run.final_losses("eval")) == (
        "test",
        {"a": 1.7, "b": 2.7},
        {"a": 1.0, "b": 2.0},
    )
    assert "Mean test loss: 2.2000." in describe_result([run])
    rows = {row[0]: row for row in run_table(run).rows}
    assert rows["a"][-3:] == ("1.0000", "2.72", "1.7000")
    assert describe_result([load_run(p) for p in sorted(tmp_path.iterdir())])[0].startswith("x: mean test loss over")


@pytest.mark.parametrize("kind", ["more", "fewer", "other order"])
def test_a_run_whose_domains_changed_has_a_page(tmp_path, write_run, add_records, kind):
    before = {"a": 1.0, "b": 2.0, "c": 3.0}
    after = {
        "more": {"new": 9.0, **before},
        "fewer": {"a": 1.0, "c": 3.0},
        "other order": {"c": 3.0, "b": 2.0, "a": 1.0},
    }
    folder = write_run(tmp_path / "run", before, moving=True, planned=200)
    later = write_run(tmp_path / "later", after[kind], steps=200, moving=True)
    records = [json.loads(line) for line in (later / "metrics.jsonl").read_text().splitlines()]
    add_records(folder, *(record for record in records if record["step"] > 100))
    page = Page(write_report(folder).read_text())
    words = " ".join(page.text)
    said = {"more": "After step 100 new came.", "fewer": "After step 100 b left."}
    assert said.get(kind, "Step 200 of 200") in words
    assert ("b (left after step 100)" in words) == (kind == "fewer")
    assert ("After step" in words) == (kind != "other order")
    assert "What the mixer did" in words
    other = write_run(tmp_path / "other", before, steps=200)
    sentences = describe_result([load_run(folder), load_run(other)])
    if kind != "other order":
        assert f"run: {said[kind]}" in sentences
    write_report(tmp_path, out=tmp_path / "all.html")


def test_a_source_that_ran_out_is_said_with_its_step_and_real_share(tmp_path, write_run, add_records):
    given = {"ended_early": "the stream ended after step 100: every source is used up"}
    folder = write_run(tmp_path / "run", {"a": 1.0, "b": 2.0}, planned=200, extra=given)
    shares = {"data/tokens/a": 300, "data/tokens/b": 900, "mix/weight/a": 0.0, "mix/weight/b": 1.0}
    add_records(folder, {"kind": "used_up", "step": 50, "used_up/a": 0.05}, {**load_run(folder).train[-1], **shares})
    run = load_run(folder)
    assert "a ran out at step 50, and the others took its share: 25.0 % of all tokens are of it." in describe_result(
        [run]
    )
    assert f"It ended early: {given['ended_early']}." in describe_result([run])
    assert "Known remedies" not in " ".join(describe_result([run]))
    row = dict(zip(run_table(run).columns, run_table(run).rows[0], strict=True))
    assert row["domain"] == "a (ran out at step 50)"
    assert (row["weight"], row["share of tokens"], row["tokens"]) == ("0 %", "25.0 %", "300")
    assert "a (ran out at step 50)" in " ".join(Page(write_report(folder).read_text()).text)
    done = load_run(write_run(tmp_path / "done", {"a": 1.0, "b": 2.0}))
    left_out = f"Not finished, and left out: run ({given['ended_early']})."
    assert left_out in describe_result([run, done])


def test_losses_of_a_handful_of_tokens_are_marked_everywhere(six_runs):
    for folder in six_runs.iterdir():
        about = json.loads((folder / "provenance.json").read_text())
        about["held_out_tokens"] = {"eval": {"bible": 100, "code & <tags>": 1000}}
        (folder / "provenance.json").write_text(json.dumps(about))
    runs = [load_run(p) for p in sorted(six_runs.iterdir())]
    marked = "bible (only 100 evaluated tokens)"
    for table in (run_table(runs[0]), comparison_table(runs), *domain_tables(runs)):
        assert [row[0] for row in table.rows[:2]] == [marked, "code & <tags>"]
    said = "(bible 100): their losses have a standard error of up to about 0.2 nats."
    assert any(said in sentence for sentence in describe_result(runs[:1]))
    assert sum(said in sentence for sentence in describe_result(runs)) == 1


def test_weights_of_compared_variants_have_one_scale(six_runs, write_run, monkeypatch):
    write_run(six_runs / "other", {"bible": 1.0, "code & <tags>": 2.0, "mail": 1.0, "news": 1.0}, moving=True)
    tops = {}
    real = charts.lines
    monkeypatch.setattr(
        charts, "lines", lambda *a, name, **k: tops.update({name: k.get("y_top")}) or real(*a, name=name, **k)
    )
    write_report(six_runs)
    weights = {name: top for name, top in tops.items() if name.startswith("weights")}
    assert len(weights) == 2
    assert list(weights.values()) == pytest.approx([1.05 * 0.75] * 2)


def test_hashes_are_short_and_nothing_is_pushed_out_of_view(tmp_path, write_run):
    whole = {"web": "0123456789abcdef" * 4, "code": "fedcba9876543210" * 4}
    extra = {"data_hash": whole, "commit": "0" * 40 + "-dirty"}
    text = write_report(write_run(tmp_path / "run", {"web": 1.0, "code": 2.0}, extra=extra)).read_text()
    assert f'web <span title="{whole["web"]}">0123456789ab…</span>, code <span title="{whole["code"]}">' in text
    assert f'<span title="{"0" * 40}">000000000000…</span>-dirty' in text
    for table in re.findall(r"<[^>]*><table", text):
        assert table == '<div class="scroll"><table'
    style = text[text.index("<style>") : text.index("</style>")]
    assert ".scroll { overflow-x: auto;" in style
    assert re.search(r"table\.facts td \{[^}]*overflow-wrap: anywhere", style)
    assert not re.search(r"th[^{]*\{[^}]*white-space: nowrap", style)  # headings may wrap
