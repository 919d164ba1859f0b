"""Checkpoints of the BERT family with random weights, as Hugging Face writes them, and their forward in NumPy."""

import json
import math

import numpy as np
from tolerance import float32_tolerance

WORDS = [
    "[PAD]",
    "[CLS]",
    "[SEP]",
    "[UNK]",
    *["the", "a", "cat", "dog", "sat", "ran", "on", "mat", "query", ":", "B", "b"],
]
TEXTS = [
    "the cat sat on the mat",
    "",
    "a dog",
    "B b",
    " \n\t ",
    "the dog ran " * 40,
    "a cat ran",
    "unheard words",
    "cat",
]
WIDTH, HEADS, LAYERS, HIDDEN, LENGTH = 8, 2, 2, 12, 20
ROUNDING = float32_tolerance(1.0, LAYERS * (2 * WIDTH + LENGTH + WIDTH + HIDDEN) + LENGTH)
"""Of a row of unit length: queries, scores, values, output and MLP of each layer, then the mean over tokens."""


def write_safetensors(path, arrays):
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, array in arrays.items():
        array = np.asarray(array, "<f4")
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("[CLS]", 1), ("[SEP]", 2)]
    fast.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    fast.enable_padding(length=50)  # as a training left it; an encoder must not follow
    fast.enable_truncation(6)
    fast.save(str(folder / "tokenizer.json"))


def weights(positions, prefix="", is_old=False):
    """Random weights by the names of Hugging Face, float64 values that float32 holds exactly."""
    rng = np.random.default_rng(0)
    scale, bias = ("gamma", "beta") if is_old else ("weight", "bias")
    arrays = {}

    def add(name, *shape, size=0.4, mean=0.0):
        arrays[prefix + name] = np.float64(np.float32(mean + size * rng.normal(size=shape)))

    def norm(name):
        add(f"{name}.{scale}", WIDTH, size=0.2, mean=1)
        add(f"{name}.{bias}", WIDTH, size=0.2)

    add("embeddings.word_embeddings.weight", len(WORDS), WIDTH, size=1)
    add("embeddings.position_embeddings.weight", positions, WIDTH, size=1)
    add("embeddings.token_type_embeddings.weight", 2, WIDTH, size=1)
    norm("embeddings.LayerNorm")
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            add(f"{layer}.attention.self.{part}.weight", WIDTH, WIDTH)
            add(f"{layer}.attention.self.{part}.bias", WIDTH)
        for part, rows, columns in (("attention.output", WIDTH, WIDTH), ("intermediate", HIDDEN, WIDTH)):
            add(f"{layer}.{part}.dense.weight", rows, columns)
            add(f"{layer}.{part}.dense.bias", rows)
        add(f"{layer}.output.dense.weight", WIDTH, HIDDEN)
        add(f"{layer}.output.dense.bias", WIDTH)
        norm(f"{layer}.attention.output.LayerNorm")
        norm(f"{layer}.output.LayerNorm")
    add("pooler.dense.weight", WIDTH, WIDTH)  # what an encoder has no use for
    return arrays


def write_checkpoint(folder, *, kind="bert", pooling="mean", sentence=None, positions=LENGTH, **config):
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    first = 2 if kind != "bert" else 0
    plain = {"model_type": kind, "vocab_size": len(WORDS), "hidden_size": WIDTH, "num_hidden_layers": LAYERS}
    plain |= {"num_attention_heads": HEADS, "intermediate_size": HIDDEN, "layer_norm_eps": 1e-5, "pad_token_id": 1}
    plain |= {"hidden_act": "gelu", "max_position_embeddings": positions + first, "type_vocab_size": 2, **config}
    (folder / "config.json").write_text(json.dumps(plain))
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    modules += [{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": WIDTH, **modes}))
    (folder / "sentence_bert_config.json").write_text(json.dumps(sentence or {}))
    prefix = "" if kind == "bert" else "roberta."
    arrays = weights(positions + first, prefix, is_old=kind != "bert")
    if kind == "bert":
        write_safetensors(folder / "model.safetensors", arrays)
        return
    names = list(arrays)
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        write_safetensors(folder / file, {name: arrays[name] for name in names if files[name] == file})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def layer_norm(x, arrays, name):
    scale, bias = (arrays.get(f"{name}.{new}", arrays.get(f"{name}.{old}")) for new, old in
                   (("weight", "gamma"), ("bias", "beta")))  # fmt: skip
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + bias


def oracle(ids, arrays, *, first, pooling, activation):
    """One text of exactly its own length, head by head, in float64."""
    get = lambda name, x: x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]
    x = arrays["embeddings.word_embeddings.weight"][ids] + arrays["embeddings.token_type_embeddings.weight"][0]
    x = layer_norm(x + arrays["embeddings.position_embeddings.weight"][first + np.arange(len(ids))], arrays,
                   "embeddings.LayerNorm")  # fmt: skip
    for i in range(LAYERS):
        layer, size = f"encoder.layer.{i}", WIDTH // HEADS
        query, key, value = (get(f"{layer}.attention.self.{part}", x) for part in ("query", "key", "value"))
        mixed = np.zeros_like(x)
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            scores = np.exp(query[:, part] @ key[:, part].T / np.sqrt(size))
            mixed[:, part] = scores / scores.sum(1, keepdims=True) @ value[:, part]
        x = layer_norm(x + get(f"{layer}.attention.output.dense", mixed), arrays, f"{layer}.attention.output.LayerNorm")
        inner = activation(get(f"{layer}.intermediate.dense", x))
        x = layer_norm(x + get(f"{layer}.output.dense", inner), arrays, f"{layer}.output.LayerNorm")
    row = x[0] if pooling == "cls" else x.mean(0)
    return row / np.linalg.norm(row)


def ids_of(text, length=LENGTH):
    words = [WORDS.index(word) if word in WORDS else 3 for word in text.replace(":", " : ").split()]
    return [1, *words[: length - 2], 2]


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))
