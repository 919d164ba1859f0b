import os
import sys
from types import SimpleNamespace

import pytest

from jaxmix.core.errors import ConfigError, EnvironmentProblem
from jaxmix.data.sources import specs
from jaxmix.data.sources.readers import Trouble
from jaxmix.data.sources.specs import SourceSpec


def corpus(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def names_of(path):
    found, passed = SourceSpec("a", path=path).listing()
    return [file.name for file in found], {kind: entry["count"] for kind, entry in passed.to_json().items()}


@pytest.mark.parametrize("entry", ["tow.txt", "none/", "no*.txt", "code", "x" * 5000])
def test_every_path_of_a_list_must_find_something(tmp_path, entry):
    corpus(tmp_path, "one.txt", "code/a.py")
    with pytest.raises(ConfigError, match=r"(no file at|files of unknown endings).*\(sources\.a\.path\)") as caught:
        names_of((str(tmp_path / "one.txt"), str(tmp_path / entry)))
    assert len(str(caught.value)) < 1000


def test_folders_that_a_pattern_matches_are_read_once(tmp_path):
    corpus(tmp_path, "glb/x.txt", "glb/sub/z.txt", "glb/sub/low/b.py", "glb/part.txt/y.txt")
    for pattern in ("glb", "gl*", "glb/**", "**"):
        assert names_of(str(tmp_path / pattern)) == (["y.txt", "z.txt", "x.txt"], {specs.UNKNOWN_ENDING: 1}), pattern
    assert names_of(str(tmp_path / "glb/*"))[0] == ["y.txt", "z.txt", "x.txt"]
    assert names_of(str(tmp_path / "glb/**/*.txt"))[0] == ["y.txt", "z.txt", "x.txt"]


@pytest.mark.parametrize("pattern", [".", "*", "**/*.*", "prepared/x", "prepared/x/a", "**/*.array_record"])
def test_what_jaxmix_prepared_is_no_document(tmp_path, monkeypatch, pattern):
    corpus(tmp_path, "a.txt", "prepared/x/a/1/train-00000.array_record", "prepared/x/a/1/unit-00000.json")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prepared/x/plan.json").write_text('{"settings": {"max_record_tokens": 16}}')
    if pattern in (".", "*", "**/*.*"):
        assert names_of(pattern) == (["a.txt"], {specs.PREPARED: 1})
    else:
        with pytest.raises(ConfigError, match=r"holds what jaxmix prepared alone.*data\.prepared"):
            names_of(pattern)


@pytest.mark.parametrize("hashed_whole", [0, 10**9])
def test_a_change_in_the_middle_of_a_file_changes_the_fingerprint(tmp_path, monkeypatch, hashed_whole):
    monkeypatch.setattr(specs, "_HASHED_WHOLE", hashed_whole)
    path, spec = tmp_path / "a.txt", SourceSpec("a", path=str(tmp_path))
    for size, is_sampled in ((130_000, False), (330_000, hashed_whole == 0)):
        path.write_bytes(b"x" * size)
        os.utime(path, ns=(0, 0))
        before = spec.fingerprint()
        os.utime(path, ns=(0, 1))
        assert (spec.fingerprint() != before) == is_sampled  # a time counts only where bytes are not read
        path.write_bytes(b"x" * (size // 2) + b"y" * 10 + b"x" * (size - size // 2 - 10))
        assert spec.fingerprint() != before


class Saved(list):
    split = None


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the package `datasets`, with a dataset of two configurations."""
    configs = {"en": ["hello"], "fr": ["salut"]}

    def load(name, config, *, split):
        if name != "greetings":
            raise RuntimeError("not found\nat all")
        if config not in configs:
            raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['en', 'fr']")
        return configs[config]

    def names(name):
        if name != "greetings":
            raise RuntimeError("not found")
        return list(configs)

    found = SimpleNamespace(load_dataset=load, get_dataset_config_names=names, DatasetDict=dict)
    monkeypatch.setitem(sys.modules, "datasets", found)
    return found


def texts(**settings):
    spec = SourceSpec("a", **settings)
    return [text for unit in spec.units() for _, text in spec.decoded(unit, Trouble())]


def test_a_dataset_with_configurations_takes_the_one_that_is_named(hub):
    assert texts(hf="greetings", config_name="fr") == ["salut"]
    hashes = {SourceSpec("a", hf="greetings", config_name=name).fingerprint() for name in ("en", "fr")}
    assert len(hashes) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hf": "greetings"}, r"has 2 configurations: no configuration is chosen.*a\.config_name.*Known: en, fr"),
        ({"hf": "greetings", "config_name": "frr"}, r"no 'frr'.*Did you mean 'fr'"),
        ({"hf": "greeting"}, r"cannot open 'greeting': not found \(sources\.a\.hf\)"),
        ({"tfds": "x", "config_name": "fr"}, r"Hugging Face datasets alone.*dataset/config"),
        ({"path": "x", "config_name": "fr"}, r"Hugging Face datasets alone"),
    ],
)
def test_a_wrong_configuration_is_named_with_those_there_are(hub, settings, message):
    with pytest.raises(ConfigError, match=message):
        texts(**settings)


def test_a_dataset_by_name_is_never_made_and_a_missing_package_is_of_the_machine(monkeypatch):
    given = {}

    def data_source(name, **settings):
        given.update(settings)
        raise ModuleNotFoundError("No module named 'apache_beam'", name="apache_beam")

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", SimpleNamespace(data_source=data_source))
    with pytest.raises(EnvironmentProblem, match=r"needs the package 'apache_beam'.*sources\.a\.tfds"):
        texts(tfds="mnist")
    assert given == {"split": "train", "download": False}


def test_splits_of_saved_datasets(hub, tmp_path):
    (tmp_path / "dataset_dict.json").write_text("{}")
    hub.load_from_disk = lambda path: {"train": ["x", "y"], "dev": ["z"]}
    assert texts(hf=str(tmp_path), split="dev") == ["z"]
    with pytest.raises(ConfigError, match=r"no split 'test' \(sources\.a\.split\)\. Known: dev, train"):
        texts(hf=str(tmp_path), split="test")
    with pytest.raises(ConfigError, match="has no configurations"):
        texts(hf=str(tmp_path), config_name="en")
    (tmp_path / "dataset_dict.json").rename(tmp_path / "state.json")
    saved = Saved(["x", "y"])
    hub.load_from_disk = lambda path: saved
    assert texts(hf=str(tmp_path)) == ["x", "y"]
    saved.split = "dev"
    assert texts(hf=str(tmp_path), split="dev") == texts(hf=str(tmp_path)) == ["x", "y"]
    with pytest.raises(ConfigError, match="holds one split, 'dev', and no 'test'"):
        texts(hf=str(tmp_path), split="test")
