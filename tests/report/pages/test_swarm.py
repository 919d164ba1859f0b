"""The page of a swarm, from chunks whose values can be worked out by hand."""

import json
import math

import numpy as np
import pytest

from jaxmix.cli import main
from jaxmix.data.run_tables import write_run_table
from jaxmix.laws import RunTable
from jaxmix.report import write_report
from jaxmix.report.pages.swarm import describe_swarm, is_swarm, read_swarm, swarm_table
from jaxmix.train.swarm.files import ChunkResult, ProxyResult, chunk_folder, pinned_chunks, write_chunk

NAMES = ("web", "code & <tags>")


def proxy(name, weights, losses, seed=0, reason=None):
    losses = np.asarray([math.nan] * 2 if reason else losses)
    return ProxyResult(name, np.asarray(weights), seed, losses, losses[None], 0, 2000, reason)


@pytest.fixture
def folder(tmp_path):
    """Three mixtures of two seeds, of which one proxy failed and the last chunk is not trained."""
    out = tmp_path / "swarm"
    first = [
        proxy("small/even-seed0", (0.5, 0.5), (2.0, 3.0)),
        proxy("small/web-seed0", (0.9, 0.1), (1.0, 3.0)),
        proxy("small/code-seed0", (0.0, 1.0), (4.0, 3.0)),
        proxy("small/even-seed1", (0.5, 0.5), (2.2, 3.2), seed=1),
        proxy("small/web-seed1", (0.9, 0.1), (1.0, 3.0), seed=1, reason="the loss was nan"),
    ]
    names = [*(p.name for p in first), "small/code-seed1"]
    assert pinned_chunks(out / "small", names, "f", 5) == [[0, 1, 2], [3, 4, 5]]
    plan = json.loads((out / "small" / "plan.json").read_text())
    (out / "small" / "plan.json").write_text(json.dumps({**plan, "chunks": [[0, 5], [5, 6]]}))
    write_chunk(chunk_folder(out / "small", 0), ChunkResult(NAMES, tuple(first), (0,), 1.0))
    config = {
        "design": {"runs": 3},
        "sizes": {"small": {"data": {"prepared": str(tmp_path / "nowhere"), "validation_rows": 4, "seq_len": 100}}},
    }
    (out / "config.yaml").write_text(json.dumps(config))
    (out / "provenance.json").write_text(json.dumps({"command": "jaxmix swarm run <x>", "started": "today"}))
    return out


def test_the_result_comes_first_with_spread_and_failures(folder):
    assert describe_swarm(read_swarm(folder)) == [
        "small: web has the lowest mean loss over 2 domains, 2.0000 nats per token, with web 90.0 %, code & <tags> "
        "10.0 %.",
        "Next is even, +0.6000; 3 mixtures range up to 3.5000; standard deviation 0.7550 between mixtures and 0.1414 "
        "between seeds of one mixture.",
        "At most 400 tokens of a domain are evaluated: its loss has a standard error of about 0.1 nats or more.",
        "Proxies without a result: 1: small/web-seed1 (the loss was nan).",
        "Proxies that are not trained yet: 1.",
    ]


def test_the_table_has_what_was_tried_and_what_there_is(folder):
    table = swarm_table(read_swarm(folder), "small")
    assert table.rows[0] == ("web", "90.0 %", "0 % to 90.0 %", "1.0000", "1.0000 to 4.0000", "?", "?")
    assert table.rows[-1] == ("mean over domains", "", "", "2.0000", "2.0000 to 3.5000", "", "")
    known = np.array([1.2e-6, 5e-6])
    write_run_table(
        folder / "table.csv",
        RunTable(np.eye(2), np.ones((2, 2)), np.ones(2), np.ones(2), NAMES, NAMES, available_tokens=known),
    )
    rows = swarm_table(read_swarm(folder), "small").rows
    assert [row[-2:] for row in rows[:2]] == [("1,200", "1.50"), ("5,000", "0.04")]  # 0.9 and 0.1 of 2,000 tokens


def test_the_command_writes_the_page_of_a_swarm(folder, tmp_path, capsys):
    assert is_swarm(folder)
    (tmp_path / "runs" / "prepared").mkdir(parents=True)
    (tmp_path / "runs" / "prepared" / "plan.json").write_text("{}")  # that of `prepare`
    assert not is_swarm(tmp_path / "runs")
    assert main(["report", str(folder), "--dry-run"]) == 0
    assert "from the swarm" in capsys.readouterr().out
    assert main(["report", str(folder)]) == 0
    assert "small: web has the lowest mean loss" in capsys.readouterr().out
    text = (folder / "report.html").read_text()
    assert text.count("<svg") == 1
    assert text.count("<table>") == 1
    assert "<tags>" not in text
    assert "small: web has the lowest" in text[: text.index("<svg")]


def test_a_swarm_that_has_only_begun_has_a_page(folder):
    (chunk_folder(folder / "small", 0) / "result.json").unlink()
    assert "Proxies that are not trained yet: 6." in write_report(folder).read_text()
