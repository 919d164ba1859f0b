import json

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
