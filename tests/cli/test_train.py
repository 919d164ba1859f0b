import json
import subprocess
import sys

import pytest
import yaml

from jaxmix.cli import main


@pytest.fixture
def config(tmp_path):
    (tmp_path / "a b.txt").write_text(
        "some text that is long enough to be divided between the splits, and not a word more"
    )
    content = {"sources": {"a": {"path": str(tmp_path / "a b.txt")}}, "data": {"prepared": str(tmp_path / "prepared")}}
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({**content, "train": {"steps": 1}}))
    return path


def test_a_path_that_is_no_utf_8_is_printed_with_escapes(tmp_path):
    config = tmp_path / "c\udcff 'x'.yaml"
    config.write_text(f"{{sources: {{a: {{path: {tmp_path}/a.txt}}}}, train: {{steps: 1}}}}")
    (tmp_path / "a.txt").write_text("A text that is divided between the splits. " * 3)
    code = "import sys; from jaxmix.cli import main; sys.exit(main(['prepare', *sys.argv[1:]]))"
    command = [sys.executable, "-c", code, config, "--dry-run", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["prepared"] == f"prepared/{config.stem}"


def test_a_folder_that_is_no_utf_8_is_refused(config, capsys):
    odd = config.rename(config.with_name("c\udcff.yaml"))
    assert main(["prepare", str(odd), "--data.prepared", "null"]) == 2
    assert "prepared/c\\xff is not UTF-8" in capsys.readouterr().err


def test_verify_reads_what_is_prepared_and_prepares_nothing(config, tmp_path, capsys):
    prepared = tmp_path / "prepared"
    assert main(["prepare", str(config), "--verify"]) == 2
    assert "there is no prepared data" in capsys.readouterr().err
    assert not prepared.exists()
    assert main(["prepare", str(config)]) == 0
    capsys.readouterr()
    files = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    assert main(["prepare", str(config), "--verify"]) == 0
    assert capsys.readouterr().out.startswith("a: OK (2 files, ")
    shard = next(prepared.rglob("train-*.array_record"))
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    files[shard] = shard.stat().st_mtime_ns
    assert main(["prepare", str(config), "--verify", "--json"]) == 1
    (damage,) = json.loads(capsys.readouterr().out)["sources"]["a"]["damage"]
    assert str(shard) in damage
    assert main(["prepare", str(config), "--verify"]) == 1
    assert "The prepared folder is damaged. Remove" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*")} == files
    other = ["--sources", f"{{b: {{path: {tmp_path}/x.txt}}}}"]
    assert main(["prepare", str(config), "--verify", *other]) == 2
    assert "holds the domains a, the configuration names b" in capsys.readouterr().err
