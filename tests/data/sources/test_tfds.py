"""A tensorflow-datasets source, read without TensorFlow."""

import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
import sys
import tensorflow_datasets as tfds

class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(20):
            yield i, {"text": f"text number {i}"}

Tiny(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()

from jaxmix.data import SourceSpec, byte_tokenizer, open_prepared, prepare_corpus

real = tfds.data_source
tfds.data_source = lambda name, **settings: real(name, data_dir=sys.argv[1], **settings)
spec = SourceSpec(name="a", tfds="tiny")
prepare_corpus({"a": spec}, sys.argv[2], tokenizer=byte_tokenizer(), validation_fraction=0.2)
found = set()
for split in ("train", "validation"):
    source = open_prepared(sys.argv[2], split)["a"]
    found |= {byte_tokenizer().decode(source[i]) for i in range(len(source))}
assert found == {f"text number {i}" for i in range(20)}, found
assert "tensorflow" not in sys.modules
print("fine")
"""


def test_a_dataset_on_disk_is_read_without_tensorflow(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    (tmp_path / "tiny").mkdir()
    path = tmp_path / "tiny" / "build.py"
    path.write_text(textwrap.dedent(SCRIPT))
    arguments = [sys.executable, str(path), str(tmp_path / "data"), str(tmp_path / "out")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith("fine\n")
