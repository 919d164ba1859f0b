import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.data.run_tables import read_mixtures, read_regmix, read_run_table, write_mixtures, write_run_table
from jaxmix.laws import RunTable

ROOT = Path(__file__).parents[2]
TABLES = Path(os.environ.get("JAXMIX_DATA", ROOT.parent / "shared" / "data"))


def random_table(runs=7, seed=0):
    rng = np.random.default_rng(seed)
    losses = rng.uniform(1, 4, (runs, 3))
    losses[2, 1] = np.nan
    return RunTable(
        rng.dirichlet(np.full(4, 0.3), runs),
        losses,
        rng.uniform(0.1, 900, runs),
        rng.uniform(1e-4, 30, runs),
        ["a", "b, c", 'd "quoted"', "é/x"],
        ["a", "other", "é/x"],
        seed=rng.integers(0, 5, runs),
    )


def test_a_table_reads_back_to_the_last_bit(tmp_path):
    table = random_table()
    path = write_run_table(tmp_path / "deep" / "runs.csv", table)
    read = read_run_table(path)
    for name in ("weights", "losses", "model_size", "tokens", "seed", "metric_domain"):
        np.testing.assert_array_equal(getattr(read, name), getattr(table, name))
    assert read.domain_names == table.domain_names
    assert read.metric_names == table.metric_names
    assert read.metric_domain.tolist() == [0, -1, 3]
    assert [p.name for p in path.parent.iterdir()] == ["runs.csv"]


def test_columns_may_come_in_any_order_and_seed_and_run_are_optional(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("\ufefftokens,loss/x,weight/x,model_size,weight/y\n2, 3.5,0.25,7,0.75\n\n1,,1,7,0\n")
    table = read_run_table(path)
    assert table.weights.tolist() == [[0.25, 0.75], [1.0, 0.0]]
    assert table.tokens.tolist() == [2.0, 1.0]
    assert table.losses[0, 0] == 3.5
    assert np.isnan(table.losses[1, 0])
    assert table.seed.tolist() == [0, 0]


HEAD = "run,model_size,tokens,seed,weight/x,weight/y,loss/x\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no runs"),
        (HEAD, "no runs"),
        ("model_size,tokens,weight/x\n1,1,1\n", "no column loss/"),
        ("model_size,tokens,loss/x\n1,1,1\n", "no column weight/"),
        ("tokens,weight/x,loss/x\n1,1,1\n", "'model_size' is missing (t.csv, line 1)"),
        ("model_size,tokens,weight/x,loss/x,los/y\n1,1,1,1,1\n", "unknown column 'los/y'"),
        ("model_size,tokens,weight/x,weight/x,loss/x\n1,1,1,0,1\n", "'weight/x' occurs twice"),
        (HEAD + "0,1,1,0,0.5,0.5,2\n1,1,1,0,1,0\n", "6 cells for 7 columns (t.csv, line 3)"),
        (HEAD + "0,1,1,0,0.5,half,2\n", "weight/y is not a number: 'half' (t.csv, line 2, column weight/y)"),
        (HEAD + "0,1,1,0,0.5,,2\n", "weight/y is empty (t.csv, line 2, column weight/y)"),
        (HEAD + "0,1,1,0,1.5,-0.5,2\n", "weight/y must be >= 0: -0.5 (t.csv, line 2"),
        (HEAD + "0,1,1,0,0.5,0.3,2\n", "add up to 0.8, not 1 (t.csv, line 2)"),
        (HEAD + "0,0,1,0,0.5,0.5,2\n", "model_size must be > 0: '0' (t.csv, line 2, column model_size)"),
        (HEAD + "0,1,1,0,0.5,0.5,-2\n", "loss/x must be > 0"),
        (HEAD + "0,1,1,0,0.5,0.5,inf\n", "loss/x must be finite"),
        (HEAD + "0,1,1,0,0.5,0.5,\n", "'loss/x' holds no loss"),
        (HEAD + "0,1,1,0.5,0.5,0.5,2\n", "seed must be a whole number"),
        (HEAD + "0,1,1,,0.5,0.5,2\n", "seed is empty (t.csv, line 2, column seed)"),
        (HEAD + "0,1,1,true,0.5,0.5,2\n", "seed is not a number: 'true'"),
        (
            HEAD + "0,1,1,99999999999999999999,0.5,0.5,2\n",
            "below 2**63 in size: '99999999999999999999' (t.csv, line 2, column seed)",
        ),
        (HEAD + "0,1,1,1e999999999,0.5,0.5,2\n", "below 2**63 in size: '1e999999999'"),
        (HEAD + "0,1,1,nan,0.5,0.5,2\n", "below 2**63 in size: 'nan'"),
        (HEAD + "3,1,1,0,0.5,0.5,2\n3.0,1,1,1,1,0,2\n", "run '3.0' occurs twice, first in line 2 (t.csv, line 3"),
        (HEAD + "0,1,1,0,25,75,2\n", "add up to 100, not 1 (t.csv, line 2). If they are percent, divide them by 100"),
        (HEAD + "0,1,1,0,25%,75%,2\n", "weight/x is not a number: '25%'"),
        (HEAD + '0,"60,000",1,0,0.5,0.5,2\n', "model_size is not a number: '60,000'"),
        (HEAD + "0,1,2024-05-01,0,0.5,0.5,2\n", "tokens is not a number: '2024-05-01'"),
        (HEAD + "0,1,1,0,0.5,nan,2\n", "weight/y must be finite: 'nan'"),
        (HEAD + "0,1,1e999,0,0.5,0.5,2\n", "tokens must be finite: '1e999'"),
        (HEAD.replace(",", ";") + "0;1;1;0;0,5;0,5;2\n", "the columns are not separated by commas"),
        (HEAD.replace(",", "\0,") + "0,1,1,0,0.5,0.5,2\n", "NUL bytes"),
        ("model_size,tokens,weight_web,weight_code,loss\n1,1,0.5,0.5,2\n", "Did you mean 'weight/web'?"),
        ("model_size,tokens,weight/web,loss\n1,1,1,2\n", "Did you mean 'loss/<metric>'?"),
    ],
)
def test_a_bad_table_is_refused_by_line_and_column(text, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_run_table("t.csv")
    assert complaint in str(caught.value)


def test_seeds_are_read_to_the_last_digit(tmp_path):
    path, seeds = tmp_path / "t.csv", [2**53 + 1, 2**62 + 3, -(2**62) - 1, 2**63 - 1, 3]
    path.write_text(HEAD + "".join(f"{i},1,1,{seed},0.5,0.5,2\n" for i, seed in enumerate(seeds)) + "9,1,1,1e3,1,0,2\n")
    table = read_run_table(path)
    assert table.seed.tolist() == [*seeds, 1000]
    assert read_run_table(write_run_table(tmp_path / "again.csv", table)).seed.tolist() == [*seeds, 1000]


def test_a_table_knows_its_domains_by_the_file_beside_it(tmp_path):
    table = dataclasses.replace(random_table(), available_tokens=[0.1, 2e-9, 3.0, 1 / 3], unit="documents")
    path, beside = write_run_table(tmp_path / "t.csv", table), tmp_path / "t.domains.json"
    assert json.loads(beside.read_text())["available_tokens"]["a"] == 0.1
    read = read_run_table(path)
    assert (read.unit, read.available_tokens.tolist()) == ("documents", [0.1, 2e-9, 3.0, 1 / 3])
    for text, complaint in (
        ('{"unit": "document"}', "Did you mean 'documents'"),
        ('{"availabel_tokens": {}}', "Did you mean 'available_tokens'"),
        ('{"available_tokens": {"a": 1, "b, c": 1, "é/x": 1}}', "no number of tokens for source 'd \"quoted\"'"),
        ('{"available_tokens": {"A": 1}}', "unknown source 'A'"),
        ('{"available_tokens": [1, 2, "3", 4]}', "has '3'"),
        ('{"available_tokens": [1, 2, -3, 4]}', "has -3"),
        ('{"available_tokens": [1, 2, NaN, 4]}', "has nan"),
        ("[]", "must be an object"),
        ("{", "cannot read it"),
    ):
        beside.write_text(text)
        with pytest.raises(ConfigError) as caught:
            read_run_table(path)
        assert complaint in str(caught.value)
        assert "t.domains.json" in str(caught.value)
    with pytest.raises(ConfigError, match="unknown unit 'document'"):
        dataclasses.replace(table, unit="document")
    with pytest.raises(ConfigError, match="available_tokens must be 4 numbers >= 0"):
        dataclasses.replace(table, available_tokens=[1, 2, 3])
    write_run_table(path, random_table())  # an earlier table's file would speak of other data
    assert not beside.exists()
    assert read_run_table(path).available_tokens is None


def test_a_file_of_another_encoding_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text(HEAD + "0,1,1,0,0.5,0.5,2\n", encoding="utf-16")
    with pytest.raises(ConfigError, match=r"not UTF-8 text.*saved as UTF-8"):
        read_run_table(tmp_path / "t.csv")


def test_mixtures_read_back_by_name(tmp_path):
    mixtures = {"a, b": {'x"': 0.1, "y": 0.9}, "2": {'x"': 1 / 3, "y": 2 / 3}}
    write_mixtures(tmp_path / "m.csv", mixtures)
    assert read_mixtures(tmp_path / "m.csv") == mixtures


def test_rounded_weights_are_divided_by_their_sum_only_when_asked(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(HEAD + "0,1,1,0,0.333,0.666,2\n")
    with pytest.raises(ConfigError, match="renormalize=True"):
        read_run_table(path)
    weights = read_run_table(path, renormalize=True).weights
    np.testing.assert_allclose(weights, [[1 / 3, 2 / 3]], rtol=1e-15)
    path.write_text(HEAD + "0,1,1,0,0.3,0.6,2\n")
    with pytest.raises(ConfigError, match=r"add up to 0.9, not 1"):
        read_run_table(path, renormalize=True)


def test_a_missing_file_names_the_nearest(tmp_path):
    write_run_table(tmp_path / "runs.csv", random_table())
    with pytest.raises(ConfigError, match=r"Did you mean 'runs.csv'"):
        read_run_table(tmp_path / "run.csv")


def test_a_link_that_names_cannot_say_is_refused(tmp_path):
    one = np.ones(1)
    table = RunTable(np.full((1, 2), 0.5), one[:, None], one, one, ["a", "b"], ["held out"], metric_domain=[1])
    with pytest.raises(ConfigError, match="links metrics and domains by name"):
        write_run_table(tmp_path / "t.csv", table)
    assert not list(tmp_path.iterdir())


def test_regmix_files_are_joined_on_their_index(tmp_path):
    (tmp_path / "m.csv").write_text("index,train_the_pile_a,train_the_pile_b\n5,0.333,0.666\n2,1.0,0.0\n")
    (tmp_path / "l.csv").write_text("index,metric/the_pile_b_val_loss\n2,3.0\n5,2.0\n")
    table = read_regmix(tmp_path / "m.csv", tmp_path / "l.csv", model_size=1, tokens=2)
    assert table.domain_names == ("a", "b")
    assert table.metric_names == ("b",)
    assert table.metric_domain.tolist() == [1]
    assert table.losses.tolist() == [[2.0], [3.0]]
    np.testing.assert_allclose(table.weights[0], [1 / 3, 2 / 3], rtol=1e-15)
    (tmp_path / "l.csv").write_text("index,metric/the_pile_b_val_loss\n2,3.0\n")
    with pytest.raises(ConfigError, match=r"index 5 is not in .*l\.csv \(.*m\.csv, line 2\)"):
        read_regmix(tmp_path / "m.csv", tmp_path / "l.csv", model_size=1, tokens=2)
    (tmp_path / "l.csv").write_text("index,metric/the_pile_b_val_loss\n2.0,3.0\n5.0,2.0\n")
    assert read_regmix(tmp_path / "m.csv", tmp_path / "l.csv", model_size=1, tokens=2).losses.tolist() == [[2.0], [3.0]]
    for twice in ("5", "5.0"):
        (tmp_path / "l.csv").write_text(f"index,metric/the_pile_b_val_loss\n2,3.0\n5,2.0\n{twice},2.0\n")
        with pytest.raises(ConfigError, match=f"index '{twice}' occurs twice, first in line 3 .*line 4"):
            read_regmix(tmp_path / "m.csv", tmp_path / "l.csv", model_size=1, tokens=2)
    (tmp_path / "l.csv").write_text("index,metric/the_pile_b_val_loss\n2,3.0\n,2.0\n")
    with pytest.raises(ConfigError, match="index is empty"):
        read_regmix(tmp_path / "m.csv", tmp_path / "l.csv", model_size=1, tokens=2)
    (tmp_path / "l.csv").write_text("index,metric/the_pile_b_val_loss\n2,3.0\n5,2.0\n9,2.0\n")
    with pytest.raises(ConfigError, match="index 9 is not in"):
        read_regmix(tmp_path / "m.csv", tmp_path / "l.csv", model_size=1, tokens=2)


@pytest.mark.skipif(not (TABLES / "regmix").is_dir(), reason="RegMix tables are not here; set JAXMIX_DATA")
def test_the_published_regmix_tables_read(tmp_path):
    folder = TABLES / "regmix"
    table = read_regmix(folder / "test_mixture_1B.csv", folder / "test_pile_loss_1B.csv", model_size=1000, tokens=25)
    assert table.weights.shape == (64, 17)
    assert table.losses.shape == (64, 13)
    assert (table.metric_domain >= 0).all()
    # Loss of arxiv and weights of the run with index 0 as printed in the files.
    assert table.losses[0, 0] == 1.772475243
    assert table.weights[0, 11] == pytest.approx(0.27, rel=5e-3)
    again = read_run_table(write_run_table(tmp_path / "t.csv", table))
    np.testing.assert_array_equal(again.weights, table.weights)


@pytest.mark.skipif(not (TABLES / "regmix").is_dir(), reason="RegMix tables are not here; set JAXMIX_DATA")
def test_a_published_table_whose_index_became_a_float_still_joins(tmp_path):
    folder, scale = TABLES / "regmix", {"model_size": 1000, "tokens": 25}
    lines = (folder / "test_pile_loss_1B.csv").read_text().splitlines()
    changed = [lines[0], *(line.replace(",", ".0,", 1) for line in reversed(lines[1:]))]
    assert lines[0].startswith("index,")
    (tmp_path / "loss.csv").write_text("\n".join(changed))
    table = read_regmix(folder / "test_mixture_1B.csv", tmp_path / "loss.csv", **scale)
    wanted = read_regmix(folder / "test_mixture_1B.csv", folder / "test_pile_loss_1B.csv", **scale)
    np.testing.assert_array_equal(table.losses, wanted.losses)
