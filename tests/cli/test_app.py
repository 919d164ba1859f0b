import json
import subprocess
import sys

import pytest

from jaxmix.cli import app, main


def test_help_imports_nothing_but_the_standard_library():
    """That is what keeps it fast: importing jax alone takes longer than all of `--help`."""
    code = (
        "import sys; before = set(sys.modules); from jaxmix.cli import main; code = main(['--help']); "
        "loaded = {name.split('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names - {'jaxmix'}; "
        "sys.exit(f'{code} {loaded}' if code or loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout


@pytest.mark.parametrize("command", [c.name for c in app.COMMANDS])
def test_every_command_has_a_help_page(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: jaxmix {command}")


def test_no_command_shows_the_overview_and_is_an_error(capsys):
    assert main([]) == 2
    assert "Usage: jaxmix COMMAND" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("jaxmix ")
    assert main(["--halp"]) == 2
    assert "unknown option '--halp'" in capsys.readouterr().err


def run_with(monkeypatch, error, *words):
    def fail(arguments):
        raise error

    monkeypatch.setattr("jaxmix.cli.train.plan", fail)
    return main(["plan", "x.yaml", *words])


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys):
    assert run_with(monkeypatch, KeyboardInterrupt(), "--train.steps", "5") == 1
    assert capsys.readouterr().err == "jaxmix: stopped. Start again with: jaxmix plan x.yaml --train.steps 5\n"
    assert run_with(monkeypatch, KeyboardInterrupt("Kept.")) == 1
    assert capsys.readouterr().err == "jaxmix: stopped. Kept.\n"


def test_an_unexpected_error_is_one_paragraph_and_a_traceback_with_debug(monkeypatch, capsys):
    assert run_with(monkeypatch, ZeroDivisionError("two\n lines")) == 1
    error = capsys.readouterr().err
    assert error.startswith("jaxmix: ZeroDivisionError: two lines (unexpected")
    assert error.count("\n") == 1
    assert run_with(monkeypatch, ZeroDivisionError("x"), "--debug") == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_plan_writes_json_without_color_codes(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text("sources: {a: {path: x, tokens: 1000}}\ntrain: {steps: 3}\ndata: {prepared: nowhere}\n")
    assert main(["plan", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 3
    assert main(["plan", str(path)]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "Memory per device" in text
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    command = f"{sys.executable} -m jaxmix train --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("Usage: jaxmix train")
    assert "jaxmix:" not in done.stderr


@pytest.mark.parametrize("command", [c for c in app.COMMANDS if c.sections], ids=lambda c: c.name)
def test_every_key_that_a_help_page_lists_can_be_overridden(command):
    listed = {name.split(".")[0] for name, _ in app._config_keys(command)}
    assert listed <= {*command.sections, *(flag.key for flag in command.flags)}


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["train", "x.yaml", "--steps", "3"], "--train.steps"),
        (["train", "x.yaml", "--lr", "3"], "--train.learning_rate"),
        (["train", "x.yaml", "--batch-size=3"], "--data.batch_size"),
        (["finetune", "x.yaml", "--lr", "3"], "--train.learning_rate or --start.learning_rate"),
        (["discover", "x.yaml", "--num_clusters", "3"], "--clusterer.num_clusters"),
    ],
)
def test_an_option_without_its_section_is_completed(words, meant, capsys):
    assert main(words) == 2
    assert f"Did you mean {meant}?" in capsys.readouterr().err


def test_what_is_found_after_the_file_is_read_names_the_file_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "web.yaml").write_text("sources: {notes: {path: data/notes}}\ntrain: {steps: 1}\n")
    assert main(["prepare", "web.yaml", "--dry-run"]) == 2
    assert "(web.yaml, sources.notes.path)" in capsys.readouterr().err
    assert main(["prepare", "web.yaml", "--dry-run", "--sources.notes.path", "other"]) == 2
    assert "(command line, --sources.notes.path)" in capsys.readouterr().err


@pytest.mark.parametrize("section", ["train", "data"])
def test_a_comparison_with_a_section_that_is_no_mapping(section, tmp_path, capsys):
    variants = "{a: {}}"
    base = {"train": "{steps: 1}", "data": "{}"} | {section: "3"}
    text = f"variants: {variants}\nbase: {{sources: bundled, train: {base['train']}, data: {base['data']}}}\n"
    (tmp_path / "c.yaml").write_text(text)
    assert main(["compare", str(tmp_path / "c.yaml"), "--dry-run"]) == 2
    assert f"{section} must be a mapping, got 3" in capsys.readouterr().err
